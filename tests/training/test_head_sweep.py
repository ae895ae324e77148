"""Tests of the sweep: all combinations and seeds, ranking by the mean on dev, preference for few layers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from problem_assertions import raises_problem

from qwen_task_heads import build
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.hubcode.encoding_task_heads import pad_rows
from qwen_task_heads.reports.early_exits import (
    ExitPoint,
    measure_exits,
    sweep_table,
    time_scoring,
    write_exits,
)
from qwen_task_heads.tokenization.collators import text_dataset
from qwen_task_heads.training.features import extract_features
from qwen_task_heads.training.frozen_heads import FittedHead, HeadTraining
from qwen_task_heads.training.head_sweep import (
    Combination,
    Result,
    choose,
    parse_head,
    parse_layers,
    sweep_heads,
    text_rows,
)

WORDS = ("good", "plain", "bad")
QUICK = HeadTraining(epochs=2, batch_size=16, learning_rate=2e-2)


def result(layer: int, *values: float, pooling: str = "last") -> Result:
    sizes = (8,) if len(values) > 1 else ()  # a linear head has one value
    combination = Combination(layers=(layer,), pooling=pooling, head_sizes=sizes, loss="cross_entropy")
    fitted = FittedHead(state={}, value=max(values), epoch=1, history=(), seconds=0.0)
    return Result(combination=combination, values=dict(enumerate(values)), seed=0, fitted=fitted)


@pytest.fixture(scope="module")
def swept(bases, tokenizer) -> dict[str, Any]:
    """Return a sweep of 2 layers x 2 poolings x 2 heads x 2 losses x 2 seeds."""
    model = build(bases["qwen2"], task="pooled_classifier", num_labels=3)
    texts = [TextExample(text=f"Ten {WORDS[i % 3]} thoughts, no {i}", target=i % 3) for i in range(60)]
    encode = {"tokenizer": tokenizer, "config": model.config, "num_labels": 3}
    (train, _), (dev, _) = text_dataset(texts[:42], **encode), text_dataset(texts[42:], **encode)
    ids = [*train["input_ids"], *dev["input_ids"]]
    features = extract_features(model, ids, layers=[1, 2], poolings=["last", "mean"])
    model.config.problem_type = "single_label_classification"
    rows = text_rows(
        train, dev, config=model.config, options={"cross_entropy": {"label_smoothing": 0.1}, "focal": {}}
    )
    options = {"heads": [(), (8,)], "losses": ["cross_entropy", "focal"], "settings": QUICK}
    results = sweep_heads(model, features, rows, seeds=[0, 1], progress=False, **options)
    return {"model": model, "dev": dev, "features": features, "rows": rows, "results": results}


def test_mlps_are_trained_per_seed_and_linear_heads_solved_once(swept) -> None:
    results = swept["results"]
    assert len({result.combination for result in results}) == len(results) == 16
    for found in results:
        is_linear = found.combination.head == "linear"
        assert list(found.values) == ([0] if is_linear else [0, 1])
        assert (found.fitted.penalty is not None) == is_linear
    assert [result.mean for result in results] == sorted((r.mean for r in results), reverse=True)
    for found in results:
        assert found.fitted.value == max(found.values.values()) == found.values[found.seed]


def test_the_best_head_in_the_model_gives_its_metric(swept, bases) -> None:
    won = choose(swept["results"])
    options = {"num_labels": 3, "problem_type": "single_label_classification"}
    model = build(bases["qwen2"], task="pooled_classifier", **options, **won.combination.head_options())
    model.score.load_state_dict(won.fitted.state)
    with torch.no_grad():
        answers = model.eval()(**pad_rows(list(swept["dev"]["input_ids"]), pad_id=0)).logits.argmax(1)
    right = (answers == torch.tensor(list(swept["dev"]["labels"]))).double().mean()
    assert float(right) == pytest.approx(won.fitted.value)


def test_a_repeated_sweep_gives_the_same_bits(swept) -> None:
    layer = {(1, "mean"): swept["features"][1, "mean"]}
    options = {"losses": ["focal"], "heads": [(8,)], "settings": QUICK, "progress": False}
    torch.manual_seed(99)
    [again] = sweep_heads(swept["model"], layer, swept["rows"], seeds=[1], **options)
    [first] = [
        found
        for found in swept["results"]
        if found.combination == Combination(layers=(1,), pooling="mean", head_sizes=(8,), loss="focal")
    ]
    assert again.values[1] == first.values[1]


def test_states_of_several_layers_are_concatenated(swept, bases) -> None:
    """A model that reads both layers with this head gives the values of the sweep."""
    options = {"losses": ["cross_entropy"], "heads": [(), (8,)], "settings": QUICK, "progress": False}
    results = sweep_heads(
        swept["model"], swept["features"], swept["rows"], layers=[(1, 2), (2,)], seeds=[0], **options
    )
    both = [found for found in results if found.combination.layers == (1, 2)]
    assert {found.combination.read for found in results} == {"1+2", "2"}
    assert len(both) == 4
    for found in both:
        head = found.combination.head_options()
        assert (head["backbone_layers"], head["head_layers"]) == (2, [1, 2])
        kind = {"num_labels": 3, "problem_type": "single_label_classification"}
        model = build(bases["qwen2"], task="pooled_classifier", **kind, **head)
        model.score.load_state_dict(found.fitted.state)
        with torch.no_grad():
            answers = model.eval()(**pad_rows(list(swept["dev"]["input_ids"]), pad_id=0)).logits.argmax(1)
        right = (answers == torch.tensor(list(swept["dev"]["labels"]))).double().mean()
        assert float(right) == pytest.approx(found.fitted.value)


def test_a_linear_head_is_the_same_for_every_seed_and_rate(swept) -> None:
    layer = {(1, "mean"): swept["features"][1, "mean"]}
    options = {"losses": ["cross_entropy"], "heads": [()], "progress": False}
    [first] = sweep_heads(swept["model"], layer, swept["rows"], seeds=[5], settings=QUICK, **options)
    [second] = sweep_heads(swept["model"], layer, swept["rows"], seeds=[9], **options)
    assert torch.equal(first.fitted.state["weight"], second.fitted.state["weight"])


def test_the_given_penalties_are_used(swept) -> None:
    layer = {(1, "mean"): swept["features"][1, "mean"]}
    options = {"losses": ["cross_entropy"], "penalties": [0.3], "progress": False}
    [found] = sweep_heads(swept["model"], layer, swept["rows"], **options)
    assert found.fitted.penalty == 0.3


@pytest.mark.parametrize(
    ("text", "layers"), [("20", (20,)), ("15+20", (15, 20)), ("20+15+15", (15, 20)), ("1+2+3", (1, 2, 3))]
)
def test_layers_are_parsed(text, layers) -> None:
    assert parse_layers(text) == layers
    again = Combination(layers=layers, pooling="last", head_sizes=(), loss="focal").read
    assert parse_layers(again) == layers


@pytest.mark.parametrize("text", ["", "0", "-1", "1+", "+", "1,2", "1.5", "last", "1++2", "1+0"])
def test_invalid_layers_raise_an_error(text) -> None:
    with raises_problem("option-value", "--layers"):
        parse_layers(text)


def test_the_best_mean_is_chosen_and_a_tolerance_prefers_fewer_layers() -> None:
    results = [result(4, 0.90, 0.90), result(2, 0.89, 0.90), result(2, 0.96, 0.80), result(1, 0.7, 0.7)]
    assert choose(results) is results[0]
    assert choose(results, tolerance=0.01) is results[1]
    assert choose(results, tolerance=0.5) is results[3]
    assert results[2].spread == pytest.approx(0.1131, abs=1e-4)
    assert result(1, 0.5).spread == 0.0


@pytest.mark.parametrize(
    "text", ["", "mlp", "mlp:", "mlp:0", "mlp:8,", "mlp:-1", "linear:3", "tree", "mlp:1.5"]
)
def test_invalid_heads_raise_an_error(text) -> None:
    with raises_problem("option-value", "--heads"):
        parse_head(text)


def test_an_empty_sweep_and_an_option_of_another_loss_raise_errors(swept) -> None:
    with raises_problem("option-missing", "sweep"):
        sweep_heads(swept["model"], {}, swept["rows"], losses=["focal"])
    with raises_problem("option-conflict", "--label_smoothing_factor"):
        text_rows(
            swept["dev"],
            swept["dev"],
            config=swept["model"].config,
            options={"focal": {"label_smoothing": 0.1}},
        )


# --- the curve ---


def test_the_curve_has_a_point_per_layer_and_times_real_models(swept, bases, tmp_path) -> None:
    made = []

    def make(combination: Combination) -> Any:
        made.append(combination)
        return build(bases["qwen2"], task="pooled_classifier", num_labels=3, **combination.head_options())

    won = choose(swept["results"])
    points = measure_exits(swept["results"], make, rows=list(swept["dev"]["input_ids"]))
    assert [point.layer for point in points] == [1, 2]
    assert [point.combination for point in points] == made
    assert max(point.value for point in points) == won.mean
    assert all(point.milliseconds > 0 for point in points)
    write_exits(tmp_path, points, metric="accuracy", chosen=won, results=swept["results"])
    content = json.loads((tmp_path / "early_exit.json").read_text())
    assert content["chosen"]["layer"] == won.combination.layer
    assert content["chosen"]["layers"] == [*won.combination.layers]
    assert [point["layer"] for point in content["points"]] == [1, 2]
    assert [one["value"] for one in content["tried"]] == [found.mean for found in swept["results"]]
    assert (tmp_path / "early_exit.png").stat().st_size > 5000


def test_the_table_contains_the_best_combination_and_the_baseline() -> None:
    solved = [result(layer, layer / 20) for layer in range(4, 0, -1)]
    results = [*(result(layer, layer / 20, layer / 20) for layer in range(14, 4, -1)), *solved]
    points = [
        ExitPoint(
            layer=n, value=n / 20, spread=0.0, milliseconds=n / 2, combination=result(n, 1.0).combination
        )
        for n in (1, 14)
    ]
    lines = sweep_table(
        results, chosen=results[-1], points=points, metric="accuracy", baseline={"accuracy": {"value": 0.61}}
    )
    [chosen, exit_line] = [line for line in lines if line.lstrip().startswith("->")]
    assert "0.050" in chosen
    assert exit_line.endswith("7%")
    assert sum("cross_entropy" in line for line in lines) == 11
    assert any("TF-IDF" in line and "0.610" in line for line in lines)
    assert lines[0].startswith("4 linear heads, solved once; 10 MLPs, trained with 2 seeds;")
    assert chosen.rstrip().endswith("0.050")  # a single value has no spread
    trained = next(line for line in lines if "mlp:8" in line)
    assert trained.rstrip().endswith("0.000")


def test_the_table_states_how_each_kind_of_head_was_fitted() -> None:
    point = ExitPoint(
        layer=1, value=0.5, spread=0.0, milliseconds=1.0, combination=result(1, 0.5).combination
    )
    for results, start in (
        ([result(1, 0.5)], "1 linear head, solved once;"),
        ([result(1, 0.5, 0.5)], "1 MLP, trained with 2 seeds;"),
    ):
        lines = sweep_table(results, chosen=results[0], points=[point], metric="accuracy")
        assert lines[0].startswith(start)


def test_timing_does_not_change_the_model(bases) -> None:
    model = build(bases["qwen2"]).train()
    milliseconds = time_scoring(model, [[5, 6, 7]] * 3)
    assert model.training
    assert math.isfinite(milliseconds)
