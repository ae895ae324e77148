"""The columns of a file of texts -> where the text stands, and which column is the target.

Design:
- The columns tell, once per file. Two kinds of target in one file are refused unless the problem type
  decides: guessing trains on the wrong one.
- Columns that mean nothing here are left alone and named (`TextLayout.unread`); one that looks misspelt is
  refused, once per file.
- Rows of instruction tuning have their label as the answer: `output` of Alpaca, the last message of a
  conversation. A column that is made for labels wins over that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qwen_task_heads.data.conversations import CONVERSATIONS
from qwen_task_heads.data.json_files import FileProblem
from qwen_task_heads.data.pair_layout import GROUP, Layout, nearly, unread_columns
from qwen_task_heads.errors import shorten

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression", "ordinal")

# Where the text stands: the first form that the columns of a file complete.
FORMS: tuple[tuple[str, ...], ...] = (
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
ALPACA = "instruction"  # joined with `input` by a line end, as Alpaca's prompt has them
# A text only where no other column is one: beside a title, nothing says which of the two is meant.
LAST, YIELDS_TO = ("content",), "title"
NAMES = (
    "label_name",
    "label_text",
    "label_desc",
)  # of labels, beside codes or alone; the first that is there
# Target columns, and the problem types that each may serve; the first is what it means unasked.
TARGETS: dict[str, tuple[str, ...]] = {
    "label": ("single_label_classification", "ordinal", "regression", "multi_label_classification"),
    "labels": ("multi_label_classification",),
    "score": ("regression",),
    "probabilities": ("single_label_classification",),
    "output": ("single_label_classification", "ordinal"),
}
ANSWERS = ("single_label_classification", "ordinal")  # of names alone, and of answers


@dataclass(frozen=True)
class TextLayout(Layout):
    """What the columns of a file of texts say; `kind` is the problem type, "" without a target.

    Args:
        texts: one or two text columns.
        target: the target column, "" where there is none.
        name: the column of names beside the codes of the target, "" where there is none.
        unread: columns that mean nothing here.
    """

    texts: tuple[str, ...] = ()
    target: str = ""
    name: str = ""
    unread: tuple[str, ...] = ()


def read_text_layout(
    where: str, columns: Collection[str], *, problem_type: str | None = None, with_target: bool = True
) -> TextLayout:
    """Tell the columns of a file from those its rows have, all rows together.

    Args:
        where: the first row, for messages.
        columns: every column that stands in some row.
        problem_type: what is trained, which decides between several targets; None to tell it by the target.
        with_target: False for files to predict, whose targets are left alone.
    """
    shown = shorten(", ".join(sorted(columns)[:12]) + (", …" if len(columns) > 12 else ""), 200)
    problems: list[FileProblem] = []
    complete = forms_of(columns)
    texts = complete[0] if complete else ()
    targets = _targets(columns, problem_type, texts) if with_target else []
    target = targets[0] if targets else ""
    named_by = next((name for name in NAMES if name in columns), "") if target == "label" else ""
    accepted = _accepted(texts, target, named_by, with_target=with_target)
    near = nearly(columns, accepted, alternatives=(GROUP,))
    if len(complete) != 1:
        forms = "; ".join(" and ".join(form) for form in FORMS)
        hints = nearly(columns, tuple({name for form in FORMS for name in form}), alternatives=())
        hint = next(iter(hints), "")
        remedy = "keep one of them" if complete else "add or rename the column"
        remedy = f"did you mean {hints[hint]!r} by {hint!r}? rename it" if hint and not complete else remedy
        found = "several kinds of text" if complete else "no text column"
        problems.append(FileProblem(where, f"{found} (columns: {shown})", f"{forms}", remedy))
    if with_target and len(targets) != 1:
        problems.append(_target_problem(where, columns, targets, problem_type, near, shown))
    named = {name for form in FORMS for name in form} if not complete else set()
    for name, meant in near.items():
        if meant not in columns and meant not in named and meant not in TARGETS and meant not in texts:
            said = f"{', '.join(accepted)}"
            remedy = f"did you mean {meant!r}? rename it, or drop it"
            problems.append(FileProblem(where, f"unknown column {name!r}", said, remedy))
    kind = (problem_type or TARGETS.get(target, ANSWERS)[0]) if target else ""
    absent = frozenset(accepted) - set(columns)
    read = (*texts, target, named_by, "weight", *(("category",) if target == "output" else ()))
    return TextLayout(
        kind, tuple(problems), near, absent,
        texts=texts, target=target, name=named_by, unread=unread_columns(columns, read),
    )  # fmt: skip


def forms_of(columns: Collection[str]) -> list[tuple[str, ...]]:
    """The text columns that are there; of `text` and `text` with `text_b`, the larger form only.

    Example:
        >>> forms_of(["id", "text", "text_b"]), forms_of(["text", "content"]), forms_of(["content"])
        ([('text', 'text_b')], [('text',)], [('content',)])
    """
    complete = [form for form in FORMS if all(name in columns for name in form)]
    if LAST in complete and (len(complete) > 1 or YIELDS_TO in columns):
        complete.remove(LAST)
    plain = [form for form in complete if form[0] != ALPACA]
    complete = plain or complete  # an instruction beside a text is a prompt of somebody's
    return [form for form in complete if not any(set(form) < set(other) for other in complete)]


def _accepted(texts: tuple[str, ...], target: str, name: str, *, with_target: bool) -> tuple[str, ...]:
    """Columns that mean something in a file of this form; others are left alone."""
    if not with_target:
        return texts
    beside = {"label": (name or "label_name",), "output": ("category",)}.get(target, ())
    return (*(texts or ("text",)), *((target,) if target else TARGETS), *beside, "weight", *GROUP)


def _targets(columns: Collection[str], problem_type: str | None, texts: tuple[str, ...]) -> list[str]:
    """The target columns that serve the problem type; `output` is one beside `category`, and of Alpaca."""
    there = [name for name in TARGETS if name in columns and (name != "output" or "category" in columns)]
    if not there and problem_type in (None, *ANSWERS):
        there = [name for name in NAMES if name in columns][:1]
        there = there or ["output"] * (texts[:1] == (ALPACA,) and "output" in columns)
        return there or [name for name in texts if name in CONVERSATIONS]
    if problem_type is None:
        return there
    fit = [name for name in there if problem_type in TARGETS[name]]
    first = [name for name in fit if TARGETS[name][0] == problem_type]
    # `score` beside `label`: regression takes the column that is made for it, and so for the others.
    return first if len(first) == 1 and "probabilities" not in fit else fit


def _target_problem(
    where: str,
    columns: Collection[str],
    targets: list[str],
    problem_type: str | None,
    near: dict[str, str],
    shown: str,
) -> FileProblem:
    served = [name for name, types in TARGETS.items() if problem_type is None or problem_type in types]
    accepted = f"{', '.join(served)}" + (f" for {problem_type}" if problem_type else "")
    if targets:
        found = f"several targets: {', '.join(targets)}"
        deciding = [name for name in PROBLEM_TYPES if len(_targets(columns, name, ())) == 1]
        remedy = "drop the other columns"
        if problem_type is None and deciding:
            remedy = f"name the problem type, such as --problem_type {deciding[0]}, or {remedy}"
        return FileProblem(where, found, accepted, remedy)
    hint = next((name for name, meant in near.items() if meant in TARGETS), "")
    remedy = f"did you mean {near[hint]!r} by {hint!r}? rename it" if hint else "add or rename the column"
    unfit = [name for name in TARGETS if name in columns and name != "output"]
    if unfit:
        remedy = f"train on {unfit[0]!r} with --problem_type {TARGETS[unfit[0]][0]}, or add the column"
    return FileProblem(where, f"no target column (columns: {shown})", accepted, remedy)
