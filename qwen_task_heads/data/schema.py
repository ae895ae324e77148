"""The columns that are read, in tables with one row per layout, and what the layouts of all tasks share.

| text | columns |
|---|---|
| one text | text, or sentence; content if there is neither, and no title |
| two texts | text_a + text_b, sentence1 + sentence2, premise + hypothesis, question1 + question2, |
| | text + text_b, text + text_pair |
| conversation | messages, or conversations of ShareGPT: the user's messages, joined by newlines |
| Alpaca | instruction, optionally input: joined by a newline |

| target | columns | in CSV and TSV |
|---|---|---|
| one label | label: an id, or a name; optionally with label_name, label_text or label_desc | the same |
| | output of Alpaca; the last message of a conversation | the same |
| several labels | labels: list of ids or of names, which may be empty; or text, `a|b` | `a|b`, a list, `[]` |
| score | score (or label, for regression): a number, or a list | a number, or a JSON list |
| soft label | probabilities: list by id, or mapping of names, with sum 1 | JSON |
| candidates | category: names, as list or separated by commas; output: one of them | the same |
| several questions | questions, answers, soft_labels of a `state` (`question_records.py`) | JSON |

| preference | columns |
|---|---|
| pair | chosen, rejected: text, with or without <title>…</title>; other layouts: `pair_texts.py` |
| pair with votes | … votes_chosen, votes_rejected, optionally votes_skip |
| pair with clicks | … chosen_clicks, chosen_impressions, rejected_clicks, rejected_impressions |
| pair with a probability | … preference, from 0 to 1 |
| arm of an experiment | headline or title, impressions, clicks, and one of the group columns |

`weight` and one of the group columns are optional for texts and pairs, `prompt` and `margin` for pairs.

Design:
- The meaning of a column is determined once per file, because it may depend on other columns. A required
  column that no row has, and a misspelt column, are one problem of the file, not one per row.
- Other columns, such as ids and dates, are ignored and reported. A column counts as misspelt if it resembles
  an accepted column that the file lacks (`wieght`, `Chosen`, `chosen_votes`).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from qwen_task_heads.errors import shorten
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.sources.json_files import FileProblem

GROUP = ("group_id", "test_id", "group")  # the first one that a row has is read
CONVERSATIONS = ("messages", "conversations")  # columns with a list of messages
STATE = "state"  # the text of a record with questions: a text, or an object that is read as JSON


@dataclass(frozen=True)
class TextColumns:
    """A layout of the text of a row.

    Args:
        columns: one or two text columns, all of which the file must have.
        answer: the column of the label if the file has no target column; "" for none.
        are_joined: whether the columns are one text; an empty or absent second one is then left out.
        rank: of several complete layouts, those of the lowest rank are the text.
        without: a column with which the layout is not read, because the choice would be a guess.
        needs: a column without which the layout is not read.
    """

    columns: tuple[str, ...]
    answer: str = ""
    are_joined: bool = False
    rank: int = 0
    without: str = ""
    needs: str = ""


TEXTS = (
    TextColumns(("messages",), answer="messages"),
    TextColumns(("conversations",), answer="conversations"),
    TextColumns(("text_a", "text_b")),
    TextColumns(("sentence1", "sentence2")),
    TextColumns(("premise", "hypothesis")),
    TextColumns(("question1", "question2")),
    TextColumns(("text", "text_b")),
    TextColumns(("text", "text_pair")),
    TextColumns(("text",)),
    TextColumns(("sentence",)),
    TextColumns(("content",), rank=2, without="title"),
    # Alpaca joins them in its prompt; with a text column, the instruction is a prompt and not the text.
    TextColumns(("instruction", "input"), answer="output", are_joined=True, rank=1),
    TextColumns(("instruction",), answer="output", are_joined=True, rank=1),
    TextColumns((STATE,), rank=3, needs=QUESTIONS),
)

ANSWERS = ("single_label_classification", "ordinal")  # problem types of names alone, and of answers
# Target columns, and the problem types of each; the first type is the default.
TARGETS: dict[str, tuple[str, ...]] = {
    "label": ("single_label_classification", "ordinal", "regression", "multi_label_classification"),
    "labels": ("multi_label_classification",),
    "score": ("regression",),
    "probabilities": ("single_label_classification",),
    "output": ANSWERS,
    QUESTIONS: (QUESTIONS,),
}
RECORDS = ("answers", "soft_labels", "meta")  # further columns of several questions
# Columns of label names, with codes or alone; the first one that is present is read.
NAMES = ("label_name", "label_text", "label_desc")

# The columns of the chosen and of the rejected title; the second layout is that of ms-swift.
TITLES = (("chosen", "rejected"), ("messages", "rejected_response"))
# Columns of the prompt; the first row whose first column is present is read, after the system message.
PROMPTS = (("prompt",), ("conversations",), ("instruction", "input"), ("question",), ("query",))
SYSTEM = "system"
NULLABLE = ("instruction", "input", SYSTEM)  # columns of the prompt that may be null
VOTES = ("votes_chosen", "votes_rejected")
CLICKS = ("chosen_clicks", "chosen_impressions", "rejected_clicks", "rejected_impressions")
SIGNALS = (VOTES, CLICKS, ("preference",))
HEADLINE = ("headline", "title")
PAIR_COLUMNS = (*TITLES[0], "prompt", "margin", "weight", "preference", *VOTES, "votes_skip", *CLICKS, *GROUP)
ARM_COLUMNS = (*HEADLINE, "impressions", "clicks", "prompt", *GROUP)

MAX_UNREAD = 20  # columns that are named in a message
MAX_HINTS = 200  # columns compared with the accepted ones; a hostile file may have 100,000 columns


@dataclass(frozen=True)
class Layout:
    """The meaning of the columns of one file, and the problems of all of its rows.

    Args:
        kind: for preferences `pairs`, `arms`, or "" if the columns fit neither; for texts the problem type,
            or "" without a target.
        problems: problems of the file.
        near: misspelt column -> the accepted column that it resembles.
        absent: accepted columns that no row has.
        unread: columns that are ignored.
    """

    kind: str
    problems: tuple[FileProblem, ...] = ()
    near: Mapping[str, str] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    unread: tuple[str, ...] = ()


def listed(columns: Collection[str]) -> str:
    """Return the names of the columns of a file, for messages."""
    return shorten(", ".join(sorted(columns)[:12]) + (", …" if len(columns) > 12 else ""), 200)


def unknown_columns(where: str, near: Mapping[str, str], *, expected: str) -> list[FileProblem]:
    """Return the problems of misspelt columns."""
    fix = "rename it to {!r}, or drop it"
    return [
        FileProblem(
            where, f"found the unknown column {name!r}", expected, fix.format(meant), code="column-unknown"
        )
        for name, meant in near.items()
    ]


def first_of(names: Iterable[str], columns: Collection[str]) -> str:
    """Return the first of some names that is a column, "" if none is.

    Example:
        >>> first_of(GROUP, ["text", "group", "test_id"])
        'test_id'
    """
    return next((name for name in names if name in columns), "")


def unread_columns(columns: Collection[str], read: Collection[str]) -> tuple[str, ...]:
    """Return the columns of a file that are neither read nor its group column.

    Example:
        >>> unread_columns(["text", "label", "id", "group"], ["text", "label"])
        ('id',)
    """
    known = {*read, first_of(GROUP, columns), ""}
    return tuple(name for name in columns if name not in known)


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
    columns: Collection[str], accepted: Collection[str], *, alternatives: tuple[tuple[str, ...], ...] = ()
) -> dict[str, str]:
    """Map each misspelt column to the accepted column that it resembles.

    Args:
        columns: columns of a file.
        accepted: columns that are read.
        alternatives: accepted columns of which one is enough; if one is present, the others are not missing.
    """
    result = {}
    plain = {_plain(name): name for name in accepted}
    for name in [name for name in columns if 0 < len(name) <= 40][:MAX_HINTS]:
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
        if target is not None and not first_of(enough, columns):
            result[name] = target
    return result


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")
