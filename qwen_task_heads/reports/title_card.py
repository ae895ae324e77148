"""Render the card of a title scorer: pair accuracy with baselines, calibration, length bias and limitations.

All numbers come from the dictionary of `metrics.json`; free text is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_task_heads.reports.card_facts import (
    Trained,
    card_fields,
    loss_line,
    metadata_fields,
    without_rows,
)
from qwen_task_heads.reports.card_lines import card_verdict, picked_line, settings_in_effect
from qwen_task_heads.reports.cards import metadata, render
from qwen_task_heads.reports.finishing import MODEL
from qwen_task_heads.reports.markdown import escape, format_interval, format_value, metric_name
from qwen_task_heads.training.losses import GROUP_LOSSES, PAIR_LOSSES

if TYPE_CHECKING:
    from qwen_task_heads.reports.title_report import Run

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


def title_card(
    model: Trained, folder: Path, metrics: dict[str, Any], reported: str, run: Run, *, plots: dict[str, str]
) -> str:
    """Return the card as Markdown.

    Args:
        model: config and kind of the model.
        folder: of the run; its name is the name of the model.
        metrics: content of `metrics.json`.
        reported: split of the metrics on the card.
        run: record of the run.
        plots: from title to file name.
    """
    ours = metrics[reported][MODEL]
    accuracies = {name: entry["pair_accuracy"] for name, entry in metrics[reported].items()}
    prompted = any(pair.prompt for pair in run.sets.train)
    fields = card_fields(model, folder, run, metrics=metrics, reported=reported, seen=run.sets.test_seen)
    fields["settings"] = settings_in_effect(fields["settings"], run, cut=run.sets.were_cut)
    titles = '["A plain title", "Another title"]'
    return render(
        "title_scorer",
        metadata=metadata(
            name=folder.name,
            task="text-ranking",
            tags=["title-scorer", "reward-model"],
            dataset_type="pairs",
            metrics=[("accuracy", "pair accuracy", ours["pair_accuracy"]["value"])],
            **metadata_fields(model, run, reported=reported, metrics=metrics),
        ).strip(),
        **fields,
        verdict=card_verdict(metrics, reported),
        picked_line=picked_line(run, metrics, main="pair_accuracy"),
        description=DESCRIPTION,
        meant_for=MEANT_FOR,
        limits=_limits(ours, metrics["reward"], prompted=prompted),
        ranking=True,
        pipeline_input=f'{{"titles": {titles}, "prompt": "The text"}}' if prompted else titles,
        table=accuracy_rows({escape(name): entry for name, entry in accuracies.items()}),
        metrics={
            metric_name(name): format_interval(entry)
            for name, entry in ours.items()
            if name != "pair_accuracy"
        },
        rows_name="pairs",
        data_lines=[
            escape(line) for line in dict.fromkeys([*without_rows(run.sets.lines), *metrics["notes"]])
        ],
        plots=plots,
        loss_line=loss_line(run, {**PAIR_LOSSES, **GROUP_LOSSES}),
        dev_was_cut=run.sets.dev_was_cut,
    )


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
