"""A file of labels -> names and what is said of them, or every problem of that file.

Design:
- In `labels.yaml` every scalar is text: `no`, `1` and `2020-01-01` are names, not false, a number and a date.
- Problems of names are collected, so that one run names all of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_task_heads.data.hub_datasets import is_saved_dataset
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

LabelTexts = dict[str, tuple[Any, ...]]  # fields of `LabelMap`

KEYS = ("name", "description", "examples", "aliases", "parent")
WHOLE = re.compile(r"[+-]?[0-9]+")
MAX_NAME = 1000  # characters; a longer label is a text in the wrong column
MAX_LABEL_FILE = 64 * 2**20  # bytes
MAX_DEPTH = 6  # of lists in a label file
LABEL_FILES = ("labels.yaml", "labels.yml", "class.txt", "classes.txt", "labels.txt")
YAML_SUFFIXES = (".yaml", ".yml")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def read_label_file(path: str | os.PathLike[str]) -> LabelTexts:
    """Fields of a file by their names, as `LabelMap` takes them.

    Raises:
        TaskHeadsError: the file cannot be read, or any of its names or aliases is blank, repeated or no text.
            All of them at once.
    """
    name = os.fspath(path)
    text = _read_file(name)
    return _from_yaml(name, text) if Path(name).suffix.lower() in YAML_SUFFIXES else _from_lines(name, text)


def find_label_file(source: str) -> str | None:
    """The label file of a local source: in its folder, or next to the file or what `save_to_disk` wrote.

    Returns:
        Its path, the first of `LABEL_FILES` that is there; None without one, and for ids of a hub.

    Raises:
        TaskHeadsError: several are there and do not say the same.
    """
    place = Path(source)
    is_folder = place.is_dir() and not is_saved_dataset(source)  # which is one thing, as a file is
    folder = place if is_folder else place.parent if place.exists() else None
    found = [folder / name for name in LABEL_FILES if (folder / name).is_file()] if folder else []
    if len(found) > 1 and len({read_label_file(path)["names"] for path in found}) > 1:
        names = " and ".join(path.name for path in found)
        found_both = f"{names} say different labels"
        raise _refusal(str(folder), found_both, "one of them", "remove the others")
    return str(found[0]) if found else None


def name_problems(names: Sequence[Any], place: str, *, first: int = 1) -> list[Problem]:
    """What is wrong with names; `place` is the pattern of where they stand, counted from `first`."""
    if _all_fine(names):
        return []
    problems = []
    seen: dict[str, int] = {}
    for number, name in enumerate(names, start=first):
        where, accepted = place.format(number), "different names, as text"
        if problem := _text_problem(name, where, accepted, what="label"):
            problems.append(problem)
        elif name in seen:
            found = f"the label {shorten(name)} stands twice (first at {place.format(seen[name])})"
            problems.append(Problem(where, found, accepted, "rename or remove one of the two"))
        else:
            seen[name] = number
    return problems


def _all_fine(names: Sequence[Any]) -> bool:
    """Whether no name has a problem: a row may bring 100,000, which takes passes of C code."""
    return (
        set(map(type, names)) == {str}
        and len(set(names)) == len(names)
        and all(names)
        and all(map(str.__eq__, names, map(str.strip, names)))
        and max(map(len, names)) <= MAX_NAME
        and not CONTROL.search(" ".join(names))
    )


def alias_problems(
    names: Sequence[Any], aliases: Sequence[Sequence[Any]], place: str, *, first: int = 1
) -> list[Problem]:
    """What is wrong with other spellings; `place` as in `name_problems`.

    Each must differ from all names and from all other aliases, its own label's too, and be no whole number:
    `1` in a row is an id, so that an alias of that look would silently mean another label.
    """
    if not any(aliases):
        return []
    problems = []
    seen = {name: number for number, name in enumerate(names, start=first) if isinstance(name, str)}
    for number, spellings in enumerate(aliases, start=first):
        for alias in spellings:
            where, accepted = place.format(number), "spellings that no other label has, as text"
            if problem := _text_problem(alias, where, accepted, what="alias"):
                problems.append(problem)
            elif is_whole(alias):
                found = f"the alias {shorten(alias)} is a whole number, which rows state ids by"
                problems.append(Problem(where, found, accepted, "remove it, or make it the name"))
            elif alias in seen:
                found = f"the alias {shorten(alias)} stands twice (first at {place.format(seen[alias])})"
                problems.append(Problem(where, found, accepted, "remove one of the two"))
            else:
                seen[alias] = number
    return problems


def parent_problems(parents: Sequence[Any], place: str, *, first: int = 1) -> list[Problem]:
    """What is wrong with names of coarser labels, "" where there is none; `place` as in `name_problems`."""
    found = (
        _text_problem(parent, place.format(number), "the name of a coarser label", what="parent")
        for number, parent in enumerate(parents, start=first)
        if parent != ""
    )
    return [problem for problem in found if problem]


def _text_problem(name: Any, where: str, accepted: str, *, what: str) -> Problem | None:
    """What is wrong with a name, alias or parent by itself."""
    if not isinstance(name, str):
        return Problem(where, f"the {what} {shorten(name)}", accepted, "write the name as text")
    if not name.strip() or name != name.strip() or CONTROL.search(name):
        found = f"the {what} {shorten(name)} is blank, or has outer white space or control characters"
        return Problem(where, found, accepted, "write a visible name")
    if len(name) > MAX_NAME:
        article = "an" if what == "alias" else "a"
        found, accepted = f"{article} {what} of {len(name):,} characters", f"at most {MAX_NAME:,}"
        return Problem(where, found, accepted, "shorten the name")
    return None


def is_whole(text: str) -> bool:
    """Whether a text is a whole number in plain digits, such as `7` or `-100`.

    Example:
        >>> is_whole("-100"), is_whole("1.0"), is_whole("²")
        (True, False, False)
    """
    return WHOLE.fullmatch(text) is not None


def _read_file(path: str) -> str:
    accepted = "labels.yaml, or a name per line, in UTF-8"
    try:
        if os.path.getsize(path) > MAX_LABEL_FILE:
            raise _refusal(path, f"over {MAX_LABEL_FILE:,} bytes", accepted, "name the file of the labels")
        with open(path, "rb") as stream:
            content = stream.read().removeprefix(b"\xef\xbb\xbf")
        text = content.decode("utf-8")
    except OSError as error:
        found = f"cannot be read ({error.strerror or type(error).__name__})"
        raise _refusal(path, found, accepted, "check the path") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{content[error.start]:02x} is not UTF-8"
        raise _refusal(f"{path}:{line}", found, accepted, "save the file as UTF-8") from error
    if "\0" in text:
        raise _refusal(path, "binary data", accepted, "name the file of the labels")
    return text


def _refusal(where: str, found: str, accepted: str, remedy: str) -> TaskHeadsError:
    return TaskHeadsError(Problem(where, found, accepted, remedy))


def _from_lines(path: str, text: str) -> LabelTexts:
    """A class file: blank lines at its end are passed over, blank lines between names are not."""
    lines = text.rstrip().split("\n")  # not splitlines: U+2028 and U+0085 may stand in a name
    names = tuple(line.strip() for line in lines)
    if problems := name_problems(names, _pattern(path) + ":{}"):
        raise TaskHeadsError(problems)
    return {"names": names}


def _pattern(path: str) -> str:
    """A path as a format string; braces may stand in names of folders."""
    return path.replace("{", "{{").replace("}", "}}")


def _from_yaml(path: str, text: str) -> LabelTexts:
    entries = _entries(path, _parse_yaml(path, text))
    names, place = [entry.get("name") for _, entry in entries], _pattern(path) + ":label {}"
    problems = name_problems(names, place)
    for where, entry in entries:
        if unknown := [key for key in entry if key not in KEYS]:
            accepted = f"{', '.join(KEYS)}"
            problems.append(
                Problem(where, f"unknown key {shorten(unknown[0])}", accepted, "correct its name")
            )
        if not isinstance(entry.get("description", ""), str):
            found = f"the description is {shorten(entry['description'])}"
            problems.append(Problem(where, found, "text", "write a string"))
        texts = entry.get("examples", [])
        if not isinstance(texts, list) or not all(isinstance(item, str) and item.strip() for item in texts):
            found = f"the examples are {shorten(texts)}"
            problems.append(Problem(where, found, "a list of texts", "write one text per entry"))
        if not isinstance(entry.get("aliases", []), list):
            found = f"the aliases are {shorten(entry['aliases'])}"
            problems.append(Problem(where, found, "a list of names", "write - before each"))
    rows = [entry for _, entry in entries]
    aliases = [row.get("aliases", []) if isinstance(row.get("aliases"), list) else [] for row in rows]
    parents = [row.get("parent", "") for row in rows]
    problems += alias_problems(names, aliases, place) + parent_problems(parents, place)
    if problems:
        raise TaskHeadsError(problems)
    fields = {
        "descriptions": tuple(row.get("description", "").strip() for row in rows),
        "examples": tuple(tuple(item.strip() for item in row.get("examples", [])) for row in rows),
        "aliases": tuple(map(tuple, aliases)),
        "parents": tuple(parents),
    }
    return {"names": tuple(names), **{name: values for name, values in fields.items() if any(values)}}


def _entries(path: str, value: Any) -> list[tuple[str, dict[str, Any]]]:
    """(place, entry with any of `KEYS`) of every label, from any of the three forms."""
    if isinstance(value, Mapping):
        return [
            (f"{path}:label {number}", {"name": name, "description": description})
            for number, (name, description) in enumerate(value.items(), start=1)
        ]
    if not isinstance(value, list) or not value:
        accepted = f"a list of names, of {{{', '.join(KEYS)}}}, or a mapping name: description"
        raise _refusal(path, f"found {shorten(value)}", accepted, "write one entry per label")
    return [
        (f"{path}:label {number}", item if isinstance(item, dict) else {"name": item})
        for number, item in enumerate(value, start=1)
    ]


def _parse_yaml(path: str, text: str) -> Any:
    """The value of a document, every scalar as text.

    Built from the events of the parser: its own constructor keeps the last of two equal keys without a word,
    and its C composer recurses until the process dies.
    """
    import yaml

    root: list[Any] = []
    stack: list[_Open] = [_Open(root)]
    events = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader
    where, found = path, ""
    try:
        for event in yaml.parse(text, Loader=events):
            if isinstance(event, yaml.ScalarEvent):
                found = stack[-1].add(event.value)
            elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                held: list[Any] | dict[str, Any] = [] if isinstance(event, yaml.SequenceStartEvent) else {}
                found = stack[-1].add(held)
                stack.append(_Open(held))
                found = "lists within lists" if len(stack) > MAX_DEPTH else found
            elif isinstance(event, yaml.CollectionEndEvent):
                stack.pop()
            elif isinstance(event, yaml.AliasEvent):
                found = f"the alias *{shorten(event.anchor)}"
            if found:
                where = f"{path}:{event.start_mark.line + 1}" if event.start_mark else path
                break
    except yaml.MarkedYAMLError as error:
        where = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else where
        found = f"not YAML ({shorten(error.problem or 'malformed', 120)})"
    except (yaml.YAMLError, RecursionError) as error:
        found = f"not YAML ({shorten(str(error).split(chr(10), 1)[0], 120)})"
    if found or len(root) > 1:
        found = found or "several documents"
        remedy = "correct the syntax; quote names that hold : or #"
        raise _refusal(where, found, "names, with descriptions and examples", remedy)
    return root[0] if root else None


class _Open:
    """A list or mapping that is being read; in a mapping, keys and values come in turn."""

    def __init__(self, held: list[Any] | dict[str, Any]) -> None:
        self.held = held
        self.key: str | None = None

    def add(self, value: Any) -> str:
        """Take the next key or value; what is wrong with it, or ""."""
        if isinstance(self.held, list):
            self.held.append(value)
        elif self.key is None:
            if not isinstance(value, str):
                return "a key that is no text"
            if value in self.held:
                return f"the key {shorten(value)} stands twice"
            self.key = value
        else:
            self.held[self.key], self.key = value, None
        return ""
