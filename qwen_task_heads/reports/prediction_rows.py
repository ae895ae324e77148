"""Write every prediction as JSON, and the hardest errors as tables in Markdown.

Labels are written by name. In tables, a text is one short line with its markup escaped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.hubcode.questions_task_heads import UNANSWERED
from qwen_task_heads.inference.predictions import DIGITS, Prediction, to_predictions
from qwen_task_heads.metrics.classification import (
    MULTI,
    REGRESSION,
    check_scores,
    probabilities,
)
from qwen_task_heads.metrics.ranking import Floats
from qwen_task_heads.reports.markdown import escape, format_value

ERRORS = 30  # errors in the first table
CONFUSIONS = 20  # pairs of labels in the second
WORST = 50  # labels in the third
MAX_TEXT = 160  # characters of a text in a table


def write_predictions(path: Path, examples: Sequence[TextExample], logits: Floats, *, config: Any) -> None:
    """Write one row per example: text, source, true label, prediction by name, and correctness.

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
            row |= {**_truth(example, answer, config.id2label), **answer.as_dict()}
            row["source"] = Path(example.source).name
            if example.group:
                row["group"] = example.group
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _truth(example: TextExample, answer: Prediction, names: dict[int, str]) -> dict[str, Any]:
    """Return the true label by name and whether the prediction is correct, or the error of a value."""
    target = example.target
    if answer.answers:
        stated = _true_answers(target, answer, [*names.values()])
        correct = {name: answer.answers[name].label == own for name, own in stated.items()}
        return {"true": stated, "correct": correct}
    if isinstance(target, int):
        return {"true": names[target], "correct": answer.label == names[target]}
    if answer.labels is not None:
        true = [names[int(index)] for index in target]
        return {"true": true, "correct": sorted(true) == sorted(answer.labels)}
    error = {} if answer.score is None else {"error": round(answer.score - target[0], DIGITS)}
    return {"true": target[0] if len(target) == 1 else list(target), **error}


def _true_answers(target: Any, answer: Prediction, names: Sequence[str]) -> dict[str, str]:
    """Return the most probable option of each answered question; `names` are those of the outputs."""
    true, start = {}, 0
    for question, own in answer.answers.items():
        options = [*own.probabilities]
        size = 1 if names[start] == question else len(options)  # a noul has one output, with its own name
        shares = target[start : start + size]
        start += size
        if shares[0] != UNANSWERED:
            shares = (1 - shares[0], shares[0]) if size == 1 else shares
            true[question] = options[int(np.argmax(shares))]
    return true


def hardest_errors(
    problem_type: str,
    examples: Sequence[TextExample],
    logits: Floats,
    *,
    labels: Sequence[str],
    split: str,
    thresholds: Sequence[float] | None = None,
) -> str:
    """Return Markdown with the most confident errors, frequent confusions, and errors of each label.

    Args:
        problem_type: of the model.
        examples: N rows.
        logits: (N, L) of the model.
        labels: L names.
        split: name of the split of the rows, such as `test`.
        thresholds: of a multi-label model, (L,); None for .5.

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
        return _largest_errors(examples, scores, truth, labels=labels, split=split)
    if problem_type == MULTI:
        minimum = np.asarray(thresholds or 0.5)
        return _multi_label_errors(examples, scores, truth, labels=labels, split=split, minimum=minimum)
    confidence, predicted = probabilities(problem_type, scores).max(1), scores.argmax(1)
    wrong = np.flatnonzero(predicted != truth)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    names = [escape(label) for label in labels]

    page = [*_title(split, len(wrong), len(examples)), "## Most confident errors", ""]
    page += _table(
        ["where", "text", "true", "predicted", "probability"],
        [
            [
                *_source_and_text(examples[row]),
                names[truth[row]],
                names[predicted[row]],
                format_value(confidence[row]),
            ]
            for row in wrong[:ERRORS].tolist()
        ],
    )
    support = np.bincount(truth, minlength=len(labels))
    confused, counts = np.unique(np.stack([truth, predicted])[:, wrong], axis=1, return_counts=True)  # (2, U)
    frequent = np.argsort(-counts, kind="stable")[:CONFUSIONS]
    page += ["## Most frequent confusions", ""]
    page += _table(
        ["true", "predicted", "rows", "of the true label"],
        [
            [names[t], names[p], f"{n:,}", f"{100 * n / support[t]:.0f}%"]
            for (t, p), n in zip(confused[:, frequent].T, counts[frequent], strict=True)
        ],
    )
    page += ["## Most confident error of each label, weakest labels first", ""]
    missing = np.bincount(truth[wrong], minlength=len(labels))
    share = np.divide(missing, support, out=np.zeros(len(labels)), where=support > 0)
    rows = []
    for label in np.argsort(-share, kind="stable")[:WORST]:
        missed = wrong[truth[wrong] == label]
        if len(missed):
            row = int(missed[0])
            rows.append(
                [
                    names[label],
                    f"{len(missed):,} of {support[label]:,}",
                    *_source_and_text(examples[row]),
                    names[predicted[row]],
                    format_value(confidence[row]),
                ]
            )
    page += _table(["true", "missed", "where", "text", "predicted", "probability"], rows)
    return "\n".join(page)


def _multi_label_errors(
    examples: Sequence[TextExample],
    scores: Floats,
    truth: Floats,
    *,
    labels: Sequence[str],
    split: str,
    minimum: Floats,
) -> str:
    probability = probabilities(MULTI, scores)
    predicted = probability >= minimum
    error = np.abs(probability - truth)  # (N, L)
    wrong = np.flatnonzero((predicted != (truth == 1)).any(1))
    wrong = wrong[np.argsort(-error[wrong].max(1), kind="stable")]
    names = [escape(label) for label in labels]

    def listed(selected: Any) -> str:
        return ", ".join(names[index] for index in np.flatnonzero(selected)) or "–"

    rows = []
    for row in wrong[:ERRORS].tolist():
        label = int(error[row].argmax())
        worst = f"{names[label]} {format_value(probability[row, label])}"
        rows.append([*_source_and_text(examples[row]), listed(truth[row]), listed(predicted[row]), worst])
    page = [*_title(split, len(wrong), len(examples)), "## Largest errors of a probability", ""]
    head = ["where", "text", "true", "predicted", "worst label, its probability"]
    return "\n".join([*page, *_table(head, rows)])


def _largest_errors(
    examples: Sequence[TextExample], scores: Floats, truth: Floats, *, labels: Sequence[str], split: str
) -> str:
    error = np.abs(scores - truth)
    rows = []
    for row in np.argsort(-error.max(1), kind="stable")[:ERRORS].tolist():
        value = int(error[row].argmax())
        rows.append(
            [
                *_source_and_text(examples[row]),
                escape(labels[value]),
                format_value(truth[row, value]),
                format_value(scores[row, value]),
                format_value(scores[row, value] - truth[row, value]),
            ]
        )
    head = ["where", "text", "value", "true", "predicted", "error"]
    lines = [f"# Largest errors on {escape(split)}", "", f"Of {len(examples):,} rows.", ""]
    return "\n".join([*lines, *_table(head, rows)])


def _title(split: str, wrong: int, rows: int) -> list[str]:
    share = f"{wrong:,} of {rows:,} rows are wrong ({100 * wrong / rows:.1f}%)."
    return [f"# Hardest errors on {escape(split)}", "", share, ""]


def _source_and_text(example: TextExample) -> list[str]:
    """Return the source of a row, and its text as one short line."""
    text = " ".join(example.text.split())
    if example.text_b:  # half of the limit for each text
        second = " ".join(example.text_b.split())
        text = f"{_truncate(text, MAX_TEXT // 2)} // {_truncate(second, MAX_TEXT // 2)}"
    return [escape(Path(example.source).name) or "–", escape(_truncate(text, MAX_TEXT + 4))]


def _truncate(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["None.", ""]
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]
