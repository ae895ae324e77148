"""Pseudo-labels: a teacher labels unlabelled texts, and confident answers become training rows, `qth pseudo`.

Each round fits the teacher on the labelled rows and the accepted ones. A text is accepted if its confidence
is at least the threshold at which the teacher errs on at most `max_error` of the dev rows, and if its class
does not exceed its share in the labelled rows by more than `BALANCE`. The rounds end when the accuracy on dev
does not increase. A trained classifier (`--model`) is a teacher that is not fitted again: there is one round.
Source: Lee 2013 (pseudo-label); per-class limits as in Zou et al. 2018 (CBST), arXiv:1810.07911.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.labeling.confident_learning import Floats
from qwen_task_heads.labeling.pools import Engines, PoolArguments, read_pool
from qwen_task_heads.labeling.review import as_columns, write_whole

BALANCE = 2.0  # largest share of a class among the accepted rows, relative to the labelled rows
ROWS = 30  # least dev rows above a threshold


@dataclass(kw_only=True)
class PseudoLabelArguments(PoolArguments):
    """Options of `pseudo_label`.

    Args:
        max_error: accepted share of wrong answers, measured on dev.
        rounds: maximum number of rounds.
    """

    max_error: float = field(default=0.05, metadata={"help": "Accepted share of wrong answers on dev."})
    rounds: int = field(default=3, metadata={"help": "Maximum number of rounds."})


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round of pseudo-labels.

    Args:
        accepted: rows that were added.
        threshold: least confidence; None if no threshold keeps the error on dev.
        accuracy: on dev, of the teacher fitted with the accepted rows.
    """

    accepted: int
    threshold: float | None
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class PseudoLabelReport:
    """What was written.

    Args:
        path: JSONL of the labelled rows and the pseudo-labelled ones.
        labelled: number of labelled rows.
        pool: number of unlabelled texts.
        before: accuracy of the teacher on dev without pseudo-labels.
        rounds: those that were kept.
        reason: why no further round was made.
    """

    path: Path
    labelled: int
    pool: int
    before: float
    rounds: Sequence[Round]
    reason: str

    @property
    def accepted(self) -> int:
        """Number of pseudo-labelled rows."""
        return sum(one.accepted for one in self.rounds)

    def __str__(self) -> str:
        lines = [f"teacher on dev: {self.before:.3f} with {self.labelled:,} labelled rows"]
        lines += [
            f"round {number}: {one.accepted:,} of {self.pool:,} texts at confidence {one.threshold or 0:.3f},"
            f" teacher on dev {one.accuracy:.3f}"
            for number, one in enumerate(self.rounds, 1)
        ]
        lines.append(f"end: {self.reason}")
        return "\n".join([*lines, f"File: {self.path}\nNext: qth classify --dataset_name {self.path}"])


def pseudo_label(arguments: PseudoLabelArguments) -> PseudoLabelReport:
    """Label the confident part of a pool, and write it with the labelled rows.

    Each row has `label_source` (`given` or `pseudo`); pseudo-labels also have `confidence`, `round` and
    `teacher`.

    Raises:
        TaskHeadsError: see `read_pool`; an error or number of rounds out of range.
    """
    problems = []
    if not 0 < arguments.max_error < 1:
        found, fix = f"found {arguments.max_error:g}", "choose such as 0.05"
        problems.append(Problem("--max_error", found, "between 0 and 1", fix, code="option-range"))
    if arguments.rounds < 1:
        found, fix = f"found {arguments.rounds}", "choose such as 3"
        problems.append(Problem("--rounds", found, "1 or more", fix, code="option-range"))
    if problems:
        raise TaskHeadsError(problems)
    pool = read_pool(arguments)
    sets, given, dev = pool.sets, list(pool.sets.train), list(pool.sets.dev)
    truth = np.array([row.target for row in dev])
    texts = list(pool.texts)
    accepted: list[tuple[TextExample, float, int]] = []  # row, confidence, round
    rounds: list[Round] = []
    engines = Engines.of([*given, *dev, *texts], sets, arguments)
    both = _mean(engines, given, [*dev, *texts])
    before = best = float((both[: len(dev)].argmax(1) == truth).mean())
    reason = f"{arguments.rounds} rounds were made"
    for number in range(1, (1 if arguments.model else arguments.rounds) + 1):
        threshold = threshold_for(both[: len(dev)], truth, max_error=arguments.max_error)
        if threshold is None:
            reason = f"no confidence keeps the error on dev below {arguments.max_error:g}"
            break
        answers = both[len(dev) :]
        chosen = balanced(answers, threshold, shares=_shares(given, len(sets.labels)))
        if not chosen:
            reason = f"no text has a confidence of {threshold:.3f}"
            break
        new = [
            (replace(texts[row], target=int(answers[row].argmax())), float(answers[row].max()), number)
            for row in chosen
        ]
        rest = [row for place, row in enumerate(texts) if place not in set(chosen)]
        with_new = [*given, *(row for row, _, _ in accepted), *(row for row, _, _ in new)]
        both = _mean(engines, with_new, [*dev, *rest])
        accuracy = float((both[: len(dev)].argmax(1) == truth).mean())
        if (arguments.model is None and accuracy <= best and number > 1) or accuracy < best:
            reason = f"round {number} did not increase the accuracy on dev ({accuracy:.3f})"
            break
        best, texts = max(best, accuracy), rest
        accepted += new
        rounds.append(Round(accepted=len(new), threshold=threshold, accuracy=accuracy))
        if not texts:
            reason = "every text is labelled"
            break
    teacher = arguments.model or "TF-IDF"
    teacher += f" and {arguments.model_name_or_path}" if arguments.model_name_or_path else ""
    names = sets.labels.names
    lines = [{**as_columns(row, names), "label_source": "given"} for row in given]
    lines += [
        {
            **as_columns(row, names),
            "label_source": "pseudo",
            "confidence": round(confidence, 4),
            "round": number,
            "teacher": teacher,
        }
        for row, confidence, number in accepted
    ]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return PseudoLabelReport(
        path=write_whole(arguments.output_file, content.encode("utf-8")),
        labelled=len(given),
        pool=len(pool.texts),
        before=before,
        rounds=rounds,
        reason=reason,
    )


def threshold_for(dev: Floats, truth: Sequence[int] | Floats, *, max_error: float) -> float | None:
    """Return the least confidence at which at most `max_error` of the dev rows above it are wrong.

    Args:
        dev: probabilities (N, L).
        truth: (N,) ids.
        max_error: share of wrong answers.

    Returns:
        The threshold; None if there is none with at least `ROWS` rows above it, or a tenth of the rows.

    Example:
        >>> dev = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.55, 0.45]])
        >>> threshold_for(dev, [0, 0, 0, 1], max_error=0.1)
        0.6
    """
    confidence = dev.max(1)
    order = np.argsort(-confidence, kind="stable")
    wrong = (dev.argmax(1) != np.asarray(truth))[order]
    risk = np.cumsum(wrong) / np.arange(1, len(order) + 1)
    least = min(ROWS, max(1, len(order) // 10))
    fits = [place for place in np.flatnonzero(risk <= max_error).tolist() if place + 1 >= least]
    return float(confidence[order[fits[-1]]]) if fits else None


def balanced(answers: Floats, threshold: float, *, shares: Floats) -> list[int]:
    """Return the texts above a threshold, the most confident first, with limits for frequent classes.

    Args:
        answers: probabilities (M, L).
        threshold: least confidence.
        shares: (L,) share of each class in the labelled rows.

    Example:
        >>> answers = np.array([[0.9, 0.1], [0.95, 0.05], [0.99, 0.01], [0.1, 0.9]])
        >>> balanced(answers, 0.8, shares=np.array([0.1, 0.9]))
        [2, 3]
    """
    confidence, best = answers.max(1), answers.argmax(1)
    order = [int(row) for row in np.argsort(-confidence, kind="stable") if confidence[row] >= threshold]
    limits = [math.ceil(BALANCE * share * len(order)) for share in shares]
    counts: Counter[int] = Counter()
    chosen = []
    for row in order:
        label = int(best[row])
        if counts[label] < limits[label]:
            counts[label] += 1
            chosen.append(row)
    return chosen


def _shares(rows: Sequence[TextExample], count: int) -> Floats:
    targets = [int(row.target) for row in rows]  # type: ignore[arg-type]
    return np.bincount(targets, minlength=count) / len(rows)


def _mean(engines: Engines, rows: Sequence[TextExample], texts: Sequence[TextExample]) -> Floats:
    return np.asarray(np.mean(engines.probabilities(rows, texts), axis=0))
