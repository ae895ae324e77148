"""The columns of a file of texts -> its text columns and its target column.

Two kinds of target in one file are refused unless the problem type decides, because a guess may train on
the wrong one. Rows of instruction tuning have their label as the answer (`TextColumns.answer`); a column of
labels takes precedence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qwen_task_heads.data.schema import (
    ANSWERS,
    GROUP,
    NAMES,
    RECORDS,
    TARGETS,
    TEXTS,
    Layout,
    TextColumns,
    first_of,
    listed,
    nearly,
    unknown_columns,
    unread_columns,
)
from qwen_task_heads.hubcode.configuration_task_heads import PROBLEM_TYPES
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.sources.json_files import FileProblem


@dataclass(frozen=True, kw_only=True)
class TextLayout(Layout):
    """Text and target columns of a file of texts.

    Args:
        texts: one or two text columns.
        are_joined: whether the text columns are one text.
        target: the target column, "" if there is none; of a conversation, its text column.
        name: the column of the names of the codes in the target column, "" if there is none.
    """

    texts: tuple[str, ...] = ()
    are_joined: bool = False
    target: str = ""
    name: str = ""


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
    complete = layouts_of(columns)
    text = complete[0] if complete else TextColumns(())
    targets = _targets(columns, problem_type, text) if with_target else []
    target = targets[0] if targets else ""
    kind = (problem_type or TARGETS.get(target, ANSWERS)[0]) if target else ""
    several = kind == "multi_label_classification"
    name = first_of(NAMES, columns) if target == "label" and not several else ""
    accepted = _accepted(text, target, name) if with_target else text.columns
    near = nearly(columns, accepted, alternatives=(GROUP,))
    problems = [] if len(complete) == 1 else [_text_problem(where, columns, complete)]
    if with_target and len(targets) != 1:
        problems.append(_target_problem(where, columns, targets, problem_type, near))
    text_columns = [name for layout in TEXTS for name in layout.columns]
    reported = {*columns, *text.columns, *TARGETS, *(() if complete else text_columns)}
    unknown = {name: meant for name, meant in near.items() if meant not in reported}
    problems += unknown_columns(where, unknown, expected=", ".join(accepted))
    more = {"output": ("category",), QUESTIONS: RECORDS}.get(target, ())
    read = (*text.columns, target, name, "weight", *more)
    return TextLayout(
        kind=kind,
        problems=tuple(problems),
        near=near,
        absent=frozenset(accepted) - set(columns),
        unread=unread_columns(columns, read),
        texts=text.columns,
        are_joined=text.are_joined,
        target=target,
        name=name,
    )


def layouts_of(columns: Collection[str]) -> list[TextColumns]:
    """Return the layouts whose columns are present; of `text` and `text` with `text_b`, only the latter.

    Example:
        >>> [layout.columns for layout in layouts_of(["id", "text", "text_b", "content"])]
        [('text', 'text_b')]
    """
    complete = [text for text in TEXTS if {*text.columns} <= {*columns} and text.without not in columns]
    complete = [text for text in complete if not text.needs or text.needs in columns]
    rank = min((text.rank for text in complete), default=0)
    found = [text for text in complete if text.rank == rank]
    return [text for text in found if not any({*text.columns} < {*other.columns} for other in found)]


def _accepted(text: TextColumns, target: str, name: str) -> tuple[str, ...]:
    """Return the columns that are read in a file of this layout."""
    extra = {
        "label": (name or "label_name",),
        "output": ("category",),
        QUESTIONS: RECORDS,
    }.get(target, ())
    targets = (target,) if target else TARGETS
    return (*(text.columns or ("text",)), *targets, *extra, "weight", *GROUP)


def _targets(columns: Collection[str], problem_type: str | None, text: TextColumns) -> list[str]:
    """Return the target columns of the problem type; `output` counts with `category`, or as an answer."""
    present = [name for name in TARGETS if name in columns and (name != "output" or "category" in columns)]
    if not present and problem_type in (None, *ANSWERS):
        return [name for name in (first_of(NAMES, columns) or text.answer,) if name and name in columns]
    if problem_type is None:
        return present
    fit = [name for name in present if problem_type in TARGETS[name]]
    first = [name for name in fit if TARGETS[name][0] == problem_type]
    # Of `score` and `label`, regression takes `score`, its default target; the other types likewise.
    return first if len(first) == 1 and "probabilities" not in fit else fit


def _text_problem(where: str, columns: Collection[str], complete: list[TextColumns]) -> FileProblem:
    expected = "; ".join(" and ".join(filter(None, (*text.columns, text.needs))) for text in TEXTS)
    if complete:
        problem = f"found several kinds of text (columns: {listed(columns)})"
        return FileProblem(where, problem, expected, "keep one of them", code="column-ambiguous")
    similar = nearly(columns, dict.fromkeys(name for text in TEXTS for name in text.columns))
    fix = next(
        (f"rename {name!r} to {meant!r}" for name, meant in similar.items()), "add or rename the column"
    )
    problem = f"found no text column (columns: {listed(columns)})"
    return FileProblem(where, problem, expected, fix, code="column-missing")


def _target_problem(
    where: str,
    columns: Collection[str],
    targets: list[str],
    problem_type: str | None,
    near: Mapping[str, str],
) -> FileProblem:
    fitting = [name for name, types in TARGETS.items() if problem_type is None or problem_type in types]
    expected = ", ".join(fitting) + (f" for {problem_type}" if problem_type else "")
    if targets:
        problem = f"found several targets: {', '.join(targets)}"
        deciding = [name for name in PROBLEM_TYPES if len(_targets(columns, name, TextColumns(()))) == 1]
        fix = "drop the other columns"
        if problem_type is None and deciding:
            fix = f"name the problem type, such as --problem_type {deciding[0]}, or {fix}"
        return FileProblem(where, problem, f"one of {expected}", fix, code="column-ambiguous")
    renames = (f"rename {name!r} to {meant!r}" for name, meant in near.items() if meant in TARGETS)
    fix = next(renames, "add or rename the column")
    unfit = [name for name in TARGETS if name in columns and name != "output"]
    if unfit:
        fix = f"train on {unfit[0]!r} with --problem_type {TARGETS[unfit[0]][0]}, or add the column"
    problem = f"found no target column (columns: {listed(columns)})"
    return FileProblem(where, problem, expected, fix, code="column-missing")
