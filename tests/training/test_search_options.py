"""The search space: what is read, and every defect of a file named."""

from __future__ import annotations

from pathlib import Path

import pytest
from problem_assertions import raises_problem

from qwen_task_heads import TaskHeadsError
from qwen_task_heads.training.search_options import Range, default_space, read_space

KNOWN = ["learning_rate", "lora_r", "pooling"]


def write(folder: Path, text: str) -> str:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_lists_and_intervals_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "lora_r: [8, 16]\nlearning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}\n")
    found = read_space(path, KNOWN)
    assert found == {"lora_r": Range(values=(8, 16)), "learning_rate": Range(low=1e-5, high=1e-3, log=True)}


def test_every_defect_is_named(tmp_path: Path) -> None:
    lines = ["lora_rank: [8]", "zzz: [1]", "pooling: last", "learning_rate: {low: 0, high: 1, log: true}"]
    path = write(tmp_path, "\n".join([*lines, "lora_r: []"]))
    with pytest.raises(TaskHeadsError) as caught:
        read_space(path, KNOWN)
    found = [(problem.where.rsplit(": ")[-1], problem.code) for problem in caught.value.problems]
    assert found == [
        ("lora_rank", "option-unknown"),
        ("zzz", "option-unknown"),
        ("pooling", "option-value"),
        ("learning_rate", "option-value"),
        ("lora_r", "option-value"),
    ]
    assert "lora_r" in caught.value.problems[0].fix


@pytest.mark.parametrize("text", ["", "- a\n", "a: [1", "\x00"])
def test_a_file_without_options_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with raises_problem("file-format", path):
        read_space(path, KNOWN)
    with raises_problem("file-format", str(tmp_path / "none.yaml")):
        read_space(str(tmp_path / "none.yaml"), KNOWN)


def test_the_default_space_follows_the_run() -> None:
    plain = default_space(rate=1e-4, lora=False, warm_start=True)
    assert {"pooling", "lora_r"}.isdisjoint(plain)
    assert plain["learning_rate"].low < 1e-4 < plain["learning_rate"].high
    assert {"pooling", "lora_r"} <= default_space(rate=1e-4, lora=True, warm_start=False).keys()
