"""The card of a classifier: figures beside baselines, every label with its own, what was cut, what it is not.

Numbers come from `metrics.json`'s dictionary and from nowhere else; free text passes through `plain`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_task_heads.metrics.classification import BEST_METRIC, MULTI, ORDINAL, REGRESSION, SINGLE
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
from qwen_task_heads.training.text_losses import TEXT_LOSSES

if TYPE_CHECKING:
    from qwen_task_heads.reports.text_report import TextRun

HEADLINES: dict[str, tuple[str, ...]] = {
    SINGLE: ("accuracy", "macro_f1", "weighted_f1"),
    MULTI: ("micro_f1", "macro_f1", "map", "subset_accuracy"),
    REGRESSION: ("spearman", "pearson", "mse", "mae"),
    ORDINAL: ("quadratic_kappa", "mae", "accuracy", "macro_f1"),
}
# As the hub names them: type of the metric, and our figure
HUB_METRICS: dict[str, tuple[tuple[str, str], ...]] = {
    SINGLE: (("accuracy", "accuracy"), ("f1", "macro_f1")),
    MULTI: (("f1", "micro_f1"), ("f1", "macro_f1")),
    REGRESSION: (("spearmanr", "spearman"), ("pearsonr", "pearson"), ("mse", "mse")),
    ORDINAL: (("accuracy", "accuracy"), ("mae", "mae"), ("quadratic_kappa", "quadratic_kappa")),
}
SAME_AS_ACCURACY = ("micro_precision", "micro_recall", "micro_f1")  # where every text has one label
MAX_CLASSES = 200  # labels listed on a card
FEW_ROWS = 20  # of a label, below which its own figures say little


WRITES = (
    " It is a language model that writes the label; `LabelScorer` scores the labels by their own tokens, in "
    "the lines under “How to load it”."
)


def figure_rows(found: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[list[str]]:
    """Table of figures: a head, then a row per figure with one cell per scorer.

    Args:
        found: scorer to its figures, from `metrics.json`.
        names: figures to show; where a scorer has none there is a dash.
    """
    rows = [["", *found]]
    rows += [
        [figure_name(name), *(interval(figures.get(name)) for figures in found.values())] for name in names
    ]
    return rows


def text_card(
    model: Trained,
    folder: Path,
    metrics: dict[str, Any],
    reported: str,
    run: TextRun,
    *,
    plots: dict[str, str],
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
    kind, ours = run.sets.problem_type, metrics[reported][MODEL]
    left_out = {"per_class", *HEADLINES[kind], *(SAME_AS_ACCURACY if "accuracy" in ours else ())}
    order = [*HEADLINES[kind], *(name for name in ours if name not in left_out)]
    table = figure_rows(metrics[reported], order)
    table[0] = ["figure", *(plain(name) for name in table[0][1:])]
    main = ours[order[0]]
    compared = BEST_METRIC[kind][0].removeprefix("eval_")
    fields = card_fields(model, folder, run, metrics=metrics, reported=reported, seen=run.sets.test_seen)
    fields["settings"] = in_force(fields["settings"], run, cut=run.sets.were_cut)
    pairs = any(example.text_b for example in run.sets.train)
    groups = f" of {main['n_groups']:,} groups" if main["n_groups"] != main["n"] else ""
    classes = [] if kind == REGRESSION else _classes(run, ours["per_class"])
    given = [
        (hub, figure_name(name), ours[name]["value"])
        for hub, name in HUB_METRICS[kind]
        if ours[name]["value"] is not None
    ]
    return render(
        "text_classifier",
        metadata=metadata(
            name=folder.name,
            # What writes a label is no classifier to a hub, whose snippet would draw it a random head.
            task="text-generation" if model.answers else "text-classification",
            tags=[kind.replace("_", "-"), *["label-scoring"] * model.answers],
            dataset_type="texts",
            figures=given,
            **metadata_fields(model, run, reported=reported, metrics=metrics),
        ).strip(),
        **fields,
        verdict=card_verdict(metrics, reported),
        picked_line=picked_line(run, metrics, main=compared),
        what=_what(kind, len(run.sets.labels), pairs=pairs) + WRITES * model.answers,
        meant_for=_meant_for(kind, pairs=pairs),
        limits=_limits(kind, ours, answers=model.answers),
        ranking=False,
        pipeline_input='{"text": "One text", "text_pair": "another"}' if pairs else '["A text"]',
        table=table,
        rows_line=f"{main['n']:,} rows{groups}.",
        classes=classes[:MAX_CLASSES],
        described=any(run.sets.labels.descriptions),
        hidden=max(0, len(classes) - MAX_CLASSES),
        plots=plots,
        lengths=_lengths(model.config, run),
        rows_name="rows",
        data_lines=[
            plain(line) for line in dict.fromkeys([*without_rows(run.sets.lines), *metrics["notes"]])
        ],
        loss_line=loss_line(run, TEXT_LOSSES[kind]),
        dev_was_cut=run.sets.dev_was_cut,
    )


def _meant_for(kind: str, *, pairs: bool) -> str:
    it = "pairs of texts" if pairs else "texts"
    if kind == REGRESSION:
        return f"It is meant for {it} like those it was trained on; the plot below shows how far off it is."
    return (
        f"It is meant for {it} like those it was trained on, under the labels listed below; it is no basis "
        "for decisions on people without somebody who checks them."
    )


def _what(kind: str, count: int, *, pairs: bool) -> str:
    it = "pair of texts" if pairs else "text"
    return {
        SINGLE: f"A text classifier: it gives every {it} one of {count:,} labels, with probabilities.",
        MULTI: f"A multi-label classifier: it gives every {it} any number of {count:,} labels.",
        REGRESSION: f"A regression model: it gives every {it} "
        + ("a number." if count == 1 else f"{count:,} numbers."),
        ORDINAL: f"An ordinal model: it gives every {it} one of {count:,} labels that stand in an order.",
    }[kind]


def _classes(run: TextRun, per_class: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    described = run.sets.labels.descriptions or [""] * len(per_class)
    return [
        {
            "id": str(place),
            "label": plain(row["label"]),
            "description": plain(told) or "–",
            **{name: figure(row[name]) for name in ("precision", "recall", "f1")},
            "support": f"{row['support']:,}",
        }
        for place, (row, told) in enumerate(zip(per_class, described, strict=True))
    ]


def _lengths(config: Any, run: TextRun) -> str:
    """What happens to long texts, in training and at every prediction, and to how many it did."""
    limit, policy = config.max_seq_length, config.truncation
    if limit is None:
        return "Nothing is cut."
    rules = {
        "head": "longer ones keep their beginning",
        "tail": "longer ones keep their end",
        "head_tail": "longer ones keep half of that from either end",
        "windows": f"longer ones are read in windows that share {config.window_overlap} tokens, and the "
        f"{config.window_aggregation} of the windows' logits is the answer",
    }
    told = f"Texts have up to {limit:,} tokens, template included; {rules[policy]}, here as in training."
    return f"{told} {plain(run.cut[:1].upper() + run.cut[1:])}.".removesuffix(" .")


def _limits(kind: str, ours: Mapping[str, Any], *, answers: bool) -> list[str]:
    """What the figures do not promise."""
    limits = [
        "It has learned how this data was labelled, and nothing about truth or harm; texts of another kind, "
        "time or language are not covered by the figures below."
    ]
    if kind == REGRESSION:
        return [*limits, "Values outside the range of the training data are extrapolated."]
    if kind != MULTI:
        abstains = f"`{'LabelScorer' if answers else 'Scorer'}.predict(texts, abstain=0.5)` can abstain"
        limits.append(f"Every text gets one of the labels, also one that fits none: {abstains}.")
        limits.append(
            f"Its probabilities are off by {figure(ours['ece']['value'])} on average (ECE, 15 bins)."
        )
    few = sum(0 < row["support"] < FEW_ROWS for row in ours["per_class"])
    none = sum(row["support"] == 0 for row in ours["per_class"])
    if few:
        have = "1 label has" if few == 1 else f"{few:,} labels have"
        limits.append(
            f"{have} fewer than {FEW_ROWS} rows in the set measured: figures of such a label say little."
        )
    if none:
        have = "1 label has" if none == 1 else f"{none:,} labels have"
        limits.append(f"{have} no row in the set measured: nothing is known of such a label.")
    return limits
