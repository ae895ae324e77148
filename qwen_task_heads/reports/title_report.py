"""Report of a title run: calibrate, save, measure on dev and test, write all files, print a summary.

Every metric on the card, in the summary and in the plots comes from the dictionary of `metrics.json`.
`Scorer` computes the scores, as it does for users; the training loop does not.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.data.lookups import leak_lines, look_up_titles, report_titles
from qwen_task_heads.data.title_datasets import hash_pairs
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
from qwen_task_heads.reports.card_lines import lookup_line, verdict_lines
from qwen_task_heads.reports.finishing import (
    SMALL,
    FinishedTraining,
    Trained,
    attempt,
    describe_run,
    initial_messages,
    picked_note,
    python_command,
    save_first,
    split_facts,
    trained_line,
    training_facts,
    write_record,
)
from qwen_task_heads.reports.records import MODEL, keep_reference
from qwen_task_heads.reports.text_plots import risk_coverage_plot
from qwen_task_heads.reports.title_card import accuracy_rows
from qwen_task_heads.reports.title_plots import gap_against_accuracy, training_curves
from qwen_task_heads.training.usage import Usage
from qwen_task_heads.verification.reference import take_reference

LONGER, TFIDF = "the longer title wins", "TF-IDF Bradley-Terry"


def finish_titles(model: Any, *, tokenizer: Any, folder: str | Path, run: FinishedTraining) -> dict[str, Any]:
    """Save the model and its report, print the summary, and return the metrics.

    Args:
        model: a trained `TitleScorer`, or a `PeftModel` around one.
        tokenizer: with the compiled template.
        folder: output folder of the model, `metrics.json`, `predictions.jsonl`, `manifest.json`,
            `README.md` and plots.
        run: record of the run.
    """
    scorer, messages = Scorer(model.eval(), tokenizer=tokenizer), initial_messages(model, run)
    dev_scores = None
    try:
        dev_scores = calibrate_titles(
            model,
            partial(_score, scorer, run.sets.dev, run.usage),
            run=run,
            groups=[pair.group for pair in run.sets.dev],
            messages=messages,
        )
    finally:  # save the model even if the calibration is interrupted
        folder = save_first(model, tokenizer=tokenizer, folder=folder)
    fit_rows = baseline_rows(run.sets.train, messages)
    tfidf = attempt(lambda: TfidfBradleyTerry().fit(fit_rows), "no TF-IDF baseline", messages)
    splits = {"dev": run.sets.dev, "test": run.sets.test}
    metrics: dict[str, Any] = {
        "seed": run.seed,
        "train": {"pairs": len(run.sets.train), **training_facts(run)},
        "data": split_facts(run, hash_pairs, "pairs"),
    }
    lookups = {
        split: report_titles(run.sets.train, pairs, split=split) for split, pairs in splits.items() if pairs
    }
    messages += leak_lines(lookups, were_cut=run.sets.were_cut)
    scores, credits = {}, {}
    for split, report in lookups.items():
        pairs = splits[split]
        if split == "dev" and dev_scores is not None:
            scores[split] = dev_scores
        else:
            scores[split] = _score(scorer, pairs, run.usage)
        credits[split] = _baseline_credits(pairs, run.sets.train, tfidf=tfidf, use_lookup=report.known > 0)
        metrics[split] = _measure(pairs, *scores[split], baselines=credits[split])
    if model.config.calibration:
        groups = {split: [pair.group for pair in splits[split]] for split in scores}
        ours = {split: metrics[split][MODEL] for split in scores}
        metrics["calibration"] = measured_titles(scores, groups, model.config, after=ours)
        update_config(model.config, folder, calibration=metrics["calibration"])
    metrics["reward"] = _write_reward_constants(model, folder, run.sets.dev, *scores["dev"])
    reported = "test" if run.sets.test else "dev"
    metrics["lookup"] = {split: report.as_dict() for split, report in lookups.items()}
    metrics["verdict"] = _verdict(splits[reported], scores[reported], credits[reported])
    if metrics["verdict"]:
        metrics["verdict"] = {"split": reported, **metrics["verdict"]}
    plots = _plots(folder, run, scores[reported], metrics, messages)
    metrics["notes"] = messages
    _write_predictions(folder / "predictions.jsonl", splits[reported], *scores[reported])
    record = describe_run(Trained.of(model), run, name=folder.name, metrics=metrics, plots=plots)
    write_record(folder, record, run=run)
    _print_summary(metrics, reported, folder, run)
    prompted = [pair for pair in run.sets.dev if pair.prompt]
    if prompted:
        texts = {
            "texts": [pair.prompt for pair in prompted],
            "text_pairs": [pair.chosen for pair in prompted],
        }
    else:
        texts = {"texts": [pair.chosen for pair in run.sets.dev]}
    keep_reference(folder, take=partial(take_reference, model, tokenizer=tokenizer, **texts))
    return metrics


def _verdict(
    pairs: Sequence[PairExample],
    scores: tuple[np.ndarray, np.ndarray],
    credits: Mapping[str, np.ndarray],
) -> dict[str, Any] | None:
    """Compare the model with the best baseline, by pair accuracy."""
    measures = {MODEL: pair_measure(*scores)}
    measures |= {name: mean_measure(credit, name=PAIR_ACCURACY) for name, credit in credits.items()}
    return give_verdict(
        measures,
        model=MODEL,
        metric=PAIR_ACCURACY,
        groups=[pair.group for pair in pairs],
        count=len(pairs),
        beside=TFIDF,
    )


def _plots(
    folder: Path,
    run: FinishedTraining,
    scores: tuple[np.ndarray, np.ndarray],
    metrics: dict[str, Any],
    messages: list[str],
) -> dict[str, str]:
    """Draw the plots; return the title and file name of each plot."""
    gaps, credit = np.subtract(*scores), pair_credit(*scores)
    baselines = {
        name: entry["pair_accuracy"]["value"] for name, entry in metrics["dev"].items() if name != MODEL
    }
    gap_file, curves_file = folder / "gap_against_accuracy.png", folder / "training.png"
    plots = {
        "Score gap against accuracy": attempt(
            lambda: gap_against_accuracy(gaps, credit, gap_file), "no plot", messages
        ),
        "Training": attempt(
            lambda: training_curves(run.log_history, curves_file, baselines=baselines), "no plot", messages
        ),
    }
    if curve := metrics.get("calibration", {}).get("risk_coverage"):
        risk_file = folder / "risk_coverage.png"
        plots["Risk and coverage"] = attempt(
            lambda: risk_coverage_plot(curve, risk_file), "no plot", messages
        )
    return {title: path.name for title, path in plots.items() if path}


def _write_reward_constants(
    model: Any, folder: Path, pairs: Sequence[PairExample], chosen: np.ndarray, rejected: np.ndarray
) -> dict[str, float]:
    """Write the constants of `TitleReward` to the saved config, from the distinct titles of dev."""
    titles = {(pair.prompt, pair.chosen): score for pair, score in zip(pairs, chosen, strict=True)}
    titles |= {(pair.prompt, pair.rejected): score for pair, score in zip(pairs, rejected, strict=True)}
    constants = reward_constants(list(titles.values()), [len(title) for _, title in titles])
    update_config(model.config, folder, **constants)
    return constants


def _score(scorer: Scorer, pairs: Sequence[PairExample], usage: Usage) -> tuple[np.ndarray, np.ndarray]:
    titles = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    distinct: dict[tuple[str, str], int] = {}  # several pairs of an experiment may share a title
    index = [distinct.setdefault(title, len(distinct)) for title in titles]
    prompts = [prompt for prompt, _ in distinct]
    with usage.measured():
        found = scorer.score([title for _, title in distinct], prompts=prompts if any(prompts) else None)
    scores = np.array(found)[index]
    return scores[: len(pairs)], scores[len(pairs) :]


def _baseline_credits(
    pairs: Sequence[PairExample], train: Sequence[PairExample], *, tfidf: Any, use_lookup: bool
) -> dict[str, np.ndarray]:
    """Return the credit (B,) of each baseline on the pairs."""
    credits = {LONGER: longer_title(pairs)}
    if tfidf is not None:
        sides = [[p.chosen for p in pairs], [p.rejected for p in pairs]]
        credits[TFIDF] = pair_credit(*(tfidf.score(side) for side in sides))
    if use_lookup:
        credits[LOOKUP] = pair_credit(*look_up_titles(train, pairs)[:2])
    return credits


def _measure(
    pairs: Sequence[PairExample],
    chosen: np.ndarray,
    rejected: np.ndarray,
    *,
    baselines: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Return the metrics of the model and the baselines on the same pairs."""
    groups = [pair.group for pair in pairs]
    ours = ranking_metrics(
        chosen,
        rejected,
        groups=groups,
        chosen_lengths=np.array([len(pair.chosen) for pair in pairs]),
        rejected_lengths=np.array([len(pair.rejected) for pair in pairs]),
    )
    ours |= calibration_metrics(PAIRS, np.stack([chosen, rejected], axis=1), groups=groups)
    metrics = {MODEL: ours}
    for name, credit in baselines.items():
        ties = None if name == LONGER else int((credit == 0.5).sum())
        metrics[name] = {"pair_accuracy": mean_metric(credit, groups=groups, ties=ties).as_dict()}
    return metrics


def _write_predictions(
    path: Path, pairs: Sequence[PairExample], chosen: np.ndarray, rejected: np.ndarray
) -> None:
    with path.open("w", encoding="utf-8") as file:
        credits = pair_credit(chosen, rejected)
        for pair, c, r, credit in zip(
            pairs, chosen.tolist(), rejected.tolist(), credits.tolist(), strict=True
        ):
            row = {
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "chosen_score": c,
                "rejected_score": r,
                "p_preferred": 1 / (1 + float(np.exp(np.clip(r - c, -700, 700)))),
                "correct": credit == 1,
                "group": pair.group,
                "source": Path(pair.source).name,
            }
            if credit == 0.5:
                row["tie"] = True
            if pair.prompt:
                row["prompt"] = pair.prompt
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _print_summary(metrics: dict[str, Any], reported: str, folder: Path, run: FinishedTraining) -> None:
    """Print the table of accuracies and the next command."""
    rows = accuracy_rows({name: entry["pair_accuracy"] for name, entry in metrics[reported].items()})
    width = max(len(row["name"]) for row in rows)
    ours = rows[0]
    lines = [
        "",
        trained_line(f"a title scorer on {len(run.sets.train):,} pairs", run),
        f"Pair accuracy on {reported}: {ours['n']} pairs of {ours['n_groups']} groups, 95% interval over them"
        + picked_note(run, reported, "pairs"),
        "",
        *(f"  {row['name']:<{width}}  {row['value']}  ({row['low']} to {row['high']})" for row in rows),
        "",
        *verdict_lines(metrics),
    ]
    if lookup := lookup_line(metrics, reported):
        lines.append(lookup)
    if "calibration" in metrics:
        lines.append(calibration_line(metrics["calibration"], reported))
    if run.backbone == EMBEDDED:
        lines.append(SMALL)
    command = [python_command(), "-m", "qwen_task_heads", str(folder)]
    command += ["Budget passes", "What the new budget means for your rent"]
    if any(pair.prompt for pair in run.sets.train):  # scores depend on the prompt
        command += ["--prompt", "Parliament has passed the budget."]
    lines += [
        "",
        *(f"note: {note}" for note in metrics["notes"]),
        f"Everything is in {folder}: model, card (README.md), metrics.json, predictions.jsonl, plots.",
        "Next, score titles of your own:",
        f"  {shlex.join(command)}",
        "or load it without this package:",
        f"  AutoModelForSequenceClassification.from_pretrained({str(folder)!r}, trust_remote_code=True)",
    ]
    print("\n".join(lines), flush=True)
