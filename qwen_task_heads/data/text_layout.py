"""The columns of a file of texts -> its text columns and its target column.

Design:
- The columns of a file are read once. Two kinds of target in one file are refused unless the problem type
  decides, because a guess may train on the wrong one.
- Other columns are ignored and reported (`TextLayout.unread`); a misspelt column is refused, once per file.
- Rows of instruction tuning have their label as the answer: `output` of Alpaca, the last message of a
  conversation. A column of labels takes precedence.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qwen_task_heads.data.conversations import CONVERSATIONS
from qwen_task_heads.data.json_files import FileProblem
from qwen_task_heads.data.pair_layout import GROUP, Layout, nearly, unread_columns
from qwen_task_heads.errors import shorten

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression", "ordinal")

# Text columns: the first layout whose columns are all present.
COLUMN_LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("messages",),
    ("conversations",),
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text", "text_b"),
    ("text", "text_pair"),
    ("text",),
    ("sentence",),
    ("content",),
    ("instruction", "input"),
    ("instruction",),
)
ALPACA = "instruction"  # joined with `input` by a newline, as in the prompt of Alpaca
# `content` is the text only without another text column; with `title`, the choice would be a guess.
LAST, YIELDS_TO = ("content",), "title"
# Columns of label names, with codes or alone; the first one that is present is read.
NAMES = ("label_name", "label_text", "label_desc")
# Target columns, and the problem types of each; the first type is the default.
TARGETS: dict[str, tuple[str, ...]] = {
    "label": ("single_label_classification", "ordinal", "regression", "multi_label_classification"),
    "labels": ("multi_label_classification",),
    "score": ("regression",),
    "probabilities": ("single_label_classification",),
    "output": ("single_label_classification", "ordinal"),
}
ANSWERS = ("single_label_classification", "ordinal")  # problem types of names alone, and of answers


@dataclass(frozen=True)
class TextLayout(Layout):
    """Text and target columns of a file of texts; `kind` is the problem type, "" without a target.

    Args:
        texts: one or two text columns.
        target: the target column, "" if there is none.
        name: the column of the names of the codes in the target column, "" if there is none.
        unread: columns that are ignored.
    """

    texts: tuple[str, ...] = ()
    target: str = ""
    name: str = ""
    unread: tuple[str, ...] = ()


def read_text_layout(
    where: str, columns: Collection[str], *, problem_type: str | None = None, with_target: bool = True
) -> TextLayout:
    """Determine the text and target columns of a file from the columns of all its rows.

    Args:
        where: the first row, for messages.
        columns: every column that any row has.
        problem_type: the problem type, which decides between several targets; None derives it from the
            target.
        with_target: False for files to predict, whose targets are ignored.
    """
    shown = shorten(", ".join(sorted(columns)[:12]) + (", …" if len(columns) > 12 else ""), 200)
    problems: list[FileProblem] = []
    complete = layouts_of(columns)
    texts = complete[0] if complete else ()
    targets = _targets(columns, problem_type, texts) if with_target else []
    target = targets[0] if targets else ""
    name_column = next((name for name in NAMES if name in columns), "") if target == "label" else ""
    accepted = _accepted(texts, target, name_column, with_target=with_target)
    near = nearly(columns, accepted, alternatives=(GROUP,))
    text_columns = dict.fromkeys(name for layout in COLUMN_LAYOUTS for name in layout)
    if len(complete) != 1:
        problem = "found several kinds of text" if complete else "found no text column"
        expected = "; ".join(" and ".join(layout) for layout in COLUMN_LAYOUTS)
        similar = nearly(columns, tuple(text_columns), alternatives=())
        code, fix = "column-ambiguous", "keep one of them"
        if not complete:
            misspelt = next(iter(similar), "")
            code, fix = "column-missing", "add or rename the column"
            fix = f"rename {misspelt!r} to {similar[misspelt]!r}" if misspelt else fix
        problems.append(FileProblem(where, f"{problem} (columns: {shown})", expected, fix, code=code))
    if with_target and len(targets) != 1:
        problems.append(_target_problem(where, columns, targets, problem_type, near, shown))
    reported = {} if complete else text_columns
    for name, meant in near.items():
        if meant not in columns and meant not in reported and meant not in TARGETS and meant not in texts:
            problem, fix = f"found the unknown column {name!r}", f"rename it to {meant!r}, or drop it"
            problems.append(FileProblem(where, problem, ", ".join(accepted), fix, code="column-unknown"))
    kind = (problem_type or TARGETS.get(target, ANSWERS)[0]) if target else ""
    read = (*texts, target, name_column, "weight", *(("category",) if target == "output" else ()))
    return TextLayout(
        kind,
        tuple(problems),
        near,
        absent=frozenset(accepted) - set(columns),
        texts=texts,
        target=target,
        name=name_column,
        unread=unread_columns(columns, read),
    )


def layouts_of(columns: Collection[str]) -> list[tuple[str, ...]]:
    """Return the text columns that are present; of `text` and `text` with `text_b`, only the latter.

    Example:
        >>> layouts_of(["id", "text", "text_b"]), layouts_of(["text", "content"]), layouts_of(["content"])
        ([('text', 'text_b')], [('text',)], [('content',)])
    """
    complete = [layout for layout in COLUMN_LAYOUTS if all(name in columns for name in layout)]
    if LAST in complete and (len(complete) > 1 or YIELDS_TO in columns):
        complete.remove(LAST)
    plain = [layout for layout in complete if layout[0] != ALPACA]
    complete = plain or complete  # with a text column, the instruction is a prompt and not the text
    return [layout for layout in complete if not any(set(layout) < set(other) for other in complete)]


def _accepted(texts: tuple[str, ...], target: str, name: str, *, with_target: bool) -> tuple[str, ...]:
    """Return the columns that are read in a file of this layout."""
    if not with_target:
        return texts
    extra = {"label": (name or "label_name",), "output": ("category",)}.get(target, ())
    return (*(texts or ("text",)), *((target,) if target else TARGETS), *extra, "weight", *GROUP)


def _targets(columns: Collection[str], problem_type: str | None, texts: tuple[str, ...]) -> list[str]:
    """Return the target columns of the problem type; `output` counts with `category`, and in Alpaca rows."""
    present = [name for name in TARGETS if name in columns and (name != "output" or "category" in columns)]
    if not present and problem_type in (None, *ANSWERS):
        present = [name for name in NAMES if name in columns][:1]
        present = present or ["output"] * (texts[:1] == (ALPACA,) and "output" in columns)
        return present or [name for name in texts if name in CONVERSATIONS]
    if problem_type is None:
        return present
    fit = [name for name in present if problem_type in TARGETS[name]]
    first = [name for name in fit if TARGETS[name][0] == problem_type]
    # Of `score` and `label`, regression takes `score`, its default target; the other types likewise.
    return first if len(first) == 1 and "probabilities" not in fit else fit


def _target_problem(
    where: str,
    columns: Collection[str],
    targets: list[str],
    problem_type: str | None,
    near: dict[str, str],
    shown: str,
) -> FileProblem:
    fitting = [name for name, types in TARGETS.items() if problem_type is None or problem_type in types]
    expected = ", ".join(fitting) + (f" for {problem_type}" if problem_type else "")
    if targets:
        problem = f"found several targets: {', '.join(targets)}"
        deciding = [name for name in PROBLEM_TYPES if len(_targets(columns, name, ())) == 1]
        fix = "drop the other columns"
        if problem_type is None and deciding:
            fix = f"name the problem type, such as --problem_type {deciding[0]}, or {fix}"
        return FileProblem(where, problem, f"one of {expected}", fix, code="column-ambiguous")
    misspelt = next((name for name, meant in near.items() if meant in TARGETS), "")
    fix = f"rename {misspelt!r} to {near[misspelt]!r}" if misspelt else "add or rename the column"
    unfit = [name for name in TARGETS if name in columns and name != "output"]
    if unfit:
        fix = f"train on {unfit[0]!r} with --problem_type {TARGETS[unfit[0]][0]}, or add the column"
    problem = f"found no target column (columns: {shown})"
    return FileProblem(where, problem, expected, fix, code="column-missing")
