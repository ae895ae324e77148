"""`qth serve` as a process: the commands of a card work as printed, and no request ends it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from qwen_task_heads import build, load_tokenizer, save
from qwen_task_heads.export.servers import Served
from qwen_task_heads.serving.arguments import public_name

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["card", "cash"]


@contextmanager
def served(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the recipe on a free port; yield the process and the port."""
    command = [sys.executable, str(ROOT / "recipes" / "serve.py"), "--model", str(folder), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        found = re.search(r":(\d+); Ctrl-C", process.stdout.readline())
        assert found is not None
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def send(port: int, path: str, body: str | bytes | None = None) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json"}
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, content


def test_clients_do_not_see_the_path_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    assert public_name(str(folder)) == public_name(f"{folder}/") == "my model"
    monkeypatch.chdir(folder)
    assert public_name(".") == "my model"
    assert public_name("me/titles") == "me/titles"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["titles", "pairs", "bidirectional"])
def test_the_request_of_a_card_is_answered(tmp_path: Path, kind: str) -> None:
    from qwen_task_heads import bind_template

    options = {"task": "pooled_classifier", "labels": LABELS, "bidirectional": kind == "bidirectional"}
    model, tokenizer = build("embedded", **({} if kind == "titles" else options)), load_tokenizer("embedded")
    if kind == "pairs":
        bind_template(tokenizer, model.config, pairs=True)
    folder = Path(save(model, tokenizer=tokenizer, folder=tmp_path / kind))
    words = shlex.split(Served.read(folder).curl("me/model"))
    with served(folder) as (process, port):
        path, body = words[1].removeprefix("http://localhost:8000"), words[words.index("-d") + 1]
        status, answer = send(port, path, body)
        assert status == 200, answer
        health = json.loads(send(port, "/health")[1])
        assert health["model"] == kind
        assert str(tmp_path) not in json.dumps(health) + answer
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
