"""Options of a hyperparameter search, and its search space."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

TRIAL = "QWEN_TASK_HEADS_TRIAL"  # environment of a trial: storage, study and number, on a line each
PRUNED = 75  # exit code of a trial that was stopped because others are better
BOUNDS = {"low", "high"}


@dataclass
class SearchOptions:
    """Options of `--search`, which classifiers and title scorers take."""

    search: int | None = field(
        default=None,
        metadata={"help": "Trials of a hyperparameter search on dev; the best options then train the model."},
    )
    search_space: str | None = field(
        default=None,
        metadata={"help": "YAML of the options to search: a list of values, or low, high and log."},
    )
    search_storage: str | None = field(
        default=None,
        metadata={"help": "Optuna storage, such as sqlite:///FILE, that several machines share."},
    )


@dataclass(frozen=True)
class Range:
    """Values of an option: a list, or an interval of numbers.

    Args:
        values: a list of values, () for an interval.
        low, high: ends of the interval, included.
        log: whether the logarithm is uniform.
    """

    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False


def default_space(*, rate: float, lora: bool, warm_start: bool) -> dict[str, Range]:
    """Return the options that are searched without `--search_space`.

    Args:
        rate: learning rate of a run without a search.
        lora: whether LoRA is trained.
        warm_start: whether the head is that of a trained model, whose shape is given.
    """
    space = {
        "learning_rate": Range(low=rate / 5, high=rate * 5, log=True),
        "num_train_epochs": Range(values=(1, 2, 3, 5)),
        "per_device_train_batch_size": Range(values=(8, 16, 32)),
    }
    if lora:
        space["lora_r"] = Range(values=(8, 16, 32, 64))
    if not warm_start:
        space["pooling"] = Range(values=("last", "mean"))
    return space


def read_space(path: str, known: Sequence[str]) -> dict[str, Range]:
    """Read a search space.

    Args:
        path: YAML file: option -> a list of values, or `{low: ..., high: ..., log: true}`.
        known: names of the options of the command.

    Raises:
        TaskHeadsError: a file that cannot be read, every option that does not exist, and every value that is
            neither.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "space.yaml")
        ...     _ = file.write_text("lora_r: [8, 16]")
        ...     read_space(str(file), ["lora_r"])
        {'lora_r': Range(values=(8, 16), low=0.0, high=0.0, log=False)}
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem, fix = f"cannot be read ({shorten(str(error), 80)})", "write option: [value, value] lines"
        raise TaskHeadsError(Problem(path, problem, "a YAML mapping", fix, code="file-format")) from None
    if not isinstance(content, Mapping) or not content:
        problem, fix = "found no option", "write lines such as learning_rate: {low: 1.0e-5, high: 1.0e-3}"
        raise TaskHeadsError(Problem(path, problem, "options to search", fix, code="file-format"))
    problems: list[Problem] = []
    space = {}
    for name, value in content.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            fix = f"rename it to {near[0]}" if near else "drop it"
            expected = near[0] if near else "an option of --help"
            problem = f"found {shorten(str(name))}"
            problems.append(Problem(f"{path}: {name}", problem, expected, fix, code="option-unknown"))
        elif isinstance(value, list) and value and all(isinstance(one, str | int | float) for one in value):
            space[name] = Range(values=tuple(value))
        elif isinstance(value, Mapping) and _is_interval(value):
            log = bool(value.get("log", False))
            space[name] = Range(low=float(value["low"]), high=float(value["high"]), log=log)
        else:
            expected = "a list of values, or low < high (above 0 with log: true)"
            problem, fix = f"found {shorten(str(value))}", "write {low: 1.0e-5, high: 1.0e-3, log: true}"
            problems.append(Problem(f"{path}: {name}", problem, expected, fix, code="option-value"))
    if problems:
        raise TaskHeadsError(problems)
    return space


def _is_interval(value: Mapping[str, Any]) -> bool:
    numbers = [value.get(name) for name in ("low", "high")]
    if not (BOUNDS <= set(value) <= {*BOUNDS, "log"}):
        return False
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
        return False
    low, high = numbers
    return low < high and (low > 0 or not value.get("log"))  # type: ignore[operator]
