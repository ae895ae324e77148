"""Fields of the card of a title scorer: pair accuracy with baselines, length bias and limitations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_task_heads.losses.registry import GROUP_LOSSES, PAIR_LOSSES
from qwen_task_heads.reports.card_lines import loss_line
from qwen_task_heads.reports.markdown import escape, format_interval, format_value, metric_name
from qwen_task_heads.reports.records import RunRecord

DESCRIPTION = (
    "A title scorer: it returns one score per title; a higher score is better, and P(A preferred to B) = "
    "sigmoid(score(A) − score(B))."
)
MEANT_FOR = (
    "The model is intended to rank candidate titles of one text, to select the best of several, and as the "
    "reward in the training of a title generator."
)


def accuracy_rows(accuracies: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the rows of the accuracy table, from scorer names to entries `pair_accuracy`."""
    return [
        {
            "name": name,
            "value": format_value(entry["value"]),
            "low": format_value(entry["low"]),
            "high": format_value(entry["high"]),
            "n": f"{entry['n']:,}",
            "n_groups": f"{entry['n_groups']:,}",
        }
        for name, entry in accuracies.items()
    ]


def title_fields(record: RunRecord) -> dict[str, Any]:
    """Return the fields of `title_scorer.md`, and those of its front matter."""
    ours, scorers = record.ours, record.metrics[record.reported]
    return {
        "pipeline_tag": "text-ranking",
        "tags": ["title-scorer", "reward-model"],
        "dataset_type": "pairs",
        "hub_metrics": [("accuracy", "pair accuracy", ours["pair_accuracy"]["value"])],
        "description": DESCRIPTION,
        "meant_for": MEANT_FOR,
        "limits": _limits(ours, record.metrics["reward"], prompted=record.has_pairs),
        "table": accuracy_rows({escape(name): entry["pair_accuracy"] for name, entry in scorers.items()}),
        "metrics": {
            metric_name(name): format_interval(entry)
            for name, entry in ours.items()
            if name != "pair_accuracy"
        },
        "rows_name": "pairs",
        "loss_line": loss_line(record, {**PAIR_LOSSES, **GROUP_LOSSES}),
    }


def _limits(ours: Mapping[str, Any], reward: Mapping[str, float], *, prompted: bool) -> list[str]:
    mean, spread = format_value(reward["reward_mean"]), format_value(reward["reward_std"])
    slope = format_value(100 * reward["reward_length_slope"])
    bias = format_value(ours["length_spearman"]["value"])
    return [
        "The model learned which of two titles was preferred in this data; it does not judge truth, taste or "
        "harm. Review a title with a high score before publishing it.",
        "Scores compare titles of the same kind and language as the training data"
        + (", with the same prompt" if prompted else "")
        + f"; they have no unit. On dev their mean is {mean} and their standard deviation {spread}.",
        "Length bias: the Spearman correlation of score gap and length gap on the pairs above is "
        f"{bias}; near 0 means no length bias. On dev, the score has a slope of {slope} per 100 characters.",
        "A generator that is trained with this reward exploits its errors: monitor length and clickbait.",
    ]
