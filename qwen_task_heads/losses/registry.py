"""`LOSSES`: all losses that a run can choose, by problem type and name, and what is read from their rows.

Options of the command line, their help, checks and defaults, documentation, cards and tests read `LOSSES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.losses import groups, pairs, texts
from qwen_task_heads.losses.class_balance import absent_label_messages, counts_problem, read_weights
from qwen_task_heads.losses.rows import Loss, LossOption

# Problem type -> name -> row. The first of each problem type is its default.
LOSSES: dict[str, dict[str, Loss]] = {}
for _row in (*pairs.ROWS, *groups.ROWS, *texts.ROWS):
    LOSSES.setdefault(_row.problem_type, {})[_row.name] = _row

PAIR_LOSSES, GROUP_LOSSES = LOSSES["pairs"], LOSSES["groups"]
TITLE_LOSSES = PAIR_LOSSES | GROUP_LOSSES
# Of classifiers with one question; the answers to several questions have one loss.
TEXT_LOSSES = {kind: losses for kind, losses in LOSSES.items() if kind not in ("pairs", "groups", QUESTIONS)}
OPTIONS = {option.name: option for rows in LOSSES.values() for row in rows.values() for option in row.options}

# Preference signals by column: their description, and the loss that uses them.
_SIGNALS = {
    "margin": ("margins", "bradley_terry_margin"),
    "preference": ("votes, clicks or preferences", "soft"),
}
Arguments = TypeVar("Arguments", bound=type)


def options_of(kinds: Iterable[str]) -> list[LossOption]:
    """Return the options of the losses of some problem types, each once."""
    found = [option for kind in kinds for loss in LOSSES[kind].values() for option in loss.options]
    return list(dict.fromkeys(found))


def with_loss_options(*kinds: str) -> Callable[[Arguments], Arguments]:
    """Add a field for each option of the losses of some problem types to a class of arguments.

    It decorates a class below `@dataclass`. The fields follow the field `loss`; None is not given.
    """

    def add(arguments: Arguments) -> Arguments:
        hints: dict[str, Any] = {}
        for name, hint in inspect.get_annotations(arguments).items():
            hints[name] = hint
            for option in options_of(kinds) if name == "loss" else ():
                if not option.is_inherited:
                    hints[option.field] = list[str] | None if option.per_label else float | None
                    setattr(arguments, option.field, field(default=None, metadata={"help": _help(option)}))
        arguments.__annotations__ = hints
        return arguments

    return add


def _help(option: LossOption) -> str:
    rows = [row for losses in LOSSES.values() for row in losses.values()]
    names = ", ".join(dict.fromkeys(row.name for row in rows if row.takes(option.name)))
    default = "" if option.default is None else f"; {option.default:g} if None"
    return f"{option.help} For {names}{default}."


def given_options(arguments: Any, kinds: Iterable[str]) -> dict[str, Any]:
    """Return the options of a loss that arguments state; weights as `balanced` or as numbers."""
    given = {option: vars(arguments).get(option.field) for option in options_of(kinds)}
    return {
        option.name: _weights(value) if option.per_label else value
        for option, value in given.items()
        if value is not None and not option.is_inherited
    }


def _weights(words: Sequence[str]) -> str | list[float]:
    return "balanced" if list(words) == ["balanced"] else [float(word) for word in words]


def resolve_loss(name: str, *kinds: str) -> Loss:
    """Return the loss of one of several problem types called `name`.

    Args:
        name: of the loss.
        *kinds: `pairs`, `groups`, or the problem type of a classifier.

    Raises:
        TaskHeadsError: there is no such loss; the message lists the names.

    Example:
        >>> from qwen_task_heads.losses.registry import resolve_loss
        >>> resolve_loss("bradley_terry", "pairs", "groups").formula
        '-log σ(c - r)'
    """
    known = {loss.name: loss for kind in kinds for loss in LOSSES[kind].values()}
    if name not in known:
        problem, names = f"found {shorten(name)} for {' and '.join(kinds)}", ", ".join(known)
        raise TaskHeadsError(Problem("--loss", problem, names, "choose one of them", code="option-value"))
    return known[name]


def unused_options(
    given: Mapping[str, Any], losses: Sequence[Loss], *, known: Collection[Loss], where: str = "--loss"
) -> list[Problem]:
    """Return the problem of each option that none of the losses takes.

    Args:
        given: option to value.
        losses: of the run.
        known: losses that the run could choose instead.
        where: option that chooses a loss.

    Example:
        >>> from qwen_task_heads.losses.registry import PAIR_LOSSES, unused_options
        >>> known = PAIR_LOSSES.values()
        >>> unused_options({"nu": 1.0}, [PAIR_LOSSES["soft"]], known=known)[0].fix
        'drop it, or give --loss rao_kupper'
    """
    problems = []
    names = ", ".join(repr(loss.name) for loss in losses)
    supported = ", ".join(dict.fromkeys(option.flag for loss in losses for option in loss.options))
    for name, value in given.items():
        if any(loss.takes(name) for loss in losses):
            continue
        other = next((loss.name for loss in known if loss.takes(name)), None)
        fix = "drop it" if other is None else f"drop it, or give {where} {other}"
        flag = OPTIONS[name].flag if name in OPTIONS else f"loss option {name!r}"
        problem, expected = f"found {shorten(value)} with loss {names}", supported or "no option"
        problems.append(Problem(flag, problem, expected, fix, code="option-conflict"))
    return problems


def option_problems(given: Mapping[str, float], loss: Loss, *, known: Collection[Loss]) -> list[Problem]:
    """Return the problems of the options of a loss of titles: unused, or out of range."""
    problems = unused_options(given, [loss], known=known)
    for option in loss.options:
        problems += option.problems(given[option.name]) if option.name in given else []
    return problems


def unused_signals(loss_name: str, columns: Iterable[str]) -> str | None:
    """Describe the preference signals of the data that a loss does not use; None if it uses all of them.

    Args:
        loss_name: a name in `PAIR_LOSSES` or `GROUP_LOSSES`.
        columns: columns of the data set, such as `train.column_names`; columns without signals are ignored.

    Example:
        >>> from qwen_task_heads.losses.registry import unused_signals
        >>> unused_signals("bradley_terry", ["chosen_ids", "rejected_ids", "row"])
        >>> unused_signals("bradley_terry", ["chosen_ids", "rejected_ids", "margin"]).split(": ")[1]
        'choose bradley_terry_margin to use them'
    """
    uses, present = TITLE_LOSSES[loss_name].uses, set(columns)
    unused = [entry for name, entry in _SIGNALS.items() if name in present and name not in uses]
    if not unused:
        return None
    signals = " and ".join(signal for signal, _ in unused)
    losses = " or ".join(loss for _, loss in unused)
    return f"the data has {signals}, which loss {loss_name!r} does not use: choose {losses} to use them"


@dataclass(frozen=True)
class TextLoss:
    """A loss of a classifier with resolved options, from `resolve_text_loss`.

    Args:
        row: in `LOSSES`.
        parameters: arguments of the function in addition to logits, labels and `soft`.
        messages: lines for the report of the run, such as labels without a training row.
    """

    row: Loss
    parameters: dict[str, Any] = field(default_factory=dict)
    messages: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the loss."""
        return self.row.name

    def __call__(self, logits: Tensor, labels: Tensor, **columns: Tensor) -> Tensor:
        """Return losses (B,), fp32; `columns` are those that the loss uses.

        Raises:
            TaskHeadsError: the shapes differ.
        """
        return self.row.function(logits, labels, **columns, **self.parameters)

    def check_soft(self, table: Any, *, name: str = "", where: str = "--loss") -> None:
        """Reject soft labels that the loss would ignore.

        Args:
            table: a data set of `tokenization.collators.text_dataset`.
            name: of its split, for the message.
            where: option of the message.

        Raises:
            TaskHeadsError: the data set has a column `soft`, and the loss does not use it.
        """
        if "soft" not in (table.column_names or ()) or "soft" in self.row.uses:
            return
        kind = self.row.problem_type
        names = ", ".join(loss.name for loss in LOSSES[kind].values() if "soft" in loss.uses)
        problem = f"found {self.name!r}, and soft labels" + (f" in the {name} set" if name else "")
        expected = names or f"no soft labels, because no loss of {kind} uses them"
        fix = "choose one of them" if names else "drop the soft labels"
        raise TaskHeadsError(Problem(where, problem, expected, fix, code="option-unsupported"))


def resolve_text_loss(
    name: str | None,
    *,
    problem_type: str,
    num_labels: int,
    options: Mapping[str, Any] | None = None,
    class_counts: Sequence[int] | None = None,
    rows: int | None = None,
    labels: Sequence[str] = (),
    sizes: Sequence[int] = (),
) -> TextLoss:
    """Resolve a loss and its options before training, and report all problems in one error.

    Args:
        name: a name in `LOSSES[problem_type]`; None for the default of the problem type.
        problem_type: as in the model's config.
        num_labels: K.
        options: by their names in `OPTIONS`; values of None, and a smoothing of 0, count as not given.
            `class_weights` and `pos_weight` are `"balanced"` or a number per label.
        class_counts: n_k, training rows with each label; `balanced` and `logit_adjusted` need it.
        rows: number of training rows; the counts of multi-label rows do not determine it.
        labels: names of the labels, for messages.
        sizes: outputs of each question of a model with several.

    Raises:
        TaskHeadsError: an unknown loss, an option that it does not take, or a value out of range.

    Example:
        >>> from qwen_task_heads.losses.registry import resolve_text_loss
        >>> loss = resolve_text_loss(None, problem_type="single_label_classification", num_labels=2,
        ...                          options={"class_weights": "balanced"}, class_counts=[30, 10])
        >>> loss.parameters["class_weights"]
        tensor([0.6667, 2.0000])
    """
    row = resolve_loss(next(iter(LOSSES[problem_type])) if name is None else name, problem_type)
    given = {key: value for key, value in (options or {}).items() if value is not None}
    if not given.get("label_smoothing"):
        given.pop("label_smoothing", None)
    problems = unused_options(given, [row], known=LOSSES[problem_type].values())
    parameters: dict[str, Any] = {"sizes": list(sizes)} if row.needs_sizes else {}
    for option in row.options:
        if option.name not in given:
            continue
        value = given[option.name]
        if option.per_label:
            value, found = read_weights(
                value, flag=option.flag, num_labels=num_labels, class_counts=class_counts, rows=rows
            )
        else:
            found = option.problems(value)
        problems += found
        parameters[option.argument] = value
    if row.needs_counts and class_counts is None:
        problems.append(counts_problem(f"--loss {row.name}"))
    elif row.needs_counts:
        parameters["class_counts"] = torch.tensor(class_counts, dtype=torch.float32)
    if problems:
        raise TaskHeadsError(problems)
    messages = absent_label_messages(given, row.needs_counts, class_counts, rows=rows, labels=labels)
    return TextLoss(row, parameters, tuple(messages))
