"""Files of situations from public bug reports, in `cases/`, and where a refusal of them points."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_task_heads.errors import TaskHeadsError

CASES = Path(__file__).parent / "cases"


def case(number: int, *names: str) -> str:
    """The folder of a case, or a file in it."""
    [folder] = CASES.glob(f"{number:02}-*")
    return str(folder.joinpath(*names))


def rows_of(path: str) -> list[dict[str, Any]]:
    """The rows of a JSONL or CSV file, as the standard library reads them."""
    text = Path(path).read_text(encoding="utf-8")
    if path.endswith(".csv"):
        return list(csv.DictReader(io.StringIO(text)))
    return [json.loads(line) for line in text.splitlines()]


def refused(read: Callable[[], object]) -> list[str]:
    """Where the problems of a refusal are: the file's name and the line."""
    with pytest.raises(TaskHeadsError) as caught:
        read()
    return [Path(problem.where).name for problem in caught.value.problems]
