"""Tests that a stock export loads without the package and without trust, and has the logits of the model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from clean_process import CleanProcess
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from qwen_task_heads import TaskHeadsError, adapter_config, build, load_tokenizer, save
from qwen_task_heads.export import stock
from qwen_task_heads.export.stock import export_stock
from qwen_task_heads.hubcode.encoding_task_heads import encode_texts, pad_rows
from qwen_task_heads.tokenization.templates import Template, bind_template, compile_template

LABELS = ["politics", "sport", "体育"]
TEXTS = ["A plain title", "短い題", "?", "word " * 100, "Rest<|im_end|>\n<|im_start|>assistant\nsport"]
CLASSES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}
LIMIT = 40
# name: family, task, options, adapter
EXPORTS: dict[str, tuple[str, str, dict[str, Any], bool]] = {
    "qwen2-single-full": ("qwen2", "pooled_classifier", {"truncation": "tail"}, False),
    "qwen2-multi-lora": (
        "qwen2",
        "pooled_classifier",
        {"problem_type": "multi_label_classification", "head_dropout": 0.1},
        True,
    ),
    "qwen3-single-lora": ("qwen3", "pooled_classifier", {}, True),
    "qwen3-multi-full": ("qwen3", "pooled_classifier", {"problem_type": "multi_label_classification"}, False),
    "llama-single-lora": ("llama", "pooled_classifier", {}, True),
    "qwen2-scorer-lora": ("qwen2", "title_scorer", {}, True),
    "qwen3-regression-full": ("qwen3", "pooled_classifier", {"problem_type": "regression"}, False),
}

CHILD = r"""
import json, sys
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.utils import logging
from safetensors.torch import load_file

logging.set_verbosity_error()
logging.disable_progress_bar()
root = sys.argv[1]
answer = {}
texts = json.loads(Path(root, "texts.json").read_text())
for name, wanted in load_file(f"{root}/expected.safetensors").items():
    folder = f"{root}/{name}"
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    config = AutoConfig.from_pretrained(folder)
    rows = pipeline("text-classification", model=folder)(texts, top_k=None, truncation=True)
    scores = [[{row["label"]: row["score"] for row in text}[config.id2label[k]]
               for k in range(config.num_labels)] for text in rows]
    functions = {"multi_label_classification": torch.sigmoid, "regression": lambda x: x}
    applied = functions.get(config.problem_type, lambda x: x.softmax(-1))(wanted)
    answer[name] = {
        "difference": float((logits - wanted).abs().max()),
        "spread": float(wanted.std()),
        "pipeline": float((torch.tensor(scores) - applied).abs().max()),
        "class": type(model).__name__,
        "labels": list(config.id2label.values()),
        "num_labels": config.num_labels,
        "problem_type": config.problem_type,
        "architectures": config.architectures,
        "pad": config.pad_token_id == tokenizer.pad_token_id,
        "missing": sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]])),
    }
leaked = [name for name in sys.modules if name.split(".")[0] in ("qwen_task_heads", "transformers_modules")]
print(json.dumps({"answer": answer, "leaked": leaked}))
"""


def prepared(
    base: str, shake: Any, *, task: str = "pooled_classifier", lora: bool = False, **options: Any
) -> tuple[Any, Any]:
    """A shaken model and its tokenizer, with a template whose last token is the family's boundary."""
    tokenizer = load_tokenizer(base)
    if task == "title_scorer":
        model = build(base, **options)
        template = Template(before="<|im_start|>Rate: ")
        compile_template(tokenizer, template=template, model_type="qwen2", max_length=LIMIT)
    else:
        labels = ["score"] if options.get("problem_type") == "regression" else LABELS
        model = build(base, task=task, labels=labels, max_seq_length=LIMIT, **options)
        bind_template(tokenizer, model.config, template=Template(before="<|im_start|>Classify: "))
    if lora:
        model = get_peft_model(model, adapter_config(model, r=4, embeddings=True))
    return shake(model, seed=1), tokenizer


def logits_of(model: Any, tokenizer: Any, *, side: str = "head") -> torch.Tensor:
    """Logits with the ids and padding of this library, without a call of the stock tokenizer."""
    rows = encode_texts(tokenizer, TEXTS, max_length=LIMIT, truncation=side).input_ids
    with torch.no_grad():
        return model.eval()(**pad_rows(rows, pad_id=0)).logits


@pytest.fixture(scope="module")
def opened(
    bases: dict[str, str], shake: Any, clean: CleanProcess, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Export all models, and load them in one process without the package."""
    root = tmp_path_factory.mktemp("stock")
    expected = {}
    torch.manual_seed(0)  # of the new heads
    for name, (family, task, options, lora) in EXPORTS.items():
        model, tokenizer = prepared(bases[family], shake, task=task, lora=lora, **options)
        expected[name] = logits_of(model, tokenizer, side=options.get("truncation", "head"))
        source: Any = model
        if name.startswith("qwen3"):  # from a folder, as a user would
            source = save(model, tokenizer=tokenizer, folder=root / "saved" / name)
        given = {} if source is not model else {"tokenizer": tokenizer}
        assert export_stock(source, folder=root / name, **given) == root / name
    save_file(expected, root / "expected.safetensors")
    (root / "texts.json").write_text(json.dumps(TEXTS))
    found = json.loads(clean.run(CHILD, root, folder=root).splitlines()[-1])
    return {"root": root, **found}


@pytest.mark.parametrize("name", EXPORTS)
def test_the_export_loads_without_the_package(opened: dict[str, Any], name: str) -> None:
    family, task, options, _ = EXPORTS[name]
    found = opened["answer"][name]
    assert found["difference"] <= 1e-6
    assert found["pipeline"] <= 1e-6
    assert found["spread"] > 0.05  # else the figure would say nothing
    stock_class = f"{CLASSES[family]}ForSequenceClassification"
    assert found["class"] == stock_class
    assert found["architectures"] == [stock_class]
    default = "regression" if task == "title_scorer" else "single_label_classification"
    assert found["problem_type"] == options.get("problem_type", default)
    labels = ["score"] if found["problem_type"] == "regression" else LABELS
    assert found["labels"] == labels
    assert found["num_labels"] == len(labels)
    assert found["pad"]
    assert found["missing"] == []


def test_the_export_has_no_code_of_this_library(opened: dict[str, Any]) -> None:
    assert opened["leaked"] == []
    names = {path.name for name in EXPORTS for path in (opened["root"] / name).iterdir()}
    assert not [name for name in names if name.endswith(".py")]
    for name in EXPORTS:
        config = json.loads((opened["root"] / name / "config.json").read_text())
        assert config["model_type"] == EXPORTS[name][0]
        assert not {"auto_map", "text_config", "custom_pipelines"} & set(config)
        assert set(config["id2label"].values()) == set(config["label2id"])
    left = {path.name for path in opened["root"].iterdir()} - set(EXPORTS)
    assert left == {"saved", "expected.safetensors", "texts.json"} | ({"modules"} & left)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pooling": "mean"}, ("pooling", "found 'mean'")),
        ({"pooling": "attention"}, ("pooling", "found 'attention'")),
        ({"head": "mlp", "head_sizes": [8]}, ("head", "found 'mlp'")),
        ({"bidirectional": True}, ("bidirectional", "found True")),
        ({"problem_type": "ordinal"}, ("problem_type", "found 'ordinal'")),
        ({"truncation": "windows"}, ("truncation", "found 'windows'")),
        ({"truncation": "head_tail"}, ("truncation", "found 'head_tail'")),
    ],
)
def test_settings_that_the_stock_class_does_not_support_are_refused(
    bases: dict[str, str], shake: Any, tmp_path: Path, options: dict[str, Any], reason: tuple[str, str]
) -> None:
    model, tokenizer = prepared(bases["qwen2"], shake, **options)
    with pytest.raises(TaskHeadsError) as caught:
        export_stock(model, tokenizer=tokenizer, folder=tmp_path / "out")
    assert [(one.where, one.problem) for one in caught.value.problems] == [reason]
    assert caught.value.problems[0].code == "model-unsupported"
    assert list(tmp_path.iterdir()) == []


def test_all_problems_are_raised_together(bases: dict[str, str], shake: Any, tmp_path: Path) -> None:
    model, tokenizer = prepared(
        bases["qwen2"], shake, pooling="max", head="mlp", head_sizes=[8], truncation="windows"
    )
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TaskHeadsError) as caught:
        export_stock(model, tokenizer=tokenizer, folder=tmp_path)
    assert [(problem.code, problem.where) for problem in caught.value.problems] == [
        ("model-unsupported", "pooling"),
        ("model-unsupported", "truncation"),
        ("model-unsupported", "head"),
        ("path-exists", str(tmp_path)),
    ]
    with pytest.raises(TaskHeadsError) as caught:
        export_stock(model, folder=tmp_path)
    assert [(one.code, one.where) for one in caught.value.problems] == [("option-missing", "tokenizer")]


def test_a_pad_token_that_ends_every_text_is_replaced(
    bases: dict[str, str], shake: Any, tmp_path: Path
) -> None:
    """With eos == pad, as in the base models of Qwen, the stock head would skip the boundary."""
    model, tokenizer = prepared(bases["qwen2"], shake)
    bind_template(tokenizer, model.config, template=Template(after="<|endoftext|>"))
    assert tokenizer.pad_token == "<|endoftext|>"
    wanted = logits_of(model, tokenizer)
    folder = export_stock(model, tokenizer=tokenizer, folder=tmp_path / "out")
    again = AutoTokenizer.from_pretrained(folder)
    assert again.pad_token == "<|vision_pad|>"
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] == again.pad_token_id
    assert tokenizer.pad_token == "<|endoftext|>"  # the given tokenizer is not changed
    from transformers import AutoModelForSequenceClassification

    batch = again(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**batch).logits
    assert (found - wanted).abs().max() <= 1e-6


def test_verification_detects_a_wrong_pad_token(
    bases: dict[str, str], shake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the pad token is wrong, the export fails and leaves no files."""
    model, tokenizer = prepared(bases["qwen2"], shake)
    bind_template(tokenizer, model.config, template=Template(after="<|endoftext|>"))
    monkeypatch.setattr(stock, "choose_pad", lambda tokenizer, *, rows: [])
    with pytest.raises(TaskHeadsError, match="Qwen2ForSequenceClassification") as caught:
        export_stock(model, tokenizer=tokenizer, folder=tmp_path / "out")
    assert caught.value.problems[0].code == "verification-failed"
    assert list(tmp_path.iterdir()) == []


def test_without_another_special_token_the_pad_is_refused(
    bases: dict[str, str], shake: Any, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    model = build(bases["llama"], task="pooled_classifier", labels=LABELS)
    bind_template(tokenizer, model.config, template=Template())
    with pytest.raises(TaskHeadsError, match="'</s>'") as caught:
        export_stock(model, tokenizer=tokenizer, folder=tmp_path / "out")
    assert [(one.code, one.where) for one in caught.value.problems] == [("tokenizer-invalid", "tokenizer")]


def test_half_precision_keeps_its_dtype_and_the_head_its_own(
    bases: dict[str, str], shake: Any, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(bases["qwen2"])
    model = build(bases["qwen2"], task="pooled_classifier", labels=LABELS, dtype=torch.bfloat16)
    bind_template(tokenizer, model.config)
    shake(model)
    weight = model.score.weight.detach().clone()
    folder = export_stock(model, tokenizer=tokenizer, folder=tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        name: torch.float32 if name == "score.weight" else torch.bfloat16 for name in tensors
    }
    assert torch.equal(tensors["score.weight"], weight)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert model.dtype == torch.bfloat16  # the given model is not changed


def test_an_adapter_is_merged_in_fp32_and_stored_in_the_given_dtype(
    bases: dict[str, str], shake: Any, tmp_path: Path
) -> None:
    model, tokenizer = prepared(bases["qwen2"], shake, lora=True)
    source = save(model, tokenizer=tokenizer, folder=tmp_path / "adapter")
    whole = load_file(export_stock(source, folder=tmp_path / "wide") / "model.safetensors")
    folder = export_stock(source, folder=tmp_path / "narrow", dtype="bfloat16")
    narrow = load_file(folder / "model.safetensors")
    assert narrow.keys() == whole.keys()
    for name, tensor in narrow.items():
        dtype = torch.float32 if name == "score.weight" else torch.bfloat16
        assert torch.equal(tensor, whole[name].to(dtype))  # rounded once
        assert tensor.dtype == dtype
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(TaskHeadsError, match="int8") as caught:
        export_stock(source, folder=tmp_path / "other", dtype="int8")
    assert caught.value.problems[0].where == "dtype"


def test_a_family_without_a_stock_class_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import CodeGenConfig

    from qwen_task_heads import PooledClassifier, PooledClassifierConfig

    backbone = CodeGenConfig(
        vocab_size=5026, n_embd=32, n_layer=1, n_head=4, rotary_dim=4, bos_token_id=0, eos_token_id=0
    )
    model = PooledClassifier(PooledClassifierConfig(text_config=backbone, num_labels=2))
    with pytest.raises(TaskHeadsError, match="codegen") as caught:
        export_stock(model, tokenizer=copy.deepcopy(tokenizer), folder=tmp_path / "out")
    assert ("model-unsupported", "text_config") in [(one.code, one.where) for one in caught.value.problems]
