"""Files from public bug reports in `cases/`, and the places of their problems."""

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
    """Return the folder of a case, or a file in it."""
    [folder] = CASES.glob(f"{number:02}-*")
    return str(folder.joinpath(*names))


def rows_of(path: str) -> list[dict[str, Any]]:
    """Return the rows of a JSONL or CSV file, read by the standard library."""
    text = Path(path).read_text(encoding="utf-8")
    if path.endswith(".csv"):
        return list(csv.DictReader(io.StringIO(text)))
    return [json.loads(line) for line in text.splitlines()]


def refused(read: Callable[[], object]) -> list[str]:
    """Return the places of the problems of an error: the file's name and the line."""
    with pytest.raises(TaskHeadsError) as caught:
        read()
    return [Path(problem.where).name for problem in caught.value.problems]
