"""Tests that a run is published as a GGUF file, and only if the file has the trained model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from peft import get_peft_model

from qwen_task_heads import TaskHeadsError, adapter_config, build, load, load_tokenizer, publish, save
from qwen_task_heads.gguf_weights import GGUF_FILE
from qwen_task_heads.publishing.staging import files_of, is_stale, task_of
from qwen_task_heads.tokenization.templates import bind_template
from qwen_task_heads.verification.parity import verify_artifact
from qwen_task_heads.verification.reference import take_reference

LABELS = ["politics", "sport"]


@pytest.fixture
def folder(bases: dict[str, str], shake: Any, tmp_path: Path) -> Path:
    """An adapter with its head, on Qwen3."""
    model = build(bases["qwen3"], task="pooled_classifier", labels=LABELS, pooling="last", max_seq_length=32)
    tokenizer = load_tokenizer(bases["qwen3"])
    bind_template(tokenizer, model.config)
    model = shake(get_peft_model(model, adapter_config(model, r=4)), width=0.02)
    return save(model, tokenizer=tokenizer, folder=tmp_path / "saved")


@pytest.mark.slow
@pytest.mark.usefixtures("quick_proof")
def test_the_staged_file_is_verified_and_its_errors_are_found(folder: Path, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    publish(folder, repo_id="me/it", form="gguf", dry_run=staged)
    names = set(files_of(staged))
    assert names >= {GGUF_FILE, "config.json", "tokenizer.json", "README.md", "manifest.json"}
    assert not [name for name in names if name.endswith((".py", ".safetensors"))]
    rows = json.loads((staged / "parity.json").read_text())["rows"]
    assert {row["artefact"] for row in rows} == {"gguf"}
    for row in rows:
        assert row["opened_by"].startswith("Qwen3ForSequenceClassification")
        assert row["difference"] <= row["bound"] <= 1e-4
    card = (staged / "README.md").read_text()
    assert "llama-server -m model.gguf --embedding --pooling rank" in card
    assert 'AutoTokenizer.from_pretrained("me/it")' in card
    assert task_of(staged) == "a single label classification head of politics, sport"
    assert is_stale(GGUF_FILE, earlier=[])  # in a repo whose next format has other weights

    changed = Path(shutil.copytree(staged, tmp_path / "changed"))
    reader = GGUFReader(changed / GGUF_FILE, mode="r+")
    for name, factor in {"cls.output.weight": 0.5, "blk.1.ffn_up.weight": 1.5}.items():
        [tensor] = [tensor.data for tensor in reader.tensors if tensor.name == name]
        np.multiply(tensor, factor, out=tensor)
    reader.data.flush()
    reference = take_reference(load(str(folder)), tokenizer=load_tokenizer(str(folder)))
    with pytest.raises(TaskHeadsError) as caught:
        verify_artifact(changed, reference=reference, kind="gguf", repo_id="me/it")
    places = " ".join(problem.where for problem in caught.value.problems)
    assert "score" in places
    assert "layers.1.mlp.up_proj.weight" in places
    assert "logits" in places


@pytest.mark.usefixtures("quick_proof")
def test_a_missing_file_is_named(folder: Path) -> None:
    reference = take_reference(load(str(folder)), tokenizer=load_tokenizer(str(folder)))
    with pytest.raises(TaskHeadsError) as caught:
        verify_artifact(folder, reference=reference, kind="gguf", repo_id=None)
    assert [problem.where for problem in caught.value.problems] == [f"{folder}/{GGUF_FILE}"]
