"""The prediction recipe: killed by SIGKILL and resumed, on two processes of torchrun, and its messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import launching
import pytest
from transformers import set_seed

from qwen_task_heads import build, save

RECIPE = launching.RECIPES / "predict.py"
ROWS = 160
start, finished, killed = (
    partial(run, RECIPE) for run in (launching.start, launching.finished, launching.killed)
)


@pytest.fixture(scope="module")
def model(
    bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    set_seed(0)
    classifier = build(
        bases["qwen2"],
        task="pooled_classifier",
        labels=["sport", "trade"],
        problem_type="single_label_classification",
        max_seq_length=64,
    )
    return save(shake(classifier), tokenizer=tokenizer, folder=tmp_path_factory.mktemp("predict") / "model")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "in.jsonl"
    lines = [json.dumps({"id": index, "text": f"text {index} " * (index % 40 + 1)}) for index in range(ROWS)]
    path.write_text("\n".join(lines) + "\n")
    return path


def words(model: Path, source: Path, output: Path, *more: str) -> list[str]:
    options = {"--model": model, "--input": source, "--output": output, "--block_rows": 8}
    return [str(word) for item in options.items() for word in item] + list(more)


@pytest.fixture(scope="module")
def whole(model: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the output of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    printed = finished(words(model, source, folder / "out.jsonl"), folder / "log")
    assert f"{ROWS} rows in = {ROWS} with an answer + 0 with an error" in printed
    assert "labels: " in printed
    assert "next: head -n 3" in printed
    content = (folder / "out.jsonl").read_bytes()
    assert [json.loads(line)["id"] for line in content.splitlines()] == list(range(ROWS))
    return content


@pytest.mark.parametrize(
    "block", [7, pytest.param(0, marks=pytest.mark.slow), pytest.param(18, marks=pytest.mark.slow)]
)
def test_a_killed_run_resumes_to_the_same_bytes(
    model: Path, source: Path, whole: bytes, tmp_path: Path, block: int
) -> None:
    output = tmp_path / "out.jsonl"
    parts = tmp_path / "out.jsonl.parts"
    killed(words(model, source, output), tmp_path / "log", path=parts / f"{block:08d}.jsonl")
    assert not output.exists()
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.jsonl")}
    assert len(before) == block + 1
    again = start(words(model, source, output), tmp_path / "again")
    again.join()
    assert again.exitcode == 0, (tmp_path / "again").read_text()
    assert output.read_bytes() == whole
    assert f"/{ROWS - 8 * len(before)} " in (tmp_path / "again").read_text()  # the bar counts the rest only


def test_messages_without_a_traceback(model: Path, source: Path, tmp_path: Path) -> None:
    process = start(words(model, source, tmp_path / "out.jsonl", "--threshold", "0.5"), tmp_path / "log")
    process.join()
    printed = (tmp_path / "log").read_text()
    assert process.exitcode == 2
    assert "error: threshold: " in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_same_bytes(
    model: Path, source: Path, whole: bytes, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(RECIPE),
        *words(model, source, tmp_path / "out.jsonl"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("rows in =") == 1
    assert "(2 processes)" in done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == whole
