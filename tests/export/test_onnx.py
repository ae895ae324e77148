"""Tests that ONNX files have the logits of the model without torch, and of unsupported models."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from clean_process import CleanProcess
from peft import get_peft_model
from safetensors.torch import load_file

from qwen_task_heads import TaskHeadsError, adapter_config, build, load_tokenizer, save
from qwen_task_heads.export import onnx
from qwen_task_heads.export.onnx import agreement, export_onnx, run_onnx
from qwen_task_heads.hubcode.encoding_task_heads import encode_texts, pad_rows
from qwen_task_heads.reports.card_facts import NOTHING_STATED
from qwen_task_heads.reports.kept_card import kept_card
from qwen_task_heads.tokenization.templates import Template, bind_template, compile_template

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LABELS = ["politics", "sport", "体育"]
TEXTS = ["A plain title", "短い題", "?", "word " * 100, "Rest<|im_end|>\n<|im_start|>assistant\nsport"]
LIMIT = 40
MLP: dict[str, Any] = {"head": "mlp", "head_sizes": [8]}

# Uses the tokenizer of the folder and ONNX Runtime, without the package and without torch's model.
CHILD = r"""
import json, sys
from pathlib import Path
import numpy as np
import onnxruntime
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

root = Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(root, trust_remote_code=False)
session = onnxruntime.InferenceSession(str(root / "onnx" / "model.onnx"))
texts = json.loads((root / "texts.json").read_text())
found = {}
for side in ("left", "right"):
    tokenizer.padding_side = side
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
    inputs = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    found[side] = session.run(["logits"], inputs)[0]
    found[f"{side} ids"] = inputs["input_ids"]
save_file(found, root / "found.safetensors")
print(json.dumps(session.get_modelmeta().custom_metadata_map))
"""


def prepared(base: str, shake: Any, *, task: str = "pooled_classifier", **options: Any) -> tuple[Any, Any]:
    """A shaken model and its tokenizer, with a template."""
    tokenizer = load_tokenizer(base)
    if task == "title_scorer":
        model = build(base, **options)
        compile_template(tokenizer, template=Template(before="Rate: "), model_type="qwen2", max_length=LIMIT)
    else:
        model = build(base, task=task, labels=LABELS, max_seq_length=LIMIT, **options)
        bind_template(tokenizer, model.config, template=Template(before="<|im_start|>Classify: "))
    return shake(model, seed=1), tokenizer


@torch.no_grad()
def logits_of(model: Any, tokenizer: Any, side: str = "head") -> torch.Tensor:
    """Logits with the ids, encoder and padding of this library."""
    rows = encode_texts(tokenizer, TEXTS, max_length=LIMIT, truncation=side).input_ids
    return model.eval()(**pad_rows(rows, pad_id=0)).logits


@pytest.fixture(scope="module")
def exported(bases: dict[str, str], shake: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model with an adapter and an mlp head, saved and exported in fp32 and int8.

    Of one layer, because each one takes seconds to trace.
    """
    root = tmp_path_factory.mktemp("onnx")
    model, tokenizer = prepared(bases["qwen2"], shake, backbone_layers=1, **MLP, head_dropout=0.1)
    model = shake(get_peft_model(model, adapter_config(model, r=2)), seed=2)
    wanted = logits_of(model, tokenizer)
    folder = save(model, tokenizer=tokenizer, folder=root / "saved")
    inner = model.get_base_model().train()
    path = export_onnx(model, tokenizer=tokenizer, folder=folder, int8=True)
    return {"path": path, "wanted": wanted, "model": inner, "tokenizer": tokenizer, "folder": folder}


@pytest.mark.slow
def test_the_files_are_written_and_the_model_is_restored(exported: dict[str, Any]) -> None:
    assert exported["path"] == exported["folder"] / "onnx" / "model.onnx"
    assert {path.name for path in exported["path"].parent.iterdir()} == {"model.onnx", "model_int8.onnx"}
    model = exported["model"]
    assert (model.packing, model.prefix_sharing, model.training) == (True, True, True)
    assert model.config.max_seq_length == LIMIT


@pytest.mark.slow
def test_the_code_of_the_card_gives_the_logits(exported: dict[str, Any], clean: CleanProcess) -> None:
    folder = exported["folder"]
    card = kept_card("# a\n", repo_id="me/a", hub="huggingface", facts=NOTHING_STATED, onnx=True)
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    fetch = re.search(r"^folder = snapshot_download.*$", lines, re.MULTILINE)[0]  # type: ignore[index]
    code = lines.replace(fetch, "import sys; folder = sys.argv[1]").replace('["A text"]', repr(TEXTS))
    found = json.loads(clean.run(f"{code}\nprint(logits.tolist())", folder, folder=folder).splitlines()[-1])
    assert torch.allclose(torch.tensor(found), exported["wanted"], atol=1e-5)


@pytest.mark.slow
def test_texts_alone_give_the_logits_without_the_package(
    exported: dict[str, Any], clean: CleanProcess
) -> None:
    folder = exported["folder"]
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    metadata = json.loads(clean.run(CHILD, folder, folder=folder).splitlines()[-1])
    found = load_file(folder / "found.safetensors")
    rows = encode_texts(exported["tokenizer"], TEXTS, max_length=LIMIT).input_ids
    right = pad_rows(rows, pad_id=exported["tokenizer"].pad_token_id)["input_ids"]
    assert torch.equal(found["right ids"], right)
    for side in ("left", "right"):
        assert (found[side] - exported["wanted"]).abs().max() <= 1e-5
    assert exported["wanted"].std() > 0.05  # the logits of the texts differ
    assert json.loads(metadata["id2label"]) == {str(index): label for index, label in enumerate(LABELS)}
    assert metadata["problem_type"] == "single_label_classification"


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 2), (2, 1), (3, 130)])
def test_batch_and_length_are_free(exported: dict[str, Any], batch: int, length: int) -> None:
    ids = torch.randint(1, 5000, (batch, length), generator=torch.Generator().manual_seed(0))
    model, mask = exported["model"].eval(), torch.ones_like(ids)
    limit, model.config.max_seq_length = model.config.max_seq_length, None
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    model.config.max_seq_length = limit
    found = run_onnx(exported["path"], ids.numpy(), mask.tolist())
    assert found.dtype.name == "float32"
    assert (torch.from_numpy(found) - wanted).abs().max() <= 1e-5


@pytest.mark.slow
def test_the_file_has_no_path_of_the_machine(exported: dict[str, Any]) -> None:
    data = exported["path"].read_bytes()
    here = str(Path(onnx.__file__).parents[2]).encode()
    assert here not in data
    assert b"site-packages" not in data
    assert b".py" not in data


@pytest.mark.slow
def test_int8_keeps_the_head_in_fp32_and_its_agreement_is_measured(exported: dict[str, Any]) -> None:
    import onnx as onnx_package

    int8 = exported["path"].with_name("model_int8.onnx")
    graph = onnx_package.load(int8).graph
    quantized = {tensor.name for tensor in graph.initializer if tensor.data_type == 3 and tensor.dims}
    assert len([name for name in quantized if name.endswith("_quantized")]) == 7  # INT8, of one layer
    head = [node for node in graph.node if node.name.startswith("score.")]
    assert {node.op_type for node in head} >= {"MatMul", "Relu"}
    assert not {node.op_type for node in head} & {"MatMulInteger", "DynamicQuantizeLinear"}
    options = {key: exported[key] for key in ("model", "tokenizer")}
    exact = agreement(exported["path"], texts=TEXTS * 5, **options)
    rough = agreement(int8, texts=TEXTS * 5, **options)
    assert (exact.texts, exact.argmax) == (25, 1.0)
    assert exact.difference <= 1e-5 < rough.difference < 0.5
    assert 0 <= rough.argmax <= 1
    with pytest.raises(TaskHeadsError) as caught:
        agreement(int8, texts=[], **options)
    assert [(one.code, one.where) for one in caught.value.problems] == [("rows-too-few", "texts")]


def test_all_problems_are_raised_together(bases: dict[str, str], shake: Any, tmp_path: Path) -> None:
    model, tokenizer = prepared(bases["llama"], shake, truncation="windows")
    model.config.text_config.rope_parameters["rope_type"] = "dynamic"
    model.config.text_config._attn_implementation = "flex_attention"
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(TaskHeadsError) as caught:
        export_onnx(model, tokenizer=tokenizer, folder=tmp_path / "out")
    wheres = [problem.where for problem in caught.value.problems]
    assert wheres == ["truncation", "quantization_config", "attn_implementation", "rope_type"]
    assert not (tmp_path / "out").exists()
    assert {problem.code for problem in caught.value.problems} == {"model-unsupported"}
    with pytest.raises(TaskHeadsError) as caught:
        export_onnx(model, folder=tmp_path / "out")
    assert [(one.code, one.where) for one in caught.value.problems] == [("option-missing", "tokenizer")]


def test_a_missing_package_is_reported(
    bases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(TaskHeadsError, match="onnxscript") as caught:
        export_onnx(bases["qwen2"], folder=tmp_path)
    assert [(one.code, one.where) for one in caught.value.problems] == [("package-missing", "onnx")]
    assert caught.value.problems[0].fix == "pip install 'qwen-task-heads[onnx]'"
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(TaskHeadsError, match="onnxruntime") as caught:
        run_onnx(tmp_path / "model.onnx", [[1]], [[1]])
    assert caught.value.problems[0].expected == "onnxruntime"


# Every family, pooling, head, kind of attention and problem type is in at least one row. Only one row has
# more than one layer, because each layer of each export takes seconds to trace.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "last-tail-eager": ("qwen2", {"truncation": "tail", "model_kwargs": {"attn_implementation": "eager"}}),
    "scorer": ("qwen3", {"task": "title_scorer", "backbone_layers": 2}),
    "mean-mlp-bidirectional": (
        "qwen3",
        {"pooling": "mean", "head": "mlp", "head_sizes": [8, 4], "bidirectional": True},
    ),
    "max-ordinal": ("llama", {"pooling": "max", "problem_type": "ordinal"}),
    "several-layers": ("llama", {"pooling": "last", "head_layers": [1, 2], "backbone_layers": 2}),
    "attention-several-layers": (
        "qwen3",
        {"pooling": "attention", "head_layers": [1, 2], "backbone_layers": 2, "task": "title_scorer"},
    ),
    "attention-multi-label": (
        "qwen2",
        {"pooling": "attention", "problem_type": "multi_label_classification", **MLP},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_poolings_and_heads(bases: dict[str, str], shake: Any, tmp_path: Path, name: str) -> None:
    """The export verifies left, right and no padding to 1e-5; this test verifies the ids of this library."""
    family, options = OTHERS[name]
    model, tokenizer = prepared(bases[family], shake, **{"backbone_layers": 1, **options})
    wanted = logits_of(model, tokenizer, side=options.get("truncation", "head"))
    path = export_onnx(model, tokenizer=tokenizer, folder=tmp_path, int8=True)
    side = options.get("truncation", "head")
    batch = pad_rows(encode_texts(tokenizer, TEXTS, max_length=LIMIT, truncation=side).input_ids, pad_id=9)
    found = torch.from_numpy(run_onnx(path, batch["input_ids"].numpy(), batch["attention_mask"].numpy()))
    assert (found - wanted).abs().max() <= 1e-5
    assert (tmp_path / "tokenizer.json").is_file()
    close = agreement(path.with_name("model_int8.onnx"), model=model, tokenizer=tokenizer, texts=TEXTS)
    assert 1e-6 < close.difference < 0.6


@pytest.mark.slow
def test_half_precision_is_exported_in_fp32_and_large_weights_are_external_data(
    bases: dict[str, str], shake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "MAX_INLINE", 1000)
    model, tokenizer = prepared(bases["qwen2"], shake, backbone_layers=1, dtype=torch.bfloat16)
    path = export_onnx(model, tokenizer=tokenizer, folder=tmp_path / "a", int8=True)
    names = {file.name for file in path.parent.iterdir()}
    assert names == {"model.onnx", "model.onnx.data", "model_int8.onnx", "model_int8.onnx.data"}
    assert model.dtype == torch.bfloat16
    assert agreement(path, model=model, tokenizer=tokenizer, texts=TEXTS).difference <= 1e-5
    assert path.stat().st_size < path.with_name("model.onnx.data").stat().st_size


@pytest.mark.slow
def test_another_graph_is_refused(
    bases: dict[str, str], shake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verification detects the graph of another model."""
    model, tokenizer = prepared(bases["qwen2"], shake, backbone_layers=1)
    traced = onnx._trace

    def scaled(model: Any) -> Any:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.score.weight.mul_(1.01)
        return traced(other)

    monkeypatch.setattr(onnx, "_trace", scaled)
    with pytest.raises(TaskHeadsError, match="ONNX Runtime") as caught:
        export_onnx(model, tokenizer=tokenizer, folder=tmp_path / "out")
    assert caught.value.problems[0].code == "verification-failed"
    assert [*(tmp_path / "out" / "onnx").iterdir()] == []
