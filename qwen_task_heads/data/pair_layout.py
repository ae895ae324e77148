"""The columns of a file -> its kind, and the columns that are misspelt or missing in all of its rows.

Design:
- The columns determine the kind of a file (pairs or arms), once per file. A required column that no row has,
  and a misspelt column, are one problem of the file, not one per row.
- Other columns, such as ids and dates, are ignored. A column counts as misspelt if it resembles an accepted
  column that the file lacks (`wieght`, `Chosen`, `chosen_votes`).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from qwen_task_heads.data.json_files import FileProblem
from qwen_task_heads.errors import shorten

GROUP = ("group_id", "test_id", "group")  # the first one that a row has is read
VOTES = ("votes_chosen", "votes_rejected")
CLICKS = ("chosen_clicks", "chosen_impressions", "rejected_clicks", "rejected_impressions")
PAIR_COLUMNS = (
    "chosen",
    "rejected",
    "prompt",
    "margin",
    "weight",
    "preference",
    *VOTES,
    "votes_skip",
    *CLICKS,
    *GROUP,
)
HEADLINE = ("headline", "title")
# Columns of the prompt; the first entry that is present is read. See `pair_texts.py`.
HISTORY = ("conversations", "messages")
ALPACA = ("instruction", "input")
PROMPTS = (("prompt",), (HISTORY[0],), ALPACA, ("question",), ("query",))
SYSTEM = "system"
TITLES = ("chosen", "rejected")
SWIFT = ("messages", "rejected_response")
ARM_COLUMNS = (*HEADLINE, "impressions", "clicks", "prompt", *GROUP)
MAX_UNREAD = 20  # columns that are named in a message
MAX_HINTS = 200  # columns compared with the accepted ones; a hostile file may have 100,000 columns


@dataclass(frozen=True)
class Layout:
    """The kind of one file by its columns, and the problems of all of its rows.

    Args:
        kind: `pairs`, `arms`, or "" if the columns fit neither.
        problems: problems of the file.
        near: misspelt column -> the accepted column that it resembles.
        absent: accepted columns that no row has.
        titles: the columns of the chosen and of the rejected title.
        prompt: the columns that make the prompt, in their order.
        unread: columns that are ignored.
    """

    kind: str
    problems: tuple[FileProblem, ...]
    near: dict[str, str]
    absent: frozenset[str]
    titles: tuple[str, str] = TITLES
    prompt: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def read_layout(where: str, columns: Collection[str]) -> Layout:
    """Determine the kind of a file from the columns of all its rows.

    Args:
        where: the first row, for messages.
        columns: every column that any row has.
    """
    near = {
        kind: nearly(columns, accepted, alternatives=(GROUP, HEADLINE))
        for kind, accepted in _ACCEPTED.items()
    }
    arms = "headline" in columns or {"impressions", "clicks"} & set(columns)
    titles = SWIFT if SWIFT[1] in columns and "rejected" not in columns else TITLES
    if {"chosen", *titles[1:]} & set(columns):
        kind = "pairs"
    elif arms:
        kind = "arms"
    else:
        kind = max(near, key=lambda name: len(near[name]))
        kind = kind if near[kind] else ""
    shown = ", ".join(sorted(columns)[:12]) + (", …" if len(columns) > 12 else "")
    if not kind:
        problem = f"found no known column (columns: {shorten(shown, 200)})"
        expected = f"{', '.join(PAIR_COLUMNS)}; or arms with {', '.join(ARM_COLUMNS)}"
        unknown = FileProblem(where, problem, expected, "rename the columns", code="column-missing")
        return Layout("", (unknown,), {}, frozenset())
    accepted_columns = _ACCEPTED[kind]
    prompt = _prompt_columns(columns, titles)
    absent = frozenset(accepted_columns) - set(columns)
    problems = []
    similar = {name: target for name, target in near[kind].items() if name not in (*titles, *prompt)}
    missing = _missing_columns(kind, columns, titles)
    expected = ", ".join(accepted_columns)
    for needed in missing:
        hint = next((name for name, target in similar.items() if target in needed), None)
        problem = f"no row has {' or '.join(map(repr, needed))} (columns: {shorten(shown, 200)})"
        fix = f"rename {hint!r} to {needed[0]!r}" if hint else "add or rename the column"
        problems.append(FileProblem(where, problem, expected, fix, code="column-missing"))
    reported = {name for needed in missing for name in needed}
    for name, target in similar.items():
        if target in absent and target not in reported:
            problem, fix = f"found the unknown column {name!r}", f"rename it to {target!r}, or drop it"
            problems.append(FileProblem(where, problem, expected, fix, code="column-unknown"))
    headline = next((name for name in HEADLINE if name in columns), "")
    own = {*accepted_columns, *titles} - {*HEADLINE, *GROUP} if kind == "pairs" else {"impressions", "clicks"}
    unread = unread_columns(columns, {*own, *prompt, headline if kind == "arms" else ""})
    return Layout(kind, tuple(problems), similar, absent, titles, prompt, unread)


def _prompt_columns(columns: Collection[str], titles: tuple[str, str]) -> tuple[str, ...]:
    """Return the column of the system message, then the columns of the first prompt that is present."""
    prompt = next((names for names in PROMPTS if names[0] in columns), ())
    present = [name for name in (SYSTEM, *prompt) if name in columns]
    return tuple(name for name in present if name not in titles)


_ACCEPTED = {"pairs": PAIR_COLUMNS, "arms": ARM_COLUMNS}


def _missing_columns(kind: str, columns: Collection[str], titles: tuple[str, str]) -> list[tuple[str, ...]]:
    """Return the alternatives of which the file has none; votes and clicks are required as a whole."""
    if kind == "arms":
        needed: list[tuple[str, ...]] = [HEADLINE, ("impressions",), ("clicks",), GROUP]
    else:
        needed = [(name,) for name in titles]
        for signal in (VOTES, CLICKS):
            if any(name in columns for name in signal):
                needed += [(name,) for name in signal]
    return [names for names in needed if not any(name in columns for name in names)]


def unread_columns(columns: Collection[str], read: Collection[str]) -> tuple[str, ...]:
    """Return the columns of a file that are neither read nor its group column.

    Example:
        >>> unread_columns(["text", "label", "id", "group"], ["text", "label"])
        ('id',)
    """
    group = next((name for name in GROUP if name in columns), "")
    return tuple(name for name in columns if name and name not in read and name != group)


def unread_lines(unread: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the message that names the ignored columns, with the splits that have them.

    Args:
        unread: split -> its columns.

    Example:
        >>> unread_lines({"train": ["id", "date"], "dev": ["id"], "test": []})
        ['columns not read: id (train, dev), date (train)']
    """
    splits: dict[str, list[str]] = {}
    for split, columns in unread.items():
        for column in columns:
            splits.setdefault(column, []).append(split)
    named = [f"{shorten(column, 40)[1:-1]} ({', '.join(having)})" for column, having in splits.items()]
    more = [f"and {len(named) - MAX_UNREAD:,} more"] if len(named) > MAX_UNREAD else []
    return [f"columns not read: {', '.join(named[:MAX_UNREAD] + more)}"] if named else []


def nearly(
    columns: Collection[str], accepted: tuple[str, ...], *, alternatives: tuple[tuple[str, ...], ...]
) -> dict[str, str]:
    """Map each misspelt column to the accepted column that it resembles.

    Args:
        columns: columns of a file.
        accepted: columns that are read.
        alternatives: accepted columns of which one is enough; if one is present, the others are not missing.
    """
    names = [name for name in columns if 0 < len(name) <= 40][:MAX_HINTS]
    result = {}
    plain = {_plain(name): name for name in accepted}
    for name in names:
        if name in accepted:
            continue
        match = difflib.get_close_matches(_plain(name), list(plain), n=1, cutoff=0.8)
        target = plain[match[0]] if match else None
        if target is not None and name.startswith(target + "_"):
            target = None  # `prompt_id` is another column
        if target is None:  # the same words in another order: chosen_votes
            words = sorted(_plain(name).split("_"))
            target = next((known for known in accepted if sorted(known.split("_")) == words), None)
        # With `headline`, the file needs no `title`; with `test_id`, no `group`.
        enough = next((names for names in alternatives if target in names), ())
        if target is not None and not any(other in columns for other in enough):
            result[name] = target
    return result


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")
