"""Building, taking up, adapting and merging: what is asked for happens, or an error names the option."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from problem_assertions import raises_problem
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig

from qwen_task_heads import (
    PooledClassifier,
    TitleScorer,
    adapter_config,
    build,
    export_stock,
    load,
    load_tokenizer,
    merge,
    save,
)
from qwen_task_heads.errors import run_recipe
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.models import saved_task

IDS = torch.randint(1, 128, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tiny_config: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A backbone with a vocabulary of 128."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_config(tiny_config(vocab_size=128)).save_pretrained(folder)
    return str(folder)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


# The head is trained and saved under every combination of flags

TARGETS: dict[str, Any] = {
    "default": None,
    "attention": "attention",
    "all-linear": "all-linear",
    "one": "q_proj",
    "list": ["v_proj", "down_proj"],
}
HEADS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"head": "mlp", "head_sizes": [8], "head_dropout": 0.1},
    "attention": {"pooling": "attention"},
}
ADAPTERS = [
    (target, dora, rslora, False)
    for target, (dora, rslora) in itertools.product(TARGETS, [(False, False), (True, False), (False, True)])
] + [("default", False, False, True), ("attention", True, True, True)]


@pytest.mark.parametrize("head", HEADS)
def test_the_head_is_trained_and_saved_under_every_combination(base: str, tmp_path: Path, head: str) -> None:
    """17 combinations for each of 3 heads: 51."""
    for index, (target, dora, rslora, head_only) in enumerate(ADAPTERS):
        case = f"{target} dora={dora} rslora={rslora} head_only={head_only}"
        model = build(base, **HEADS[head])
        wanted = {f"score.{name}" for name, _ in model.score.named_parameters()}
        config = adapter_config(
            model, r=2, targets=TARGETS[target], dora=dora, rslora=rslora, head_only=head_only
        )
        adapted = get_peft_model(model, config)
        trainable = {
            name.split("base_model.model.")[1].replace(".modules_to_save.default", "")
            for name, parameter in adapted.named_parameters()
            if parameter.requires_grad
        }
        assert wanted == {name for name in trainable if name.startswith("score.")}, case
        assert head_only == (trainable == wanted), case
        adapted.save_pretrained(tmp_path / str(index))
        with safe_open(tmp_path / str(index) / "adapter/adapter_model.safetensors", "pt") as file:
            saved = {name.removeprefix("base_model.model.") for name in file.keys()}  # noqa: SIM118
        assert wanted <= saved, case
        assert (saved == wanted) == head_only, case


@pytest.mark.parametrize(
    ("options", "option", "named"),
    [
        ({"task_type": "CAUSAL_LM"}, "--lora_task_type", "CAUSAL_LM"),
        ({"task_type": "TOKEN_CLS"}, "--lora_task_type", "TOKEN_CLS"),
        ({"modules_to_save": ["embed_tokens"]}, "--lora_modules_to_save", "embed_tokens"),
        ({"targets": ["q_porj", "v_proj"]}, "--lora_target_modules", r"\['q_porj'\].*down_proj"),
        ({"targets": "qkv"}, "--lora_target_modules", r"\['qkv'\]"),
    ],
)
def test_a_configuration_without_the_head_is_an_error(
    base: str, options: dict[str, Any], option: str, named: str
) -> None:
    with raises_problem("option-value", option, match=named):
        adapter_config(build(base), **options)


def test_more_modules_may_be_saved_with_the_head(base: str) -> None:
    config = adapter_config(build(base), modules_to_save=["score", "embed_tokens"])
    assert set(config.modules_to_save) == {"score", "embed_tokens"}


# build


def test_build_keeps_every_tensor_of_the_backbone(base: str) -> None:
    model = build(base)
    with safe_open(Path(base, "model.safetensors"), "pt") as file:
        for name in file.keys():  # noqa: SIM118
            if not name.startswith("lm_head."):
                assert torch.equal(model.state_dict()[name], file.get_tensor(name)), name
    assert model.config.backbone_name_or_path == str(Path(base).resolve())
    assert isinstance(model, TitleScorer)


def test_the_same_seed_gives_the_same_head(base: str) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(build(base).score.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_relative_base_survives_a_change_of_directory(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(base).parent)
    model = build(Path(base).name)
    monkeypatch.chdir(tmp_path)
    assert Path(model.config.backbone_name_or_path) == Path(base)


def test_the_embedded_backbone_builds_and_fits_its_tokenizer(tokenizer: Any) -> None:
    model = build("embedded", task="pooled_classifier", labels=["a", "b", "c"])
    assert isinstance(model, PooledClassifier)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert max(tokenizer.get_vocab().values()) < model.get_input_embeddings().num_embeddings


@pytest.mark.parametrize("name", ["nobody/has-this-model", "missing-folder", "a b c"])
@pytest.mark.parametrize("function", [build, load, load_tokenizer])
def test_a_missing_base_is_named(function: Any, name: str) -> None:
    with raises_problem("model-not-found", name, match="HF_TOKEN") as problems:
        function(name)
    assert "'embedded'" in problems[0].expected


@pytest.mark.parametrize("name", ["runs/nwes", "./runs/nwes", "./nwes/best", "{}/nwes", "runs/nwes/best"])
@pytest.mark.parametrize("function", [build, load, load_tokenizer])
def test_similar_folders_are_named_for_a_missing_folder(
    function: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("runs/news", "runs/other", "news"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with raises_problem("model-not-found", match=r": news\)\.$"):
        function(name.format(tmp_path))


def test_an_empty_folder_is_no_base(tmp_path: Path) -> None:
    with raises_problem("model-not-found", str(tmp_path)):
        build(str(tmp_path))


def test_an_unknown_task_is_named(base: str) -> None:
    with raises_problem("option-value", "task", match="'ranker'.*title_scorer, pooled_classifier"):
        build(base, task="ranker")


def test_load_refuses_a_plain_backbone(base: str) -> None:
    with raises_problem("model-type", base, match=r"'qwen2'.*build\(\)"):
        load(base)


# build on a model of this library


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_build_continues_from_a_saved_model(
    bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path: Path, kind: str
) -> None:
    model = build(bases["qwen2"], pooling="mean", head="mlp", head_sizes=[8])
    if kind == "adapter":
        model = get_peft_model(model, adapter_config(model, r=2))
    wanted = _logits(shake(model))
    folder = str(save(model, tokenizer=tokenizer, folder=tmp_path))
    for options in ({}, {"pooling": "mean"}, {"head": "mlp", "head_sizes": (8,)}):
        again = build(folder, **options)
        assert type(again) is TitleScorer  # an adapter is merged: the next run may add its own
        assert (_logits(again) - wanted).abs().max() <= (1e-5 if kind == "adapter" else 0)
    for option, value in (
        ("pooling", "last"),
        ("head_sizes", [16]),
        ("head_dropout", 0.5),
        ("num_labels", 3),
    ):
        with raises_problem("option-conflict", f"--{option}"):
            build(folder, **{option: value})
    with raises_problem("model-type", folder, match="title_scorer.*pooled_classifier"):
        build(folder, task="pooled_classifier")
    with raises_problem("option-unknown", "--poolling"):
        build(folder, poolling="mean")


def test_the_same_labels_in_another_order_are_an_error(
    bases: dict[str, str], tokenizer: Any, tmp_path: Path
) -> None:
    """The rows of the head have the order of the saved labels."""
    labels = LabelMap(("yes", "no"), ("It is.", ""), (("So it is",), ()))
    model = build(bases["qwen2"], task="pooled_classifier", labels=labels.names, **labels.described())
    folder = str(save(model, tokenizer=tokenizer, folder=tmp_path))
    assert saved_task(folder)["labels"] == labels
    again = build(folder, task="pooled_classifier", labels=labels.names, **labels.described())
    assert again.config.id2label == {0: "yes", 1: "no"}
    with raises_problem("label-conflict", "--labels"):
        build(folder, task="pooled_classifier", labels=["no", "yes"])


def test_a_package_that_an_option_needs_is_named(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    options = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)}
    with raises_problem("package-missing", match="bitsandbytes"):
        build(base, model_kwargs=options)


# merge


def test_merge_takes_a_peft_model_and_refuses_anything_else(base: str, shake: Any, tmp_path: Path) -> None:
    model = build(base)
    adapted = shake(get_peft_model(model, adapter_config(model, r=2, dora=True)))
    wanted = _logits(adapted)
    merged = merge(adapted)
    assert type(merged) is TitleScorer
    assert (_logits(merged) - wanted).abs().max() <= 1e-5
    assert not [name for name in merged.state_dict() if "lora" in name or "modules_to_save" in name]
    merged.save_pretrained(tmp_path)
    for folder in (str(tmp_path), base):
        with raises_problem("model-type", folder):
            merge(folder)


# Errors of hubcode


def test_an_error_of_hubcode_ends_a_recipe_without_a_traceback(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(base).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model = build(base)
    del model.score.weight
    model.score.register_parameter("wieght", torch.nn.Parameter(torch.zeros(1)))
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    for function in (load, build):
        assert run_recipe(lambda function=function: function(str(tmp_path))) == 2
        printed = capsys.readouterr().err
        assert f"error: {tmp_path}: score.weight is missing, " in printed
        assert "Traceback" not in printed


def test_build_does_not_accept_trust_remote_code(base: str) -> None:
    with raises_problem("option-unknown", "--trust_remote_code"):
        build(base, trust_remote_code=True)


def test_a_fresh_head_is_in_fp32_on_a_backbone_in_half_precision(base: str) -> None:
    model = build(base, dtype=torch.bfloat16, head="mlp", head_sizes=[8])
    assert model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.score.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_merged_and_stock_exports_keep_the_dtype_of_the_base(
    bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = build(bases["qwen2"], task="pooled_classifier", labels=["a", "b"], dtype=dtype)
    adapted = shake(get_peft_model(model, adapter_config(model, r=2)))
    folder = str(save(adapted, tokenizer=tokenizer, folder=tmp_path / "adapter"))
    merged = merge(folder)
    assert {parameter.dtype for parameter in merged.model.parameters()} == {dtype}
    assert merged.score.weight.dtype == torch.float32
    save(merged, tokenizer=tokenizer, folder=tmp_path / "merged")
    export_stock(folder, folder=tmp_path / "stock")
    for form in ("merged", "stock"):
        stored = load_file(tmp_path / form / "model.safetensors")
        assert {tensor.dtype for name, tensor in stored.items() if name.startswith("model.")} == {dtype}
    assert merge(folder, dtype=torch.float32).dtype == torch.float32
    with raises_problem("option-value", "dtype", match="'int8'"):
        merge(folder, dtype="int8")
