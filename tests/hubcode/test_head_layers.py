"""A head on several layers gets their concatenated pooled states, however the batch is computed."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from functools import cache, partial
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
from equality import assert_same_logits, assert_same_model, logit_difference
from family_models import family_scorer
from peft import get_peft_model
from problem_assertions import raises_problem
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint
from transformers import BloomConfig

from qwen_task_heads import TitleScorerConfig, adapter_config, build, load, merge, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.export.reward_model import export_reward_model
from qwen_task_heads.export.stock import export_stock
from qwen_task_heads.hubcode.families_task_heads import FAMILIES
from qwen_task_heads.hubcode.packing_task_heads import common_length
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.training.features import extract_features

LAYERS = [1, 3]
LABELS = ["a", "b", "c"]


def scorer(family: str = "qwen3", *, layers: Any = LAYERS, **changes: Any) -> Any:
    return family_scorer(family, backbone={"num_hidden_layers": 4}, head_layers=layers, **changes)


def batch(rows: int = 6, *, seed: int = 0, length: int = 9) -> dict[str, torch.Tensor]:
    """Return rows with common prefixes and different lengths, padded on both sides."""
    generator = torch.Generator().manual_seed(seed)
    ids, mask = torch.zeros(2, rows, 2 * length + 16, dtype=torch.long)
    shared = torch.randint(3, 128, (10,), generator=generator)
    for row in range(rows):
        own = torch.randint(3, 128, (1 + row % length,), generator=generator)
        begin = row % 3
        ids[row, begin : begin + 10 + len(own)] = torch.cat([shared, own])
        mask[row, begin : begin + 10 + len(own)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def rows_of(inputs: dict[str, torch.Tensor]) -> list[list[int]]:
    pairs = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    return [row[mask].tolist() for row, mask in pairs]


def set_way(model: Any, way: str) -> None:
    model.packing, model.prefix_sharing = way != "padded", way == "shared"


WAYS = ("padded", "packed", "shared")


def gradients(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits = model(**inputs).logits
    (logits[:, 0] * torch.arange(1, len(logits) + 1)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    largest = max(float(tensor.abs().max()) for tensor in wanted.values())
    for name in wanted:
        assert float((found[name] - wanted[name]).abs().max()) <= 3e-6 * largest, name


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.early_exit])
def test_the_head_gets_the_states_of_its_layers(family: str) -> None:
    inputs, whole = batch(), scorer(family, layers=None)
    for pooling in ("last", "mean", "max"):
        model = scorer(family, pooling=pooling)
        model.model.load_state_dict(
            {name: t for name, t in whole.model.state_dict().items() if not name.startswith("layers.3.")}
        )
        features = extract_features(whole, rows_of(inputs), layers=LAYERS, poolings=[pooling])
        joined = torch.cat([features[layer, pooling] for layer in LAYERS], dim=1)
        assert joined.shape == (6, 64)
        for way in WAYS:
            set_way(model, way)
            with torch.no_grad():
                assert logit_difference(model(**inputs).logits, model.score(joined)) <= 3e-6, (pooling, way)


def test_the_states_are_those_of_transformers() -> None:
    model, ids = scorer(), torch.arange(3, 27).view(2, 12)
    model.packing = False
    with torch.no_grad():
        states = model.model(ids, output_hidden_states=True).hidden_states
        wanted = model.score(torch.cat([model.model.norm(states[1])[:, -1], states[3][:, -1]], dim=1))
        assert_same_logits(model(ids).logits, wanted)
        other = model.score(torch.cat([states[1][:, -1], states[3][:, -1]], dim=1))  # without the norm
        assert logit_difference(model(ids).logits, other) > 1e-2


@pytest.mark.parametrize("way", WAYS)
def test_attention_weighs_the_tokens_by_all_states(way: str) -> None:
    model, inputs = scorer(pooling="attention"), batch()
    set_way(model, way)
    with torch.no_grad():
        for row, logit in zip(rows_of(inputs), model(**inputs).logits, strict=True):
            states = model.model(torch.tensor([row]), output_hidden_states=True).hidden_states
            joined = torch.cat([model.model.norm(states[1]), states[3]], dim=-1)[0]
            weights = (joined @ model.score.query / 64**0.5).softmax(0)
            assert abs(float(logit - model.score.head(weights @ joined))) <= 3e-6


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_\\w+` is deprecated:FutureWarning")
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean", "max", "attention"])
def test_gradients_are_equal_in_each_way_and_under_checkpointing(pooling: str, bidirectional: bool) -> None:
    model, inputs = scorer(pooling=pooling, bidirectional=bidirectional).train(), batch()
    wanted = gradients(model, inputs)
    assert {name for name, _ in model.named_parameters()} == wanted.keys()
    for way in WAYS:
        set_way(model, way)
        assert_close(gradients(model, inputs), wanted)
        for reentrant in (False, True):
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
            assert_close(gradients(model, inputs), wanted)
            model.gradient_checkpointing_disable()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_a_whole_layer(reentrant: bool) -> None:
    """Activation checkpointing of FSDP wraps layers; a reentrant checkpoint records no inner gradients."""
    model, inputs = scorer().train(), batch()
    wanted = gradients(model, inputs)
    layer = model.model.layers[0]

    class Wrapped(type(layer)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return checkpoint(partial(super().__call__, **kwargs), *args, use_reentrant=reentrant)

    layer.__class__ = Wrapped
    model.enable_input_require_grads()
    if reentrant:
        with raises_problem("option-conflict", "gradient checkpointing", match="use_reentrant"):
            gradients(model, inputs)
    else:
        assert_close(gradients(model, inputs), wanted)


def test_lora_learns_through_every_listed_layer(bases: Any) -> None:
    inputs = batch()
    model = build(bases["qwen2"], head_layers=[1, 2], pooling="mean")
    adapted = get_peft_model(model, adapter_config(model, r=2)).train()
    # The head ignores the second layer, so the gradient of the first layer comes only from its own states.
    with torch.no_grad():
        adapted.base_model.model.score.modules_to_save["default"].weight[:, 32:] = 0
    found = gradients(adapted, inputs)
    first = [t for name, t in found.items() if ".layers.0." in name and "lora_B" in name]
    second = [t for name, t in found.items() if ".layers.1." in name and "lora_B" in name]
    assert first
    assert all(bool(tensor.any()) for tensor in first)
    assert not any(bool(tensor.any()) for tensor in second)


def test_autocast_and_half_precision() -> None:
    model, inputs = scorer(pooling="mean"), batch()
    with torch.no_grad():
        wanted = model(**inputs).logits
        for way in WAYS:
            set_way(model, way)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = model(**inputs).logits
            assert found.dtype == torch.float32
            assert logit_difference(found, wanted) <= 0.05
        model.model.bfloat16()
        for way in WAYS:
            set_way(model, way)
            assert logit_difference(model(**inputs).logits, wanted) <= 0.05


def test_windows_are_pooled_each(bases: Any) -> None:
    options = {"labels": LABELS, "max_seq_length": 16, "truncation": "windows", "head_layers": [1, 2]}
    model = build(bases["llama"], task="pooled_classifier", pooling="mean", **options).eval()
    model.config.set_template({"before": [], "between": [], "after": []})
    ids = torch.arange(3, 3 + 32)[None]
    with torch.no_grad():
        parts = [model(ids[:, :16]).logits, model(ids[:, 16:]).logits]
        assert_same_logits(model(ids).logits, sum(parts) / 2)


def test_a_cached_prefix_changes_no_score(bases: Any, tokenizer: Any) -> None:
    model = scorer()
    rows = [[*range(3, 43), *range(50, 50 + size)] for size in (1, 4, 9)]
    width = max(map(len, rows))
    whole, own = (torch.zeros(3, width, dtype=torch.long) for _ in range(2))
    mask, own_mask = torch.zeros_like(whole), torch.zeros_like(own)
    for place, row in enumerate(rows):
        whole[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
        own[place, : len(row) - 40], own_mask[place, : len(row) - 40] = torch.tensor(row[40:]), 1
    with torch.no_grad():
        wanted = model(whole, mask).logits
        prefix = model.encode_prefix(torch.tensor([rows[0][:40]]))
        assert sorted(prefix) == [0, 1, 2]
        assert_same_logits(model(own, own_mask, prefix=prefix).logits, wanted)
    for pooling in ("mean", "attention"):
        assert "pooling" in str(scorer(pooling=pooling).prefix_fallback_reason(50))
    titles, prompts = [f"{n} ways to make tea" for n in range(4)], ["Rate titles of cooks. " * 20] * 4
    real = build(bases["qwen2"], head_layers=[1, 2]).eval()
    cached, plain = Scorer(real, tokenizer=tokenizer), Scorer(real, tokenizer=tokenizer)
    real_rows = tokenizer([f"{a}{b}" for a, b in zip(prompts, titles, strict=True)]).input_ids
    assert common_length(real_rows[0], real_rows[1]) > 40
    one_by_one = [plain.score([t], prompts=[p])[0] for t, p in zip(titles, prompts, strict=True)]
    cached.score(titles, prompts=prompts)
    assert logit_difference(cached.score(titles, prompts=prompts), one_by_one) <= 1e-5


# --- copies, threads, compilers ---


def test_copies_and_pickles_read_the_same_layers() -> None:
    model, inputs = scorer(), batch()
    with torch.no_grad():
        wanted = model(**inputs).logits
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert_same_model(other, model, **inputs)
            with torch.no_grad():  # of its own layers, not of those of the model it was copied from
                other.model.layers[0].mlp.down_proj.weight.add_(0.5)
            assert logit_difference(other(**inputs).logits, wanted) > 1e-3
        assert_same_logits(model(**inputs).logits, wanted)


def test_passes_of_several_threads_are_independent() -> None:
    model, inputs = scorer(), [batch(seed=seed) for seed in range(4)]
    with torch.no_grad():
        wanted = [model(**one).logits for one in inputs]
    found: dict[int, list[torch.Tensor]] = {}
    start = threading.Barrier(len(inputs))

    def work(index: int) -> None:
        start.wait()
        with torch.no_grad():
            found[index] = [model(**inputs[index]).logits for _ in range(20)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, logits in found.items():
        for one in logits:
            assert_same_logits(one, wanted[index])


def test_the_backbone_alone_stores_no_states() -> None:
    model, inputs = scorer(), batch()
    with torch.no_grad():
        states = model.model(**inputs).last_hidden_state
        output = model(**inputs, output_hidden_states=True)
    assert states.shape[-1] == 32
    assert len(output.hidden_states) == 4
    assert_same_logits(output.logits, model(**inputs).logits)


@pytest.mark.slow
def test_a_compiled_model_reads_the_same_layers() -> None:
    model, inputs = scorer(pooling="mean"), batch()
    with torch.no_grad():
        wanted = model(**inputs).logits
        compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
        assert logit_difference(compiled(**inputs).logits, wanted) <= 3e-6
        assert logit_difference(compiled(**batch(seed=1)).logits, model(**batch(seed=1)).logits) <= 3e-6


def shard(folder: str) -> None:
    """One of two processes: the gradients of a sharded model and those of a whole one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, inputs = init_device_mesh("cpu", (2,)), batch()
    for pooling in ("last", "mean"):
        model = scorer(pooling=pooling).train()
        wanted = gradients(model, inputs)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        found = {name: tensor.full_tensor() for name, tensor in gradients(model, inputs).items()}
        assert_close(found, wanted)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        Path(folder, "equal").touch()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_model_learns_the_same(tmp_path: Path) -> None:
    for rank, process in enumerate(launching.fork_two(shard, str(tmp_path), log=tmp_path / "log")):
        launching.join(process, tmp_path / f"log{rank}")
    assert (tmp_path / "equal").exists()


# --- the config ---


@pytest.mark.parametrize("layers", [[0, 2], [2, 1], [1, 1], [5], [], [True, 2], [-1, 2], "12", ["1"], [[1]]])
def test_missing_layers_are_an_error(layers: Any) -> None:
    with raises_problem("option-range", "head_layers"):
        scorer(layers=layers)


def test_the_last_listed_layer_is_the_last_kept_layer() -> None:
    assert scorer(layers=[1, 2], backbone_layers=2).config.backbone_layers == 2
    model = scorer(layers=[1, 2])
    assert (model.config.backbone_layers, len(model.model.layers)) == (2, 2)
    with raises_problem("option-conflict", "head_layers"):
        scorer(layers=[1, 2], backbone_layers=3)
    again = TitleScorerConfig.from_dict(json.loads(model.config.to_json_string()))
    assert (again.head_layers, again.backbone_layers) == ([1, 2], 2)


def test_families_that_cannot_exit_early() -> None:
    bloom = BloomConfig(n_layer=3, hidden_size=32, n_head=4)
    assert TitleScorerConfig(text_config=bloom, head_layers=[3]).head_layers == [3]
    for layers in ([1, 3], [2]):
        with raises_problem("option-unsupported", "head_layers"):
            TitleScorerConfig(text_config=bloom, head_layers=layers)


@pytest.mark.parametrize("pooling", ["last", "attention"])
def test_only_the_last_layer_equals_a_model_without_the_option(pooling: str) -> None:
    inputs = batch()
    one, other = (scorer(layers=layers, pooling=pooling) for layers in (None, [4]))
    assert_same_model(other, one, **inputs)
    early = [
        scorer(pooling=pooling, **options)
        for options in ({"layers": None, "backbone_layers": 2}, {"layers": [2]})
    ]
    assert_same_model(early[1], early[0], **inputs)


# --- saved and loaded ---

KINDS = ("full", "lora", "head_only", "merged")

CHILD = r"""
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

root, *names = sys.argv[1:]
expected, batch = load_file(f"{root}/expected.safetensors"), load_file(f"{root}/batch.safetensors")
answer = {}
for name in names:
    for auto in (AutoModel, AutoModelForSequenceClassification):
        model = auto.from_pretrained(f"{root}/{name}", trust_remote_code=True)
        with torch.no_grad():
            found = model(**batch).logits
        difference = float((found - expected[name]).abs().max())
        answer[name] = max(answer.get(name, 0.0), difference)
leaked = [name for name in sys.modules if name.split(".")[0] == "qwen_task_heads"]
print(json.dumps({"answer": answer, "leaked": leaked}))
"""


@pytest.fixture(scope="module")
def loaded(bases, tokenizer, shake, clean, tmp_path_factory):
    """Return `loaded()`: the folder and the largest difference of each kind, from one clean process."""
    root = tmp_path_factory.mktemp("layers")
    inputs = batch()

    def make(kind: str) -> Any:
        torch.manual_seed(3)
        model = build(bases["qwen3"], head_layers=[1, 2], pooling="mean")
        if kind == "full":
            return shake(model)
        adapted = get_peft_model(model, adapter_config(model, r=4, head_only=kind == "head_only"))
        return merge(shake(adapted, seed=1)) if kind == "merged" else shake(adapted, seed=1)

    @cache
    def run() -> tuple[Path, dict[str, float]]:
        expected = {}
        for kind in KINDS:
            model = make(kind)
            save(model, tokenizer=tokenizer, folder=root / kind)
            with torch.no_grad():
                expected[kind] = model.eval()(**inputs).logits.float()
        save_file(expected, root / "expected.safetensors")
        save_file(inputs, root / "batch.safetensors")
        found = json.loads(clean.run(CHILD, root, *KINDS, folder=root).splitlines()[-1])
        assert found["leaked"] == []
        return root, found["answer"]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_loads_without_the_package(loaded, kind) -> None:
    root, answer = loaded()
    assert answer[kind] <= 1e-6
    assert load(str(root / kind)).config.head_layers == [1, 2]


def test_a_saved_model_loads(bases, tokenizer, shake, tmp_path) -> None:
    inputs = batch()
    model = shake(build(bases["qwen2"], head_layers=[1, 2]))
    folder = save(model, tokenizer=tokenizer, folder=tmp_path / "full")
    assert_same_model(load(str(folder)), model, **inputs)
    assert "of layers 1 and 2 " in (folder / "README.md").read_text()
    adapted = build(bases["qwen2"], head_layers=[1, 2])
    adapted = shake(get_peft_model(adapted, adapter_config(adapted, r=2)))
    folder = save(adapted, tokenizer=tokenizer, folder=tmp_path / "adapter")
    assert_same_model(load(str(folder)), adapted, **inputs)
    assert logit_difference(merge(str(folder))(**inputs).logits, adapted(**inputs).logits) <= 1e-5
    assert not any(
        "layers" in name for name in load_file(tmp_path / "full" / "model.safetensors") if "score" in name
    )


def test_a_head_does_not_load_on_other_layers(bases, tokenizer, shake, tmp_path) -> None:
    model = shake(build(bases["qwen2"], head_layers=[1, 2]))
    folder = save(model, tokenizer=tokenizer, folder=tmp_path / "full")
    config = json.loads((folder / "config.json").read_text())
    (folder / "manifest.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "head_layers": None}))
    with raises_problem("model-corrupted", match=r"score\.weight has another shape"):
        load(str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "head_layers": [2, 1]}))
    with raises_problem("option-range", f"{folder}/config.json", match="head_layers"):
        load(str(folder))
    for wrong in ("12", 2, [*range(1, 100_000)]):
        (folder / "config.json").write_text(json.dumps({**config, "head_layers": wrong}))
        with pytest.raises(TaskHeadsError, match="head_layers") as caught:
            load(str(folder))
        assert len(str(caught.value)) < 1000


def test_a_saved_model_keeps_its_layers(bases, tokenizer, tmp_path) -> None:
    several, one = build(bases["qwen2"], head_layers=[1, 2]), build(bases["qwen2"])
    save(several, tokenizer=tokenizer, folder=tmp_path / "several")
    save(one, tokenizer=tokenizer, folder=tmp_path / "one")
    assert build(str(tmp_path / "several"), head_layers=[1, 2]).config.head_layers == [1, 2]
    assert build(str(tmp_path / "one"), head_layers=[2]).score.weight.shape == (1, 32)
    for folder, layers in (("several", [2]), ("one", [1, 2])):
        with raises_problem("option-conflict", "--head_layers"):
            build(str(tmp_path / folder), head_layers=layers)


# --- other formats ---


def test_stock_formats_read_one_layer(bases, tokenizer, tmp_path) -> None:
    model = build(bases["qwen2"], task="pooled_classifier", labels=LABELS, head_layers=[1, 2])
    with pytest.raises(TaskHeadsError) as caught:
        export_stock(model, tokenizer=tokenizer, folder=tmp_path / "stock")
    assert [problem.where for problem in caught.value.problems] == ["head_layers"]
    model = build(bases["qwen2"], head="mlp", head_sizes=[32], head_layers=[1, 2])
    with pytest.raises(TaskHeadsError) as caught:
        export_reward_model(model, tokenizer=tokenizer, folder=tmp_path / "reward")
    assert [problem.where for problem in caught.value.problems] == ["head_layers"]
    assert not list(tmp_path.iterdir())
    single = build(bases["qwen2"], task="pooled_classifier", labels=LABELS, head_layers=[1])
    export_stock(single, tokenizer=tokenizer, folder=tmp_path / "stock")
