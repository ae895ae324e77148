"""The real `transformers serve`: `/v1/systemone` equals `Scorer` and `LabelScorer` on saved folders.

The server runs in its own process. It loads the code of the folders, which `--trust-remote-code` allows. It
needs the packages of `transformers[serving]`.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import torch
from records import ASKED, QUESTIONS
from transformers import AutoModelForCausalLM
from transformers.utils.import_utils import is_serve_available

from qwen_task_heads import LabelMap, LabelScorer, Scorer, build, load_tokenizer, save
from qwen_task_heads.inference.decision_schema import question, write_decision
from qwen_task_heads.pretrained import locate
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="needs pip install 'transformers[serving]'"),
]
TEXTS = [f"Why was transfer {number} declined? " + "please " * (number % 40) for number in range(20)]
LABELS = ["card", "cash", "transfer"]
Ask = Callable[[str, Any, Any], tuple[int, Any]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Start the server without a model; return a function that asks any folder."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1"]
    options = ["--port", str(port), "--device", "cpu", "--dtype", "float32", "--trust-remote-code"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, *options], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait(port, server, folder / "log")
        yield lambda model, state, questions: _send(
            port, "POST", "/v1/systemone", {"model": model, "state": state, "questions": questions}
        )
    finally:
        server.terminate()
        server.wait(30)


def _wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            assert _send(port, "GET", "/health")[0] == 200
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def _send(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def saved(folder: Path, **options: Any) -> str:
    torch.manual_seed(0)
    model = build("embedded", task="pooled_classifier", max_seq_length=24, **options)
    return str(save(model, tokenizer=load_tokenizer("embedded"), folder=folder / "saved"))


def test_several_questions(ask: Ask, tmp_path: Path) -> None:
    folder = saved(tmp_path, questions=QUESTIONS)
    for text, expected in zip(TEXTS, Scorer(folder).predict(TEXTS), strict=True):
        status, body = ask(folder, text, ASKED)
        assert status == 200, body
        found, known = body["answers"], expected.answers
        assert found["intent"]["probabilities"] == pytest.approx(known["intent"].probabilities, abs=1e-6)
        assert found["urgency"]["score"] == pytest.approx(known["urgency"].expected_rank, abs=1e-6)
        assert found["refund"]["noul"] == pytest.approx(known["refund"].probabilities["true"], abs=1e-6)
    status, body = ask(folder, "A text", {"spam": {"type": "noul"}})
    assert status == 400
    assert "spam" in json.dumps(body)


def test_a_classifier_with_one_question(ask: Ask, tmp_path: Path) -> None:
    folder = saved(tmp_path, labels=LABELS)
    asked = {"intent": {"type": "choice", "criteria": dict.fromkeys(LABELS)}, "cash": {"type": "noul"}}
    for text, expected in zip(TEXTS, Scorer(folder).predict(TEXTS), strict=True):
        status, body = ask(folder, text, asked)
        assert status == 200, body
        found = body["answers"]
        assert found["intent"]["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
        assert found["cash"]["noul"] == pytest.approx(expected.probabilities["cash"], abs=1e-6)


def test_a_generative_classifier_with_labels_of_one_token(ask: Ask, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(locate("embedded"), dtype=torch.float32).eval()
    tokenizer = load_tokenizer("embedded")
    words = ("sport", "war", "food", "the", "a", "news")
    labels = LabelMap(tuple(word for word in words if len(tokenizer(word)["input_ids"]) == 1))
    prompts = AnswerPrompts(tokenizer, labels, model_type="qwen2")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_decision(tmp_path, prompts=prompts)
    wanted = LabelScorer(model, prompts=prompts).probabilities(TEXTS)
    for text, expected in zip(TEXTS, wanted.tolist(), strict=True):
        status, body = ask(str(tmp_path), text, {"label": question(labels)})
        assert status == 200, body
        assert [*body["answers"]["label"]["probabilities"].values()] == pytest.approx(expected, abs=1e-6)
