"""What a user may name and ask of engines (`engines.py`), checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch

from qwen_task_heads.data.few_shot import Shots
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.modelscope import HUGGINGFACE
from qwen_task_heads.tokenization.label_prompts import MAX_LENGTH

HEAD, SFT, SCORER, ZERO_SHOT, FEW_SHOT, EMBEDDINGS = KINDS = (
    "head",
    "sft",
    "scorer",
    "zero_shot",
    "few_shot",
    "embeddings",
)
TRAINED = (HEAD, SFT, SCORER)  # by recipes; all others are baselines
TEXTS, TITLES = TASKS = ("texts", "titles")
KINDS_OF = {TEXTS: (HEAD, SFT, ZERO_SHOT, FEW_SHOT, EMBEDDINGS), TITLES: (SCORER, ZERO_SHOT, EMBEDDINGS)}
# Options of prompts and labels, name to what is no choice: titles have neither.
OF_TEXTS: Mapping[str, Any] = {
    "labels": None,
    "instruction": None,
    "calibrate": False,
    "length_normalized": False,
    "figure": "accuracy",
}


@dataclass(frozen=True)
class EngineSpec:
    """What the user named: `kind=source`."""

    kind: str
    source: str

    @property
    def name(self) -> str:
        """As it was typed."""
        return f"{self.kind}={self.source}"


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """How a prompted model is asked, and on what all models run.

    Args:
        instruction: of zero- and few-shot; None for the defaults.
        shots: text to its examples, for few-shot; the same for all texts where `shared`.
        shared: one choice of examples for all texts.
        max_length: longest prompt with its answer, in tokens; trained generators have their own.
        length_normalized, calibrate: as of `LabelScorer`, for all generators; calibrate for prompted ones.
        hub, dtype, device, batch_tokens: of all engines.
    """

    instruction: str | None = None
    shots: Mapping[str, Shots] = field(default_factory=dict)
    shared: bool = True
    max_length: int = MAX_LENGTH
    length_normalized: bool = False
    calibrate: bool = False
    hub: str = HUGGINGFACE
    dtype: torch.dtype | str = "auto"
    device: str | torch.device | None = None
    batch_tokens: int = 8192

    def per_text(self, spec: EngineSpec) -> Mapping[str, Shots] | None:
        """Text to its own examples; None where an engine shows none, or the same ones to all."""
        return self.shots if spec.kind == FEW_SHOT and not self.shared else None


def parse_engines(
    words: Sequence[str],
    *,
    asking: PromptOptions | None = None,
    counts: Mapping[str, int | None] | None = None,
) -> list[EngineSpec]:
    """Read `kind=source` entries, and refuse options that do not fit them.

    Args:
        words: entries.
        asking: options, as yet without shots.
        counts: options (`--max_rows`) that have to be 1 or more, or None.

    Raises:
        TaskHeadsError: unknown kinds, entries without a source, the same entry twice, or none; an instruction
            that has no place for examples of few-shot, or one that zero-shot cannot fill; calibration with
            examples per text; counts below 1. All at once.

    Example:
        >>> from qwen_task_heads.inference.engine_options import parse_engines
        >>> [spec.kind for spec in parse_engines(["head=runs/news", "zero_shot=embedded"])]
        ['head', 'zero_shot']
    """
    accepted = f"KIND=SOURCE with one of {', '.join(KINDS)}"
    found, problems = [], []
    for word in words:
        kind, _, source = word.partition("=")
        if kind not in KINDS or not source.strip():
            problems.append(
                Problem("--engines", f"found {shorten(word)}", accepted, "such as head=runs/news")
            )
        elif EngineSpec(kind, source) in found:
            problems.append(Problem("--engines", f"found {shorten(word)} twice", "once", "drop one"))
        else:
            found.append(EngineSpec(kind, source))
    if not words:
        problems.append(Problem("--engines", "found none", accepted, "such as head=runs/news"))
    problems += _option_problems({spec.kind for spec in found}, asking or PromptOptions())
    for name, value in (counts or {}).items():
        if value is not None and value < 1:
            problems.append(Problem(name, f"found {value}", "1 or more", "choose such as 100"))
    if problems:
        raise TaskHeadsError(problems)
    return found


def check_task(specs: Sequence[EngineSpec], task: str, options: Mapping[str, Any]) -> None:
    """Refuse engines and options that are not of a task.

    Args:
        specs: engines.
        task: `texts` or `titles`.
        options: name to value; those of `OF_TEXTS` are refused for titles.

    Raises:
        TaskHeadsError: all of them at once.

    Example:
        >>> from qwen_task_heads.inference.engine_options import EngineSpec, check_task
        >>> check_task([EngineSpec("scorer", "runs/titles")], "titles", {"labels": None})
    """
    accepted = f"{', '.join(f'{kind}=' for kind in KINDS_OF[task])} for {task}"
    other = next(name for name in TASKS if name != task)
    problems = [
        Problem(spec.name, f"found an engine of {other}", accepted, f"drop it, or give {other}")
        for spec in specs
        if spec.kind not in KINDS_OF[task]
    ]
    for name, default in OF_TEXTS.items() if task == TITLES else ():
        if options.get(name, default) != default:
            found, where = f"{shorten(options[name])} with titles", f"--{name}"
            problems.append(Problem(where, f"found {found}", "texts with labels", "drop it"))
    if problems:
        raise TaskHeadsError(problems)


def task_of(specs: Sequence[EngineSpec]) -> str | None:
    """The task that the engines tell; None where all of them serve both, or some serve one task each.

    Example:
        >>> from qwen_task_heads.inference.engine_options import EngineSpec, task_of
        >>> task_of([EngineSpec("scorer", "a")]), task_of([EngineSpec("zero_shot", "a")])
        ('titles', None)
    """
    told = {TEXTS: {*KINDS_OF[TEXTS]} - {*KINDS_OF[TITLES]}, TITLES: {*KINDS_OF[TITLES]} - {*KINDS_OF[TEXTS]}}
    found = [task for task, kinds in told.items() if any(spec.kind in kinds for spec in specs)]
    return found[0] if len(found) == 1 else None


def _option_problems(kinds: Set[str], asking: PromptOptions) -> list[Problem]:
    problems = []
    words = asking.instruction
    shows = words is not None and "{examples}" in words
    if FEW_SHOT in kinds and words is not None and not shows:
        found, accepted = "no {examples} in it, and few_shot=", "an instruction with a place for its examples"
        problems.append(
            Problem("--instruction", f"found {found}", accepted, "add {examples}, or use zero_shot=")
        )
    if ZERO_SHOT in kinds and shows:
        found, accepted = "{examples} in it, and zero_shot=", "an instruction without, as it shows none"
        remedy = "drop {examples}, or compare zero_shot= in a run of its own"
        problems.append(Problem("--instruction", f"found {found}", accepted, remedy))
    if FEW_SHOT in kinds and asking.calibrate and not asking.shared:
        found, accepted = "true, and --shots_by similarity", "the same examples for all texts"
        problems.append(Problem("--calibrate", f"found {found}", accepted, "drop it, or --shots_by balance"))
    return problems
