"""Tests of verification: a trained model passes, and every corruption is reported with its place.

One warm process without the package loads all artifacts but one, which is loaded in a subprocess.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clean_process import CleanProcess
from equality import LOGITS
from huggingface_hub import constants
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from qwen_task_heads import (
    TaskHeadsError,
    adapter_config,
    build,
    export_stock,
    load_tokenizer,
    merge,
    save,
)
from qwen_task_heads.tokenization.templates import Template, bind_template, compile_template
from qwen_task_heads.verification import artifacts, fingerprint
from qwen_task_heads.verification.artifacts import PROGRAM, in_subprocess
from qwen_task_heads.verification.differences import largest
from qwen_task_heads.verification.parity import HALF, OTHER_DEVICE, Parity, verify_artifact
from qwen_task_heads.verification.reference import (
    Reference,
    read_reference,
    take_reference,
    write_reference,
)

LABELS = ["politics", "sport", "体育"]
HELD = ["word " * count + "end" for count in range(1, 30)] + ["今天天气不错，适合出门"]
KINDS = ("adapter", "full", "merged", "stock")


@pytest.fixture(scope="module")
def prepared(
    bases: dict[str, str], shake: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Reference]]:
    """The folder of every kind of artifact, and the reference of its model."""
    root = tmp_path_factory.mktemp("verification")
    found = {}
    for form in ("full", "adapter"):
        tokenizer = load_tokenizer(bases["qwen2"])
        model = build(bases["qwen2"], task="pooled_classifier", labels=LABELS, max_seq_length=40)
        bind_template(tokenizer, model.config, template=Template(before="<|im_start|>Classify: "))
        if form == "adapter":
            model = get_peft_model(model, adapter_config(model, r=4))
        shake(model, seed=1)
        reference = take_reference(model, tokenizer=tokenizer, texts=HELD)
        write_reference(root, reference)
        reference = read_reference(root)
        folder = save(model, tokenizer=tokenizer, folder=root / form, repo_id="me/it")
        found[form] = folder, reference
    merged = merge(model)
    found["merged"] = save(merged, tokenizer=tokenizer, folder=root / "merged"), reference
    found["stock"] = export_stock(merged, tokenizer=tokenizer, folder=root / "stock"), reference
    return found


def codes(caught: pytest.ExceptionInfo[TaskHeadsError]) -> set[tuple[str, str]]:
    """Code and place of every problem."""
    return {(problem.code, problem.where) for problem in caught.value.problems}


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_artifact_passes(prepared: Any, open_in: Any, kind: str) -> None:
    folder, reference = prepared[kind]
    parity = verify_artifact(folder, reference=reference, kind=kind, repo_id="me/it", run=open_in)
    sides = ("right",) if kind == "stock" else ("left", "right")
    texts = len(reference.job["texts"])
    assert {(row.padding, row.batch) for row in parity.rows} == {
        (side, batch) for side in ("none", *sides) for batch in (1, texts)
    }
    assert all(row.bound is not None and row.difference <= row.bound for row in parity.rows)
    assert all(row.agreement == 1 for row in parity.rows)
    assert parity.rows[0].opened_by.startswith(
        "Qwen2ForSequenceClassification" if kind == "stock" else "PooledClassifier"
    )
    if kind in ("adapter", "full"):  # the same weights and the same operations
        logits = [entry["logits"] for entry in reference.report["logits"]]
        assert [row.bound for row in parity.rows] == [LOGITS * largest(rows) for rows in logits]


def test_comparisons_of_several_artifacts_are_one_table() -> None:
    from qwen_task_heads.verification.parity import Row

    row = Row("full", "A", "left", 1, 1e-7, 1e-6, 1.0)
    worse = Row("full", "A", "none", 9, 2e-7, 1e-6, 0.9)
    both = Parity((row, worse)) + Parity((Row("onnx_int8", "B", "none", 1, 0.5, None, 0.75),))
    assert [tuple(entry.values()) for entry in both.card_rows()] == [
        ("full", "A", "left, none", "1, 9", "2.0e-07", "1.0e-06", "90.0%"),
        ("onnx_int8", "B", "none", "1", "5.0e-01", "none", "75.0%"),
    ]
    assert json.loads(json.dumps(both.as_dict()))["rows"][0]["difference"] == 1e-7


def test_the_reference_has_texts_of_all_lengths_and_restores_the_model(
    bases: dict[str, str],
) -> None:
    model = build(bases["qwen3"], dtype=torch.bfloat16, model_kwargs={"attn_implementation": "eager"}).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reference = take_reference(model, tokenizer=load_tokenizer("embedded"), texts=HELD * 2)
    taken = reference.job["texts"][:16]
    assert taken[0] == min(HELD, key=len)
    assert taken[-1] == max(HELD, key=len)
    assert len(set(taken)) == 16
    assert any("三十天" in text for text in reference.job["texts"])
    assert model.training
    assert model.config._attn_implementation == "eager"
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    scores = {tuple(row) for row in reference.report["logits"][0]["logits"]}
    assert len(scores) == len(reference.job["texts"])  # no ties: computed in fp32


# Corruptions


def _json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def _tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    content = load_file(path)
    change(content)
    save_file(content, path, metadata={"format": "pt"})


def _permute(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["id2label"] = {"0": "sport", "1": "politics", "2": "体育"}
        config["label2id"] = {"sport": 0, "politics": 1, "体育": 2}

    _json(folder / "config.json", change)


def _pad(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config.get("text_config", config)["pad_token_id"] = 7

    _json(folder / "config.json", change)


def _pooling(folder: Path) -> None:
    _json(folder / "config.json", lambda config: config.update(pooling="mean"))


def _weights(folder: Path) -> Path:
    return next(path for path in folder.rglob("*.safetensors"))


def _scale(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"] *= 1.001

    _tensors(_weights(folder), change)


def _scale_adapter(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[next(name for name in tensors if "layers.1.mlp.up_proj.lora_B" in name)] *= 1.01

    _tensors(_weights(folder), change)


def _drop(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "score." in name]:
            del tensors[name]

    _tensors(_weights(folder), change)


def _template(folder: Path) -> None:
    """Change the source of the ids, and not the template in the tokenizer's config."""

    def change(content: dict[str, Any]) -> None:
        pieces = content["post_processor"]["special_tokens"]["<before>"]
        pieces["ids"][0], pieces["tokens"][0] = 77, "x"

    _json(folder / "tokenizer.json", change)


def _int8(stored: bool) -> Callable[[Path], None]:
    def corrupt(folder: Path) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            name = next(name for name in tensors if "score." in name)
            step = tensors[name].abs().max() / 127
            whole = (tensors[name] / step).round()
            tensors[name] = whole.to(torch.int8) if stored else whole * step

        _tensors(_weights(folder), change)

    return corrupt


def _narrow(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].bfloat16()

    _tensors(_weights(folder), change)
    _json(folder / "config.json", lambda config: config.update(dtype="bfloat16"))


def _nan(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        next(tensor for name, tensor in tensors.items() if "score." in name)[0, 3] = torch.nan

    _tensors(_weights(folder), change)


def _without_probe(corrupt: Callable[[Path], None]) -> Callable[[Path], None]:
    """Also remove the stored probe, which alone would make loading fail."""

    def both(folder: Path) -> None:
        corrupt(folder)
        _json(folder / "config.json", lambda config: config.update(probe=None))

    return both


TENSOR = r"tensor score\.weight: found "
# Kind of the artifact, the corruption, and a pattern of place and problem.
CORRUPTIONS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "head-dropped": ("full", _drop, r"loading the model: .*score\."),
    "head-dropped-adapter": ("adapter", _drop, r"loading the model: .*score\."),
    "head-dropped-stock": ("stock", _drop, TENSOR),
    "labels-permuted": ("full", _permute, r"config.json labels: found \['sport', 'politics', '体育'\]"),
    "labels-permuted-stock": ("stock", _permute, r"config.json labels: found \['sport', 'politics'"),
    "pad-changed": ("adapter", _pad, r"config.json pad_token_id: found 7"),
    "pad-changed-stock": ("stock", _pad, r"config.json pad_token_id: found 7"),
    "pooling-changed": ("full", _pooling, r"config.json pooling: found 'mean'"),
    "pooling-changed-adapter": (
        "adapter",
        _without_probe(_pooling),
        r"config.json pooling: found 'mean'",
    ),
    "tensor-scaled": ("full", _scale, r"tensor model\.layers\.1\.mlp\.up_proj\.weight: found"),
    "tensor-scaled-adapter": (
        "adapter",
        _scale_adapter,
        r"tensor model\.layers\.1\.mlp\.up_proj\.lora_B\.weight: found",
    ),
    "tensor-scaled-merged": (
        "merged",
        _without_probe(_scale),
        r"tensor model\.layers\.1\.mlp\.up_proj\.weight: found",
    ),
    "tensor-scaled-stock": ("stock", _scale, r"tensor model\.layers\.1\.mlp\.up_proj\.weight: found"),
    "template-changed": ("full", _template, r"tokenizer template of"),
    "template-changed-stock": ("stock", _template, r"tokenizer template of"),
    "int8-head": ("full", _without_probe(_int8(False)), TENSOR + ".*int8"),
    "int8-head-stored": ("full", _int8(True), r"dtype of score\.weight in model\.safetensors: found I8 "),
    "int8-head-stock": ("stock", _int8(False), TENSOR + ".*int8"),
    "wrong-dtype": ("full", _narrow, r"dtype of model\.[\w.]+, .* and \d+ more: found bfloat16"),
    "wrong-dtype-stock": ("stock", _narrow, r"dtype of model\.[\w.]+, .* and \d+ more: found bfloat16"),
    "nan": ("full", _nan, TENSOR + "NaN or inf"),
    "nan-stock": ("stock", _nan, TENSOR + "NaN or inf"),
    "no-tokenizer": (
        "full",
        lambda folder: (folder / "tokenizer.json").unlink(),
        r"tokenizer\.json: .* missing",
    ),
    "no-code": (
        "adapter",
        lambda folder: (folder / "packing_task_heads.py").unlink(),
        r"packing_task_heads\.py: .* missing",
    ),
    "other-code": (
        "full",
        lambda folder: (folder / "pooling_task_heads.py").write_text("raise SystemExit"),
        r"pooling_task_heads\.py: found other code",
    ),
}


# One case of each corruption; for a stock class also the pad id, by which it finds the last token.
DAILY = {
    "head-dropped",
    "labels-permuted",
    "pad-changed",
    "pad-changed-stock",
    "pooling-changed-adapter",
    "tensor-scaled",
    "template-changed",
    "int8-head",
    "wrong-dtype",
    "nan",
    "no-tokenizer",
    "other-code",
}


@pytest.mark.parametrize(
    "name",
    [name if name in DAILY else pytest.param(name, marks=pytest.mark.slow) for name in CORRUPTIONS],
)
def test_a_corruption_is_reported_with_its_place(
    prepared: Any, open_in: Any, tmp_path: Path, name: str
) -> None:
    kind, corrupt, pattern = CORRUPTIONS[name]
    folder, reference = prepared[kind]
    shutil.copytree(folder, tmp_path / "it")
    corrupt(tmp_path / "it")
    with pytest.raises(TaskHeadsError) as caught:
        verify_artifact(tmp_path / "it", reference=reference, kind=kind, repo_id="me/it", run=open_in)
    problems = caught.value.problems
    assert [one for one in problems if re.search(pattern, f"{one.where}: {one.problem}")], str(caught.value)
    assert {problem.code for problem in problems} <= {"verification-failed", "model-corrupted"}


@pytest.mark.parametrize("kind", ["merged", "stock"])
def test_an_adapter_that_was_not_merged_is_refused(
    prepared: Any, open_in: Any, bases: dict[str, str], tmp_path: Path, kind: str
) -> None:
    folder, reference = prepared[kind]
    shutil.copytree(folder, tmp_path / "it")
    base = load_file(Path(bases["qwen2"], "model.safetensors"))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: base[name] for name in tensors if name in base})

    _tensors(tmp_path / "it" / "model.safetensors", change)
    with pytest.raises(TaskHeadsError, match=r"down_proj\.weight") as caught:
        verify_artifact(tmp_path / "it", reference=reference, kind=kind, repo_id="me/it", run=open_in)
    assert ("verification-failed", "the adapter is not merged") in codes(caught)


@pytest.mark.parametrize("probe", [True, False])
def test_another_base_is_refused(
    prepared: Any, open_in: Any, bases: dict[str, str], tmp_path: Path, probe: bool
) -> None:
    folder, reference = prepared["adapter"]
    shutil.copytree(folder, tmp_path / "it")
    shutil.copytree(bases["qwen2"], tmp_path / "base")
    _tensors(tmp_path / "base" / "model.safetensors", lambda t: t["model.norm.weight"].mul_(1.5))

    def change(config: dict[str, Any]) -> None:
        config["backbone_name_or_path"] = str(tmp_path / "base")
        config["backbone_files"] = None  # as of a base on a hub
        config["probe"] = config["probe"] if probe else None

    _json(tmp_path / "it" / "config.json", change)
    with pytest.raises(TaskHeadsError) as caught:
        verify_artifact(tmp_path / "it", reference=reference, kind="adapter", repo_id="me/it", run=open_in)
    assert {
        ("verification-failed", "the base: config.json backbone_name_or_path"),
        ("verification-failed", "the base"),
    } <= codes(caught)
    assert "model.norm.weight" in str(caught.value)
    assert ("probe" in str(caught.value)) == probe


def test_all_differences_are_raised_together(prepared: Any, open_in: Any, tmp_path: Path) -> None:
    folder, reference = prepared["full"]
    shutil.copytree(folder, tmp_path / "it")
    for corrupt in (_permute, _pad, _pooling, _template, _scale):
        corrupt(tmp_path / "it")
    with pytest.raises(TaskHeadsError) as caught:
        verify_artifact(tmp_path / "it", reference=reference, kind="full", repo_id="me/it", run=open_in)
    wheres = " | ".join(problem.where for problem in caught.value.problems)
    for name in ("labels", "pad_token_id", "pooling", "tokenizer template", "up_proj.weight", "logits"):
        assert name in wheres


def test_missing_files_references_and_failed_processes_are_reported(
    prepared: Any, open_in: Any, tmp_path: Path
) -> None:
    folder, reference = prepared["full"]
    with pytest.raises(TaskHeadsError, match="exl2") as caught:
        verify_artifact(folder, reference=reference, kind="exl2", repo_id="me/it")
    assert codes(caught) == {("option-value", "kind")}
    with pytest.raises(TaskHeadsError) as caught:
        read_reference(tmp_path)
    assert codes(caught) == {("path-not-found", str(tmp_path / "reference.json"))}
    shutil.copytree(folder, tmp_path / "staged")
    (tmp_path / "staged" / "pooling_task_heads.py").unlink()
    with pytest.raises(TaskHeadsError) as caught:
        verify_artifact(
            tmp_path / "staged", reference=reference, kind="full", repo_id="me/it", named="runs/it"
        )
    # the folder of the user, not the temporary copy
    assert codes(caught) == {("model-corrupted", "runs/it/pooling_task_heads.py")}
    with pytest.raises(TaskHeadsError, match="it crashed") as caught:
        verify_artifact(
            folder, reference=reference, kind="full", repo_id="me/it", run=lambda job: "it crashed"
        )
    assert codes(caught) == {("verification-failed", str(folder))}


# Without a network PEFT cannot ask the hub whether the vocabulary grew, and warns.
@pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")
def test_a_base_of_a_hub_comes_from_the_cache_and_a_scorer_reads_pairs(
    bases: dict[str, str], shake: Any, open_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half precision on disk, prompts of titles, and a base that is only in the user's cache."""
    from qwen_task_heads.verification.artifacts import lay_out

    cache = tmp_path / "hub"
    shutil.copytree(bases["qwen3"], tmp_path / "base")
    _narrow(tmp_path / "base")
    lay_out(tmp_path / "base", cache=cache, repo_id="base/qwen3")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    tokenizer = load_tokenizer("base/qwen3")
    model = build("base/qwen3", dtype=torch.bfloat16)
    compile_template(tokenizer, template=Template(between=" -> "), model_type="qwen3", max_length=64)
    model = shake(get_peft_model(model, adapter_config(model, r=2, dora=True)))
    reference = take_reference(
        model, tokenizer=tokenizer, texts=["Parliament met."] * 3, text_pairs=["It met", "A budget", "Why?"]
    )
    folder = save(model, tokenizer=tokenizer, folder=tmp_path / "run", repo_id="me/titles")
    parity = verify_artifact(folder, reference=reference, kind="adapter", repo_id="me/titles", run=open_in)
    assert all(row.bound is not None and row.bound < 1e-5 for row in parity.rows)
    wide = merge(str(folder), dtype=torch.float32)
    merged = save(wide, tokenizer=tokenizer, folder=tmp_path / "merged")
    parity = verify_artifact(merged, reference=reference, kind="merged", repo_id="me/titles", run=open_in)
    assert all(row.bound is not None and row.bound < 1e-4 for row in parity.rows)
    half = merge(str(folder))  # merged in fp32, stored in the dtype of the base
    merged = save(half, tokenizer=tokenizer, folder=tmp_path / "half")
    parity = verify_artifact(merged, reference=reference, kind="merged", repo_id="me/titles", run=open_in)
    assert all(row.bound is not None and row.difference <= row.bound < 1 for row in parity.rows)


def test_a_stock_class_in_half_precision_keeps_the_head_of_training_in_its_file(
    bases: dict[str, str], shake: Any, open_in: Any, tmp_path: Path
) -> None:
    """transformers rounds the head when it loads the file; servers that compute it in fp32 do not."""
    tokenizer = load_tokenizer(bases["qwen2"])
    model = build(bases["qwen2"], task="pooled_classifier", labels=LABELS, dtype=torch.bfloat16)
    bind_template(tokenizer, model.config)
    shake(model)
    reference = take_reference(model, tokenizer=tokenizer, texts=HELD)
    folder = export_stock(model, tokenizer=tokenizer, folder=tmp_path / "stock")
    given: dict[str, Any] = {"reference": reference, "kind": "stock", "repo_id": "me/it", "run": open_in}
    parity = verify_artifact(folder, **given)
    assert max(row.difference for row in parity.rows) > 1e-5  # the head was rounded
    assert all(row.bound is not None and row.difference <= row.bound < 1 for row in parity.rows)
    shutil.copytree(folder, tmp_path / "narrow")
    _narrow(tmp_path / "narrow")
    with pytest.raises(TaskHeadsError, match="bfloat16") as caught:
        verify_artifact(tmp_path / "narrow", **given)
    assert ("verification-failed", "dtype of score.weight") in codes(caught)
    _tensors(folder / "model.safetensors", lambda tensors: tensors["score.weight"].mul_(1.001))
    with pytest.raises(TaskHeadsError) as caught:
        verify_artifact(folder, **given)
    assert ("verification-failed", "tensor score.weight") in codes(caught)


@pytest.mark.slow
def test_graphs_are_within_their_bounds(prepared: Any, open_in: Any, shake: Any, tmp_path: Path) -> None:
    """An fp32 graph is equal, int8 reports its agreement, and the graph of another model is refused."""
    pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
    from qwen_task_heads.export.onnx import export_onnx

    folder, reference = prepared["full"]
    shutil.copytree(folder, tmp_path / "it")
    export_onnx(str(folder), folder=tmp_path / "it", int8=True)
    given = {"reference": reference, "repo_id": "me/it", "run": open_in}
    parity = verify_artifact(tmp_path / "it", kind="onnx", **given)
    assert len(parity.rows) == 6
    assert all(row.opened_by == "onnxruntime" for row in parity.rows)
    assert all(row.bound is not None and row.difference <= row.bound for row in parity.rows)
    parity = verify_artifact(tmp_path / "it", kind="onnx_int8", **given)
    assert parity.card_rows()[0]["bound"] == "none"
    assert max(row.difference for row in parity.rows) > 1e-4
    assert min(row.agreement for row in parity.rows) > 0.7
    (tmp_path / "it" / "onnx" / "model_int8.onnx").replace(tmp_path / "it" / "onnx" / "model.onnx")
    with pytest.raises(TaskHeadsError, match=r"logits \(.* padding, batch \d+\)") as caught:
        verify_artifact(tmp_path / "it", kind="onnx", **given)
    assert {problem.code for problem in caught.value.problems} == {"verification-failed"}
    _permute(tmp_path / "it")
    with pytest.raises(TaskHeadsError) as caught:
        verify_artifact(tmp_path / "it", kind="onnx", **given)
    assert ("verification-failed", "config.json labels") in codes(caught)
    (tmp_path / "it" / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(TaskHeadsError, match=r"InvalidProtobuf|INVALID_PROTOBUF") as caught:
        verify_artifact(tmp_path / "it", kind="onnx", **given)
    assert codes(caught) == {("verification-failed", str(tmp_path / "it"))}


def test_a_quantized_base_has_a_wider_bound_and_its_adapter_the_same(
    prepared: Any, open_in: Any, tmp_path: Path
) -> None:
    """The report is that of a 4-bit base, whose packed tensors are not compared."""
    folder, reference = prepared["adapter"]
    report = json.loads(json.dumps(reference.report))
    report["quantized"] = True
    for name, entry in report["tensors"].items():
        if ".lora_" not in name and not name.startswith("score."):
            entry.update(dtype="uint8", shape=[7, 1], sha256="0")
    quantized = Reference(reference.job, report)
    parity = verify_artifact(folder, reference=quantized, kind="adapter", repo_id="me/it", run=open_in)
    assert all(row.bound is not None and row.bound >= 0.5 for row in parity.rows)
    shutil.copytree(folder, tmp_path / "it")
    _without_probe(_scale_adapter)(tmp_path / "it")
    with pytest.raises(TaskHeadsError, match=r"up_proj\.lora_B\.weight") as caught:
        verify_artifact(tmp_path / "it", reference=quantized, kind="adapter", repo_id="me/it", run=open_in)
    assert {problem.code for problem in caught.value.problems} == {"verification-failed"}


def test_a_failure_of_the_process_is_reported_with_its_last_line(prepared: Any) -> None:
    folder, reference = prepared["full"]
    trace = "Traceback:\n  File 'clean_process.py'\nMemoryError: none left\n"
    with pytest.raises(TaskHeadsError, match="MemoryError: none left") as caught:
        verify_artifact(folder, reference=reference, kind="full", repo_id="me/it", run=lambda job: trace)
    assert codes(caught) == {("verification-failed", str(folder))}
    assert "Traceback" not in str(caught.value)


def test_an_artifact_is_verified_in_a_subprocess(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The subprocess is isolated, has no tokens, and cannot import the package."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folder, reference = prepared["adapter"]
    parity = verify_artifact(folder, reference=reference, kind="adapter", repo_id="me/it")
    assert {row.artefact for row in parity.rows} == {"adapter"}


# Memory


def test_a_reference_without_memory_for_fp32_is_computed_in_the_stored_dtype(
    bases: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is exhausted at the third tensor, and the first two are narrowed again."""
    model = build(bases["qwen2"], dtype=torch.bfloat16).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    widened = []

    def widen(tensor: torch.Tensor) -> torch.Tensor:
        widened.append(tensor.dtype)
        if len(widened) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.00 GiB")
        return tensor.to(torch.float32)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", widen)
        with pytest.raises(torch.OutOfMemoryError), fingerprint.in_fp32(model):
            pytest.fail("it was widened")
    assert widened == [torch.bfloat16] * 3
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    monkeypatch.setattr("qwen_task_heads.verification.artifacts.available_memory", lambda: 0.0)
    reference = take_reference(model, tokenizer=load_tokenizer("embedded"))
    assert reference.report["computed_in"] == "bfloat16"
    assert model.training


FULL = """
def _move(model, device, wide):
    import torch
    if device == "cuda" or {fails}:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.00 GiB")
    return model.to(device)


def main() -> None:"""


def _small(open_with: CleanProcess, folder: Path, *, fails: str) -> Callable[[Path], str]:
    """Run `clean_process.py` as on a machine whose GPU is too small for the model, with further failures."""
    shutil.copy(fingerprint.__file__, folder)
    code = PROGRAM.read_text(encoding="utf-8").replace("def main() -> None:", FULL.format(fails=fails))
    code = code.replace('model.to(job["device"])', '_move(model, job["device"], job["wide"])')
    program = folder / "small.py"
    program.write_text(code, encoding="utf-8")

    def run(job: Path) -> str:
        by_path = f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')"
        open_with.run(by_path, job, folder=folder)
        return ""

    return run


@pytest.mark.slow
def test_a_model_over_the_memory_of_a_gpu_is_compared_on_the_cpu_or_in_its_stored_dtype(
    bases: dict[str, str], clean: CleanProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(bases["qwen2"])
    model = build(bases["qwen2"], task="pooled_classifier", labels=LABELS, dtype=torch.bfloat16)
    bind_template(tokenizer, model.config)
    reference = take_reference(model, tokenizer=tokenizer, texts=HELD)
    folder = save(model, tokenizer=tokenizer, folder=tmp_path / "it")
    reference.report["device"] = "cuda"  # as if trained there
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def verified(fails: str) -> Parity:
        run = _small(clean, tmp_path, fails=fails)
        return verify_artifact(folder, reference=reference, kind="full", repo_id="me/it", run=run)

    rows = verified("False").rows
    assert {row.bound / OTHER_DEVICE < 20 for row in rows if row.bound is not None} == {True}
    assert not any("bfloat16" in row.opened_by for row in rows)
    rows = verified("wide").rows
    assert all(row.opened_by.endswith("in bfloat16: not enough memory for fp32") for row in rows)
    assert all(row.bound is not None and row.bound >= HALF for row in rows)
    assert max(row.difference for row in rows) > 1e-5  # the stored dtype was used
    with pytest.raises(TaskHeadsError) as caught:
        verified("True")
    assert "OutOfMemoryError" in str(caught.value)
    assert {problem.code for problem in caught.value.problems} == {"memory-exceeded"}
    assert "save the model again" not in str(caught.value)


def test_a_process_killed_by_the_system_is_tried_again_with_less_memory(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system kills a process without memory, whose last line on stderr is an unrelated warning."""
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, sys; job = json.load(open(sys.argv[1])); print('a warning', file=sys.stderr)\n"
        "open('tried', 'a').write(str(job['wide'])); os.kill(os.getpid(), 9)"
    )
    monkeypatch.setattr(artifacts, "PROGRAM", program)
    job = tmp_path / "job.json"
    job.write_text('{"wide": true}')
    assert in_subprocess(job) == "ended by signal 9: most likely out of memory"
    folder, reference = prepared["full"]
    tried = []

    def run(job: Path) -> str:
        tried.append(json.loads(job.read_text())["wide"])
        return in_subprocess(job)

    with pytest.raises(TaskHeadsError, match="signal 9") as caught:
        verify_artifact(folder, reference=reference, kind="full", repo_id="me/it", run=run)
    assert codes(caught) == {("memory-exceeded", str(folder))}
    assert tried == [True, False]
