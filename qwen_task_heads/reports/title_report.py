"""The end of a run: score dev and test, set them beside the baselines, write and say all of it.

Card, table on the screen and plots are made from the dictionary that `metrics.json` holds, so that no two
places can disagree. Figures of the model are computed by `Scorer`, the
code that users will run, and not by the training loop.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.data.lookups import leak_lines, look_up_titles, report_titles
from qwen_task_heads.data.title_datasets import TitleSets, hash_pairs
from qwen_task_heads.inference.rewards import reward_constants
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.metrics.calibration import PAIRS, calibration_metrics
from qwen_task_heads.metrics.lookup_baseline import LOOKUP
from qwen_task_heads.metrics.ranking import mean_metric, pair_credit, ranking_metrics
from qwen_task_heads.metrics.title_baselines import TfidfBradleyTerry, baseline_rows, longer_title
from qwen_task_heads.metrics.verdicts import PAIR_ACCURACY, give_verdict, mean_measure, pair_measure
from qwen_task_heads.reports.calibration import (
    calibrate_titles,
    measured_titles,
    update_config,
)
from qwen_task_heads.reports.calibration_summary import calibration_line
from qwen_task_heads.reports.card_facts import Trained, picked_note
from qwen_task_heads.reports.card_lines import lookup_line, verdict_lines
from qwen_task_heads.reports.finishing import (
    MODEL,
    SMALL,
    RunRecord,
    attempt,
    first_notes,
    python_command,
    save_first,
    set_facts,
    trained_line,
    training_facts,
    write_record,
)
from qwen_task_heads.reports.records import keep_reference
from qwen_task_heads.reports.text_plots import risk_coverage_plot
from qwen_task_heads.reports.title_card import accuracy_rows, title_card
from qwen_task_heads.reports.title_plots import gap_against_accuracy, training_curves
from qwen_task_heads.training.usage import Usage
from qwen_task_heads.verification.reference import take_reference

LONGER, TFIDF = "the longer title wins", "TF-IDF Bradley-Terry"


@dataclass(frozen=True, kw_only=True)
class Run(RunRecord):
    """What the end of a run needs to know of it; the rest as in `RunRecord`.

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

    scorer, notes = Scorer(model.eval(), tokenizer=tokenizer), first_notes(model, run)
    of_dev = None
    try:
        groups = [pair.group for pair in run.sets.dev]
        measure = partial(_score, scorer, run.sets.dev, run.usage)
        of_dev = calibrate_titles(model, measure, run=run, groups=groups, notes=notes)
    finally:  # whatever stops it
        folder = save_first(model, tokenizer=tokenizer, folder=folder)
    fitted = baseline_rows(run.sets.train, notes)
    tfidf = attempt(lambda: TfidfBradleyTerry().fit(fitted), "no TF-IDF baseline", notes)
    named = {"dev": run.sets.dev, "test": run.sets.test}
    metrics: dict[str, Any] = {
        "seed": run.seed,
        "train": {"pairs": len(run.sets.train), **training_facts(run)},
        "data": set_facts({"train": run.sets.train, **named}, run.sets.were_cut, hash_pairs, "pairs"),
    }
    lookups = {
        name: report_titles(run.sets.train, pairs, split=name) for name, pairs in named.items() if pairs
    }
    notes += leak_lines(lookups, were_cut=run.sets.were_cut)
    scores, others = {}, {}
    for name in lookups:
        scores[name] = (
            of_dev if name == "dev" and of_dev is not None else _score(scorer, named[name], run.usage)
        )
        others[name] = _baselines(named[name], run.sets.train, tfidf=tfidf, looked=lookups[name].known > 0)
        metrics[name] = _measure(named[name], *scores[name], others=others[name])
    if model.config.calibration:
        keys = {name: [pair.group for pair in named[name]] for name in scores}
        ours = {name: metrics[name][MODEL] for name in scores}
        metrics["calibration"] = measured_titles(scores, keys, model.config, after=ours)
        update_config(model.config, folder, calibration=metrics["calibration"])
    metrics["reward"] = _write_constants(model, folder, run.sets.dev, *scores["dev"])
    reported = "test" if run.sets.test else "dev"
    metrics["lookup"] = {name: report.as_dict() for name, report in lookups.items()}
    measures = {MODEL: pair_measure(*scores[reported])}
    measures |= {name: mean_measure(of, name=PAIR_ACCURACY) for name, of in others[reported].items()}
    groups = [pair.group for pair in named[reported]]
    judged: dict[str, Any] = {"model": MODEL, "metric": PAIR_ACCURACY, "beside": TFIDF}
    verdict = give_verdict(measures, groups=groups, count=len(groups), **judged)
    metrics["verdict"] = verdict and {"split": reported, **verdict}
    baselines = {
        name: entry["pair_accuracy"]["value"] for name, entry in metrics["dev"].items() if name != MODEL
    }
    curves, bins = folder / "training.png", folder / "gap_against_accuracy.png"
    gaps = np.subtract(*scores[reported])
    credit = pair_credit(*scores[reported])
    plots = {
        "Score gap against accuracy": attempt(
            lambda: gap_against_accuracy(gaps, credit, bins), "no plot", notes
        ),
        "Training": attempt(
            lambda: training_curves(run.log_history, curves, baselines=baselines), "no plot", notes
        ),
    }
    if curve := metrics.get("calibration", {}).get("risk_coverage"):
        picture = folder / "risk_coverage.png"
        plots["Risk and coverage"] = attempt(lambda: risk_coverage_plot(curve, picture), "no plot", notes)
    metrics["notes"] = notes
    _write_predictions(folder / "predictions.jsonl", named[reported], *scores[reported])
    drawn = {title: path.name for title, path in plots.items() if path}
    card = title_card(Trained.of(model), folder, metrics, reported, run, plots=drawn)
    write_record(folder, run, metrics=metrics, card=card, reported=reported, main="pair_accuracy")
    _say(metrics, reported, folder, run)
    prompted = [pair for pair in run.sets.dev if pair.prompt]
    held = {"texts": [pair.prompt for pair in prompted], "text_pairs": [pair.chosen for pair in prompted]}
    if not prompted:
        held = {"texts": [pair.chosen for pair in run.sets.dev]}
    keep_reference(folder, take=partial(take_reference, model, tokenizer=tokenizer, **held))
    return metrics


def _write_constants(
    model: Any, folder: Path, pairs: Sequence[PairExample], chosen: np.ndarray, rejected: np.ndarray
) -> dict[str, float]:
    """Put what `TitleReward` needs into the saved config, from the different titles of dev."""
    titles = {(pair.prompt, pair.chosen): score for pair, score in zip(pairs, chosen, strict=True)}
    titles |= {(pair.prompt, pair.rejected): score for pair, score in zip(pairs, rejected, strict=True)}
    constants = reward_constants(list(titles.values()), [len(title) for _, title in titles])
    update_config(model.config, folder, **constants)
    return constants


def _score(scorer: Scorer, pairs: Sequence[PairExample], usage: Usage) -> tuple[np.ndarray, np.ndarray]:
    titles = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    places: dict[tuple[str, str], int] = {}  # a title stands in several pairs of its test
    index = [places.setdefault(title, len(places)) for title in titles]
    prompts = [prompt for prompt, _ in places]
    given = prompts if any(prompts) else None
    with usage.measured():
        scores = np.array(scorer.score([title for _, title in places], prompts=given))[index]
    return scores[: len(pairs)], scores[len(pairs) :]


def _baselines(
    pairs: Sequence[PairExample], train: Sequence[PairExample], *, tfidf: Any, looked: bool
) -> dict[str, np.ndarray]:
    """Baseline to its credit (B,) on the pairs; the lookup only where it knows some of them."""
    found = {LONGER: longer_title(pairs)}
    if tfidf is not None:
        sides = [[p.chosen for p in pairs], [p.rejected for p in pairs]]
        found[TFIDF] = pair_credit(*(tfidf.score(side) for side in sides))
    if looked:
        found[LOOKUP] = pair_credit(*look_up_titles(train, pairs)[:2])
    return found


def _measure(
    pairs: Sequence[PairExample],
    chosen: np.ndarray,
    rejected: np.ndarray,
    *,
    others: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Metrics of the model and of the baselines on the same pairs."""
    groups = [pair.group for pair in pairs]
    lengths = [np.array([len(p.chosen) for p in pairs]), np.array([len(p.rejected) for p in pairs])]
    ours = ranking_metrics(
        chosen, rejected, groups=groups, chosen_lengths=lengths[0], rejected_lengths=lengths[1]
    )
    figures = {
        MODEL: ours | calibration_metrics(PAIRS, np.stack([chosen, rejected], axis=1), groups=groups),
    }
    for name, credit in others.items():
        ties = None if name == LONGER else int((credit == 0.5).sum())
        figures[name] = {"pair_accuracy": mean_metric(credit, groups=groups, ties=ties).as_dict()}
    return figures


def _write_predictions(
    path: Path, pairs: Sequence[PairExample], chosen: np.ndarray, rejected: np.ndarray
) -> None:
    with path.open("w", encoding="utf-8") as file:
        credits = pair_credit(chosen, rejected)
        for pair, c, r, credit in zip(
            pairs, chosen.tolist(), rejected.tolist(), credits.tolist(), strict=True
        ):
            row = {
                "chosen": pair.chosen, "rejected": pair.rejected, "chosen_score": c, "rejected_score": r,
                "p_preferred": 1 / (1 + float(np.exp(np.clip(r - c, -700, 700)))), "correct": credit == 1,
                "group": pair.group, "source": Path(pair.source).name,
            }  # fmt: skip
            if credit == 0.5:
                row["tie"] = True
            if pair.prompt:
                row["prompt"] = pair.prompt
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _say(metrics: dict[str, Any], reported: str, folder: Path, run: Run) -> None:
    """Print the table and what to type next, in plain words."""
    rows = accuracy_rows({name: entry["pair_accuracy"] for name, entry in metrics[reported].items()})
    width = max(len(row["name"]) for row in rows)
    ours, looked = rows[0], lookup_line(metrics, reported)
    files = "model, card (README.md), metrics.json, predictions.jsonl, plots"
    words = ["Budget passes", "What the new budget means for your rent"]
    if any(pair.prompt for pair in run.sets.train):  # without its prompt a title gets another score
        words += ["--prompt", "Parliament has passed the budget."]
    lines = [
        "",
        trained_line(f"a title scorer on {len(run.sets.train):,} pairs", run),
        f"Pair accuracy on {reported}: {ours['n']} pairs of {ours['n_groups']} groups, 95% interval over them"
        + picked_note(run, reported, "pairs"),
        "",
        *(f"  {row['name']:<{width}}  {row['value']}  ({row['low']} to {row['high']})" for row in rows),
        "",
        *verdict_lines(metrics),
        *([looked] if looked else []),
        *([calibration_line(metrics["calibration"], reported)] if "calibration" in metrics else []),
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
