"""Write the results of a comparison: printed table, `comparison.json`, `comparison.md`, plot and predictions.

Every number of the page comes from the dictionary of `comparison.json`; names and messages are escaped.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_task_heads.data.candidates import candidates_line
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.text_datasets import TextSets, hash_texts
from qwen_task_heads.data.title_datasets import TitleSets, hash_pairs
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.inference.engine_options import TEXTS, TITLES
from qwen_task_heads.inference.predictions import DIGITS
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.metrics.classification import SINGLE, probabilities
from qwen_task_heads.metrics.ranking import pair_credit, sigmoid
from qwen_task_heads.metrics.weighted import ECE_BINS
from qwen_task_heads.reports.card_lines import verdict_lines
from qwen_task_heads.reports.comparison import BASELINE, COMPARED, METRICS, Measured, compare
from qwen_task_heads.reports.comparison_advice import advise, chosen_of, verdicts
from qwen_task_heads.reports.comparison_plots import Point, engines_plot
from qwen_task_heads.reports.early_exits import aligned
from qwen_task_heads.reports.markdown import escape, format_interval, format_value, metric_name
from qwen_task_heads.reports.records import write_json
from qwen_task_heads.reports.run_manifest import versions

JSON, PAGE, ANSWERS, PLOT = "comparison.json", "comparison.md", "answers.jsonl", "comparison.png"
EXPLANATION = (
    "Intervals are 95%, over groups if rows have groups, else over rows. *ms per {row}* is the median of "
    "batches of one (quartiles), *{row}s/s* the throughput of one pass over all rows; if each text has its "
    "own few-shot examples, both include their selection. Lower *log loss* and *ECE* are better. *ECE* is "
    "the mean difference between probabilities and the share of correct answers, in {bins} bins of equal "
    "width; a baseline has no probabilities. *training* is the cost of training the engine, if known."
)
PAIRED = (
    "a minus b, on the same resamples of groups, in points; **bold** if the 95% interval excludes 0. The "
    "intervals are not corrected for multiple comparisons: of twenty pairs without a difference, one is bold "
    "on average. *p* is McNemar's exact test over rows."
)


def claim_folder(folder: str | Path) -> None:
    """Create the folder of a comparison and check that it is writable, before any measurement.

    Raises:
        TaskHeadsError: the folder contains a comparison, or is not writable.
    """
    if Path(folder, JSON).exists():
        problem, expected = f"found a comparison in {str(folder)!r}", "a folder without one"
        fix = "choose another, or move it away"
        raise TaskHeadsError(Problem("--output_dir", problem, expected, fix, code="path-exists"))
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem, expected = f"{str(folder)!r} is not writable ({error.strerror})", "a writable folder"
        fix = "choose another"
        raise TaskHeadsError(Problem("--output_dir", problem, expected, fix, code="path-access")) from error


def write_comparison(
    folder: str | Path,
    measured: Sequence[Measured],
    *,
    sets: TextSets | TitleSets,
    examples: Sequence[Any],
    split: str,
    metric: str = "accuracy",
    settings: Mapping[str, Any] | None = None,
    messages: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare engines on texts or on pairs of titles, write all files, and print the table and the advice.

    Args:
        folder: created if it does not exist.
        measured: engines and baselines on `examples`.
        sets: the data, with the summary of the reader.
        examples: rows that were measured.
        split: `test` or `dev`, the split of the rows.
        metric: `accuracy` or, for texts, `macro_f1`; the metric of the advice.
        settings: of the run, for the JSON.
        messages: printed and written with the metrics.
        missing: engines that could not be measured; the advice names them.

    Returns:
        Content of `comparison.json`.
    """
    data: dict[str, Any] = {}
    if isinstance(sets, TextSets):
        task, noun, data["sha256"] = TEXTS, "rows", hash_texts(examples)
        data["labels"] = list(sets.labels.names)
        candidates = candidates_line(examples, labels=sets.labels, split=split)
        messages = [*([candidates] if candidates else []), *messages]
        answers = _answers(measured, examples, labels=sets.labels)
    else:
        task, noun, data["sha256"] = TITLES, "pairs", hash_pairs(examples)
        answers = _preferences(measured, examples)
    data |= {"train_rows": len(sets.train), "lines": sets.lines}
    pairs = compare(measured, examples)
    groups = measured[0].metrics["accuracy"]["n_groups"]
    rows = f"the {len(examples):,} {noun} of {split}"
    rows += f" ({groups:,} groups)" if groups != len(examples) else ""
    content = {
        "task": task,
        "data": {"split": split, "rows": len(examples), "groups": groups, **data},
        "measured_on": rows,
        "engines": [one.as_dict() for one in measured],
        "pairs": pairs,
        "verdicts": verdicts(measured, pairs, metric=metric),
        "advice": [*advise(measured, pairs, metric=metric, rows=rows), *_without(missing)],
        "chosen": chosen_of(measured, pairs, metric=metric).name,
        "figure": metric,
        "notes": [*messages, *(f"{one.name}: {note}" for one in measured for note in one.notes)],
        "settings": dict(settings or {}),
        "versions": versions(),
    }
    _write(Path(folder), content, measured, answers)
    return content


def _write(
    folder: Path, content: dict[str, Any], measured: Sequence[Measured], answers: Iterable[Mapping[str, Any]]
) -> None:
    """Write the files, and print the table, the comparison with baselines and the advice."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON, content)
    with (folder / ANSWERS).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in answers)
    metric, rows, data = content["figure"], content["measured_on"], content["data"]
    engines_plot(
        [_point(one, metric, chosen=one.name == content["chosen"]) for one in measured],
        folder / PLOT,
        label=metric_name(metric),
        title=f"Engines on {rows}",
    )
    (folder / PAGE).write_text(comparison_page(content), encoding="utf-8")
    table = [_head(content), *(_cells(one, content) for one in content["engines"])]
    units = "pairs" if content["task"] == TITLES else "rows"
    if data["groups"] != data["rows"]:
        units = "groups"
    lines = [f"On {rows}, 95% intervals over {units}:", "", *aligned(table), ""]
    lines += [*_verdict_lines(content), *content["advice"]]
    lines += [f"note: {note}" for note in content["notes"]]
    lines += ["", f"Written to {folder}: {PAGE}, {JSON}, {PLOT}, and the predictions in {ANSWERS}."]
    print("\n".join(lines), flush=True)


def _verdict_lines(content: Mapping[str, Any]) -> list[str]:
    """Return a sentence per trained engine that compares it with the best baseline."""
    split = content["data"]["split"]
    return [
        f"{verdict['engine']}: {' '.join(verdict_lines({'verdict': {**verdict, 'split': split}}))}"
        for verdict in content["verdicts"]
    ]


def comparison_page(content: Mapping[str, Any]) -> str:
    """Return the comparison as Markdown, from the content of `comparison.json`."""
    data = content["data"]
    row = _row_of(content)
    lines = ["# Comparison of engines", ""]
    lines += [escape(line) for line in [*_verdict_lines(content), *content["advice"]]] + [""]
    count = f", {len(data['labels']):,} labels" if "labels" in data else ""
    noun, bins = ("rows", ECE_BINS) if count else ("pairs", 10)  # of `metrics.expected_calibration_error`
    lines += [
        f"## On {data['rows']:,} {noun} of {data['split']}{count}",
        "",
        EXPLANATION.format(row=row, bins=bins),
        "",
    ]
    lines += engine_table(content)
    devices = dict.fromkeys(one["device"] for one in content["engines"])
    lines += ["", f"Timed on: {escape(', '.join(devices))}.", "", f"![engines]({PLOT})", ""]
    lines += ["## Pairwise differences", "", PAIRED, ""]
    cells, keys = [], [key for key in COMPARED if key in content["engines"][0]["figures"]]
    for pair in content["pairs"]:
        differences = [_difference(pair[key]) for key in keys]
        cells.append([escape(pair["a"]), escape(pair["b"]), *differences, _p(pair["mcnemar"])])
    lines += _table(["a", "b", *map(metric_name, keys), "p"], cells)
    notes = [*content["notes"], *data["lines"], _settings_line(content["settings"])]
    return "\n".join([*lines, "", "## Notes", "", *(f"- {escape(note)}" for note in notes)]) + "\n"


def _without(missing: Sequence[str]) -> list[str]:
    """Return the sentence on engines that are not part of the advice."""
    return [f"Not measured, and so not in this advice: {', '.join(missing)}."] if missing else []


def _settings_line(settings: Mapping[str, Any]) -> str:
    given = [f"{name} {value}" for name, value in settings.items() if value not in (None, False, "")]
    return f"settings: {'; '.join(given)}" if given else "settings: the defaults"


def engine_table(content: Mapping[str, Any]) -> list[str]:
    """Return metrics, times and costs of the content of `comparison.json`, as lines of Markdown."""
    rows = [_cells(one, content) for one in content["engines"]]
    return _table(_head(content), [[escape(row[0]), *row[1:]] for row in rows])


def _row_of(content: Mapping[str, Any]) -> str:
    return "pair" if content.get("task") == TITLES else "text"


def _columns(content: Mapping[str, Any]) -> list[str]:
    """Return the metrics of the table: those that at least one engine has."""
    return [name for name in METRICS if any(name in one["figures"] for one in content["engines"])]


def _head(content: Mapping[str, Any]) -> list[str]:
    row = _row_of(content)
    return ["engine", *map(metric_name, _columns(content)), f"ms per {row}", f"{row}s/s", "training"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _cells(one: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
    alone, throughput = one["seconds_alone"], one["texts_per_second"]
    return [
        one["name"],
        *(format_interval(one["figures"].get(name)) for name in _columns(content)),
        f"{1000 * alone['median']:.3g} ({1000 * alone['low']:.3g} to {1000 * alone['high']:.3g})",
        f"{throughput:,.0f}" if throughput >= 100 else f"{throughput:.3g}",
        _cost(one),
    ]


def _cost(one: Mapping[str, Any]) -> str:
    training = one["training"]
    if training is None:
        return "none" if one["kind"] == BASELINE else "not trained"
    if "seconds" not in training:
        return "unknown"
    processes = training.get("processes", 1)
    several = f", {processes} processes" if processes != 1 else ""
    seconds = f"{training['seconds']:,.0f} s" if training["seconds"] >= 1 else "under 1 s"
    partial = ", since the checkpoint" if training.get("resumed") else ""
    return f"{seconds} on {training['device']}{several}{partial}"


def _difference(entry: Mapping[str, Any]) -> str:
    points = f"{100 * entry['difference']:+.1f}"
    if entry["low"] is None:
        return points
    bold = "**" if entry["differs"] else ""
    return f"{bold}{points}{bold} ({100 * entry['low']:+.1f} to {100 * entry['high']:+.1f})"


def _p(mcnemar: Mapping[str, Any] | None) -> str:
    if mcnemar is None:
        return "–"
    return "< 0.001" if mcnemar["p"] < 0.001 else format_value(mcnemar["p"])


def _point(one: Measured, metric: str, *, chosen: bool) -> Point:
    entry = one.metrics[metric]
    return Point(
        one.name,
        entry["value"],
        entry["low"],
        entry["high"],
        one.seconds_alone["median"],
        is_baseline=one.kind == BASELINE,
        is_chosen=chosen,
    )


def _answers(
    measured: Sequence[Measured], examples: Sequence[TextExample], *, labels: LabelMap
) -> Iterator[dict[str, Any]]:
    """Yield a row per text: true label, and the label and probability of every engine."""
    probability = {one.name: probabilities(SINGLE, one.scores) for one in measured if one.kind != BASELINE}
    predicted = {one.name: one.scores.argmax(1) for one in measured}
    truth = [int(example.target) for example in examples if isinstance(example.target, int)]
    for index, example in enumerate(examples):
        answers: dict[str, dict[str, Any]] = {}
        for name, label_ids in predicted.items():
            label = int(label_ids[index])
            answers[name] = {"label": labels.names[label]}
            if name in probability:
                answers[name]["probability"] = round(float(probability[name][index, label]), DIGITS)
        row: dict[str, Any] = {"text": example.text}
        row |= {"text_b": example.text_b} if example.text_b else {}
        row |= {"true": labels.names[truth[index]], "answers": answers}
        yield row | _source_and_group(example)


def _preferences(measured: Sequence[Measured], examples: Sequence[PairExample]) -> Iterator[dict[str, Any]]:
    """Yield a row per pair: titles, and correctness and P(chosen preferred) of every engine."""
    preferred = {
        one.name: sigmoid(one.scores[:, 0] - one.scores[:, 1]) for one in measured if one.kind != BASELINE
    }
    credits = {one.name: pair_credit(one.scores[:, 0], one.scores[:, 1]) for one in measured}
    for index, pair in enumerate(examples):
        answers: dict[str, dict[str, Any]] = {}
        for name, credit in credits.items():
            answers[name] = {"correct": bool(credit[index] == 1)}
            if credit[index] == 0.5:
                answers[name]["tie"] = True
            if name in preferred:
                answers[name]["p_preferred"] = round(float(preferred[name][index]), DIGITS)
        row: dict[str, Any] = {"prompt": pair.prompt} if pair.prompt else {}
        row |= {"chosen": pair.chosen, "rejected": pair.rejected, "answers": answers}
        yield row | _source_and_group(pair)


def _source_and_group(example: TextExample | PairExample) -> dict[str, str]:
    group = {"group": example.group} if example.group else {}
    return {"source": Path(example.source).name, **group}
