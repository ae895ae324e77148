"""Tests that a saved folder has all files that loading needs, and no files that prevent it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_same_model
from peft import get_peft_model
from transformers import AutoConfig, AutoTokenizer

from qwen_task_heads import TaskHeadsError, TitleScorer, TitleScorerConfig, adapter_config, build, load, save
from qwen_task_heads.hubcode import CODE
from qwen_task_heads.hubcode.saving_task_heads import SEE_CONFIG

OURS = {"config.json", "tokenizer.json", "tokenizer_config.json", "requirements.txt"}
OURS |= {"README.md", "manifest.json", ".gitignore"}
OURS |= {file.name for file in CODE}


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_copied_code_is_all_of_hubcode() -> None:
    assert {file.name for file in CODE} == {
        "attention_task_heads.py",
        "bucketing_task_heads.py",
        "card_task_heads.py",
        "configuration_task_heads.py",
        "decision_task_heads.py",
        "early_exit_task_heads.py",
        "encoding_task_heads.py",
        "errors_task_heads.py",
        "families_task_heads.py",
        "folder_task_heads.py",
        "handler.py",
        "hashes_task_heads.py",
        "head_layers_task_heads.py",
        "last_layer_task_heads.py",
        "loading_task_heads.py",
        "long_rows_task_heads.py",
        "modeling_task_heads.py",
        "packing_task_heads.py",
        "pipeline_task_heads.py",
        "pooling_task_heads.py",
        "probe_task_heads.py",
        "pushing_task_heads.py",
        "questions_task_heads.py",
        "saving_task_heads.py",
    }


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_the_layout(bases: dict[str, str], tokenizer: Any, tmp_path: Path, kind: str) -> None:
    model = build(bases["qwen2"])
    if kind == "adapter":
        model = get_peft_model(model, adapter_config(model, r=2))
    folder = save(model, tokenizer=tokenizer, folder=tmp_path / "a" / "b")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    weights = {"model.safetensors"}
    if kind == "adapter":
        weights = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert names >= OURS | weights
    assert names <= OURS | weights | {"chat_template.jinja", "special_tokens_map.json"}
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["TitleScorer"]
    assert config["auto_map"]["AutoModelForSequenceClassification"] == "modeling_task_heads.TitleScorer"
    assert config["custom_pipelines"]["title-ranking"]["impl"] == "pipeline_task_heads.TitleRankingPipeline"
    # Full weights need no base, and a folder of this machine is not published.
    assert config["backbone_name_or_path"] == (bases["qwen2"] if kind == "adapter" else None)
    assert "_name_or_path" not in config["text_config"] or not config["text_config"]["_name_or_path"]
    assert model.config.backbone_name_or_path == bases["qwen2"]  # the model at hand keeps it
    assert config["text_config"]["pad_token_id"] == tokenizer.pad_token_id
    assert set(config["probe"]) == {"input_ids", "logits", "dtype"}
    if kind == "adapter":
        adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == SEE_CONFIG
        assert adapter["revision"] is None
        assert adapter["task_type"] == "SEQ_CLS"


def test_saving_twice_gives_the_same_bytes(bases: dict[str, str], tokenizer: Any, tmp_path: Path) -> None:
    model = build(bases["qwen3"])
    first = save(model, tokenizer=tokenizer, folder=tmp_path / "first")
    second = save(model, tokenizer=tokenizer, folder=tmp_path / "second")
    assert _content(first) == _content(second)


def test_the_tokenizer_gives_the_same_ids(bases: dict[str, str], tokenizer: Any, tmp_path: Path) -> None:
    folder = save(build(bases["qwen2"]), tokenizer=tokenizer, folder=tmp_path)
    texts = ["A plain title", "  spaces ", "短い題 🙂"]
    assert AutoTokenizer.from_pretrained(folder)(texts)["input_ids"] == tokenizer(texts)["input_ids"]


def test_a_tokenizer_with_ids_beyond_the_model_is_refused(
    tiny_config: Any, tokenizer: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = TitleScorer(TitleScorerConfig(text_config=tiny_config(vocab_size=128)))
    with pytest.raises(TaskHeadsError, match=r"5025.* 128") as caught:
        save(model, tokenizer=tokenizer, folder=tmp_path / "new")
    assert [(one.code, one.where) for one in caught.value.problems] == [("tokenizer-invalid", "tokenizer")]
    assert "resize_token_embeddings" in caught.value.problems[0].fix
    assert not (tmp_path / "new").exists()  # before anything was written


def test_a_saved_adapter_and_full_weights_do_not_mix(
    bases: dict[str, str], tokenizer: Any, tmp_path: Path
) -> None:
    model = build(bases["qwen2"])
    adapted = get_peft_model(build(bases["qwen2"]), adapter_config(model, r=2))
    save(model, tokenizer=tokenizer, folder=tmp_path / "full")
    save(adapted, tokenizer=tokenizer, folder=tmp_path / "adapter")
    for wrong, folder in ((adapted, "full"), (model, "adapter")):
        before = _content(tmp_path / folder)
        with pytest.raises(TaskHeadsError) as caught:
            save(wrong, tokenizer=tokenizer, folder=tmp_path / folder)
        assert {(one.code, one.where) for one in caught.value.problems} == {
            ("model-ambiguous", str(tmp_path / folder))
        }
        assert _content(tmp_path / folder) == before
    # the same kind can be saved again, as a trainer does
    save(model, tokenizer=tokenizer, folder=tmp_path / "full")
    load(str(save(adapted, tokenizer=tokenizer, folder=tmp_path / "adapter")))


def test_a_moved_folder_loads(bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path: Path) -> None:
    model = shake(build(bases["llama"]))
    folder = save(model, tokenizer=tokenizer, folder=tmp_path / "here")
    folder.rename(tmp_path / "there")
    ids = torch.arange(20).view(2, 10)
    assert_same_model(load(str(tmp_path / "there")), model, input_ids=ids)
    assert AutoConfig.from_pretrained(tmp_path / "there").model_type == "title_scorer"


def test_the_requirements_are_those_of_the_project(
    bases: dict[str, str], tokenizer: Any, tmp_path: Path
) -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    model = build(bases["qwen2"])
    save(model, tokenizer=tokenizer, folder=tmp_path / "full")
    fresh = build(bases["qwen2"])
    save(get_peft_model(fresh, adapter_config(fresh, r=2)), tokenizer=tokenizer, folder=tmp_path / "adapter")
    full, adapter = (
        (tmp_path / kind / "requirements.txt").read_text("utf-8").split() for kind in ("full", "adapter")
    )
    assert [word.split(",")[0] for word in full] == ["transformers>=5.3"]
    assert [word.split(",")[0] for word in adapter] == ["transformers>=5.3", "peft>=0.18"]
    assert all(f'"{word.split(",")[0]}"' in project for word in adapter)
