"""Fields of the card of a classifier: metrics with baselines and per label, truncation, limitations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS, options_of
from qwen_task_heads.losses.registry import LOSSES
from qwen_task_heads.metrics.classification import MULTI, ORDINAL, REGRESSION, SINGLE
from qwen_task_heads.reports.card_lines import loss_line
from qwen_task_heads.reports.markdown import escape, format_interval, format_value, metric_name
from qwen_task_heads.reports.records import RunRecord

HEADLINES: dict[str, tuple[str, ...]] = {
    SINGLE: ("accuracy", "macro_f1", "weighted_f1"),
    MULTI: ("micro_f1", "macro_f1", "map", "subset_accuracy"),
    REGRESSION: ("spearman", "pearson", "mse", "mae"),
    ORDINAL: ("quadratic_kappa", "mae", "accuracy", "macro_f1"),
    QUESTIONS: ("mean_accuracy", "mean_macro_f1"),
}
# Metric type of the hub, and name of the metric in `metrics.json`
HUB_METRICS: dict[str, tuple[tuple[str, str], ...]] = {
    SINGLE: (("accuracy", "accuracy"), ("f1", "macro_f1")),
    MULTI: (("f1", "micro_f1"), ("f1", "macro_f1")),
    REGRESSION: (("spearmanr", "spearman"), ("pearsonr", "pearson"), ("mse", "mse")),
    ORDINAL: (("accuracy", "accuracy"), ("mae", "mae"), ("quadratic_kappa", "quadratic_kappa")),
    QUESTIONS: (("accuracy", "mean_accuracy"), ("f1", "mean_macro_f1")),
}
SAME_AS_ACCURACY = ("micro_precision", "micro_recall", "micro_f1")  # if every text has one label
MAX_CLASSES = 200  # labels listed on a card
FEW_ROWS = 20  # rows of a label below which its metrics are unreliable


GENERATIVE = (
    " It is a generative classifier: a language model with a `LabelScorer`, which scores each label by its "
    "tokens, as in the code under “How to load it”."
)


def metric_rows(metrics: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[list[str]]:
    """Return a table of metrics: a header, then a row per metric with one cell per scorer.

    Args:
        metrics: from scorer to its metrics, of `metrics.json`.
        names: metrics of the rows; a missing metric is a dash.
    """
    rows = [["", *metrics]]
    for name in names:
        rows.append([metric_name(name), *(format_interval(entry.get(name)) for entry in metrics.values())])
    return rows


def text_fields(record: RunRecord) -> dict[str, Any]:
    """Return the fields of `text_classifier.md`, and those of its front matter."""
    kind, ours = record.metrics["problem_type"], record.ours
    omitted = {"per_class", *HEADLINES[kind], *(SAME_AS_ACCURACY if "accuracy" in ours else ())}
    order = [*HEADLINES[kind], *(name for name in ours if name not in omitted)]
    table = metric_rows(record.metrics[record.reported], order)
    table[0] = ["metric", *(escape(name) for name in table[0][1:])]
    questions = record.metrics.get("questions", ())
    if questions:  # the names of the metrics contain those of the questions
        table[1:] = [[escape(name), *cells] for name, *cells in table[1:]]
    main, pairs = ours[order[0]], record.has_pairs
    groups = f" of {main['n_groups']:,} groups" if main["n_groups"] != main["n"] else ""
    classes = [] if kind == REGRESSION else _classes(record)
    description = _description(kind, len(record.metrics["labels"]), pairs=pairs)
    return {
        # The hub's snippet for classifiers would load a generative one with a random head.
        "pipeline_tag": "text-generation" if record.is_generative else _pipeline_tag(kind),
        "tags": [kind.replace("_", "-"), *["label-scoring"] * record.is_generative],
        "dataset_type": "texts",
        "hub_metrics": [
            (hub_type, metric_name(name), ours[name]["value"])
            for hub_type, name in HUB_METRICS[kind]
            if ours[name]["value"] is not None
        ],
        "description": description + GENERATIVE * record.is_generative,
        "meant_for": _meant_for(kind, pairs=pairs),
        "limits": _limits(kind, ours, answers=record.is_generative),
        "table": table,
        "rows_line": f"{main['n']:,} rows{groups}.",
        "classes": classes[:MAX_CLASSES],
        "described": any(record.descriptions),
        "questions": [_question(question) for question in questions],
        "unlisted": max(0, len(classes) - MAX_CLASSES),
        "lengths": _lengths(**record.lengths),
        "rows_name": "rows",
        "loss_line": loss_line(record, LOSSES[kind]),
    }


def _meant_for(kind: str, *, pairs: bool) -> str:
    inputs = "pairs of texts" if pairs else "texts"
    if kind == REGRESSION:
        return f"The model is intended for {inputs} like those in its training data. A plot shows its errors."
    return (
        f"The model is intended for {inputs} like those in its training data, with the labels listed below. "
        "It must not be the basis of decisions on people without human review."
    )


def _description(kind: str, count: int, *, pairs: bool) -> str:
    unit = "pair of texts" if pairs else "text"
    values = "a number" if count == 1 else f"{count:,} numbers"
    return {
        SINGLE: f"A text classifier: it assigns to each {unit} one of {count:,} labels, with probabilities.",
        MULTI: f"A multi-label classifier: it assigns to each {unit} any number of {count:,} labels.",
        REGRESSION: f"A regression model: it predicts {values} for each {unit}.",
        ORDINAL: f"An ordinal model: it assigns to each {unit} one of {count:,} ordered labels.",
        QUESTIONS: f"A decision model: it answers several questions about each {unit}, with probabilities.",
    }[kind]


def _pipeline_tag(kind: str) -> str | None:
    """Return the tag by which the hub runs a model; the hub has none for several questions."""
    return None if kind == QUESTIONS else "text-classification"


def _question(question: Mapping[str, Any]) -> dict[str, str]:
    """Return the row of a question."""
    return {
        "name": escape(question["name"]),
        "type": question["type"],
        "options": escape(", ".join(options_of(question)[:MAX_CLASSES])),
        "instructions": escape(question.get("instructions") or "") or "–",
    }


def _classes(record: RunRecord) -> list[dict[str, str]]:
    per_class = record.ours["per_class"]
    descriptions = record.descriptions or [""] * len(per_class)
    return [
        {
            # A noul has one output, and two rows here.
            "id": "–" if record.metrics.get("questions") else str(label_id),
            "label": escape(row["label"]),
            "description": escape(description) or "–",
            **{name: format_value(row[name]) for name in ("precision", "recall", "f1")},
            "support": f"{row['support']:,}",
        }
        for label_id, (row, description) in enumerate(zip(per_class, descriptions, strict=True))
    ]


def _lengths(*, limit: int | None, policy: str, overlap: int, aggregation: str, cut: str) -> str:
    """Describe the truncation of long texts, and the number of truncated texts of the run."""
    if limit is None:
        return "Texts are not truncated."
    rules = {
        "head": "longer texts keep their first tokens",
        "tail": "longer texts keep their last tokens",
        "head_tail": "longer texts keep half of the limit from each end",
        "windows": f"longer texts are split into windows that share {overlap} tokens, and the prediction is "
        f"the {aggregation} of their logits",
    }
    summary = (
        f"The limit is {limit:,} tokens, template included; {rules[policy]}, at inference as in training."
    )
    return f"{summary} {escape(cut[:1].upper() + cut[1:])}.".removesuffix(" .")


def _limits(kind: str, ours: Mapping[str, Any], *, answers: bool) -> list[str]:
    """Return the items of the section on limitations."""
    limits = [
        "The model learned how this data was labelled; it does not judge truth or harm. The metrics above do "
        "not cover texts of another kind, time or language."
    ]
    if kind == REGRESSION:
        return [*limits, "Values outside the range of the training data are extrapolated."]
    if kind == QUESTIONS:
        limits.append(
            "It answers only these questions; instructions of a request are not read. Each question gets one "
            "of its options, even if none fits."
        )
        limits.append(
            '`pipeline("text-classification")` computes one softmax over the options of all questions, which '
            "answers none of them."
        )
    elif kind != MULTI:
        abstain = f"`{'LabelScorer' if answers else 'Scorer'}.predict(texts, abstain=0.5)`"
        limits.append(f"Each text gets one of the labels, even if none fits; {abstain} can abstain.")
        ece = format_value(ours["ece"]["value"])
        limits.append(f"Probabilities differ from accuracies by {ece} on average (ECE, 15 bins).")
    few = sum(0 < row["support"] < FEW_ROWS for row in ours["per_class"])
    none = sum(row["support"] == 0 for row in ours["per_class"])
    if few:
        have = "1 label has" if few == 1 else f"{few:,} labels have"
        limits.append(
            f"{have} fewer than {FEW_ROWS} rows in the evaluation data: their metrics are unreliable."
        )
    if none:
        have = "1 label has" if none == 1 else f"{none:,} labels have"
        limits.append(f"{have} no rows in the evaluation data and could not be evaluated.")
    return limits
