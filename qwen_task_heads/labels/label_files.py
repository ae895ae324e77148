"""A file of labels -> names, descriptions, examples, aliases and parents, or every problem of that file.

Design:
- In `labels.yaml` every scalar is text: `no`, `1` and `2020-01-01` are names, not false, a number and a date.
- Problems of names are collected, so that one run reports all of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.sources.hub_datasets import is_saved_dataset

LabelTexts = dict[str, tuple[Any, ...]]  # fields of `LabelMap`

KEYS = ("name", "description", "examples", "aliases", "parent")
WHOLE = re.compile(r"[+-]?[0-9]+")
MAX_NAME = 1000  # characters; a longer label is probably a text in the wrong column
MAX_LABEL_FILE = 64 * 2**20  # bytes
MAX_DEPTH = 6  # of lists in a label file
LABEL_FILES = ("labels.yaml", "labels.yml", "class.txt", "classes.txt", "labels.txt")
YAML_SUFFIXES = (".yaml", ".yml")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def read_label_file(path: str | os.PathLike[str]) -> LabelTexts:
    """Read a label file as arguments of `LabelMap`, by their names.

    Raises:
        TaskHeadsError: the file cannot be read, or any name or alias is blank, repeated or not text. The
            error names all problems.
    """
    name = os.fspath(path)
    text = _read_file(name)
    return _from_yaml(name, text) if Path(name).suffix.lower() in YAML_SUFFIXES else _from_lines(name, text)


def find_label_file(source: str) -> str | None:
    """Find the label file of a local source: in its folder, or next to the file or saved dataset.

    Returns:
        The path of the first of `LABEL_FILES` that exists; None without one, and for ids of a hub.

    Raises:
        TaskHeadsError: several exist and have different labels.
    """
    place = Path(source)
    is_folder = place.is_dir() and not is_saved_dataset(source)  # a saved dataset is like one file
    folder = place if is_folder else place.parent if place.exists() else None
    paths = [folder / name for name in LABEL_FILES if (folder / name).is_file()] if folder else []
    if len(paths) > 1 and len({read_label_file(path)["names"] for path in paths}) > 1:
        problem = f"{' and '.join(path.name for path in paths)} have different labels"
        raise error_at(str(folder), problem, "one label file", "remove the others", code="label-conflict")
    return str(paths[0]) if paths else None


def name_problems(names: Sequence[Any], place: str, *, first: int = 1) -> list[Problem]:
    """Return the problems of names; `place` is a pattern of their places, counted from `first`."""
    if _are_valid(names):
        return []
    fix, expected = "rename or remove one of the two", "different names, as text"
    return _spelling_problems(
        enumerate(names, first), place, kind="label", expected=expected, fix=fix, seen={}
    )


def _are_valid(names: Sequence[Any]) -> bool:
    """Return whether no name has a problem; each check is one pass of C code over up to 100,000 names."""
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
    """Return the problems of aliases; `place` as in `name_problems`.

    An alias must differ from all names and all other aliases, also those of its label. It must not be a whole
    number: `1` in a row is an id, so that the alias would silently mean another label.
    """
    if not any(aliases):
        return []
    seen = {name: number for number, name in enumerate(names, first) if isinstance(name, str)}
    numbered = ((number, alias) for number, own in enumerate(aliases, first) for alias in own)
    fix, expected = "remove one of the two", "spellings that no other label has, as text"
    return _spelling_problems(numbered, place, kind="alias", expected=expected, fix=fix, seen=seen)


def _spelling_problems(
    spellings: Iterable[tuple[int, Any]],
    place: str,
    *,
    kind: str,
    expected: str,
    fix: str,
    seen: dict[str, int],
) -> list[Problem]:
    """Return the problems of numbered names or aliases; `seen` has the numbers of earlier spellings."""
    problems = []
    for number, spelling in spellings:
        where = place.format(number)
        if text_problem := _text_problem(spelling, where, expected, kind=kind):
            problems.append(text_problem)
        elif kind == "alias" and is_whole(spelling):
            problem = f"the alias {shorten(spelling)} is a whole number, which is an id in rows"
            remove = "remove it, or make it the name"
            problems.append(Problem(where, problem, expected, remove, code="label-invalid"))
        elif spelling in seen:
            first_place = place.format(seen[spelling])
            problem = f"the {kind} {shorten(spelling)} is repeated (first at {first_place})"
            problems.append(Problem(where, problem, expected, fix, code="label-invalid"))
        else:
            seen[spelling] = number
    return problems


def parent_problems(parents: Sequence[Any], place: str, *, first: int = 1) -> list[Problem]:
    """Return the problems of names of coarser labels, "" without one; `place` as in `name_problems`."""
    problems = (
        _text_problem(parent, place.format(number), "the name of a coarser label", kind="parent")
        for number, parent in enumerate(parents, start=first)
        if parent != ""
    )
    return [problem for problem in problems if problem]


def _text_problem(name: Any, where: str, expected: str, *, kind: str) -> Problem | None:
    """Return the problem of a single name, alias or parent, if any."""
    if not isinstance(name, str):
        problem, fix = f"the {kind} {shorten(name)} is not text", "write the name as text"
        return Problem(where, problem, expected, fix, code="label-invalid")
    if not name.strip() or name != name.strip() or CONTROL.search(name):
        problem = f"the {kind} {shorten(name)} is blank, or has outer white space or control characters"
        return Problem(where, problem, expected, "write a visible name", code="label-invalid")
    if len(name) > MAX_NAME:
        problem, expected = f"the {kind} has {len(name):,} characters", f"at most {MAX_NAME:,} characters"
        return Problem(where, problem, expected, "shorten the name", code="label-invalid")
    return None


def is_whole(text: str) -> bool:
    """Return whether a text is a whole number in plain digits, such as `7` or `-100`.

    Example:
        >>> is_whole("-100"), is_whole("1.0"), is_whole("²")
        (True, False, False)
    """
    return WHOLE.fullmatch(text) is not None


def _read_file(path: str) -> str:
    expected = "labels.yaml, or a name per line, in UTF-8"
    name_file = "name the file of the labels"
    try:
        if os.path.getsize(path) > MAX_LABEL_FILE:
            problem = f"the file has over {MAX_LABEL_FILE:,} bytes"
            raise error_at(path, problem, expected, name_file, code="file-format")
        with open(path, "rb") as stream:
            content = stream.read().removeprefix(b"\xef\xbb\xbf")
        text = content.decode("utf-8")
    except OSError as error:
        problem = f"the file cannot be read ({error.strerror or type(error).__name__})"
        code = "path-not-found" if isinstance(error, FileNotFoundError) else "path-access"
        raise error_at(path, problem, expected, "check the path", code=code) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem, fix = f"byte 0x{content[error.start]:02x} is not UTF-8", "save the file as UTF-8"
        raise error_at(f"{path}:{line}", problem, expected, fix, code="file-encoding") from error
    if "\0" in text:
        raise error_at(path, "found binary data", expected, name_file, code="file-format")
    return text


def _from_lines(path: str, text: str) -> LabelTexts:
    """Read a class file; blank lines are accepted at its end, and refused between names."""
    lines = text.rstrip().split("\n")  # not splitlines: names may contain U+2028 and U+0085
    names = tuple(line.strip() for line in lines)
    if problems := name_problems(names, _pattern(path) + ":{}"):
        raise TaskHeadsError(problems)
    return {"names": names}


def _pattern(path: str) -> str:
    """Convert a path to a format string; names of folders may contain braces."""
    return path.replace("{", "{{").replace("}", "}}")


def _from_yaml(path: str, text: str) -> LabelTexts:
    entries = _entries(path, _parse_yaml(path, text))
    names, place = [entry.get("name") for _, entry in entries], _pattern(path) + ":label {}"
    problems = name_problems(names, place)
    for where, entry in entries:
        if unknown := [key for key in entry if key not in KEYS]:
            problem = f"found the unknown key {shorten(unknown[0])}"
            expected = ", ".join(KEYS)
            problems.append(Problem(where, problem, expected, "correct its name", code="label-invalid"))
        if not isinstance(entry.get("description", ""), str):
            problem = f"the description is {shorten(entry['description'])}"
            problems.append(Problem(where, problem, "text", "write a string", code="label-invalid"))
        texts = entry.get("examples", [])
        if not isinstance(texts, list) or not all(isinstance(item, str) and item.strip() for item in texts):
            problem, fix = f"the examples are {shorten(texts)}", "write one text per entry"
            problems.append(Problem(where, problem, "a list of texts", fix, code="label-invalid"))
        if not isinstance(entry.get("aliases", []), list):
            problem, fix = f"the aliases are {shorten(entry['aliases'])}", "write - before each"
            problems.append(Problem(where, problem, "a list of names", fix, code="label-invalid"))
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
    """Return (place, entry with any of `KEYS`) of every label, from any of the three forms."""
    if isinstance(value, Mapping):
        return [
            (f"{path}:label {number}", {"name": name, "description": description})
            for number, (name, description) in enumerate(value.items(), start=1)
        ]
    if not isinstance(value, list) or not value:
        expected = f"a list of names, of {{{', '.join(KEYS)}}}, or a mapping name: description"
        problem, fix = f"found {shorten(value)}", "write one entry per label"
        raise error_at(path, problem, expected, fix, code="label-invalid")
    return [
        (f"{path}:label {number}", item if isinstance(item, dict) else {"name": item})
        for number, item in enumerate(value, start=1)
    ]


def _parse_yaml(path: str, text: str) -> Any:
    """Return the value of a document, every scalar as text.

    The value is built from the events of the parser. The constructor of PyYAML silently keeps the last of two
    equal keys, and its C composer recurses until the process crashes.
    """
    import yaml

    root: list[Any] = []
    stack: list[_Collection] = [_Collection(root)]
    events = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader
    where, problem = path, ""
    try:
        for event in yaml.parse(text, Loader=events):
            if isinstance(event, yaml.ScalarEvent):
                problem = stack[-1].add(event.value)
            elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                items: list[Any] | dict[str, Any] = [] if isinstance(event, yaml.SequenceStartEvent) else {}
                problem = stack[-1].add(items)
                stack.append(_Collection(items))
                problem = "found too deeply nested lists" if len(stack) > MAX_DEPTH else problem
            elif isinstance(event, yaml.CollectionEndEvent):
                stack.pop()
            elif isinstance(event, yaml.AliasEvent):
                problem = f"found the alias *{shorten(event.anchor)}"
            if problem:
                where = f"{path}:{event.start_mark.line + 1}" if event.start_mark else path
                break
    except yaml.MarkedYAMLError as error:
        where = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else where
        problem = f"the text is not YAML ({shorten(error.problem or 'malformed', 120)})"
    except (yaml.YAMLError, RecursionError) as error:
        problem = f"the text is not YAML ({shorten(str(error).split(chr(10), 1)[0], 120)})"
    if problem or len(root) > 1:
        problem = problem or "found several documents"
        fix = "correct the syntax; quote names that contain : or #"
        raise error_at(where, problem, "names, with descriptions and examples", fix, code="file-format")
    return root[0] if root else None


class _Collection:
    """A list or mapping that is being read; a mapping takes keys and values in turn."""

    def __init__(self, items: list[Any] | dict[str, Any]) -> None:
        self.items = items
        self.key: str | None = None

    def add(self, value: Any) -> str:
        """Add the next key or value; return its problem, or ""."""
        if isinstance(self.items, list):
            self.items.append(value)
        elif self.key is None:
            if not isinstance(value, str):
                return "found a key that is not text"
            if value in self.items:
                return f"the key {shorten(value)} is repeated"
            self.key = value
        else:
            self.items[self.key], self.key = value, None
        return ""
