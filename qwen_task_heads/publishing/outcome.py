"""The end of a run: score dev and test, set them beside the floors, write and say all of it.

`metrics.json` is written first and everything else (card, table on the screen, plots) is made from the
same dictionary, so that no two places can disagree. Figures of the model are computed by `Scorer`, the
code that users will run, and not by the training loop.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.data.title_sets import TitleSets, hash_pairs
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.publishing.cards import accuracy_rows, figure, metadata, plain, render
from qwen_task_heads.publishing.endings import (
    MODEL,
    SMALL,
    Account,
    attempt,
    base_of,
    card_fields,
    first_notes,
    python_command,
    trained_line,
    write_json,
    write_manifest,
)
from qwen_task_heads.publishing.export import save
from qwen_task_heads.training.floors import TfidfBradleyTerry, longer_title
from qwen_task_heads.training.metrics import mean_figure, pair_accuracy, ranking_metrics
from qwen_task_heads.training.plots import gap_against_accuracy, training_curves

ATTRIBUTION = (
    "Headlines and clicks of the embedded data are from the Upworthy Research Archive (Matias, Munger, "
    "Le Quere and Ebersole 2021, CC BY 4.0, https://doi.org/10.1038/s41597-021-00934-7)."
)
LONGER, TFIDF = "the longer title wins", "TF-IDF Bradley-Terry"


@dataclass(frozen=True, kw_only=True)
class Run(Account):
    """What the end of a run needs to know of it; the rest as in `Account`.

    Args:
        sets: what was trained and measured on.
    """

    sets: TitleSets


def finish_titles(model: Any, *, tokenizer: Any, folder: str | Path, run: Run) -> dict[str, Any]:
    """Save the model and everything that is known about it; print the table; return the metrics.

    Args:
        model: a trained `TitleScorer`, or a `PeftModel` around one.
        tokenizer: with the compiled template.
        folder: where the model goes; also `metrics.json`, `predictions.jsonl`, `manifest.json`,
            `README.md` and two plots.
        run: the account of the run.
    """

    folder = save(model.eval(), tokenizer=tokenizer, folder=folder)
    scorer = Scorer(model, tokenizer=tokenizer)
    notes = first_notes(model, run)
    tfidf = attempt(lambda: TfidfBradleyTerry().fit(run.sets.train), "no TF-IDF floor", notes)
    named = {"dev": run.sets.dev, "test": run.sets.test}
    metrics: dict[str, Any] = {
        "seed": run.seed,
        "train": {"pairs": len(run.sets.train), "seconds": round(run.seconds, 1), "resumed": run.resumed},
    }
    scores = {}
    for name, pairs in named.items():
        if pairs:
            scores[name] = _score(scorer, pairs)
            metrics[name] = _measure(pairs, *scores[name], tfidf=tfidf)
    reported = "test" if run.sets.test else "dev"
    floors = {
        name: entry["pair_accuracy"]["value"] for name, entry in metrics["dev"].items() if name != MODEL
    }
    curves, bins = folder / "training.png", folder / "gap_against_accuracy.png"
    gaps = np.subtract(*scores[reported])
    credit = 0.5 + 0.5 * np.sign(gaps)
    plots = {
        "Score gap against accuracy": attempt(
            lambda: gap_against_accuracy(gaps, credit, bins), "no plot", notes
        ),
        "Training": attempt(
            lambda: training_curves(run.log_history, curves, floors=floors), "no plot", notes
        ),
    }
    metrics["notes"] = notes
    write_json(folder / "metrics.json", metrics)
    _write_predictions(folder / "predictions.jsonl", named[reported], *scores[reported])
    card = _card(model, folder, metrics, reported, run, plots={k: p.name for k, p in plots.items() if p})
    (folder / "README.md").write_text(card, encoding="utf-8")
    sets = {"train": run.sets.train, **named}
    data = {name: {"pairs": len(pairs), "sha256": hash_pairs(pairs)} for name, pairs in sets.items()}
    write_manifest(folder, run, data=data)
    _say(metrics, reported, folder, run)
    return metrics


def _score(scorer: Scorer, pairs: Sequence[PairExample]) -> tuple[np.ndarray, np.ndarray]:
    prompts = [pair.prompt for pair in pairs]
    both = scorer.score(
        [p.chosen for p in pairs] + [p.rejected for p in pairs], prompts=prompts * 2 if any(prompts) else None
    )
    return np.array(both[: len(pairs)]), np.array(both[len(pairs) :])


def _measure(
    pairs: Sequence[PairExample], chosen: np.ndarray, rejected: np.ndarray, *, tfidf: Any
) -> dict[str, Any]:
    """Figures of the model and of both floors on the same pairs."""
    groups = [pair.group for pair in pairs]
    lengths = [np.array([len(p.chosen) for p in pairs]), np.array([len(p.rejected) for p in pairs])]
    figures = {
        MODEL: ranking_metrics(
            chosen, rejected, groups=groups, chosen_lengths=lengths[0], rejected_lengths=lengths[1]
        ),
        LONGER: {"pair_accuracy": mean_figure(longer_title(pairs), groups=groups).as_dict()},
    }
    if tfidf is not None:
        floor = tfidf.score([p.chosen for p in pairs]), tfidf.score([p.rejected for p in pairs])
        figures[TFIDF] = {"pair_accuracy": pair_accuracy(*floor, groups=groups).as_dict()}
    return figures


def _write_predictions(
    path: Path, pairs: Sequence[PairExample], chosen: np.ndarray, rejected: np.ndarray
) -> None:
    with path.open("w", encoding="utf-8") as file:
        for pair, c, r in zip(pairs, chosen.tolist(), rejected.tolist(), strict=True):
            row = {
                "chosen": pair.chosen, "rejected": pair.rejected, "chosen_score": c, "rejected_score": r,
                "p_preferred": 1 / (1 + float(np.exp(np.clip(r - c, -700, 700)))), "correct": c > r,
                "group": pair.group, "source": Path(pair.source).name,
            }  # fmt: skip
            if pair.prompt:
                row["prompt"] = pair.prompt
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _card(
    model: Any, folder: Path, metrics: dict[str, Any], reported: str, run: Run, *, plots: dict[str, str]
) -> str:
    ours = metrics[reported][MODEL]
    accuracies = {name: entry["pair_accuracy"] for name, entry in metrics[reported].items()}
    bias = ours["length_spearman"]["value"]
    return render(
        "title_scorer",
        metadata=metadata(
            name=folder.name,
            **base_of(model, run),
            task="text-ranking",
            tags=["title-scorer", "reward-model"],
            dataset=str(run.settings.get("dataset_name", "pairs")),
            dataset_type="pairs",
            split=reported,
            figures=[("accuracy", "pair accuracy", ours["pair_accuracy"]["value"])],
            language="en" if run.settings.get("dataset_name") == EMBEDDED else None,
        ).strip(),
        **card_fields(model, folder, run, reported=reported, seen=run.sets.test_seen),
        table=accuracy_rows(accuracies),
        figures={
            plain(name): figure(entry["value"]) for name, entry in ours.items() if name != "pair_accuracy"
        },
        data_lines=[plain(line) for line in [*run.sets.lines, *metrics["notes"]]],
        plots=plots,
        attribution=ATTRIBUTION if EMBEDDED in (run.settings.get("dataset_name"), run.backbone) else "",
        provenance=f"{len(run.sets.train):,} pairs trained on; hashes of all sets are in `manifest.json`.",
        dev_was_cut=run.sets.dev_was_cut,
        length_bias=f"Spearman correlation of score gap and length gap on these pairs: {figure(bias)}; "
        "near 0 means no taste for length.",
    )


def _say(metrics: dict[str, Any], reported: str, folder: Path, run: Run) -> None:
    """Print the table and what to type next, in plain words."""
    rows = accuracy_rows({name: entry["pair_accuracy"] for name, entry in metrics[reported].items()})
    width = max(len(row["name"]) for row in rows)
    ours, best_floor = rows[0], max(rows[1:], key=lambda row: row["value"])
    files = "model, card (README.md), metrics.json, predictions.jsonl, plots"
    words = ["Budget passes", "What the new budget means for your rent"]
    if any(pair.prompt for pair in run.sets.train):  # without its prompt a title gets another score
        words += ["--prompt", "Parliament has passed the budget."]
    lines = [
        "",
        trained_line(f"a title scorer on {len(run.sets.train):,} pairs", run),
        f"Pair accuracy on {reported}: {ours['n']} pairs of {ours['n_groups']} groups, 95% interval over them"
        + (" (the checkpoint was chosen on the same pairs)" if reported == "dev" and run.picked else ""),
        "",
        *(f"  {row['name']:<{width}}  {row['value']}  ({row['low']} to {row['high']})" for row in rows),
        "",
        f"The best floor is {best_floor['name']!r} ({best_floor['value']}); this model is "
        + ("above it." if ours["value"] > best_floor["value"] else "not above it."),
        *([SMALL] if run.backbone == EMBEDDED else []),
        "",
        *(f"note: {note}" for note in metrics["notes"]),
        f"Everything is in {folder}: {files}.",
        "Next, score titles of your own:",
        "  " + shlex.join([python_command(), "-m", "qwen_task_heads", str(folder), *words]),
        "or open it without this package:",
        f'  AutoModelForSequenceClassification.from_pretrained({str(folder)!r}, trust_remote_code=True)',
    ]  # fmt: skip
    print("\n".join(lines), flush=True)
