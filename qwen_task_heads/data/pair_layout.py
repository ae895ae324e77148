"""The columns of a file of preferences -> its kind (pairs or arms), titles and prompt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qwen_task_heads.data.schema import (
    ARM_COLUMNS,
    CLICKS,
    GROUP,
    HEADLINE,
    PAIR_COLUMNS,
    PROMPTS,
    SYSTEM,
    TITLES,
    VOTES,
    Layout,
    first_of,
    listed,
    nearly,
    unknown_columns,
    unread_columns,
)
from qwen_task_heads.sources.json_files import FileProblem

ACCEPTED = {"pairs": PAIR_COLUMNS, "arms": ARM_COLUMNS}


@dataclass(frozen=True, kw_only=True)
class PairLayout(Layout):
    """Columns of a file of preferences.

    Args:
        titles: the columns of the chosen and of the rejected title.
        prompt: the columns that make the prompt, in their order.
    """

    titles: tuple[str, str] = TITLES[0]
    prompt: tuple[str, ...] = ()


def read_layout(where: str, columns: Collection[str]) -> PairLayout:
    """Determine the kind of a file from the columns of all its rows.

    Args:
        where: the first row, for messages.
        columns: every column that any row has.
    """
    near = {
        kind: nearly(columns, accepted, alternatives=(GROUP, HEADLINE)) for kind, accepted in ACCEPTED.items()
    }
    plain, swift = TITLES
    titles = swift if swift[1] in columns and plain[1] not in columns else plain
    if first_of((plain[0], titles[1]), columns):
        kind = "pairs"
    elif first_of(("headline", "impressions", "clicks"), columns):
        kind = "arms"
    else:
        kind = max(near, key=lambda name: len(near[name]))
        if not near[kind]:
            problem = f"found no known column (columns: {listed(columns)})"
            expected = f"{', '.join(PAIR_COLUMNS)}; or arms with {', '.join(ARM_COLUMNS)}"
            unread = FileProblem(where, problem, expected, "rename the columns", code="column-missing")
            return PairLayout(kind="", problems=(unread,))
    prompt = _prompt_columns(columns, titles)
    similar = {name: meant for name, meant in near[kind].items() if name not in (*titles, *prompt)}
    expected = ", ".join(ACCEPTED[kind])
    missing = _missing_columns(kind, columns, titles)
    problems = []
    for needed in missing:
        problem = f"no row has {' or '.join(map(repr, needed))} (columns: {listed(columns)})"
        renames = (f"rename {name!r} to {needed[0]!r}" for name, meant in similar.items() if meant in needed)
        fix = next(renames, "add or rename the column")
        problems.append(FileProblem(where, problem, expected, fix, code="column-missing"))
    reported = {*columns, *(name for needed in missing for name in needed)}
    unknown = {name: meant for name, meant in similar.items() if meant not in reported}
    problems += unknown_columns(where, unknown, expected=expected)
    own = {*PAIR_COLUMNS, *titles} - {*GROUP} if kind == "pairs" else {"impressions", "clicks"}
    headline = first_of(HEADLINE, columns) if kind == "arms" else ""
    return PairLayout(
        kind=kind,
        problems=tuple(problems),
        near=similar,
        absent=frozenset(ACCEPTED[kind]) - set(columns),
        unread=unread_columns(columns, {*own, *prompt, headline}),
        titles=titles,
        prompt=prompt,
    )


def _prompt_columns(columns: Collection[str], titles: tuple[str, str]) -> tuple[str, ...]:
    """Return the column of the system message, then the columns of the first prompt that is present."""
    prompt = next((names for names in PROMPTS if names[0] in columns), ())
    return tuple(name for name in (SYSTEM, *prompt) if name in columns and name not in titles)


def _missing_columns(kind: str, columns: Collection[str], titles: tuple[str, str]) -> list[tuple[str, ...]]:
    """Return the alternatives of which the file has none; votes and clicks are required as a whole."""
    if kind == "arms":
        needed: list[tuple[str, ...]] = [HEADLINE, ("impressions",), ("clicks",), GROUP]
    else:
        signals = [signal for signal in (VOTES, CLICKS) if first_of(signal, columns)]
        needed = [(name,) for names in (titles, *signals) for name in names]
    return [names for names in needed if not first_of(names, columns)]
