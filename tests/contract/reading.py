"""Provide cases of files that a reader refuses, and follow the fixes of its errors.

A `Case` maps each alternative of a fix to the files that are written or the options that are typed.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fixes import refused

from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.data.title_datasets import read_title_sets
from qwen_task_heads.errors import Problem
from qwen_task_heads.inference.arguments import PredictArguments
from qwen_task_heads.inference.batch_prediction import scan_inputs
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.training.classifier_arguments import parse_classifier_arguments
from qwen_task_heads.training.title_arguments import parse_title_arguments

Row = dict[str, Any]
Files = dict[str, str | bytes | None]  # name -> content; None for a file that is removed
# Files that are written, words that are typed instead of those of the case, or both.
Change = Files | str | tuple[Files, str]
SKIPPED: dict[str, Change] = {"keep it unanswered: --bad_rows skip": "--bad_rows skip"}  # of a row to predict
HALF = ["--dev_fraction", "0.5"]  # so that a few rows are enough


def texts(source: str, words: str = "") -> Any:
    """Read a source as in the recipe of classifiers."""
    if not words:
        return read_text_sets(source, dev_fraction=0.5)
    arguments = parse_classifier_arguments([*_run(), "--dataset_name", source, *HALF, *shlex.split(words)])[0]
    return read_text_sets(source, **arguments.data_options())


def titles(source: str, words: str = "") -> Any:
    """Read a source as in the recipe of title scorers."""
    if not words:
        return read_title_sets(source, dev_fraction=0.5)
    arguments = parse_title_arguments([*_run(), "--dataset_name", source, *HALF, *shlex.split(words)])[0]
    return read_title_sets(source, **arguments.data_options())


def inputs(source: str, words: str = "") -> Any:
    """Read a source as in the recipe of predictions."""
    common = ["--model", "embedded", "--output", "answers.jsonl", "--input", source]
    return scan_inputs(PredictArguments.from_command_line([*common, *shlex.split(words)]))


def labels(source: str, words: str = "") -> Any:
    """Read a file of labels."""
    return LabelMap.read(source)


@cache
def _run() -> tuple[str, ...]:
    return ("--output_dir", "runs/none", "--use_cpu", "true", "--bf16", "false", "--report_to", "none")


def lines(*rows: Any) -> str:
    """Return JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def stated(column: str, *values: Any, **more: Any) -> list[Row]:
    """Return rows of texts, two for each value of a target column."""
    return [
        {"text": f"Text {copy} of {place}", column: value, **more}
        for copy in range(2)
        for place, value in enumerate(values)
    ]


LABELED = stated("label", "a", "b")
PAIRS = [{"chosen": f"Title {number}", "rejected": f"Other {number}"} for number in range(4)]


@dataclass(frozen=True)
class Case:
    """Files that are refused at one place of the source code.

    Args:
        site: as `fixes.sites_of` names it.
        files: map of names to content; the first is read, or the folder if its name ends with a slash.
        at: `where` of the problem: a file in the folder, or an option.
        ways: map of the alternatives of the fix to the change that follows them.
        read: reads the source.
        words: of the command line; `HERE` is the folder.
    """

    site: str
    files: Files
    at: str
    ways: dict[str, Change]
    read: Callable[[str, str], Any] = texts
    words: str = ""

    def __str__(self) -> str:
        return f"{self.site.removeprefix('data/')} {self.at}"


def of_row(
    site: str,
    bad: Any,
    ways: dict[str, Any],
    *,
    base: list[Row] | None = None,
    read: Callable[[str, str], Any] = texts,
    words: str = "",
    labels_yaml: str | None = None,
) -> Case:
    """Return a case of one bad row after good rows; a way is a row that replaces it, None, or a change.

    Names of files have a dot, which distinguishes them from rows.
    """
    good = {texts: LABELED, titles: PAIRS, inputs: [{"text": "fine"}]}[read] if base is None else base
    changes: dict[str, Change] = {}
    for way, change in ways.items():
        if isinstance(change, str | tuple) or (
            isinstance(change, dict) and all("." in name for name in change)
        ):
            changes[way] = change
        else:
            rows = [] if change is None else change if isinstance(change, list) else [change]
            changes[way] = {"train.jsonl": lines(*good, *rows)}
    files: Files = {"train.jsonl": lines(*good, bad), "labels.yaml": labels_yaml}
    return Case(site, files, f"train.jsonl:{len(good) + 1}", changes, read, words)


def of_table(
    site: str, bad: str, at: str, ways: dict[str, str | None], *, name: str = "train.csv", words: str = ""
) -> Case:
    """Return a case of a table; a way is its text, or words to type if it begins with `--`."""
    changes: dict[str, Change] = {
        way: text if text.startswith("--") else {name: text} for way, text in ways.items() if text is not None
    }
    return Case(site, {name: bad}, at, changes, words=words)


def ways_of(fix: str) -> list[str]:
    """Return the alternatives of a fix."""
    return [way for way in re.split(r"; (?:or )?|,? or ", fix) if way]


def follow(case: Case, folder: Path) -> None:
    """Cause an error, follow each alternative of its fix, and read again."""
    source = write(folder / "0", case.files)
    with refused(case.site) as problems:
        case.read(source, _typed(case.words, folder / "0"))
    problem = problem_at(problems, case.at, folder / "0")
    ways, known = ways_of(problem.fix), case.ways | (SKIPPED if case.read is inputs else {})
    assert sorted(ways) == sorted(known), problem
    for number, way in enumerate(ways, start=1):
        change, here = known[way], folder / str(number)
        if isinstance(change, str):
            change = ({}, change)
        files, words = change if isinstance(change, tuple) else (change, case.words)
        case.read(write(here, {**case.files, **files}), _typed(words, here))


def problem_at(problems: list[Problem], at: str, folder: Path) -> Problem:
    """Return the first problem at a place in a folder, or of an option."""
    found = [one for one in problems if one.where in (at, f"{folder}/{at}".removesuffix("/"))]
    assert found, [one.where for one in problems]
    return found[0]


def write(folder: Path, files: Files) -> str:
    """Write files and return the source: the first file, or its folder if the name ends with a slash."""
    folder.mkdir(parents=True)
    there = {name: content for name, content in files.items() if content is not None}
    for name, content in there.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(folder / next(iter(there)))


def _typed(words: str, folder: Path) -> str:
    return words.replace("HERE", str(folder))
