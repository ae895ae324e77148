"""The card of a title scorer: pair accuracy beside baselines, calibration and length bias, what it is not for.

Numbers come from `metrics.json`'s dictionary and from nowhere else; free text passes through `plain`.
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
from qwen_task_heads.reports.card_lines import card_verdict, in_force, picked_line
from qwen_task_heads.reports.cards import figure, figure_name, interval, metadata, plain, render
from qwen_task_heads.reports.finishing import MODEL
from qwen_task_heads.training.group_losses import GROUP_LOSSES
from qwen_task_heads.training.pair_losses import PAIR_LOSSES

if TYPE_CHECKING:
    from qwen_task_heads.reports.title_report import Run

WHAT = (
    "A title scorer: it gives one score per title, higher is better, and P(A preferred to B) = "
    "sigmoid(score(A) − score(B))."
)
MEANT_FOR = (
    "It is meant for ranking candidate titles of one text, for picking the best of several, and as a reward "
    "in the training of a title writer."
)


def accuracy_rows(figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows of the accuracy table, from `metrics.json`: scorer name to its `pair_accuracy` entry."""
    return [
        {
            "name": name,
            "value": figure(entry["value"]),
            "low": figure(entry["low"]),
            "high": figure(entry["high"]),
            "n": f"{entry['n']:,}",
            "n_groups": f"{entry['n_groups']:,}",
        }
        for name, entry in figures.items()
    ]


def title_card(
    model: Trained, folder: Path, metrics: dict[str, Any], reported: str, run: Run, *, plots: dict[str, str]
) -> str:
    """The card as Markdown.

    Args:
        model: its config and kind.
        folder: named as the model will be.
        metrics: the content of `metrics.json`.
        reported: the split that the figures on the card are from.
        run: the account of the run.
        plots: title to file name.
    """
    ours = metrics[reported][MODEL]
    accuracies = {name: entry["pair_accuracy"] for name, entry in metrics[reported].items()}
    prompted = any(pair.prompt for pair in run.sets.train)
    fields = card_fields(model, folder, run, metrics=metrics, reported=reported, seen=run.sets.test_seen)
    fields["settings"] = in_force(fields["settings"], run, cut=run.sets.were_cut)
    titles = '["A plain title", "Another title"]'
    return render(
        "title_scorer",
        metadata=metadata(
            name=folder.name,
            task="text-ranking",
            tags=["title-scorer", "reward-model"],
            dataset_type="pairs",
            figures=[("accuracy", "pair accuracy", ours["pair_accuracy"]["value"])],
            **metadata_fields(model, run, reported=reported, metrics=metrics),
        ).strip(),
        **fields,
        verdict=card_verdict(metrics, reported),
        picked_line=picked_line(run, metrics, main="pair_accuracy"),
        what=WHAT,
        meant_for=MEANT_FOR,
        limits=_limits(ours, metrics["reward"], prompted=prompted),
        ranking=True,
        pipeline_input=f'{{"titles": {titles}, "prompt": "The text"}}' if prompted else titles,
        table=accuracy_rows({plain(name): entry for name, entry in accuracies.items()}),
        figures={
            figure_name(name): interval(entry) for name, entry in ours.items() if name != "pair_accuracy"
        },
        rows_name="pairs",
        data_lines=[
            plain(line) for line in dict.fromkeys([*without_rows(run.sets.lines), *metrics["notes"]])
        ],
        plots=plots,
        loss_line=loss_line(run, {**PAIR_LOSSES, **GROUP_LOSSES}),
        dev_was_cut=run.sets.dev_was_cut,
    )


def _limits(ours: Mapping[str, Any], reward: Mapping[str, float], *, prompted: bool) -> list[str]:
    mean, spread = figure(reward["reward_mean"]), figure(reward["reward_std"])
    slope = figure(100 * reward["reward_length_slope"])
    bias = figure(ours["length_spearman"]["value"])
    return [
        "It has learned which of two titles was preferred in this data, and nothing about truth, taste or "
        "harm: a high score is no leave to publish.",
        "Scores compare titles of the same kind and language as the training data"
        + (", under the same prompt" if prompted else "")
        + f"; they have no unit. On dev their mean is {mean} and their standard deviation {spread}.",
        "Length bias: the Spearman correlation of score gap and length gap on the pairs below is "
        f"{bias}; near 0 means no taste for length. On dev, 100 characters more go with {slope} more score.",
        "A writer trained against it will find what it overrates: keep an eye on length and on clickbait.",
    ]
