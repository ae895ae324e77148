"""Which source is train, which dev, which test; the same for titles and for texts.

A folder or hub data set may hold its splits; separate files may be named. A file is one split. What is
named for a role alone may hold one split of another name; train is never read as dev.
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
    """Read train, and dev and test where they are named or found in the source.

    Args:
        source: file, folder or data set id of the training set.
        dev: the same of the dev set, None to look for one in the source.
        test: the same of the test set.
        read: `(place, split)` -> what it holds; split None reads the only one there is.

    Returns:
        `(role -> what was read, role -> its place, all problems)`; with a problem, a role may be missing.
    """
    wanted = {"train": source, "dev": dev, "test": test}
    found: dict[str, Read] = {}
    places: dict[str, str] = {}
    problems: list[Problem] = []
    for role, place in wanted.items():
        if place is None and (Path(source).is_file() or ("train" not in found and not Path(source).is_dir())):
            continue  # a file is one split, and an id that gave no train is not fetched again
        places[role] = place or source
        try:
            found[role] = _read_role(role, place or source, source=source, read=read)
        except NoSuchSplit as error:
            problems += [] if place is None else error.problems
        except TaskHeadsError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    return found, places, problems


def _read_role(role: str, place: str, *, source: str, read: Callable[[str, str | None], Read]) -> Read:
    """Read the split of a role; of a folder or id named for it alone, else the one split there is."""
    if Path(place).is_file():
        return read(place, None)
    try:
        return read(place, role)
    except NoSuchSplit:
        if Path(place) == Path(source):  # train must not be read as dev
            raise
    return read(place, None)
