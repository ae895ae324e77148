"""Tests of the speed suite, on a model that is too small for meaningful times."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import speed_measure  # noqa: E402
import speed_real  # noqa: E402
import speed_report  # noqa: E402
import speed_rows  # noqa: E402
import speed_scale  # noqa: E402
import speed_workloads  # noqa: E402

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.1,
}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> speed_measure.Bench:
    """Two turns on a model of two layers, without the data."""
    monkeypatch.setitem(speed_workloads.SHAPES, "small", TINY)
    return speed_measure.Bench("cpu", tmp_path / "no-data", False, 2, tmp_path)


def test_a_row_computes_the_same_on_both_sides(bench: speed_measure.Bench) -> None:
    [result] = speed_rows.instruction(bench)
    assert result.difference is not None
    assert result.difference < 1e-5
    assert result.limit is not None
    assert result.limit > 2
    assert result.seconds["peer"] > 0


def test_a_row_without_data_raises_an_error(bench: speed_measure.Bench) -> None:
    with pytest.raises(speed_workloads.NoData):
        next(speed_rows.classification(bench))
    with pytest.raises(speed_workloads.NoData, match="--qwen FOLDER"):
        next(speed_real.labels_by_trie(bench))


def test_a_nan_is_an_infinite_difference() -> None:
    one, other = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert speed_measure.largest_difference([one, one], [other, one]) == float("inf")
    assert speed_measure.largest_difference([one], [None]) == float("inf")
    assert speed_measure.largest_difference([one, None], [one + 1, None]) == 1.0


@pytest.mark.parametrize("family", ["qwen2", "qwen3_5_text"])
def test_the_stock_model_has_the_logits_of_the_model(bench: speed_measure.Bench, family: str) -> None:
    sizes = {**TINY, "num_hidden_layers": 4, "use_cache": False}  # the fourth layer has full attention
    config = transformers.CONFIG_MAPPING[family](vocab_size=64, pad_token_id=0, **sizes)
    model = speed_workloads.classifier_of(config, labels=3)
    [batch] = speed_workloads.batches(bench, [[5, 6, 7], [8, 9]], size=2)
    with torch.no_grad():
        difference = model(**batch).logits - speed_workloads.stock_of(model)(**batch).logits
    assert difference.abs().max() < 1e-5


def test_a_ratio_is_the_median_of_its_turns(bench: speed_measure.Bench) -> None:
    peer, ours = iter([4.0, 400.0, 4.0, 4.0, 4.0, 4.0, 4.0]), iter([2.0] * 7)
    timing = speed_measure.take_turns(bench, peer=lambda: next(peer), ours=lambda: next(ours))
    assert timing.result_fields()["ratio"] == 2.0
    assert len(timing.peer) > bench.turns  # the turns did not agree


def test_exponent_is_the_slope_of_a_power() -> None:
    sizes = [1.0, 2.0, 4.0, 8.0]
    assert speed_measure.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_operations_are_two_per_weight_and_token() -> None:
    model = transformers.Qwen2ForSequenceClassification(
        speed_workloads.Qwen2Config(vocab_size=8, **TINY)
    ).model
    weights = sum(value.numel() for name, value in model.layers.named_parameters() if "proj.weight" in name)
    count = speed_scale.operations(TINY, [1], pooled_only=False)
    assert count == 2 * weights + 4 * TINY["num_hidden_layers"] * TINY["hidden_size"]
    assert speed_scale.operations(TINY, [1], pooled_only=True) == count  # the only token is pooled


def test_a_new_measurement_replaces_the_old_row(bench: speed_measure.Bench) -> None:
    path = bench.scratch / "speed.json"
    for ratio in (2.0, 3.0):
        result = speed_measure.Result("a workload", "a peer", ratio, target=2.5, limit=4.0, difference=1e-7)
        speed_report.keep(path, result, bench)
    [row] = json.loads(path.read_text(encoding="utf-8"))
    assert row["ratio"] == 3.0
    speed_report.write(path)
    assert "| a workload | a peer |  | **3.00** | 2.50 | 4.00 | yes |" in path.with_suffix(".md").read_text()
    assert path.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_of_results_has_the_numbers_of_real_models(language: str) -> None:
    rows = speed_report.read(ROOT / "benchmarks" / "results" / "speed.json")
    page = (ROOT / "docs" / language / "explanation" / "results.md").read_text(encoding="utf-8")
    section = page.split({"en": "\n## Speed\n", "zh": "\n## 速度\n"}[language])[1].split("\n## ")[0]
    real = [row for row in rows if row["settings"].get("weights")]
    shown = re.findall(r"^\|.*\| ([\d.]+) \| ([\d.]*) ?\|$", section, re.MULTILINE)
    wanted = [(speed_report.number(row["ratio"]), speed_report.number(row["target"])) for row in real]
    assert len(wanted) > 5
    assert shown == wanted
    targets = [row["ratio"] >= row["target"] for row in rows if row["target"] is not None]
    assert {str(sum(targets)), str(len(targets))} <= set(re.findall(r"\d+", section.split("|")[0]))
