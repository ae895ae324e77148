"""Options of engines (`engines.py`), validated before any data is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch

from qwen_task_heads.data.few_shot import Shots
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubs import HUGGINGFACE
from qwen_task_heads.tokenization.label_prompts import MAX_LENGTH

KINDS = ("head", "sft", "scorer", "zero_shot", "few_shot", "embeddings")
HEAD, SFT, SCORER, ZERO_SHOT, FEW_SHOT, EMBEDDINGS = KINDS
TRAINED = (HEAD, SFT, SCORER)  # by recipes; all others are baselines
TEXTS, TITLES = TASKS = ("texts", "titles")
KINDS_OF = {TEXTS: (HEAD, SFT, ZERO_SHOT, FEW_SHOT, EMBEDDINGS), TITLES: (SCORER, ZERO_SHOT, EMBEDDINGS)}
# Options of prompts and labels -> their default; titles have neither.
OF_TEXTS: Mapping[str, Any] = {
    "labels": None,
    "instruction": None,
    "calibrate": False,
    "length_normalized": False,
    "figure": "accuracy",
}


@dataclass(frozen=True)
class EngineSpec:
    """An engine as the user named it: `kind=source`."""

    kind: str
    source: str

    @property
    def name(self) -> str:
        """The engine as it was typed."""
        return f"{self.kind}={self.source}"


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Options of prompted models, and the runtime options of all engines.

    Args:
        instruction: instruction of zero- and few-shot; None for the defaults.
        shots: text -> its examples, for few-shot; the same for all texts if `shared`.
        shared: whether all texts have the same examples.
        max_length: longest prompt with its answer, in tokens; trained generators have their own limit.
        length_normalized, calibrate: see `LabelScorer`; `calibrate` is for prompted models only.
        hub, dtype, device, batch_tokens: options of all engines.
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
        """Return text -> its own examples; None if the engine has none, or the same for all texts."""
        return self.shots if spec.kind == FEW_SHOT and not self.shared else None


def parse_engines(
    words: Sequence[str],
    *,
    asking: PromptOptions | None = None,
    counts: Mapping[str, int | None] | None = None,
) -> list[EngineSpec]:
    """Parse `kind=source` entries, and validate the options that depend on them.

    Args:
        words: entries.
        asking: options, without shots.
        counts: options (`--max_rows`) that must be 1 or more, or None.

    Raises:
        TaskHeadsError: unknown kinds, entries without a source, repeated entries, or none; an instruction
            without `{examples}` for few-shot, or with `{examples}` for zero-shot; calibration with examples
            per text; counts below 1. All problems are raised together.

    Example:
        >>> from qwen_task_heads.inference.engine_options import parse_engines
        >>> [spec.kind for spec in parse_engines(["head=runs/news", "zero_shot=embedded"])]
        ['head', 'zero_shot']
    """
    expected = f"KIND=SOURCE with one of {', '.join(KINDS)}"
    fix = "name an engine, such as head=runs/news"
    specs: list[EngineSpec] = []
    problems = []
    for word in words:
        kind, _, source = word.partition("=")
        if kind not in KINDS or not source.strip():
            problems.append(
                Problem("--engines", f"found {shorten(word)}", expected, fix, code="option-value")
            )
        elif EngineSpec(kind, source) in specs:
            problems.append(
                Problem(
                    "--engines",
                    f"found {shorten(word)} twice",
                    "each engine once",
                    "drop one",
                    code="option-conflict",
                )
            )
        else:
            specs.append(EngineSpec(kind, source))
    if not words:
        problems.append(Problem("--engines", "no engine is named", expected, fix, code="option-missing"))
    problems += _option_problems({spec.kind for spec in specs}, asking or PromptOptions())
    for name, value in (counts or {}).items():
        if value is not None and value < 1:
            problems.append(
                Problem(name, f"found {value}", "1 or more", "choose such as 100", code="option-range")
            )
    if problems:
        raise TaskHeadsError(problems)
    return specs


def check_task(specs: Sequence[EngineSpec], task: str, options: Mapping[str, Any]) -> None:
    """Raise for engines and options that a task does not have.

    Args:
        specs: engines.
        task: `texts` or `titles`.
        options: name -> value; those of `OF_TEXTS` are refused for titles.

    Raises:
        TaskHeadsError: all such engines and options.

    Example:
        >>> from qwen_task_heads.inference.engine_options import EngineSpec, check_task
        >>> check_task([EngineSpec("scorer", "runs/titles")], "titles", {"labels": None})
    """
    expected = f"{', '.join(f'{kind}=' for kind in KINDS_OF[task])} for {task}"
    other = next(name for name in TASKS if name != task)
    problems = [
        Problem(
            spec.name,
            f"found an engine of {other}",
            expected,
            f"drop it, or give {other}",
            code="option-unsupported",
        )
        for spec in specs
        if spec.kind not in KINDS_OF[task]
    ]
    for name, default in OF_TEXTS.items() if task == TITLES else ():
        if options.get(name, default) != default:
            problems.append(
                Problem(
                    f"--{name}",
                    f"found {shorten(options[name])} with titles",
                    "texts with labels",
                    "drop it",
                    code="option-unsupported",
                )
            )
    if problems:
        raise TaskHeadsError(problems)


def task_of(specs: Sequence[EngineSpec]) -> str | None:
    """Return the task that the engines imply; None if they imply none, or both.

    Example:
        >>> from qwen_task_heads.inference.engine_options import EngineSpec, task_of
        >>> task_of([EngineSpec("scorer", "a")]), task_of([EngineSpec("zero_shot", "a")])
        ('titles', None)
    """
    texts, titles = {*KINDS_OF[TEXTS]}, {*KINDS_OF[TITLES]}
    kinds = {spec.kind for spec in specs}
    tasks = [task for task, own in ((TEXTS, texts - titles), (TITLES, titles - texts)) if kinds & own]
    return tasks[0] if len(tasks) == 1 else None


def _option_problems(kinds: Set[str], asking: PromptOptions) -> list[Problem]:
    """Return the conflicts of the instruction and of calibration with the kinds of engines."""
    instruction = asking.instruction
    has_examples = instruction is not None and "{examples}" in instruction
    without, shared = "an instruction without {examples}", "the same examples for all texts"
    conflicts = [
        (
            FEW_SHOT in kinds and instruction is not None and not has_examples,
            (
                "--instruction",
                "found no {examples} with few_shot=",
                "an instruction with a place for examples",
            ),
            "add {examples}, or use zero_shot=",
        ),
        (
            ZERO_SHOT in kinds and has_examples,
            ("--instruction", "found {examples} with zero_shot=, which has no examples", without),
            "drop {examples}, or compare zero_shot= in a separate run",
        ),
        (
            FEW_SHOT in kinds and asking.calibrate and not asking.shared,
            ("--calibrate", "found true with --shots_by similarity", shared),
            "drop it, or give --shots_by balance",
        ),
    ]
    return [Problem(*texts, fix, code="option-conflict") for found, texts, fix in conflicts if found]
