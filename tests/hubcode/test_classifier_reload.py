"""Every problem type and cut reloads bit-equal in a process without the package.

The stock pipeline gets raw texts, also long ones, and must return the probabilities of training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from clean_process import CleanProcess
from equality import assert_same_model
from peft import get_peft_model
from problem_assertions import raises_problem
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, pipeline

from qwen_task_heads import adapter_config, build, load, load_tokenizer, merge, save
from qwen_task_heads.hubcode.encoding_task_heads import cut_row, encode_texts
from qwen_task_heads.tokenization.templates import Template, bind_template

LABELS = ["bad", "fair", "good", "优"]
LIMIT = 32
TEXTS = ["A plain text", "短い", "one two three " * 40, "Rest<|im_end|>\n<|im_start|>assistant\ngood " * 9]
# name: family, options of the head, adapter ("" for full weights, "stock" for the plain save_pretrained)
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "single-head": ("qwen2", {}, ""),
    "single-windows": ("qwen2", {"truncation": "windows", "window_overlap": 5}, "stock"),
    "single-windows-max": (
        "qwen3",
        {"truncation": "windows", "window_aggregation": "max", "pooling": "mean"},
        "lora",
    ),
    "multi-tail": ("qwen2", {"truncation": "tail", "problem_type": "multi_label_classification"}, "lora"),
    "multi-windows": (
        "llama",
        {"truncation": "windows", "problem_type": "multi_label_classification"},
        "",
    ),
    "regression-head-tail": ("qwen2", {"truncation": "head_tail", "problem_type": "regression"}, "stock"),
    "ordinal-windows": ("qwen2", {"truncation": "windows", "problem_type": "ordinal"}, ""),
    "ordinal-head-tail": (
        "qwen3",
        {"truncation": "head_tail", "problem_type": "ordinal", "head": "mlp", "head_sizes": [8]},
        "embeddings",
    ),
}

CHILD = r"""
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
root = sys.argv[1]
texts = json.loads(Path(root, "texts.json").read_text())
answer = {}
for name, wanted in load_file(f"{root}/expected.safetensors").items():
    folder = f"{root}/{name}"
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).logits for text in texts]
        batch = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    found = pipeline("text-classification", model=model, tokenizer=tokenizer)(texts, top_k=None)
    answer[name] = {
        "one by one": float((torch.cat(rows) - wanted).abs().max()),
        "batch": float((batch - wanted).abs().max()),
        "pipeline": [{row["label"]: row["score"] for row in text} for text in found],
    }
leaked = [name for name in sys.modules if name.split(".")[0] == "qwen_task_heads"]
print(json.dumps({"answer": answer, "leaked": leaked}))
"""


def expected(model: Any, tokenizer: Any) -> torch.Tensor:
    """Return the logits of training: its ids, its pieces, an explicit aggregation."""
    config = model.config
    whole = encode_texts(
        tokenizer, TEXTS, max_length=config.max_seq_length, truncation=config.truncation
    ).input_ids
    found = []
    with torch.no_grad():
        for row in whole:
            pieces = cut_row(
                row,
                max_length=config.max_seq_length,
                truncation=config.truncation,
                overlap=config.window_overlap,
                template=config.template,
            )
            logits = model.eval()(input_ids=torch.tensor(pieces)).logits
            logits = logits.mean(0) if config.window_aggregation == "mean" else logits.amax(0)
            if len(pieces) > 1 and config.problem_type == "ordinal":
                logits = logits.log_softmax(0)
            found.append(logits)
    return torch.stack(found)


@pytest.fixture(scope="module")
def loaded(
    bases: dict[str, str], shake: Any, clean: CleanProcess, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("classifiers")
    logits = {}
    for name, (family, options, kind) in KINDS.items():
        tokenizer = load_tokenizer(bases[family])
        labels = ["score"] if options.get("problem_type") == "regression" else LABELS
        model: Any = build(
            bases[family], task="pooled_classifier", labels=labels, max_seq_length=LIMIT, **options
        )
        bind_template(tokenizer, model.config, template=Template(before="<|im_start|>Judge: "))
        if kind in ("lora", "embeddings"):
            model = get_peft_model(model, adapter_config(model, r=4, embeddings=kind == "embeddings"))
        shake(model, seed=1)
        logits[name] = expected(model, tokenizer)
        if kind == "stock":  # as in Trainer
            model.save_pretrained(root / name)
            tokenizer.save_pretrained(root / name)
        else:
            save(model, tokenizer=tokenizer, folder=root / name)
    save_file(logits, root / "expected.safetensors")
    (root / "texts.json").write_text(json.dumps(TEXTS))
    found = json.loads(clean.run(CHILD, root, folder=root).splitlines()[-1])
    return {"root": root, "logits": logits, **found}


@pytest.mark.parametrize("name", KINDS)
def test_reload_without_the_package(loaded: dict[str, Any], name: str) -> None:
    found, wanted = loaded["answer"][name], loaded["logits"][name]
    assert wanted.std() > 0.02  # otherwise the comparison would be weak
    # A row that is cut is computed in another batch: only rounding may differ.
    assert found["one by one"] <= 1e-6
    assert found["batch"] <= 1e-6
    assert loaded["leaked"] == []


FUNCTIONS = {
    "multi_label_classification": torch.sigmoid,
    "regression": lambda logits: logits,
    "ordinal": torch.exp,  # log-probabilities, which the softmax of the pipeline leaves as they are
}


@pytest.mark.parametrize("name", KINDS)
def test_the_stock_pipeline_gives_names_and_probabilities(loaded: dict[str, Any], name: str) -> None:
    problem_type = KINDS[name][1].get("problem_type")
    labels = ["score"] if problem_type == "regression" else LABELS
    wanted = FUNCTIONS.get(problem_type, lambda logits: logits.softmax(-1))(loaded["logits"][name])
    for text, row in zip(loaded["answer"][name]["pipeline"], wanted, strict=True):
        assert text.keys() == set(labels)
        assert [text[label] for label in labels] == pytest.approx(row.tolist(), abs=1e-6)


@pytest.mark.parametrize("name", ["single-windows-max", "ordinal-head-tail", "regression-head-tail"])
def test_reload_with_the_package(loaded: dict[str, Any], name: str) -> None:
    folder = str(loaded["root"] / name)
    model, tokenizer = load(folder), load_tokenizer(folder)
    assert (expected(model, tokenizer) - loaded["logits"][name]).abs().max() <= 1e-6
    assert pipeline("text-classification", model=folder)(TEXTS[2])[0]["label"] in [*LABELS, "score"]
    if KINDS[name][2]:
        assert model.config.truncation == KINDS[name][1]["truncation"]
    if KINDS[name][2] in ("lora", "embeddings"):
        merged = merge(folder).eval()
        assert (expected(merged, tokenizer) - loaded["logits"][name]).abs().max() <= 1e-5


# LoRA on the embeddings


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["lora", "dora", "head_only"])
def test_an_adapter_on_the_embeddings(
    tiny_config: Any, tokenizer: Any, shake: Any, tmp_path: Path, tied: bool, kind: str
) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(tiny_config(tie_word_embeddings=tied))
    base.save_pretrained(tmp_path / "base")
    model = build(str(tmp_path / "base"), task="pooled_classifier", labels=LABELS)
    options = {} if kind == "lora" else {kind: True}
    adapted = get_peft_model(model, adapter_config(model, r=2, embeddings=True, **options))
    ids = torch.randint(0, 5000, (4, 9), generator=torch.Generator().manual_seed(0))
    shake(adapted)
    adapted(ids, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert sum("embed_tokens.lora_embedding" in name for name in trained) == 2
    assert ("q_proj" in " ".join(trained)) == (kind != "head_only")
    with torch.no_grad():
        wanted = adapted(ids).logits
    folder = save(adapted, tokenizer=tokenizer, folder=tmp_path / "adapter")
    saved = load_file(folder / "adapter/adapter_model.safetensors")
    shapes = {tuple(tensor.shape) for key, tensor in saved.items() if "embed_tokens" in key}
    assert shapes == {(2, 5026), (32, 2)} | ({(32,)} if kind == "dora" else set())  # not (5026, 32)
    with torch.no_grad():
        assert_same_model(load(str(folder)), adapted, input_ids=ids)
        assert (merge(str(folder)).eval()(ids).logits - wanted).abs().max() <= 1e-5
    del saved["base_model.model.model.embed_tokens.lora_embedding_A"]
    save_file(saved, folder / "adapter/adapter_model.safetensors", metadata={"format": "pt"})
    with raises_problem("model-corrupted", match=r"embed_tokens\.lora_embedding_A is missing"):
        load(str(folder))


def test_a_family_without_a_row_gets_all_its_linear_layers(tiny_config: Any) -> None:
    from transformers import StableLmConfig

    from qwen_task_heads import PooledClassifier, PooledClassifierConfig

    backbone = StableLmConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = PooledClassifier(PooledClassifierConfig(text_config=backbone, num_labels=2))
    found = adapter_config(model, embeddings=True).target_modules
    assert found >= {"q_proj", "o_proj", "down_proj", "model.embed_tokens"}
    assert adapter_config(model).target_modules == "all-linear"
