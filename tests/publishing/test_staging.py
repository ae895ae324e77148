"""Tests of the staged files, of the repo's name in them, and of adapters on a local base."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from qwen_task_heads import adapter_config, build, load, load_tokenizer, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.files import hash_files
from qwen_task_heads.hubcode.saving_task_heads import SEE_CONFIG
from qwen_task_heads.publishing.cards import stage_card
from qwen_task_heads.publishing.formats import refuse_local_base
from qwen_task_heads.publishing.publish import publish
from qwen_task_heads.publishing.staging import (
    check_run,
    files_of,
    is_publishable,
    stage,
    update_manifest,
)
from qwen_task_heads.reports.card_facts import NOTHING_STATED

CARD = (
    "---\nlicense: mit\n---\n# T\n\nWords of the user.\n\n"
    '## How to load it\n\n```python\nload(".")\n```\n'
)  # fmt: skip
PRIVATE = (
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "reference.json",
    "events.out.tfevents.1",
    "features.npy",
    ".env",
    ".git/config",
    "checkpoint-5/model.safetensors",
    "checkpoint-5/config.json",
    "notes.txt",
    "runs/x/events",
    "pytorch_model.bin",
    "a/b.png",
    "labels.jsonl",
)
PUBLIC = ("README.md", "metrics.json", "training.png", ".eval_results/a.yaml", "LICENSE", "onnx/model.onnx")
ROWS = ("predictions.jsonl", "errors.md")


@pytest.fixture
def folder(tmp_path: Path, bases: Any, shake: Any) -> Path:
    """The run folder of an adapter, with all kinds of files."""
    model = build(bases["qwen2"])
    adapted = shake(get_peft_model(model, adapter_config(model, r=2)), width=0.01)
    folder = save(adapted, tokenizer=load_tokenizer(bases["qwen2"]), folder=tmp_path / "run")
    for name in (*PRIVATE, *PUBLIC, *ROWS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "README.md").write_text(CARD)
    content = {"seed": 3, "files": hash_files(folder), "code": {}}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def staged_for(
    folder: Path, destination: Path, *, hub: str = "huggingface", revision: str | None = None
) -> Path:
    """Stage a folder with its card, as `publish` does."""
    staged = stage(folder, destination, hub=hub)
    place: dict[str, Any] = {"repo_id": "me/t", "hub": hub, "revision": revision}
    stage_card(staged, folder=folder, form="saved", facts=NOTHING_STATED, **place)
    return update_manifest(staged)


def test_only_the_files_of_a_published_model_are_staged(folder: Path, tmp_path: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in files_of(folder)}
    staged = stage(folder, tmp_path / "staged", hub="huggingface")
    names = set(files_of(staged))
    assert not names & {*PRIVATE, *ROWS}
    assert names >= {
        *PUBLIC,
        "config.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "tokenizer.json",
        "modeling_task_heads.py",
        "handler.py",
        "manifest.json",
    }
    assert {name: (folder / name).read_bytes() for name in files_of(folder)} == before
    with_rows = stage(folder, tmp_path / "rows", hub="huggingface", rows=True)
    assert set(files_of(with_rows)) == {*names, *ROWS}


def test_staged_files_name_the_repo_and_no_path_of_the_machine(folder: Path, tmp_path: Path) -> None:
    staged = staged_for(folder, tmp_path / "staged")
    adapter = json.loads((staged / "adapter/adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (SEE_CONFIG, None)
    card = (staged / "README.md").read_text()
    assert 'load("me/t")' in card
    assert "Words of the user." in card
    manifest = json.loads((staged / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert set(manifest["files"]) == set(files_of(staged)) - {"manifest.json"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((staged / name).read_bytes()).hexdigest() == digest
    assert "modeling_task_heads.py" in manifest["code"]
    assert "config.json" not in manifest["code"]
    with_path = [name for name in files_of(staged) if str(tmp_path).encode() in (staged / name).read_bytes()]
    assert with_path == []


def test_staging_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    both = [staged_for(folder, tmp_path / str(i), hub="modelscope") for i in range(2)]
    first, second = ({name: (at / name).read_bytes() for name in files_of(at)} for at in both)
    assert first == second


def test_modelscope_gets_its_configuration_and_its_loading_code(folder: Path, tmp_path: Path) -> None:
    staged = staged_for(folder, tmp_path / "staged", hub="modelscope")
    configuration = json.loads((staged / "configuration.json").read_text())
    assert configuration == {"framework": "pytorch", "task": "text-classification"}
    card = (staged / "README.md").read_text()
    assert 'snapshot_download("me/t")' in card
    assert not (stage(folder, tmp_path / "hf", hub="huggingface") / "configuration.json").exists()


@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
def test_the_code_on_a_card_names_the_branch(folder: Path, tmp_path: Path, hub: str) -> None:
    staged = staged_for(folder, tmp_path / "staged", hub=hub, revision="v9")
    card = (staged / "README.md").read_text()
    assert 'load("me/t", revision="v9")' in card
    assert ('snapshot_download("me/t", revision="v9")' in card) == (hub == "modelscope")


def test_links_and_folders_without_a_model_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "metrics.json").unlink()
    (folder / "metrics.json").symlink_to("/etc/hostname")
    (folder / "config.json").unlink()
    with pytest.raises(TaskHeadsError) as caught:
        stage(folder, tmp_path / "staged", hub="huggingface")
    assert [(problem.code, problem.where) for problem in caught.value.problems] == [
        ("file-format", str(folder / "metrics.json")),
        ("model-not-found", str(folder)),
    ]
    assert not (tmp_path / "staged").exists()
    with pytest.raises(TaskHeadsError) as caught:
        stage(folder, folder, hub="huggingface")
    assert ("path-exists", str(folder)) in [(one.code, one.where) for one in caught.value.problems]


@pytest.mark.parametrize("name", ["../config.json", "a/config.json", "CONFIG.JSON", "onnx/x/model.onnx", ""])
def test_names_similar_to_published_ones_are_not_published(name: str) -> None:
    assert not is_publishable(name, rows=True)


def test_an_adapter_of_a_local_base_is_refused_before_and_after_training(folder: Path, bases: Any) -> None:
    for call in (
        lambda: publish(folder, repo_id="me/t"),
        lambda: refuse_local_base("--push_to_hub", bases["qwen2"]),
        lambda: refuse_local_base("--push_to_hub", "embedded"),
    ):
        with pytest.raises(TaskHeadsError, match=Path(bases["qwen2"]).name + "|embedded") as caught:
            call()
        assert caught.value.problems[0].code == "base-changed"
        assert "--form merged" in caught.value.problems[0].fix
    refuse_local_base("--push_to_hub", "Qwen/Qwen3-0.6B")


def test_all_files_that_changed_after_the_run_are_reported(folder: Path, tmp_path: Path) -> None:
    assert check_run(folder) == ()
    (folder / "README.md").write_text("# My own words")
    (folder / "notes.txt").write_text("not of the model")
    (folder / "NOTICE").write_text("added afterwards")
    [note] = check_run(folder)
    assert note.startswith("README.md was edited after the run")
    for name in ("config.json", "metrics.json", "reference.json"):
        (folder / name).write_text("{ }")
    (folder / "training.png").unlink()
    (folder / "pooling_task_heads.py").unlink()
    with pytest.raises(TaskHeadsError) as caught:
        publish(folder, repo_id="me/t", form="merged", verify=False, dry_run=tmp_path / "staged")
    found = {Path(problem.where).name: problem.problem for problem in caught.value.problems}
    changed, missing = "the file changed after the run", "the file is missing"
    assert found == {
        "config.json": changed,
        "metrics.json": changed,
        "reference.json": changed,
        "pooling_task_heads.py": missing,
        "training.png": missing,
    }
    assert {problem.code for problem in caught.value.problems} == {"model-corrupted"}
    assert {Path(problem.where).parent for problem in caught.value.problems} == {folder}
    assert all("train again" in problem.fix for problem in caught.value.problems)
    assert not (tmp_path / "staged").exists()


@pytest.mark.parametrize("manifest", [None, "{", '{"files": ["config.json"]}', "[]"])
def test_a_run_without_a_valid_manifest_is_refused(folder: Path, manifest: str | None) -> None:
    (folder / "manifest.json").unlink()
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    with pytest.raises(TaskHeadsError) as caught:
        check_run(folder)
    code = "path-not-found" if manifest is None else "file-format"
    assert {problem.code for problem in caught.value.problems} == {code}


def test_a_saved_folder_without_a_run_is_accepted_with_a_message(folder: Path) -> None:
    for name in ("manifest.json", "metrics.json", ".eval_results/a.yaml"):
        (folder / name).unlink()
    assert check_run(folder) == (
        "The folder has no record of a run: the model is published without metrics.",
    )


@torch.no_grad()
def test_merged_and_stock_formats_have_the_record_of_the_run(folder: Path, tmp_path: Path) -> None:
    ids = torch.randint(1, 5000, (2, 9), generator=torch.Generator().manual_seed(0))
    wanted = load(str(folder))(input_ids=ids).logits
    for form in ("merged", "stock"):
        staged = tmp_path / form
        publish(folder, repo_id="me/t", form=form, verify=False, dry_run=staged)
        names = set(files_of(staged))
        assert names >= {"model.safetensors", "metrics.json", "training.png", ".eval_results/a.yaml"}
        assert not names & {
            "adapter/adapter_config.json",
            "adapter/adapter_model.safetensors",
            "onnx/model.onnx",
            *PRIVATE,
        }
        assert ("modeling_task_heads.py" in names) == (form == "merged")
        assert "me/t" in (staged / "README.md").read_text()
        if form == "merged":
            assert (load(str(staged))(input_ids=ids).logits - wanted).abs().max() <= 1e-5


def test_invalid_options_and_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    for where, value, options in (("--hub", "gitee", {"hub": "gitee"}), ("--form", "exl2", {"form": "exl2"})):
        with pytest.raises(TaskHeadsError, match=value) as caught:
            publish(folder, repo_id="me/t", **options)
        assert [(one.code, one.where) for one in caught.value.problems] == [("option-value", where)]
    with pytest.raises(TaskHeadsError) as caught:
        publish(tmp_path, repo_id="me/t")
    assert [(one.code, one.where) for one in caught.value.problems] == [("model-not-found", str(tmp_path))]
