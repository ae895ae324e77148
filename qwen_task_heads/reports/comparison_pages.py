"""What a comparison leaves behind: a table, `comparison.json`, `comparison.md`, a picture, and every answer.

Every number on the page comes from the dictionary that `comparison.json` holds; names and notes are shown as
text (`shown.py`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_task_heads.data.candidates import candidates_line
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.text_datasets import TextSets, hash_texts
from qwen_task_heads.data.title_datasets import TitleSets, hash_pairs
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.inference.engine_options import TEXTS, TITLES
from qwen_task_heads.inference.predictions import DIGITS
from qwen_task_heads.metrics.classification import SINGLE, probabilities
from qwen_task_heads.metrics.ranking import pair_credit
from qwen_task_heads.metrics.weighted import ECE_BINS, sigmoid
from qwen_task_heads.reports.card_lines import verdict_lines
from qwen_task_heads.reports.comparison import BASELINE, COMPARED, FIGURES, Measured, compare
from qwen_task_heads.reports.comparison_advice import advise, chosen_of, verdicts
from qwen_task_heads.reports.comparison_plots import Point, engines_plot
from qwen_task_heads.reports.early_exits import aligned
from qwen_task_heads.reports.finishing import write_json
from qwen_task_heads.reports.markdown import figure, figure_name, interval, plain
from qwen_task_heads.reports.run_manifest import versions

JSON, PAGE, ANSWERS, PICTURE = "comparison.json", "comparison.md", "answers.jsonl", "comparison.png"
READ = (
    "95% intervals over rows, or over their groups where they have some. *ms per {row}* is the median of "
    "batches of one (quartiles), *{row}s/s* one pass over all rows; where each text has its own examples, "
    "choosing them is in both. *log loss* and *ECE* (how far probabilities are from the share of right "
    "answers, on average, in {bins} bins of equal width) are better the lower they are; a baseline "
    "that is no engine gives no probabilities. *training* is what it took to make the engine, where that is "
    "known."
)
PAIRED = (
    "a minus b, on the same resamples of groups, in points; **bold** where the 95% interval leaves 0 out. "
    "Intervals are those of each pair alone: of twenty pairs without a difference, one will stand out. *p* "
    "is McNemar's exact test over rows."
)


def claim_folder(folder: str | Path) -> None:
    """Make the folder of a comparison and write to it once, before anything is measured.

    Raises:
        TaskHeadsError: it holds a comparison, or nothing can be written there.
    """
    if Path(folder, JSON).exists():
        found, accepted = f"a comparison in {str(folder)!r}", "a folder without one"
        raise TaskHeadsError(
            Problem("--output_dir", f"found {found}", accepted, "choose another, or move it away")
        )
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        found = f"{str(folder)!r}, where nothing can be written ({error.strerror})"
        accepted = "a folder that can be written to"
        raise TaskHeadsError(Problem("--output_dir", f"found {found}", accepted, "choose another")) from error


def write_comparison(
    folder: str | Path,
    measured: Sequence[Measured],
    *,
    sets: TextSets,
    examples: Sequence[TextExample],
    split: str,
    figure: str = "accuracy",
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare what was measured, write everything, print the table and the advice; return what JSON holds.

    Args:
        folder: made if need be.
        measured: engines and baselines on `examples`.
        sets: the data, with labels and lines.
        examples: the rows that were measured.
        split: `test` or `dev`, which they are from.
        figure: `accuracy` or `macro_f1`: what the advice goes by.
        settings: of the run, kept in the JSON.
        notes: to be said beside the figures.
        missing: engines that could not be measured; the advice says so.
    """
    offers = [line for line in [candidates_line(examples, labels=sets.labels, split=split)] if line]
    data = {"sha256": hash_texts(examples), "labels": list(sets.labels.names)}
    content = _content(
        measured, examples, split=split, figure=figure, missing=missing,
        notes=[*offers, *notes], settings=settings,
        data={**data, "train_rows": len(sets.train), "lines": sets.lines},
    )  # fmt: skip
    _write(Path(folder), content, measured, _answers(measured, examples, labels=sets.labels))
    return content


def write_title_comparison(
    folder: str | Path,
    measured: Sequence[Measured],
    *,
    sets: TitleSets,
    examples: Sequence[PairExample],
    split: str,
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> dict[str, Any]:
    """Do for pairs of titles what `write_comparison` does for texts; the advice goes by accuracy."""
    data = {"sha256": hash_pairs(examples), "train_rows": len(sets.train), "lines": sets.lines}
    content = _content(
        measured, examples, split=split, figure="accuracy", missing=missing, notes=notes,
        settings=settings, data=data,
    )  # fmt: skip
    _write(Path(folder), content, measured, _preferences(measured, examples))
    return content


def _content(
    measured: Sequence[Measured],
    examples: Sequence[TextExample] | Sequence[PairExample],
    *,
    split: str,
    figure: str,
    data: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    notes: Sequence[str],
    missing: Sequence[str],
) -> dict[str, Any]:
    """What `comparison.json` holds."""
    pairs = compare(measured, examples)
    groups = measured[0].figures["accuracy"]["n_groups"]
    noun = "rows" if "labels" in data else "pairs"
    rows = f"the {len(examples):,} {noun} of {split}"
    rows += f" ({groups:,} groups)" if groups != len(examples) else ""
    return {
        "task": TEXTS if "labels" in data else TITLES,
        "data": {"split": split, "rows": len(examples), "groups": groups, **data},
        "measured_on": rows,
        "engines": [one.as_dict() for one in measured],
        "pairs": pairs,
        "verdicts": verdicts(measured, pairs, figure=figure),
        "advice": [*advise(measured, pairs, figure=figure, rows=rows), *_without(missing)],
        "chosen": chosen_of(measured, pairs, figure=figure).name,
        "figure": figure,
        "notes": [*notes, *(f"{one.name}: {note}" for one in measured for note in one.notes)],
        "settings": dict(settings or {}),
        "versions": versions(),
    }


def _write(
    folder: Path, content: dict[str, Any], measured: Sequence[Measured], answers: Iterable[Mapping[str, Any]]
) -> None:
    """Write the files, and print the table, the verdicts and the advice."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON, content)
    with (folder / ANSWERS).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in answers)
    figure, rows, data = content["figure"], content["measured_on"], content["data"]
    engines_plot(
        [_point(one, figure, chosen=one.name == content["chosen"]) for one in measured],
        folder / PICTURE,
        label=figure_name(figure),
        title=f"Engines on {rows}",
    )
    (folder / PAGE).write_text(comparison_page(content), encoding="utf-8")
    table = [_head(content), *(_cells(one, content) for one in content["engines"])]
    over = "groups" if data["groups"] != data["rows"] else "pairs" if content["task"] == TITLES else "rows"
    lines = [f"On {rows}, 95% intervals over {over}:", "", *aligned(table), ""]
    lines += [*_verdict_lines(content), *content["advice"]]
    lines += [f"note: {note}" for note in content["notes"]]
    lines += ["", f"Everything is in {folder}: {PAGE}, {JSON}, {PICTURE}, and every answer in {ANSWERS}."]
    print("\n".join(lines), flush=True)


def _verdict_lines(content: Mapping[str, Any]) -> list[str]:
    """Where each trained engine stands beside the best baseline."""
    split = content["data"]["split"]
    return [
        f"{found['engine']}: {' '.join(verdict_lines({'verdict': {**found, 'split': split}}))}"
        for found in content["verdicts"]
    ]


def comparison_page(content: Mapping[str, Any]) -> str:
    """The comparison as Markdown, from what `comparison.json` holds."""
    data = content["data"]
    row = _row_of(content)
    lines = ["# Engines compared", ""]
    lines += [plain(line) for line in [*_verdict_lines(content), *content["advice"]]] + [""]
    count = f", {len(data['labels']):,} labels" if "labels" in data else ""
    noun, bins = ("rows", ECE_BINS) if count else ("pairs", 10)  # of `metrics.expected_calibration_error`
    lines += [
        f"## On {data['rows']:,} {noun} of {data['split']}{count}",
        "",
        READ.format(row=row, bins=bins),
        "",
    ]
    lines += engine_table(content)
    devices = dict.fromkeys(one["device"] for one in content["engines"])
    lines += ["", f"Timed on: {plain(', '.join(devices))}.", "", f"![engines]({PICTURE})", ""]
    lines += ["## Pair by pair", "", PAIRED, ""]
    cells, keys = [], [key for key in COMPARED if key in content["engines"][0]["figures"]]
    for pair in content["pairs"]:
        differences = [_difference(pair[key]) for key in keys]
        cells.append([plain(pair["a"]), plain(pair["b"]), *differences, _p(pair["mcnemar"])])
    lines += _table(["a", "b", *map(figure_name, keys), "p"], cells)
    said = [*content["notes"], *data["lines"], _settings_line(content["settings"])]
    return "\n".join([*lines, "", "## Notes", "", *(f"- {plain(line)}" for line in said)]) + "\n"


def _without(missing: Sequence[str]) -> list[str]:
    """What the advice leaves out."""
    return [f"Not measured, and so not in this advice: {', '.join(missing)}."] if missing else []


def _settings_line(settings: Mapping[str, Any]) -> str:
    told = [f"{name} {value}" for name, value in settings.items() if value not in (None, False, "")]
    return f"settings: {'; '.join(told)}" if told else "settings: the defaults"


def engine_table(content: Mapping[str, Any]) -> list[str]:
    """The figures, times and costs of what `comparison.json` holds, as lines of Markdown."""
    rows = [_cells(one, content) for one in content["engines"]]
    return _table(_head(content), [[plain(row[0]), *row[1:]] for row in rows])


def _row_of(content: Mapping[str, Any]) -> str:
    return "pair" if content.get("task") == TITLES else "text"


def _shown(content: Mapping[str, Any]) -> list[str]:
    """Metrics of the table: those that some engine has."""
    return [name for name in FIGURES if any(name in one["figures"] for one in content["engines"])]


def _head(content: Mapping[str, Any]) -> list[str]:
    row = _row_of(content)
    return ["engine", *map(figure_name, _shown(content)), f"ms per {row}", f"{row}s/s", "training"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _cells(one: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
    alone, speed = one["seconds_alone"], one["texts_per_second"]
    return [
        one["name"],
        *(interval(one["figures"].get(name)) for name in _shown(content)),
        f"{1000 * alone['median']:.3g} ({1000 * alone['low']:.3g} to {1000 * alone['high']:.3g})",
        f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}",
        _cost(one),
    ]


def _cost(one: Mapping[str, Any]) -> str:
    told = one["training"]
    if told is None:
        return "none" if one["kind"] == BASELINE else "not trained"
    if "seconds" not in told:
        return "unknown"
    processes = told.get("processes", 1)
    several = f", {processes} processes" if processes != 1 else ""
    seconds = f"{told['seconds']:,.0f} s" if told["seconds"] >= 1 else "under 1 s"
    return f"{seconds} on {told['device']}{several}" + ", in part" * bool(told.get("resumed"))


def _difference(found: Mapping[str, Any]) -> str:
    points = f"{100 * found['difference']:+.1f}"
    if found["low"] is None:
        return points
    bold = "**" if found["differs"] else ""
    return f"{bold}{points}{bold} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


def _p(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    return "< 0.001" if found["p"] < 0.001 else figure(found["p"])


def _point(one: Measured, key: str, *, chosen: bool) -> Point:
    entry = one.figures[key]
    seconds = one.seconds_alone["median"]
    return Point(one.name, entry["value"], entry["low"], entry["high"], seconds, one.kind == BASELINE, chosen)


def _answers(
    measured: Sequence[Measured], examples: Sequence[TextExample], *, labels: LabelMap
) -> Iterator[dict[str, Any]]:
    """A row per text: truth, and every engine's label with its probability (baselines have none)."""
    sure = {one.name: probabilities(SINGLE, one.scores) for one in measured if one.kind != BASELINE}
    said = {one.name: one.scores.argmax(1) for one in measured}
    truth = [int(example.target) for example in examples if isinstance(example.target, int)]
    for place, example in enumerate(examples):
        answers: dict[str, dict[str, Any]] = {}
        for name, found in said.items():
            label = int(found[place])
            answers[name] = {"label": labels.names[label]}
            if name in sure:
                answers[name]["probability"] = round(float(sure[name][place, label]), DIGITS)
        row: dict[str, Any] = {"text": example.text}
        row |= {"text_b": example.text_b} if example.text_b else {}
        row |= {"true": labels.names[truth[place]], "answers": answers}
        yield row | _where(example)


def _preferences(measured: Sequence[Measured], examples: Sequence[PairExample]) -> Iterator[dict[str, Any]]:
    """A row per pair: the titles, and every engine's P(chosen preferred); of baselines, whether it was right."""
    sure = {
        one.name: sigmoid(one.scores[:, 0] - one.scores[:, 1]) for one in measured if one.kind != BASELINE
    }
    right = {one.name: pair_credit(one.scores[:, 0], one.scores[:, 1]) for one in measured}
    for place, pair in enumerate(examples):
        answers: dict[str, dict[str, Any]] = {}
        for name, credit in right.items():
            answers[name] = {"correct": bool(credit[place] == 1)} | (
                {"tie": True} if credit[place] == 0.5 else {}
            )
            if name in sure:
                answers[name]["p_preferred"] = round(float(sure[name][place]), DIGITS)
        row: dict[str, Any] = {"prompt": pair.prompt} if pair.prompt else {}
        yield row | {"chosen": pair.chosen, "rejected": pair.rejected, "answers": answers} | _where(pair)


def _where(example: TextExample | PairExample) -> dict[str, str]:
    group = {"group": example.group} if example.group else {}
    return {"source": Path(example.source).name, **group}
