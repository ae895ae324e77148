"""The rows behind the figures: every prediction as JSON, and the hardest errors as a table to read.

Names stand for labels everywhere. A text is shown in one short line, with markup escaped: it is
somebody's data, and a table must survive it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.inference.predictions import DIGITS, Prediction, to_predictions
from qwen_task_heads.metrics.classification import (
    MULTI,
    REGRESSION,
    check_scores,
    probabilities,
)
from qwen_task_heads.metrics.ranking import Floats
from qwen_task_heads.reports.cards import figure, plain

SHOWN = 30  # errors in the first table
CONFUSIONS = 20  # pairs of labels in the second
WORST = 50  # labels in the third
MAX_TEXT = 160  # characters of a text in a table


def write_predictions(path: Path, examples: Sequence[TextExample], logits: Floats, *, config: Any) -> None:
    """Write one row per example: text, where it was read, truth, answer with names, right or not.

    Args:
        path: of the JSONL file.
        examples: N rows.
        logits: (N, L) of the model.
        config: of the model, for the problem type and the names.
    """
    texts, pairs = [e.text for e in examples], [e.text_b for e in examples]
    answers = to_predictions(torch.from_numpy(logits), config, texts=texts, text_pairs=pairs)
    with path.open("w", encoding="utf-8") as file:
        for example, answer in zip(examples, answers, strict=True):
            row = {"text": example.text, **({"text_b": example.text_b} if example.text_b else {})}
            row |= {**_judged(example, answer, config.id2label), **answer.as_dict()}
            row["source"] = Path(example.source).name
            if example.group:
                row["group"] = example.group
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _judged(example: TextExample, answer: Prediction, names: dict[int, str]) -> dict[str, Any]:
    """The truth by name, and whether the answer is right; the error of a single value."""
    target = example.target
    if isinstance(target, int):
        return {"true": names[target], "correct": answer.label == names[target]}
    if answer.labels is not None:
        true = [names[int(index)] for index in target]
        return {"true": true, "correct": sorted(true) == sorted(answer.labels)}
    error = {} if answer.score is None else {"error": round(answer.score - target[0], DIGITS)}
    return {"true": target[0] if len(target) == 1 else list(target), **error}


def hardest_errors(
    problem_type: str,
    examples: Sequence[TextExample],
    logits: Floats,
    *,
    labels: Sequence[str],
    split: str,
    thresholds: Sequence[float] | None = None,
) -> str:
    """Markdown of the most confident wrong answers, the usual confusions, and the worst of each label.

    Args:
        problem_type: of the model.
        examples: N rows.
        logits: (N, L) of the model.
        labels: L names.
        split: what the rows are called, such as `test`.
        thresholds: of multi-label, (L,); None for .5.

    Example:
        >>> import numpy as np
        >>> from qwen_task_heads.data.examples import TextExample
        >>> from qwen_task_heads.reports.prediction_rows import hardest_errors
        >>> rows = [TextExample(text="a match", target=0, source="news.jsonl:7")]
        >>> page = hardest_errors("single_label_classification", rows, np.array([[0.0, 2.0]]),
        ...                       labels=["sport", "trade"], split="test")
        >>> print(page.splitlines()[8])
        | news.jsonl:7 | a match | sport | trade | 0.881 |
    """
    scores, truth = check_scores(problem_type, logits, [e.target for e in examples], num_labels=len(labels))
    if problem_type == REGRESSION:
        return _largest_misses(examples, scores, truth, labels=labels, split=split)
    if problem_type == MULTI:
        least = np.asarray(thresholds or 0.5)
        return _wrong_sets(examples, scores, truth, labels=labels, split=split, least=least)
    sure, guess = probabilities(problem_type, scores).max(1), scores.argmax(1)
    wrong = np.flatnonzero(guess != truth)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    names = [plain(label) for label in labels]

    def cells(row: int) -> list[str]:
        return [*_place(examples[row]), names[truth[row]], names[guess[row]], figure(sure[row])]

    head = ["where", "text", "true", "predicted", "probability"]
    page = [*_title(split, len(wrong), len(examples)), "## Most confident wrong answers", ""]
    page += _table(head, [cells(int(row)) for row in wrong[:SHOWN]])
    support = np.bincount(truth, minlength=len(labels))
    mixed, counts = np.unique(np.stack([truth, guess])[:, wrong], axis=1, return_counts=True)  # (2, U)
    usual = np.argsort(-counts, kind="stable")[:CONFUSIONS]
    page += ["## What is taken for what", ""]
    page += _table(
        ["true", "predicted", "rows", "of the true label"],
        [
            [names[t], names[p], f"{n:,}", f"{100 * n / support[t]:.0f}%"]
            for (t, p), n in zip(mixed[:, usual].T, counts[usual], strict=True)
        ],
    )
    page += ["## The worst of each label, weakest labels first", ""]
    missing = np.bincount(truth[wrong], minlength=len(labels))
    share = np.divide(missing, support, out=np.zeros(len(labels)), where=support > 0)
    rows = []
    for label in np.argsort(-share, kind="stable")[:WORST]:
        missed = wrong[truth[wrong] == label]
        if len(missed):
            rows.append([names[label], f"{len(missed):,} of {support[label]:,}", *cells(int(missed[0]))[:2],
                         *cells(int(missed[0]))[3:]])  # fmt: skip
    page += _table(["true", "missed", "where", "text", "predicted", "probability"], rows)
    return "\n".join(page)


def _wrong_sets(
    examples: Sequence[TextExample],
    scores: Floats,
    truth: Floats,
    *,
    labels: Sequence[str],
    split: str,
    least: Floats,
) -> str:
    sure = probabilities(MULTI, scores)
    chosen = sure >= least
    astray = np.abs(sure - truth)  # (N, L) how far each label is from its truth
    wrong = np.flatnonzero((chosen != (truth == 1)).any(1))
    wrong = wrong[np.argsort(-astray[wrong].max(1), kind="stable")]
    names = [plain(label) for label in labels]

    def listed(those: Any) -> str:
        return ", ".join(names[index] for index in np.flatnonzero(those)) or "–"

    rows = []
    for row in wrong[:SHOWN].tolist():
        label = int(astray[row].argmax())
        told = f"{names[label]} {figure(sure[row, label])}"
        rows.append([*_place(examples[row]), listed(truth[row]), listed(chosen[row]), told])
    page = [*_title(split, len(wrong), len(examples)), "## Furthest from the truth", ""]
    head = ["where", "text", "true", "predicted", "worst label, its probability"]
    return "\n".join([*page, *_table(head, rows)])


def _largest_misses(
    examples: Sequence[TextExample], scores: Floats, truth: Floats, *, labels: Sequence[str], split: str
) -> str:
    miss = np.abs(scores - truth)
    rows = []
    for row in np.argsort(-miss.max(1), kind="stable")[:SHOWN].tolist():
        value = int(miss[row].argmax())
        told = [plain(labels[value]), figure(truth[row, value]), figure(scores[row, value])]
        rows.append([*_place(examples[row]), *told, figure(scores[row, value] - truth[row, value])])
    head = ["where", "text", "value", "true", "predicted", "error"]
    lines = [f"# Largest errors on {plain(split)}", "", f"Of {len(examples):,} rows.", ""]
    return "\n".join([*lines, *_table(head, rows)])


def _title(split: str, wrong: int, rows: int) -> list[str]:
    share = f"{wrong:,} of {rows:,} rows are wrong ({100 * wrong / rows:.1f}%)."
    return [f"# Hardest errors on {plain(split)}", "", share, ""]


def _place(example: TextExample) -> list[str]:
    """Where a row was read, and its text in one short line."""
    shown = " ".join(example.text.split())
    if example.text_b:  # half the room for each
        second = " ".join(example.text_b.split())
        shown = f"{_cut(shown, MAX_TEXT // 2)} // {_cut(second, MAX_TEXT // 2)}"
    return [plain(Path(example.source).name) or "–", plain(_cut(shown, MAX_TEXT + 4))]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["None.", ""]
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]
