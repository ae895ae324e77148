"""Report of a classification run, for every problem type and hostile texts: all files agree."""

from __future__ import annotations

import io
import json
import re
import shlex
from contextlib import redirect_stdout
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rendered_card import Rendered

from qwen_task_heads import build, load_tokenizer
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.text_datasets import TextSets
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.metrics.classification import (
    BEST_METRIC,
    MULTI,
    ORDINAL,
    REGRESSION,
    SINGLE,
    classification_metrics,
)
from qwen_task_heads.metrics.lookup_baseline import LOOKUP
from qwen_task_heads.reports.finishing import FinishedTraining
from qwen_task_heads.reports.markdown import metric_name
from qwen_task_heads.reports.prediction_rows import hardest_errors
from qwen_task_heads.reports.text_card import HEADLINES
from qwen_task_heads.reports.text_report import TFIDF, finish_texts
from qwen_task_heads.tokenization.templates import Template, bind_template

MODEL = "this model"
TEXTS = (
    "---\nlicense: evil",
    "<script>alert(1)</script>",
    "{{ config }}",
    "a | b | c",
    "'; rm -rf / #",
    "`code`",
    "line\u2028break",
    "休む",
    "![x](http://example.org/x.png)",
    "$(whoami)",
    "A text of an ordinary kind",
)
LABELS = LabelMap(("<b>loud</b>", "a | b", "[x](y)"), descriptions=("with `code`", "", "# head"))


def examples(kind: str, count: int, name: str, *, pairs: bool = False) -> list[TextExample]:
    targets = {
        MULTI: [(), (0,), (0, 2), (1,)],
        REGRESSION: [(0.5,), (2.0,), (3.25,), (1.0,)],
    }.get(kind, [0, 1, 2, 0])
    return [
        TextExample(
            text=f"{TEXTS[i % 11]} {i}",
            text_b=f"{TEXTS[(3 * i) % 11]} no" if pairs else "",
            target=targets[i % 4],
            group=f"g{i // 2}",
            source=f"/somebody/private/secret/{name}.jsonl:{i + 1}",
        )
        for i in range(count)
    ]


def finished(
    folder: Path, base: str, kind: str, *, test: bool = True, pairs: bool = False, **changes: Any
) -> dict[str, Any]:
    torch.manual_seed(0)
    labels = LabelMap(("score",)) if kind == REGRESSION else changes.pop("labels", LABELS)
    model = build(
        base,
        task="pooled_classifier",
        labels=labels.names,
        problem_type=kind,
        pooling="mean",
        max_seq_length=32,
    )
    tokenizer = load_tokenizer(base)
    bind_template(tokenizer, model.config, template=Template(), pairs=pairs)
    sets = TextSets(
        train=changes.pop("train", None) or examples(kind, 40, "train", pairs=pairs),
        dev=changes.pop("dev", None) or examples(kind, 9, "dev", pairs=pairs),
        test=examples(kind, 11, "test", pairs=pairs) if test else [],
        problem_type=kind,
        labels=labels,
        lines=[f"train: {TEXTS[1]}"],
        dev_was_cut=True,
        test_was_cut=test,
    )
    key = BEST_METRIC[kind][0]
    run = FinishedTraining(
        sets=sets,
        settings={"dataset_name": "a\n---\nb: [<b>x</b>]", "pooling": "mean"},
        seconds=1.5,
        seed=7,
        log_history=[{"loss": 0.7, "step": 1}, {key: 0.5, "eval_loss": 0.7, "step": 1}],
        backbone=base,
        truncation="3 of 40 texts were cut",
        **changes,
    )
    return finish_texts(model, tokenizer=tokenizer, folder=folder, run=run)


@pytest.fixture(scope="module")
def runs(bases: Any, tmp_path_factory: Any) -> Any:
    """Return `runs(kind)`: folder, metrics and printed text of one run per problem type. Read-only."""

    @lru_cache
    def run(kind: str) -> tuple[Path, dict[str, Any], str]:
        folder = tmp_path_factory.mktemp("runs") / "my <b> run"
        with redirect_stdout(io.StringIO()) as screen:
            metrics = finished(folder, bases["qwen2"], kind, pairs=kind == REGRESSION, test=kind != ORDINAL)
        return folder, metrics, screen.getvalue()

    return run


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    front, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)[1:]
    return yaml.safe_load(front), body


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION, ORDINAL])
def test_all_files_are_written_and_agree(runs, kind):
    folder, metrics, printed = runs(kind)
    pairs, split = kind == REGRESSION, "dev" if kind == ORDINAL else "test"
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert metrics["notes"] == []
    assert ("calibration" in metrics) == ("Calibration: no temp" in printed) == (kind != REGRESSION)
    cut = {name: entry["cut"] for name, entry in metrics["data"].items()}
    assert cut == {"train": False, "dev": True, "test": split == "test"}
    labels = ("score",) if kind == REGRESSION else LABELS.names
    expected = examples(kind, 9 if split == "dev" else 11, split, pairs=pairs)

    # the metrics are those of the saved model, loaded as by users
    logits = Scorer(str(folder)).logits(
        [e.text for e in expected], text_pairs=[e.text_b for e in expected] if pairs else None
    )
    again = classification_metrics(
        kind,
        logits.double().numpy(),
        [e.target for e in expected],
        labels=labels,
        groups=[e.group for e in expected],
    )
    main = BEST_METRIC[kind][0].removeprefix("eval_")
    for name in (main, "mae" if kind == REGRESSION else "macro_f1"):
        assert metrics[split][MODEL][name] == pytest.approx(again[name])
    assert list(metrics[split])[:2] == [MODEL, TFIDF]
    assert list(metrics[split])[3:] == [LOOKUP]  # the rows are also in train
    report = metrics["lookup"][split]
    assert (report["known"], report["coverage"], report["accuracy"]) == (len(expected), 1.0, 1.0)
    assert f"The lookup of train rows knows {len(expected)} of {len(expected)} rows of {split}" in printed

    # the model is compared with the best baseline on the same rows
    verdict, own = metrics["verdict"], metrics[split][MODEL][main]["value"]
    values = {name: entry[main]["value"] for name, entry in metrics[split].items() if name != MODEL}
    known = {name: value for name, value in values.items() if value is not None}
    assert known[verdict["baseline"]] == max(known.values()) == pytest.approx(verdict["value"])
    assert verdict["difference"] == pytest.approx(own - verdict["value"])
    assert (verdict["split"], verdict["metric"]) == (split, main)
    assert verdict["word"] in ("level", "below")
    assert f"The best baseline on {split} is {verdict['baseline']!r}" in printed

    # the card and the printed summary have the same numbers
    front, body = card_of(folder)
    assert front["pipeline_tag"] == "text-classification"
    entry = metrics[split][MODEL][main]
    shown = "–" if entry["value"] is None else f"{entry['value']:.3f}"
    assert re.search(rf"^\| {metric_name(main)} \| {shown}", body, re.MULTILINE)
    assert shown in printed
    for baseline in metrics[split]:
        assert baseline in printed
    result = front["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "a --- b: [<b>x</b>]", "type": "texts", "split": split}
    values = [entry["value"] for entry in metrics[split][MODEL].values() if isinstance(entry, dict)]
    assert {m["value"] for m in result["metrics"]} <= {round(v, 4) for v in values if v is not None}
    assert ("On the dev set" in body) == (split == "dev")
    assert ("chosen on the same rows" in printed) == (split == "dev")
    assert "3 of 40 texts were cut" in body
    plots = re.findall(r"^!\[[\w ]+\]\((\w+\.png)\)$", body, re.MULTILINE)
    assert {"training.png"} < set(plots)
    assert all((folder / name).stat().st_size > 1000 for name in plots)

    # the texts are escaped, and no file has a local folder
    for name in ("README.md", "errors.md", "predictions.jsonl"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "/somebody/private" not in text
        if name.endswith(".md"):
            text = text.split("---\n", 2)[2] if name == "README.md" else text
            assert not re.search(r"<(script|b)>", text)
            assert not re.search(r"(?<!\\)\]\(http", text)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["data"]["train"]["rows"] == 40
    assert {"metrics.json", "predictions.jsonl", "errors.md", "README.md", *plots} <= set(manifest["files"])


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION, ORDINAL])
def test_every_metric_of_the_card_equals_metrics_json(runs, kind):
    folder, _, _ = runs(kind)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    page = Rendered((folder / "README.md").read_text(encoding="utf-8"))
    found = metrics["dev" if kind == ORDINAL else "test"]

    def cell(entry):
        if entry is None or entry["value"] is None:
            return "–"
        between = "" if entry["low"] is None else f" ({entry['low']:.3f} to {entry['high']:.3f})"
        return f"{entry['value']:.3f}{between}".replace("-0.000", "0.000")

    head, *rows = page.titles["Evaluation"][0]
    assert head == ["metric", *found]
    spelled = {metric_name(name): name for name in found[MODEL]}
    assert {row[0] for row in rows} >= {metric_name(name) for name in HEADLINES[kind]}
    for row in rows:
        assert row[1:] == [cell(figures.get(spelled[row[0]])) for figures in found.values()]
    if kind != REGRESSION:
        listed = [
            [str(place), row["label"], LABELS.descriptions[place] or "–"]
            + ["–" if row[name] is None else f"{row[name]:.3f}" for name in ("precision", "recall", "f1")]
            + [f"{row['support']:,}"]
            for place, row in enumerate(found[MODEL]["per_class"])
        ]
        shown = [[cell.replace("`", "") for cell in row] for row in page.titles["Labels"][0][1:]]
        assert shown == [[cell.replace("`", "") for cell in row] for row in listed]
    splits = {row[0]: row[2:] for row in page.titles["Training data"][0][1:]}
    assert splits == {
        name: [f"{entry['rows']:,}", entry["sha256"][:12] + "…"]
        for name, entry in metrics["data"].items()
        if entry["rows"]
    }
    seconds, device = metrics["train"]["seconds"], metrics["train"]["device"]
    assert f"Training took {seconds:.1f} s on {device}, one process." in " ".join(page.texts)


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION, ORDINAL])
def test_the_metrics_can_be_recomputed_from_the_predictions(runs, kind):
    folder, metrics, _ = runs(kind)
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").split("\n")
    pairs, split = kind == REGRESSION, "dev" if kind == ORDINAL else "test"
    expected = examples(kind, 9 if split == "dev" else 11, split, pairs=pairs)
    assert len(lines) == len(expected) + 1  # and the end of the last line
    rows = [json.loads(line) for line in lines[:-1]]
    for row, example in zip(rows, expected, strict=True):
        assert (row["text"], row["group"]) == (example.text, example.group)
        assert row["source"] == f"{split}.jsonl:{example.source.rsplit(':', 1)[1]}"
        assert row.get("text_b", "") == example.text_b
    ours = metrics[split][MODEL]
    if kind == REGRESSION:
        errors = [row["error"] for row in rows]
        assert np.mean(np.square(errors)) == pytest.approx(ours["mse"]["value"], abs=1e-4)
        assert [row["true"] for row in rows] == [example.target[0] for example in expected]
        return
    right = np.mean([row["correct"] for row in rows])
    assert right == pytest.approx(ours["subset_accuracy" if kind == MULTI else "accuracy"]["value"])
    assert all(set(row["probabilities"]) == set(LABELS.names) for row in rows)
    if kind == MULTI:
        assert rows[2]["true"] == [LABELS.names[0], LABELS.names[2]]
        assert all(row["correct"] == (sorted(row["true"]) == sorted(row["labels"])) for row in rows)
    else:
        assert rows[1]["true"] == LABELS.names[1]
        assert all(row["label"] == max(row["probabilities"], key=row["probabilities"].get) for row in rows)


def test_the_card_lists_every_label_with_its_metrics(runs):
    folder, metrics, _ = runs(SINGLE)
    _, body = card_of(folder)
    per_class = metrics["test"][MODEL]["per_class"]
    rows = [line for line in body.splitlines() if re.match(r"\| \d+ \| ", line)]
    assert len(rows) == 3
    assert rows[0].startswith(r"| 0 | &lt;b&gt;loud&lt;/b&gt; | with \`code\` | ")
    assert rows[1].startswith(r"| 1 | a \| b | – | ")
    for row, line in zip(per_class, rows, strict=True):
        cells = re.split(r"(?<!\\)\| ", line)
        assert cells[-1].strip(" |") == str(row["support"])
        assert cells[-2].strip() == ("–" if row["f1"] is None else f"{row['f1']:.3f}")


def test_the_summary_has_valid_commands_and_the_weakest_labels(runs):
    folder, _, printed = runs(SINGLE)
    words = shlex.split(printed[printed.index("python -m") : printed.index("or a file")])
    assert words == ["python", "-m", "qwen_task_heads", str(folder), "A text of your own."]
    assert "Weakest labels by F1: " in printed
    predict = shlex.split(printed[printed.index("recipes/predict.py") :])
    assert predict[1:3] == ["--model", str(folder)]


def test_a_failed_baseline_becomes_a_message(bases, tmp_path, capsys):
    marks = [TextExample(text="?!", target=i % 3, source="train.jsonl:1") for i in range(9)]
    metrics = finished(tmp_path / "run", bases["qwen2"], SINGLE, train=marks, warning="labels look odd")
    assert len(metrics["notes"]) == 2
    assert metrics["notes"][0] == "labels look odd"
    assert metrics["notes"][1].startswith("no TF-IDF baseline")
    assert list(metrics["test"]) == [MODEL, "the most frequent label"]
    _, body = card_of(tmp_path / "run")
    assert "no TF-IDF baseline" in body
    assert "note: no TF-IDF baseline" in capsys.readouterr().out
    assert (tmp_path / "run/model.safetensors").exists()


def test_the_model_and_the_baselines_choose_among_candidates(bases, tmp_path, capsys):
    # The most frequent label of train is the first one, which is not a candidate of any row.
    rows = [
        replace(row, target=1 + place % 2, candidates=LABELS.names[1:])
        for place, row in enumerate(examples(SINGLE, 12, "dev"))
    ]
    metrics = finished(tmp_path / "run", bases["qwen2"], SINGLE, dev=rows, test=False)
    assert metrics["dev"]["the most frequent label"]["accuracy"]["value"] == 0.5  # 0 without candidates
    with (tmp_path / "run/predictions.jsonl").open(encoding="utf-8") as file:
        answers = [json.loads(line) for line in file]
    assert all(row["label"] in LABELS.names[1:] for row in answers)
    assert all(row["probabilities"][LABELS.names[0]] == 0 for row in answers)
    [message] = metrics["notes"][:1]
    assert message.startswith("12 of 12 rows of dev ")
    assert "predict.py --candidates restricts it to them" in message
    assert message in capsys.readouterr().out


def test_the_most_confident_errors_come_first():
    rows = examples(SINGLE, 8, "test")
    logits = np.full((8, 3), -1.0)
    logits[np.arange(8), [1, 1, 2, 0, 1, 2, 2, 2]] = [1, 5, 5, 5, 3, 4, 5, 6]
    page = hardest_errors(SINGLE, rows, logits, labels=LABELS.names, split="test")
    assert "4 of 8 rows are wrong (50.0%)." in page
    first, confusions, worst = page.split("## ")[1:]
    # rows 7 (confidence .998), 5 (.987), 4 (.96) and 0 (.79); the true labels are 0 1 2 0 0 1 2 0
    assert re.findall(r"test\.jsonl:(\d)", first) == ["8", "6", "5", "1"]
    assert re.findall(r"\| (\d) \| (\d+%) \|", confusions) == [("2", "50%"), ("1", "25%"), ("1", "50%")]
    assert re.findall(r"(\d) of (\d)", worst) == [("3", "4"), ("1", "2")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (5, 6, 7) for line in page.splitlines() if "|" in line)


def test_long_texts_are_truncated_to_one_line_and_tables_may_be_empty():
    row = TextExample(text="word \n" * 200, text_b="other " * 200, target=0, source="a.jsonl:1")
    page = hardest_errors(SINGLE, [row], np.array([[0.0, 1.0]]), labels=["a", "b"], split="test")
    line = next(line for line in page.splitlines() if "a.jsonl" in line)
    assert len(line) < 250
    assert "word" in line
    assert "other" in line
    page = hardest_errors(SINGLE, [row], np.array([[1.0, 0.0]]), labels=["a", "b"], split="test")
    assert page.count("None.") == 3


def test_a_hundred_thousand_labels_make_no_square_table():
    names = [str(index) for index in range(100_000)]
    row = TextExample(text="a", target=5, source="a.jsonl:1")
    page = hardest_errors(SINGLE, [row], np.eye(1, 100_000), labels=names, split="test")
    assert "| 5 | 0 | 1 | 100% |" in page
