"""Tests of features, the input of `score`, and of the names of their cache files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from problem_assertions import raises_problem
from transformers import AutoModelForCausalLM, GPT2Config

from qwen_task_heads import build
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.hubcode.encoding_task_heads import pad_rows
from qwen_task_heads.training import feature_cache
from qwen_task_heads.training import features as module
from qwen_task_heads.training.features import PASS, PASS_ON_CPU, extract_features, pass_tokens

FAMILIES = ("qwen2", "qwen3", "llama")
POOLINGS = ["last", "mean", "max"]


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    """Return rows of different lengths; some share a prompt of 20 tokens."""
    draw = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 30, (40,), generator=draw).tolist()
    own = [torch.randint(5, 5000, (length,), generator=draw).tolist() for length in lengths]
    return [list(range(7, 27)) + row if place % 3 == 0 else row for place, row in enumerate(own)]


def classifier(base: str, **head: Any) -> Any:
    torch.manual_seed(1)
    return build(base, task="pooled_classifier", num_labels=3, **head).eval()


@torch.no_grad()
def difference(model: Any, rows: list[list[int]], features: torch.Tensor) -> float:
    return float((model(**pad_rows(rows, pad_id=0)).logits - model.score(features.float())).abs().max())


@pytest.mark.parametrize(
    "packing", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["packed", "padded"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_on_features_gives_the_logits_of_the_model(bases, rows, family, packing) -> None:
    whole = classifier(bases[family])
    whole.packing = packing
    found = extract_features(whole, rows, layers=[2, 1], poolings=POOLINGS, batch_tokens=256)
    assert list(found) == [(layer, pooling) for layer in (1, 2) for pooling in POOLINGS]
    for (layer, pooling), features in found.items():
        model = classifier(bases[family], pooling=pooling, backbone_layers=layer)
        assert features.shape == (40, 32)
        assert difference(model, rows, features) <= 1e-6


def test_a_pass_on_a_cpu_is_small_unless_all_rows_share_a_prefix(rows) -> None:
    assert pass_tokens(rows, device_type="cuda") == PASS
    assert pass_tokens(rows, device_type="cpu") == PASS_ON_CPU
    half = [[*range(10), *(place + at for at in range(10))] for place in range(20, 24)]
    assert pass_tokens(half, device_type="cpu") == 2 * PASS_ON_CPU
    assert pass_tokens([[1] * 100 + [place] for place in range(9)], device_type="cpu") == PASS
    assert pass_tokens([[5], [5]], device_type="cpu") <= PASS


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_features_of_bidirectional_models_and_truncated_rows(bases, rows, packing) -> None:
    model = classifier(bases["qwen2"], bidirectional=True, pooling="mean", max_seq_length=16)
    model.packing = packing
    [features] = extract_features(model, rows, poolings=["mean"]).values()
    assert difference(model, rows, features) <= 1e-6


def test_features_of_a_backbone_without_packing(tmp_path, rows) -> None:
    config = GPT2Config(vocab_size=5026, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = classifier(str(tmp_path))
    assert model.fallback_reason is not None
    [features] = extract_features(model, rows).values()
    assert difference(model, rows, features) <= 1e-6
    with raises_problem("option-unsupported", "--layers", match=r"\[1\] of a gpt2"):
        extract_features(model, rows, layers=[1])


def test_bfloat16_features_are_close_at_half_the_bytes(bases, rows) -> None:
    model = classifier(bases["qwen2"])
    [exact] = extract_features(model, rows).values()
    [half] = extract_features(model, rows, dtype=torch.bfloat16).values()
    assert half.dtype == torch.bfloat16
    near = torch.nn.functional.cosine_similarity(exact, half.float())
    assert float(near.min()) > 0.999
    assert not torch.equal(exact, half.float())


def test_training_mode_and_gradients_are_not_changed(bases, rows) -> None:
    model = classifier(bases["qwen2"]).train()
    [features] = extract_features(model, rows[:4]).values()
    assert model.training
    assert not features.requires_grad


# --- cache files ---


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Return the numbers of layers and poolings of each computation; empty if all came from files."""
    calls: list[int] = []
    compute = module._compute

    def spy(model: Any, rows: Any, wanted: Any, **options: Any) -> Any:
        calls.append(len(wanted))
        return compute(model, rows, wanted, **options)

    monkeypatch.setattr(module, "_compute", spy)
    return calls


def test_cached_features_are_read_and_only_missing_ones_computed(bases, rows, tmp_path, counted) -> None:
    model = classifier(bases["qwen2"])
    first = extract_features(model, rows, layers=[1], poolings=["last", "mean"], cache_dir=tmp_path)
    again = extract_features(model, rows, layers=[1, 2], poolings=["last", "mean"], cache_dir=tmp_path)
    assert counted == [2, 2]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert len(list(tmp_path.iterdir())) == 4
    # The hash does not depend on the head or on packing.
    other = classifier(bases["qwen2"], head="mlp", head_sizes=[8], pooling="mean")
    extract_features(other, rows, layers=[1, 2], poolings=["last", "mean"], cache_dir=tmp_path)
    assert counted == [2, 2]


def change_weight(model: Any, rows: Any) -> None:
    """Flip the lowest bit of one number of one tensor."""
    weight = model.model.layers[0].mlp.up_proj.weight.data
    weight.view(torch.int32)[3, 5] ^= 1


def change_config(model: Any, rows: Any) -> None:
    model.model.config.rms_norm_eps = 1e-5


def change_attention(model: Any, rows: Any) -> None:
    model.config.bidirectional = True


def change_token(model: Any, rows: Any) -> None:
    rows[7][0] += 1


def change_template(model: Any, rows: Any) -> None:
    for row in rows:
        row.insert(0, 9)


def change_border(model: Any, rows: Any) -> None:
    """The tokens are the same, but one belongs to the next row."""
    rows[1].insert(0, rows[0].pop())


CHANGES = (change_weight, change_config, change_attention, change_token, change_template, change_border)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.removeprefix("change_"))
def test_every_changed_input_gives_another_file(bases, rows, tmp_path, counted, change) -> None:
    model, rows = classifier(bases["qwen2"]), copy.deepcopy(rows)
    extract_features(model, rows, cache_dir=tmp_path)
    change(model, rows)
    extract_features(model, rows, cache_dir=tmp_path)
    assert counted == [1, 1]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_dtype_is_part_of_the_file_name(bases, rows, tmp_path, counted) -> None:
    model = classifier(bases["qwen2"])
    extract_features(model, rows, cache_dir=tmp_path)
    [half] = extract_features(model, rows, cache_dir=tmp_path, dtype=torch.bfloat16).values()
    [read] = extract_features(model, rows, cache_dir=tmp_path, dtype=torch.bfloat16).values()
    assert counted == [1, 1]
    assert torch.equal(half, read)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_corrupted_file_is_computed_again(bases, rows, tmp_path, counted, damage) -> None:
    model = classifier(bases["qwen2"])
    [first] = extract_features(model, rows, cache_dir=tmp_path).values()
    [path] = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes({"cut": content[:-40], "flipped": content, "empty": b""}[damage])
    [again] = extract_features(model, rows, cache_dir=tmp_path).values()
    assert counted == [1, 1]
    assert torch.equal(first, again)
    extract_features(model, rows, cache_dir=tmp_path)
    assert counted == [1, 1]


def test_a_failed_write_leaves_no_file(bases, rows, tmp_path, monkeypatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache.os, "replace", fail)
    with raises_problem("path-access", match="No space left"):
        extract_features(classifier(bases["qwen2"]), rows, cache_dir=tmp_path / "new")
    assert list(Path(tmp_path / "new").iterdir()) == []


def test_rows_that_share_prompts_are_neighbours(rows) -> None:
    prompts = [[number] * 30 for number in (1, 2, 3)]
    mixed = [[*prompt, place] for place in range(4) for prompt in prompts]
    order = module._order(mixed)
    assert [mixed[index][0] for index in order] == [1] * 4 + [2] * 4 + [3] * 4
    lengths = [len(rows[index]) for index in module._order(rows[1::3])]
    assert len(lengths) == len(rows[1::3])


# --- errors ---


def test_one_error_reports_all_problems(bases) -> None:
    with pytest.raises(TaskHeadsError) as caught:
        extract_features(
            classifier(bases["qwen2"]), [[1], []], layers=[0, 3], poolings=["attention"], dtype=torch.float16
        )
    assert [(problem.where, problem.code) for problem in caught.value.problems] == [
        ("--layers", "option-range"),
        ("--poolings", "option-value"),
        ("dtype", "option-value"),
        ("rows", "text-empty"),
    ]


def test_windows_have_no_features(bases, rows) -> None:
    model = classifier(bases["qwen2"], max_seq_length=16, truncation="windows")
    with raises_problem("text-too-long", "rows", match="16 tokens, and truncation 'windows'"):
        extract_features(model, rows)
    assert extract_features(model, [row[:16] for row in rows])


def test_equal_rows_are_computed_once_and_keep_their_positions(bases, rows, monkeypatch) -> None:
    model, seen = classifier(bases["qwen2"]), []
    monkeypatch.setattr(module, "pad_rows", lambda given, **k: seen.extend(given) or pad_rows(given, **k))
    twice = [*rows, *rows[::-1]]
    found = extract_features(model, twice, poolings=["mean"])[2, "mean"]
    assert len(seen) == len({tuple(row) for row in rows})
    torch.testing.assert_close(found[40:].flip(0), found[:40], rtol=0, atol=0)
    assert difference(classifier(bases["qwen2"], pooling="mean"), twice, found) <= 1e-6
