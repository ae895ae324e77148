"""The columns of a file -> its kind, and what is misspelt or missing in all of it.

Design:
- The kind of a file (pairs or arms) is told by its columns, once per file. A required column that no row
  has, and a column that looks like a misspelt accepted one, is one problem of the file, not one per row.
- Other columns are left alone: real files carry ids and dates. A column counts as misspelt when it is
  nearly an accepted one which the file lacks (`wieght`, `Chosen`, `chosen_votes`).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from qwen_task_heads.data.json_files import FileProblem
from qwen_task_heads.errors import shorten

GROUP = ("group_id", "test_id", "group")  # the first that a row has
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
# Where the prompt of a row is, the first form that is there; see `pair_texts.py`.
HISTORY = ("conversations", "messages")
ALPACA = ("instruction", "input")
PROMPTS = (("prompt",), (HISTORY[0],), ALPACA, ("question",), ("query",))
SYSTEM = "system"
TITLES = ("chosen", "rejected")
SWIFT = ("messages", "rejected_response")
ARM_COLUMNS = (*HEADLINE, "impressions", "clicks", "prompt", *GROUP)
MAX_UNREAD = 20  # columns that are named in a line
MAX_HINTS = 200  # a hostile file may hold 100,000 columns; did-you-mean looks at so many


@dataclass(frozen=True)
class Layout:
    """What the columns of one file say: its kind, and what is wrong with all of its rows at once.

    Args:
        kind: `pairs`, `arms`, or "" where the columns name neither.
        problems: problems of the file.
        near: misspelt column -> the accepted column it resembles.
        absent: accepted columns that no row has.
        titles: the columns of the chosen and of the rejected title.
        prompt: the columns that make the prompt, in their order.
        unread: columns that mean nothing here.
    """

    kind: str
    problems: tuple[FileProblem, ...]
    near: dict[str, str]
    absent: frozenset[str]
    titles: tuple[str, str] = TITLES
    prompt: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def read_layout(where: str, columns: Collection[str]) -> Layout:
    """Tell the kind of a file from the columns its rows have, all rows together.

    Args:
        where: the first row, for messages.
        columns: every column that stands in some row.
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
        accepted = f"{', '.join(PAIR_COLUMNS)}; or arms with {', '.join(ARM_COLUMNS)}"
        problem = FileProblem(
            where, f"no known column (columns: {shorten(shown, 200)})", accepted, "rename the columns"
        )
        return Layout("", (problem,), {}, frozenset())
    accepted_columns = _ACCEPTED[kind]
    prompt = _prompt_columns(columns, titles)
    absent = frozenset(accepted_columns) - set(columns)
    problems = []
    hints = {name: target for name, target in near[kind].items() if name not in (*titles, *prompt)}
    for needed in _missing_sets(kind, columns, titles):
        hint = next((name for name, target in hints.items() if target in needed), None)
        remedy = f"did you mean {needed[0]!r} by {hint!r}? rename it" if hint else "add or rename the column"
        found = f"no row has {' or '.join(map(repr, needed))} (columns: {shorten(shown, 200)})"
        problems.append(FileProblem(where, found, f"{', '.join(accepted_columns)}", remedy))
    named = {name for needed in _missing_sets(kind, columns, titles) for name in needed}
    for name, target in hints.items():
        if target in absent and target not in named:
            found, accepted = f"unknown column {name!r}", f"{', '.join(accepted_columns)}"
            problems.append(
                FileProblem(where, found, accepted, f"did you mean {target!r}? rename it, or drop it")
            )
    headline = next((name for name in HEADLINE if name in columns), "")
    own = {*accepted_columns, *titles} - {*HEADLINE, *GROUP} if kind == "pairs" else {"impressions", "clicks"}
    unread = unread_columns(columns, {*own, *prompt, headline if kind == "arms" else ""})
    return Layout(kind, tuple(problems), hints, absent, titles, prompt, unread)


def _prompt_columns(columns: Collection[str], titles: tuple[str, str]) -> tuple[str, ...]:
    """The first form of prompt that is there, after a system message of its own column."""
    form = next((form for form in PROMPTS if form[0] in columns), ())
    system = (SYSTEM,) if SYSTEM in columns else ()
    found = (*system, *(name for name in form if name in columns))
    return tuple(name for name in found if name not in titles)


_ACCEPTED = {"pairs": PAIR_COLUMNS, "arms": ARM_COLUMNS}


def _missing_sets(kind: str, columns: Collection[str], titles: tuple[str, str]) -> list[tuple[str, ...]]:
    """Sets of columns of which the file has none; evidence counts as needed once a part of it is there."""
    if kind == "arms":
        needed: list[tuple[str, ...]] = [HEADLINE, ("impressions",), ("clicks",), GROUP]
    else:
        needed = [(name,) for name in titles]
        for evidence in (VOTES, CLICKS):
            if any(name in columns for name in evidence):
                needed += [(name,) for name in evidence]
    return [names for names in needed if not any(name in columns for name in names)]


def unread_columns(columns: Collection[str], read: Collection[str]) -> tuple[str, ...]:
    """Return the columns of a file that are not among those that are read, nor its group column.

    Example:
        >>> unread_columns(["text", "label", "id", "group"], ["text", "label"])
        ('id',)
    """
    group = next((name for name in GROUP if name in columns), "")
    return tuple(name for name in columns if name and name not in read and name != group)


def unread_lines(unread: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the line that names columns which mean nothing here, with the sets that have them.

    Args:
        unread: role -> its columns.

    Example:
        >>> unread_lines({"train": ["id", "date"], "dev": ["id"], "test": []})
        ['columns not read: id (train, dev), date (train)']
    """
    roles: dict[str, list[str]] = {}
    for role, columns in unread.items():
        for column in columns:
            roles.setdefault(column, []).append(role)
    named = [f"{shorten(column, 40)[1:-1]} ({', '.join(found)})" for column, found in roles.items()]
    more = [f"and {len(named) - MAX_UNREAD:,} more"] if len(named) > MAX_UNREAD else []
    return [f"columns not read: {', '.join(named[:MAX_UNREAD] + more)}"] if named else []


def nearly(
    columns: Collection[str], accepted: tuple[str, ...], *, alternatives: tuple[tuple[str, ...], ...]
) -> dict[str, str]:
    """Column that looks misspelt -> the accepted one that is meant.

    Args:
        columns: what a file has.
        accepted: what means something in it.
        alternatives: accepted columns of which one is enough; with one there, nobody misses the others.
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
            target = None  # `prompt_id` is a column of its own
        if target is None:  # the words in another order: chosen_votes
            words = sorted(_plain(name).split("_"))
            target = next((known for known in accepted if sorted(known.split("_")) == words), None)
        # `title` beside `headline`, or `group` beside `test_id`, are alternatives that nobody misses.
        enough = next((names for names in alternatives if target in names), ())
        if target is not None and not any(other in columns for other in enough):
            result[name] = target
    return result


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")
