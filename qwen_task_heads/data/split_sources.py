"""Find and read the train, dev and test splits of titles and of texts.

A folder or hub dataset may contain several splits; a file is one split. The user may also name separate
sources for dev and test, which may then contain a single split of another name. Train is never read as dev.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from qwen_task_heads.data.hub_datasets import NoSuchSplit
from qwen_task_heads.errors import Problem, TaskHeadsError

Read = TypeVar("Read")


def read_splits(
    source: str, *, dev: str | None, test: str | None, read: Callable[[str, str | None], Read]
) -> tuple[dict[str, Read], dict[str, str], list[Problem]]:
    """Read train, and dev and test if they are named or found in the source.

    Args:
        source: file, folder or dataset id of the training set.
        dev: file, folder or dataset id of the dev set; None looks for it in the source.
        test: file, folder or dataset id of the test set; None looks for it in the source.
        read: `(place, split)` -> the data of the split; split None reads the only split.

    Returns:
        `(split -> its data, split -> its place, all problems)`; with a problem, a split may be missing.
    """
    wanted = {"train": source, "dev": dev, "test": test}
    data: dict[str, Read] = {}
    places: dict[str, str] = {}
    problems: list[Problem] = []
    for split, place in wanted.items():
        if place is None and (Path(source).is_file() or ("train" not in data and not Path(source).is_dir())):
            continue  # a file is one split; an id without train is not fetched again
        places[split] = place or source
        try:
            data[split] = _read_split(split, place or source, source=source, read=read)
        except NoSuchSplit as error:
            problems += [] if place is None else error.problems
        except TaskHeadsError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    return data, places, problems


def _read_split(split: str, place: str, *, source: str, read: Callable[[str, str | None], Read]) -> Read:
    """Read a split of its place; if the place is not the source, it may have a single split of any name."""
    if Path(place).is_file():
        return read(place, None)
    try:
        return read(place, split)
    except NoSuchSplit:
        if Path(place) == Path(source):  # train must not be read as dev
            raise
    return read(place, None)
