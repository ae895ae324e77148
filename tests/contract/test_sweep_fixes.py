"""The fixes of problems that a sweep finds in data and backbone are typed and accepted."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from fixes import Words, changes, refused

from qwen_task_heads import adapter_config, build, save
from qwen_task_heads.adapters import with_adapter
from qwen_task_heads.reports.sweeps import Sweep, open_sweep
from qwen_task_heads.tokenization.templates import Template, compile_template
from qwen_task_heads.training.sweep_arguments import parse_sweep_arguments

LABELS = ("sport", "money", "health")


def opened(argv: Words) -> Sweep:
    """Load data and model, up to the rows of the backbone."""
    sweep = open_sweep(*parse_sweep_arguments(argv))
    sweep.encode()
    return sweep


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Texts, soft texts, pairs, and arms of tests."""
    numbers = range(60)
    rows = {
        "texts": [{"text": f"text {n} of {LABELS[n % 3]}", "label": LABELS[n % 3]} for n in numbers],
        "soft": [{"text": f"text {n}", "probabilities": [0.2, 0.7, 0.1]} for n in numbers],
        "pairs": [{"chosen": f"A good title {n}", "rejected": f"A bad one {n}"} for n in numbers],
        "arms": [
            {
                "headline": f"{word} title {n}",
                "clicks": 5 + 9 * (word == "Good"),
                "impressions": 90,
                "test_id": n,
            }
            for n in numbers
            for word in ("Good", "Bad")
        ],
    }
    return {name: written(tmp_path / f"{name}.jsonl", found) for name, found in rows.items()}


def words(dataset: str, base: str, tmp_path: Path, *more: str) -> Words:
    given = ["--dataset_name", dataset, "--model_name_or_path", base, "--output_dir", str(tmp_path / "run")]
    return [*given, "--use_cpu", "true", "--report_to", "none", "--layers", "1", *more]


@pytest.mark.parametrize(
    ("name", "task"), [("pairs", []), ("arms", ["--task", "texts"]), ("texts", ["--task", "titles"])]
)
def test_data_of_the_other_task_are_refused(
    files: dict[str, str], bases: dict[str, str], tmp_path: Path, name: str, task: Words
) -> None:
    argv = words(files[name], bases["qwen2"], tmp_path, *task)
    with refused("reports/sweeps.py::_read_for::--task") as found:
        opened(argv)
    assert found[0].where == "--task"
    assert len(found) > 1  # what the reader says stays
    [typed] = changes(found[0], argv)
    assert typed[-2:] == ["--task", "texts" if name == "texts" else "titles"]
    assert opened(typed)


def test_data_of_neither_task_are_reported_by_the_reader(bases: dict[str, str], tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"name": "x", "size": 3}] * 3)
    for task in ("texts", "titles"):
        with pytest.raises(ValueError, match=r"rows\.jsonl") as caught:
            opened(words(path, bases["qwen2"], tmp_path, "--task", task))
        assert "--task" not in str(caught.value)


@pytest.mark.parametrize("task", ["texts", "titles"])
@pytest.mark.parametrize("saved_as", ["full", "adapter"])
def test_a_model_with_a_head_is_refused(
    files: dict[str, str], bases: dict[str, str], tokenizer: Any, tmp_path: Path, task: str, saved_as: str
) -> None:
    """The model is of this task or of the other one."""
    model: Any = build(bases["qwen2"])
    tokenizer = copy.deepcopy(tokenizer)
    compile_template(tokenizer, template=Template(), model_type="qwen2", max_length=64)
    if saved_as == "adapter":
        model = with_adapter(model, adapter_config(model, head_only=True))
    save(model, tokenizer=tokenizer, folder=tmp_path / "scorer")
    data = files["texts" if task == "texts" else "pairs"]
    argv = words(data, str(tmp_path / "scorer"), tmp_path, "--task", task)
    with refused("reports/sweeps.py::_refuse_head::--model_name_or_path") as found:
        opened(argv)
    own = {"name the backbone it was built on": ["--model_name_or_path", bases["qwen2"]]}
    [typed] = changes(found[0], argv, own if saved_as == "full" else None)
    assert typed[-1] == bases["qwen2"]
    assert opened(typed)


def test_a_loss_without_soft_labels_is_refused(
    files: dict[str, str], bases: dict[str, str], tmp_path: Path
) -> None:
    argv = words(files["soft"], bases["qwen2"], tmp_path, "--losses", "focal")
    with refused("losses/registry.py::TextLoss.check_soft::where") as found:
        opened(argv)
    [typed] = changes(found[0], argv)
    assert opened(typed)
