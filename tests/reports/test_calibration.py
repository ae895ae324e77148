"""Calibration of a run: every way to load the model returns the same probabilities and thresholds."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clean_process import CleanProcess
from peft import get_peft_model
from predicting import predict
from rendered_card import Rendered
from transformers import AutoModelForSequenceClassification

from qwen_task_heads import Scorer, TaskHeadsError, adapter_config, build, load, load_tokenizer, merge, save
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.text_datasets import TextSets
from qwen_task_heads.data.title_datasets import TitleSets
from qwen_task_heads.export.onnx import export_onnx, run_onnx
from qwen_task_heads.export.stock import export_stock
from qwen_task_heads.head_rows import fold_temperature
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.metrics.calibration import divide_logits
from qwen_task_heads.metrics.classification import (
    MULTI,
    ORDINAL,
    SINGLE,
    classification_metrics,
    probabilities,
)
from qwen_task_heads.reports import calibration, text_report
from qwen_task_heads.reports.finishing import FinishedTraining
from qwen_task_heads.reports.text_report import finish_texts
from qwen_task_heads.reports.title_report import finish_titles
from qwen_task_heads.tokenization.templates import Template, bind_template, compile_template
from qwen_task_heads.training.warm_start import load_head

MODEL = "this model"
LABELS = ("sport", "trade", "体育", "art")
WORDS = ("red", "green", "blue", "sun", "moon", "tree", "car", "bank", "news", "rent", "vote", "game")
RUN: dict[str, Any] = {
    "seconds": 1.0,
    "seed": 0,
    "log_history": [{"loss": 0.7, "step": 1}],
    "backbone": "base",
}
HEADS: dict[str, dict[str, Any]] = {
    SINGLE: {"pooling": "last"},
    MULTI: {"pooling": "last"},
    ORDINAL: {"pooling": "mean"},
}


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 5)) for _ in range(count)]


def prepared(base: str, kind: str, *, adapter: bool = False, **head: Any) -> tuple[Any, Any]:
    """Return an overconfident model and its tokenizer."""
    torch.manual_seed(0)
    options = {**HEADS.get(kind, {}), **head}
    task = {"task": "pooled_classifier", "labels": LABELS}
    model: Any = build(base, **task, problem_type=kind, max_seq_length=32, **options)
    tokenizer = load_tokenizer(base)
    bind_template(tokenizer, model.config, template=Template())
    if adapter:
        model = get_peft_model(model, adapter_config(model, r=2))
    spread = float(Scorer(model.eval(), tokenizer=tokenizer).logits(texts(200, 0)).std(0).mean())
    fold_temperature(model, spread / 8)
    return model, tokenizer


def labelled(model: Any, tokenizer: Any, kind: str, count: int, seed: int) -> list[TextExample]:
    """Return rows whose labels are less certain than the model; labels of multi-label rows are rare."""
    rng, rows = np.random.default_rng(seed), texts(count, seed)
    logits = Scorer(model, tokenizer=tokenizer).logits(rows).double().numpy()
    shift = 2.5 if kind == MULTI else 0.0
    p = probabilities(kind, divide_logits(kind, logits, 5.0) - shift)
    targets: list[Any] = (
        [tuple(np.flatnonzero(rng.random(4) < row).tolist()) for row in p]
        if kind == MULTI
        else [int(rng.choice(4, p=row / row.sum())) for row in p]
    )
    return [
        TextExample(text=text, target=target, source=f"rows.jsonl:{place + 1}")
        for place, (text, target) in enumerate(zip(rows, targets, strict=True))
    ]


def finished(
    folder: Path, base: str, kind: str, *, dev: int = 400, settings: Any = None, **options: Any
) -> dict[str, Any]:
    model, tokenizer = prepared(base, kind, **options)
    names = LabelMap(LABELS)
    count = {"train": 30, "dev": dev, "test": 200}
    rows = {name: labelled(model, tokenizer, kind, n, 3 + n) for name, n in count.items()}
    sets = TextSets(**rows, problem_type=kind, labels=names, lines=[], dev_was_cut=True, test_was_cut=False)
    run = FinishedTraining(sets=sets, settings={"dataset_name": "x", **(settings or {})}, **RUN)
    return finish_texts(model, tokenizer=tokenizer, folder=folder, run=run)


@pytest.fixture(scope="module")
def runs(bases: Any, tmp_path_factory: Any) -> Any:
    """Return `runs(kind, adapter)`: folder, metrics and printed text. Read-only."""

    @lru_cache
    def run(kind: str, adapter: bool = False) -> tuple[Path, dict[str, Any], str]:
        folder = tmp_path_factory.mktemp("runs") / "run"
        with redirect_stdout(io.StringIO()) as screen:
            metrics = finished(folder, bases["qwen2"], kind, adapter=adapter)
        return folder, metrics, screen.getvalue()

    return run


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("kind", [SINGLE, MULTI, ORDINAL])
def test_the_folded_head_returns_the_divided_logits_of_the_record(runs, bases, kind, adapter):
    folder, metrics, printed = runs(kind, adapter)
    record = config_of(folder)["calibration"]
    assert record == metrics["calibration"]
    assert record["method"] == "temperature"
    assert record["temperature"] > 2
    assert (record["rows"], record["groups"], record["fitted_on"]) == (400, 400, "dev")
    losses = record["held_out_log_loss"]
    assert losses["after"] < losses["before"]

    rows = texts(200, 203)
    model, tokenizer = prepared(bases["qwen2"], kind, adapter=adapter)
    before = Scorer(model, tokenizer=tokenizer).logits(rows).double().numpy()
    after = Scorer(str(folder)).logits(rows).double().numpy()
    expected = divide_logits(kind, before, record["temperature"])
    np.testing.assert_allclose(after, expected, atol=2e-5 * np.abs(before).max())
    if kind != ORDINAL:
        assert (before.argmax(1) == after.argmax(1)).all()
    for name, measured in record["metrics"].items():
        ours = metrics[name][MODEL]
        for metric in ("ece", "brier"):
            sides = measured[metric]
            assert sides["after"] == ours[metric]
            if kind != MULTI or metric == "brier":  # multi-label rows have rarer labels than predicted
                assert sides["after"]["value"] < sides["before"]["value"]
            assert sides["after"]["low"] <= sides["after"]["value"] <= sides["after"]["high"]
    assert f"temperature {record['temperature']:.3f}" in printed


@pytest.mark.parametrize("kind", [SINGLE, MULTI, ORDINAL])
def test_the_card_has_the_values_of_the_record(runs, kind):
    folder, metrics, printed = runs(kind)
    page = Rendered((folder / "README.md").read_text(encoding="utf-8"))
    found = metrics["calibration"]["metrics"]["test"]
    head, *rows = page.titles["Calibration"][0]
    assert head == ["metric", "before", "after"]

    def cell(entry: Any) -> str:
        return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"

    assert [row[1:] for row in rows] == [
        [cell(entry["before"]), cell(entry["after"])] for entry in found.values()
    ]
    assert (folder / "risk_coverage.png").exists() == (kind != MULTI)
    if kind == MULTI:
        assert list(found) == ["ece", "brier", "macro_f1", "micro_f1"]
        assert f"macro F1 {found['macro_f1']['after']['value']:.3f} on test" in printed


# Code of a user without the package; the card has the lines of the thresholds.
CHILD = r"""
import importlib.util, json, sys
from pathlib import Path
from transformers import pipeline

folder, stock, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
def scores(classify):
    return [{row["label"]: row["score"] for row in text} for text in classify(texts, top_k=None)]

classify = pipeline("text-classification", model=folder, trust_remote_code=True)
model, answers = classify.model, {"pipeline": scores(classify)}
if model.config.label_thresholds:
    card = Path(folder, "README.md").read_text().split("returns probabilities only:")[1]
    lines = card.split("```python\n")[1].split("```")[0].replace('["A text"]', "texts").strip().splitlines()
    exec(lines[0])
    answers["card"] = eval(lines[1])
if stock:
    classify = pipeline("text-classification", model=stock, truncation=True)
    answers["stock"] = scores(classify)
    answers["stock thresholds"] = classify.model.config.to_dict().get("label_thresholds")
spec = importlib.util.spec_from_file_location("handler", f"{folder}/handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)
answers["handler"] = handler({"inputs": texts})
if model.config.label_thresholds:
    answers["handler"] = handler({"inputs": texts, "parameters": {"threshold": 0}})
    answers["handler labels"] = [[row["label"] for row in text] for text in handler({"inputs": texts})]
answers["handler"] = [{row["label"]: row["score"] for row in text} for text in answers["handler"]]
print(json.dumps(answers))
"""


@pytest.mark.parametrize(
    ("kind", "adapter"), [(SINGLE, False), (MULTI, True), (MULTI, False), (ORDINAL, False)]
)
def test_every_way_to_load_the_model_returns_the_same_probabilities_and_labels(
    runs, tmp_path, clean: CleanProcess, kind, adapter
):
    folder, _, _ = runs(kind, adapter)
    rows = texts(40, 11)
    stock = "" if kind == ORDINAL else str(export_stock(str(folder), folder=tmp_path / "stock"))
    loaded = json.loads(clean.run(CHILD, folder, stock, json.dumps(rows), folder=tmp_path).splitlines()[-1])
    ours = Scorer(str(folder)).predict(rows)
    for way in ("pipeline", "handler", *(["stock"] if stock else [])):
        for answer, probability in zip(ours, loaded[way], strict=True):
            assert probability == pytest.approx(answer.probabilities, abs=1e-5)
    if kind == MULTI:
        chosen = [list(answer.labels) for answer in ours]
        assert loaded["card"] == loaded["handler labels"] == chosen
        assert loaded["stock thresholds"] == config_of(folder)["label_thresholds"]
        half = [list(answer.labels) for answer in Scorer(str(folder)).predict(rows, threshold=0.5)]
        assert half != chosen


def test_a_run_that_starts_from_its_head_has_no_calibration(runs, bases):
    folder, _, _ = runs(MULTI)
    fresh = {"task": "pooled_classifier", "labels": LABELS, "problem_type": MULTI, "max_seq_length": 32}
    model = load_head(build(bases["qwen2"], **fresh), str(folder), tokenizer=load_tokenizer(str(folder)))
    assert torch.equal(model.score.weight, load(str(folder)).score.weight)
    assert (model.config.calibration, model.config.label_thresholds) == (None, None)


def test_a_merged_adapter_keeps_calibration_and_thresholds(runs, tmp_path):
    folder, _, _ = runs(MULTI, True)
    merged = save(merge(str(folder)), tokenizer=load_tokenizer(str(folder)), folder=tmp_path / "merged")
    assert config_of(merged)["calibration"] == config_of(folder)["calibration"]
    rows = texts(20, 12)
    ours, theirs = Scorer(str(folder)).predict(rows), Scorer(str(merged)).predict(rows)
    assert [answer.labels for answer in ours] == [answer.labels for answer in theirs]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MULTI, ORDINAL])
def test_onnx_returns_the_calibrated_logits_and_has_the_thresholds(runs, tmp_path, kind):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, _, _ = runs(kind)
    path = export_onnx(str(folder), folder=tmp_path / "graph")
    rows = texts(10, 13)
    batch = load_tokenizer(str(folder))(rows, padding=True, return_tensors="np")
    found = run_onnx(path, batch["input_ids"], batch["attention_mask"])
    np.testing.assert_allclose(found, Scorer(str(folder)).logits(rows).numpy(), atol=1e-4)
    metadata = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    thresholds = json.loads(metadata.get("label_thresholds", "null"))
    assert thresholds == config_of(folder).get("label_thresholds")


def test_thresholds_raise_macro_f1_and_are_in_every_file(runs):
    folder, metrics, _ = runs(MULTI)
    thresholds = config_of(folder)["label_thresholds"]
    assert load(str(folder)).config.label_thresholds == thresholds
    found = metrics["calibration"]["metrics"]["test"]["macro_f1"]
    assert found["after"]["value"] > found["before"]["value"] + 0.05
    assert metrics["test"][MODEL]["macro_f1"] == found["after"]
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        expected = {
            name
            for name, least in zip(LABELS, thresholds, strict=True)
            if row["probabilities"][name] >= least
        }
        assert set(row["labels"]) == expected
    right = np.mean([json.loads(line)["correct"] for line in lines])
    assert metrics["test"][MODEL]["subset_accuracy"]["value"] == pytest.approx(right)
    assert f"{100 * (1 - right):.1f}%" in (folder / "errors.md").read_text(encoding="utf-8")


def test_a_maximum_error_rate_is_met_on_dev_or_refused(runs, bases, tmp_path):
    folder, metrics, _ = runs(SINGLE)
    curve = metrics["calibration"]["risk_coverage"]
    scorer, rows = Scorer(str(folder)), texts(400, 403)
    best = min(row["upper"] for row in curve)
    rate = next(row["upper"] for row in curve if row["coverage"] <= 0.6)
    answers = scorer.predict(rows, max_error=rate)
    given = [answer for answer in answers if answer.label is not None]
    expected = max((row for row in curve if row["upper"] <= rate), key=lambda row: row["coverage"])
    assert len(given) / len(rows) == pytest.approx(expected["coverage"])
    model, tokenizer = prepared(bases["qwen2"], SINGLE)
    truth = {row.text: LABELS[row.target] for row in labelled(model, tokenizer, SINGLE, 400, 403)}
    assert np.mean([answer.label != truth[answer.text] for answer in given]) <= rate

    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    predict(str(folder), source=str(source), output=tmp_path / "answers.jsonl", max_error=rate)
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["predicted_label"] for line in lines] == [answer.label for answer in answers]

    with pytest.raises(TaskHeadsError) as caught:
        predict(str(folder), source=str(source), output=tmp_path / "no.jsonl", max_error=best / 2)
    assert caught.value.problems[0].where == "max_error"
    with pytest.raises(TaskHeadsError) as caught:
        scorer.predict(rows, max_error=best / 2)
    suggested = float(re.search(r"\d[\d.]*", caught.value.problems[0].fix)[0])
    assert any(answer.label for answer in scorer.predict(rows, max_error=suggested))
    with pytest.raises(TaskHeadsError, match="max_error"):
        scorer.predict(rows, max_error=0.3, abstain=0.5)
    with pytest.raises(TaskHeadsError, match="max_error"):
        Scorer(model, tokenizer=tokenizer).predict(rows[:2], max_error=0.3)
    with pytest.raises(TaskHeadsError, match="max_error"):
        Scorer(str(runs(MULTI)[0])).predict(rows[:2], max_error=0.3)


@pytest.mark.parametrize("kind", [SINGLE, MULTI])
@pytest.mark.slow
def test_nothing_is_fitted_on_few_rows_or_without_a_request(bases, tmp_path, capsys, monkeypatch, kind):
    scored, answer = [], Scorer.logits

    def spied(self: Scorer, rows: Any, **options: Any) -> Any:
        scored.append(len(rows))
        return answer(self, rows, **options)

    monkeypatch.setattr(Scorer, "logits", spied)
    few = finished(tmp_path / "few", bases["qwen2"], kind, dev=30)
    assert scored[-2:] == [30, 200]  # dev is scored once, because no temperature was folded
    assert "30 rows" in few["calibration"]["reason"]
    options = {"calibrate": "none"} | {"thresholds": "none" if kind == MULTI else "f1"}
    off = finished(tmp_path / "off", bases["qwen2"], kind, settings=options)
    assert off["calibration"]["method"] == "none"
    for folder, metrics in (("few", few), ("off", off)):
        assert metrics["calibration"]["temperature"] == 1
        expected = ["--thresholds f1 has no effect"] * (folder == "off" and kind != MULTI)
        messages = [note.split(":")[0] for note in metrics["notes"]]
        assert [message for message in messages if message != "LEAK"] == expected  # the texts repeat
        assert config_of(tmp_path / folder).get("label_thresholds") is None
        logits = Scorer(str(tmp_path / folder)).logits(texts(5, 1))
        model, tokenizer = prepared(bases["qwen2"], kind)
        torch.testing.assert_close(logits, Scorer(model, tokenizer=tokenizer).logits(texts(5, 1)))
        for measured in metrics["calibration"]["metrics"].values():
            assert measured["ece"]["before"] == measured["ece"]["after"]
    assert "no temperature (dev has 30 rows" in capsys.readouterr().out


def test_a_requested_precision_is_about_reached_on_test(bases, tmp_path):
    metrics = finished(tmp_path / "run", bases["qwen2"], MULTI, settings={"thresholds": "precision:0.5"})
    record = metrics["calibration"]["thresholds"]
    assert record["rule"] == "precision:0.5"
    assert record["held_out"]["micro_precision"]["after"] > 0.35
    assert len(config_of(tmp_path / "run")["label_thresholds"]) == 4


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_saved_unchanged_if_the_calibration_fails(bases, tmp_path, monkeypatch, error):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error("stop")

    monkeypatch.setattr(calibration, "fit_temperature", fail)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            finished(tmp_path / "run", bases["qwen2"], SINGLE, dev=60)
    else:
        metrics = finished(tmp_path / "run", bases["qwen2"], SINGLE, dev=60)
        assert metrics["notes"][0].startswith("not calibrated")
        assert "calibration" not in metrics
    model, _ = prepared(bases["qwen2"], SINGLE)
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert torch.equal(found.score.weight, model.score.weight)
    assert found.config.calibration is None


def test_the_temperature_is_fitted_within_the_candidates(bases, tmp_path, monkeypatch):
    seen, fit = [], calibration.fit_temperature

    def spied(kind: str, logits: Any, *args: Any, **options: Any) -> Any:
        seen.append(logits)
        return fit(kind, logits, *args, **options)

    monkeypatch.setattr(calibration, "fit_temperature", spied)
    original = text_report.calibrate_texts

    def with_candidates(model: Any, logits: Any, *, run: Any, sets: Any, messages: Any) -> Any:
        sets.dev[:] = [
            TextExample(text=one.text, target=one.target % 2, candidates=LABELS[:2]) for one in sets.dev
        ]
        return original(model, logits, run=run, sets=sets, messages=messages)

    monkeypatch.setattr(text_report, "calibrate_texts", with_candidates)
    metrics = finished(tmp_path / "run", bases["qwen2"], SINGLE)
    assert (probabilities(SINGLE, seen[0])[:, 2:] == 0).all()
    assert metrics["dev"][MODEL]["ece"]["value"] <= 1


def pairs(model: Any, tokenizer: Any, count: int, seed: int) -> list[PairExample]:
    rng, titles = np.random.default_rng(seed), texts(2 * count, seed)
    scores = np.array(Scorer(model, tokenizer=tokenizer).score(titles))
    found = []
    for place in range(count):
        a, b = titles[2 * place], titles[2 * place + 1]
        gap = (scores[2 * place] - scores[2 * place + 1]) / 4
        first = rng.random() < 1 / (1 + np.exp(-gap))
        chosen, rejected = (a, b) if first else (b, a)
        found.append(
            PairExample(chosen=chosen, rejected=rejected, group=f"g{place // 2}", source="p.jsonl:1")
        )
    return found


def test_a_title_scorer_is_calibrated_without_changing_its_ranking(bases, tmp_path, capsys):
    torch.manual_seed(0)
    model = build(bases["qwen2"], pooling="last")
    tokenizer = load_tokenizer(bases["qwen2"])
    compile_template(tokenizer, template=Template(), model_type="qwen2", max_length=48)
    spread = float(np.std(Scorer(model, tokenizer=tokenizer).score(texts(200, 0))))
    fold_temperature(model, spread / 5)
    before = np.array(Scorer(model, tokenizer=tokenizer).score(texts(50, 1)))
    rows = {name: pairs(model, tokenizer, count, count) for name, count in (("dev", 300), ("test", 200))}
    sets = TitleSets(train=rows["dev"][:30], groups=[], **rows, lines=[], dev_was_cut=True)
    run = FinishedTraining(sets=sets, settings={"dataset_name": "x"}, **RUN)
    metrics = finish_titles(model, tokenizer=tokenizer, folder=tmp_path / "run", run=run)
    record = config_of(tmp_path / "run")["calibration"]
    assert record == metrics["calibration"]
    assert record["temperature"] > 2
    assert (record["rows"], record["groups"]) == (300, 150)
    after = np.array(Scorer(str(tmp_path / "run")).score(texts(50, 1)))
    np.testing.assert_allclose(after * record["temperature"], before, rtol=1e-4, atol=1e-4)
    assert (np.argsort(before) == np.argsort(after)).all()
    for measured in record["metrics"].values():
        assert measured["ece"]["after"]["value"] < measured["ece"]["before"]["value"]
        assert measured["brier"]["after"]["value"] < measured["brier"]["before"]["value"]
    page = Rendered((tmp_path / "run/README.md").read_text(encoding="utf-8"))
    assert [row[0] for row in page.titles["Calibration"][0]] == ["metric", "ECE", "Brier score"]
    assert (tmp_path / "run/risk_coverage.png").exists()
    assert metrics["reward"]["reward_std"] < before.std()  # computed from the scores of the saved model
    assert f"temperature {record['temperature']:.3f}" in capsys.readouterr().out


def test_metrics_are_computed_at_the_thresholds():
    logits, truth = np.array([[0.5, -2.0], [-1.0, 3.0]]), [(0, 1), (1,)]
    found = classification_metrics(MULTI, logits, truth, labels=["a", "b"], threshold=[0.5, 0.1])
    assert found["subset_accuracy"]["value"] == 1.0
