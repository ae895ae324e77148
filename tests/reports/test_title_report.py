"""Report of a title run on hostile titles and names: all files agree."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import parse_eval_result_entries
from rendered_card import Rendered

from qwen_task_heads import build, load_tokenizer
from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.data.title_datasets import TitleSets
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.reports.finishing import FinishedTraining
from qwen_task_heads.reports.markdown import metric_name
from qwen_task_heads.reports.title_report import _write_predictions, finish_titles
from qwen_task_heads.tokenization.templates import Template, compile_template

MODEL = "this model"
TITLES = (
    "---\nlicense: evil",
    "<script>alert(1)</script>",
    "{{ config }}",
    "a | b | c",
    "'; rm -rf / #",
    'say "hi"',
    "`code`",
    "line\u2028break",
    "休む",
    "\\N{BULLET}",
    "$(whoami)",
    "A title of an ordinary kind",
)


def hostile_pairs(count: int, name: str) -> list[PairExample]:
    return [
        PairExample(
            chosen=f"{TITLES[i % 12]} {i}",
            rejected=f"{TITLES[(i * 7 + 3) % 12]} {i} no",
            group=f"g{i // 2}",
            source=f"/somebody/private/secret/{name}.jsonl:{i + 1}",
        )
        for i in range(count)
    ]


def finished(
    folder: Path,
    base: str,
    *,
    test: bool,
    zero: bool = False,
    data: str = "a\n---\nb: [<b>x</b>]",
    pairs: dict[str, list[PairExample]] | None = None,
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build(base, pooling="mean")
    if zero:
        torch.nn.init.zeros_(model.score.weight)
    tokenizer = load_tokenizer(base)
    compile_template(tokenizer, template=Template(), model_type="qwen2", max_length=48)
    sets = TitleSets(
        train=hostile_pairs(40, "train"),
        groups=[],
        dev=hostile_pairs(9, "dev"),
        test=hostile_pairs(11, "test") if test else [],
        lines=[f"train: {TITLES[0]}", TITLES[1]],
        dev_was_cut=True,
    )
    sets = replace(sets, **(pairs or {}))
    run = FinishedTraining(
        sets=sets,
        settings={"dataset_name": data, "pooling": "mean"},
        seconds=1.5,
        seed=7,
        log_history=[{"loss": 0.7, "step": 1}, {"eval_accuracy": 0.5, "eval_loss": 0.7, "step": 1}],
        backbone=base,
    )
    return finish_titles(model, tokenizer=tokenizer, folder=folder, run=run)


def check_card(metrics: dict[str, Any], reported: str, card: str) -> None:
    """Compare every table of the card with `metrics.json`."""
    page, ours = Rendered(card), metrics[reported][MODEL]
    accuracy, others = page.titles["Evaluation"]
    for name, *cells in accuracy[1:]:
        entry = metrics[reported][name]["pair_accuracy"]
        assert cells == [
            f"{entry['value']:.3f}",
            f"{entry['low']:.3f} to {entry['high']:.3f}",
            str(entry["n"]),
            str(entry["n_groups"]),
        ]
    assert [row[0] for row in accuracy[1:]] == list(metrics[reported])
    spelled = {metric_name(name): entry for name, entry in ours.items() if name != "pair_accuracy"}
    assert [row[0] for row in others[1:]] == list(spelled)
    for name, shown in others[1:]:
        entry = spelled[name]
        value = "–" if entry["value"] is None else f"{entry['value']:.3f}"
        between = "" if entry["low"] is None else f" ({entry['low']:.3f} to {entry['high']:.3f})"
        assert shown == f"{value}{between}".replace("-0.000", "0.000")
    sets = {row[0]: row[2:] for row in page.titles["Training data"][0][1:]}
    data = {name: entry for name, entry in metrics["data"].items() if entry["pairs"]}
    assert sets == {name: [str(e["pairs"]), e["sha256"][:12] + "…"] for name, e in data.items()}
    assert f"Training took {metrics['train']['seconds']:.1f} s on CPU (1 thread)" in " ".join(page.texts)


@pytest.mark.parametrize("test", [True, False])
def test_hostile_titles_and_names_are_escaped_in_every_file(bases, tmp_path, capsys, test):
    folder = tmp_path / "my <b> run"
    metrics = finished(folder, bases["qwen2"], test=test)
    reported = "test" if test else "dev"
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["seed"] == 7
    page = (folder / "README.md").read_text()
    front, body = page.split("---\n", 2)[1:]
    result = yaml.safe_load(front)["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == "a --- b: [<b>x</b>]"
    assert result["dataset"]["split"] == reported
    value = metrics[reported][MODEL]["pair_accuracy"]["value"]
    assert result["metrics"][0]["value"] == round(value, 4)
    assert not re.search(r"<(script|b)>", body)
    assert "/somebody/private" not in page
    rows = (folder / "predictions.jsonl").read_text().split("\n")
    pairs = hostile_pairs(11 if test else 9, reported)
    assert len(rows) == len(pairs) + 1  # and the end of the last line
    for row, pair in zip(map(json.loads, rows[:-1]), pairs, strict=True):
        assert (row["chosen"], row["rejected"], row["group"]) == (pair.chosen, pair.rejected, pair.group)
        assert row["source"] == pair.source.rsplit("/", 1)[1]
        gap = row["chosen_score"] - row["rejected_score"]
        assert row["p_preferred"] == pytest.approx(1 / (1 + 2.718281828459045**-gap))
        assert row["correct"] == (gap > 0)
    assert "/somebody/private" not in (folder / "predictions.jsonl").read_text()
    printed = capsys.readouterr().out
    assert f"{MODEL:<21}  {value:.3f}" in printed
    assert ("chosen on the same pairs" in printed) != test
    assert all((folder / name).stat().st_size > 1000 for name in ("training.png", "gap_against_accuracy.png"))
    check_card(metrics, reported, page)
    verdict, entries = metrics["verdict"], metrics[reported]
    values = {name: entry["pair_accuracy"]["value"] for name, entry in entries.items() if name != MODEL}
    assert verdict["value"] == values[verdict["baseline"]] == max(values.values())
    assert verdict["difference"] == pytest.approx(value - verdict["value"])
    assert f"The best baseline on {reported} is {verdict['baseline']!r}" in printed
    assert set(metrics["lookup"]) == ({"dev", "test"} if test else {"dev"})
    assert metrics["lookup"][reported]["coverage"] > 0
    assert "lookup of train rows" in values
    saved = json.loads((folder / "config.json").read_text())
    assert metrics["reward"] == {name: saved[name] for name in metrics["reward"]}
    dev = [title for p in hostile_pairs(9, "dev") for title in (p.chosen, p.rejected)]
    scores = Scorer(str(folder), progress=False).score(list(dict.fromkeys(dev)))
    assert metrics["reward"]["reward_mean"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
    assert not (folder / ".eval_results").exists()  # a file is not a dataset of the hub
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {name: entry["pairs"] for name, entry in manifest["data"].items()}["train"] == 40


def test_the_next_command_of_the_summary_is_valid(bases, tmp_path, capsys):
    """A folder with a space is quoted for the shell; the titles are examples, not rows of the data."""
    import shlex

    finished(tmp_path / "a run", bases["qwen2"], test=True)
    printed = capsys.readouterr().out
    words = shlex.split(printed[printed.index("python -m") : printed.index("or load it")])
    assert words[4:6] == ["Budget passes", "What the new budget means for your rent"]
    assert words[:3] == ["python", "-m", "qwen_task_heads"]
    assert words[3] == str(tmp_path / "a run")


def test_a_constant_scorer_has_ties_only(bases, tmp_path):
    metrics = finished(tmp_path / "run", bases["qwen2"], test=True, zero=True)
    accuracy = metrics["test"][MODEL]["pair_accuracy"]
    assert accuracy["value"] == 0.5
    assert accuracy["ties"] == 11
    assert metrics["test"][MODEL]["length_spearman"]["value"] is None
    assert "–" in (tmp_path / "run/README.md").read_text()


def test_predictions_mark_ties(tmp_path):
    """A gap below the rounding of fp32 is neither correct nor wrong."""
    pairs, chosen = hostile_pairs(3, "test"), np.array([2.0, 2.0, -1.0])
    path = tmp_path / "predictions.jsonl"
    _write_predictions(path, pairs, chosen, np.array([1.0, 2.0 - 1e-7, 0.5]))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(row["correct"], row.get("tie", False)) for row in rows] == [
        (True, False),
        (False, True),
        (False, False),
    ]


def test_a_metric_on_a_dataset_of_the_hub_is_written_to_eval_results(bases, tmp_path):
    """huggingface_hub can read the file, and the card has no texts of the data."""
    folder = tmp_path / "run"
    metrics = finished(folder, bases["qwen2"], test=True, data="me/titles")
    (path,) = (folder / ".eval_results").iterdir()
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
    found = metrics["test"][MODEL]["pair_accuracy"]
    assert (entry.dataset_id, entry.task_id) == ("me/titles", "default")
    assert entry.value == round(found["value"], 4)
    assert entry.notes.startswith(f"pair accuracy on test, 95% interval {found['low']:.3f} to ")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---\n", 2)[1])["datasets"] == ["me/titles"]
    assert "A title of an ordinary kind" not in card


def test_leakage_between_splits_is_reported(bases, tmp_path, capsys):
    """Pairs of one experiment are in train and test: the lookup is above the model."""
    train = [PairExample(chosen=f"Yes {n}", rejected=f"No {n}", group=f"g{n}") for n in range(30)]
    test = [PairExample(chosen=f"Yes {n}", rejected=f"Else {n}", group=f"g{n}") for n in range(30)]
    metrics = finished(tmp_path / "run", bases["qwen2"], test=True, pairs={"train": train, "test": test})
    [note] = [note for note in metrics["notes"] if note.startswith("LEAK: ")]
    assert metrics["lookup"]["test"]["leaks"]
    assert not metrics["lookup"]["dev"]["leaks"]
    assert f"note: {note}" in capsys.readouterr().out
    assert metrics["test"]["lookup of train rows"]["pair_accuracy"]["value"] == 1.0
    assert metrics["verdict"]["word"] == "below"
    card = (tmp_path / "run/README.md").read_text(encoding="utf-8")
    assert card.count("LEAK: ") == 1
    assert "lookup of train rows knows 30 of 30 rows of test (100.0%)" in card
