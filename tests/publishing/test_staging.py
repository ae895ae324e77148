"""What travels and what stays, the repo's name in the staged files, and adapters nobody else could open."""

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
from qwen_task_heads.publishing.publish import check_publishable, publish
from qwen_task_heads.publishing.staging import CONFIGURATION, check_run, files_of, is_publishable, stage

CARD = (
    '---\nlicense: mit\n---\n# T\n\nLook at [errors.md](errors.md), all answers in `predictions.jsonl`.\n\n'
    '## How to load it\n\n```python\nload("path/to/my-run")\n```\n'
)  # fmt: skip
STAYS = (
    "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
    "reference.json", "events.out.tfevents.1", "features.npy", ".env", ".git/config",
    "checkpoint-5/model.safetensors", "checkpoint-5/config.json", "notes.txt", "runs/x/events",
    "pytorch_model.bin", "a/b.png", "labels.jsonl",
)  # fmt: skip
TRAVELS = ("README.md", "metrics.json", "training.png", ".eval_results/a.yaml", "LICENSE", "onnx/model.onnx")
ROWS = ("predictions.jsonl", "errors.md")


@pytest.fixture
def folder(tmp_path: Path, bases: Any, shake: Any) -> Path:
    """An adapter's run folder with all that may lie there."""
    model = build(bases["qwen2"])
    adapted = shake(get_peft_model(model, adapter_config(model, r=2)), width=0.01)
    folder = save(adapted, tokenizer=load_tokenizer(bases["qwen2"]), folder=tmp_path / "run")
    for name in (*STAYS, *TRAVELS, *ROWS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "README.md").write_text(CARD)
    content = {"seed": 3, "files": hash_files(folder), "code": {}}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_exactly_the_files_of_a_model_are_staged(folder: Path, tmp_path: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in files_of(folder)}
    staged = stage(folder, tmp_path / "staged", repo_id="me/t", hub="huggingface")
    names = set(files_of(staged))
    assert not names & {*STAYS, *ROWS}
    assert names >= {*TRAVELS, "config.json", "adapter/adapter_config.json",
                     "adapter/adapter_model.safetensors",
                     "tokenizer.json", "modeling_task_heads.py", "handler.py", "manifest.json"}  # fmt: skip
    assert {name: (folder / name).read_bytes() for name in files_of(folder)} == before
    with_rows = stage(folder, tmp_path / "rows", repo_id="me/t", hub="huggingface", rows=True)
    assert set(files_of(with_rows)) == {*names, *ROWS}


def test_staged_files_name_the_repo_and_nothing_of_the_machine(folder: Path, tmp_path: Path) -> None:
    staged = stage(folder, tmp_path / "staged", repo_id="me/t", hub="huggingface")
    adapter = json.loads((staged / "adapter/adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (SEE_CONFIG, None)
    card = (staged / "README.md").read_text()
    assert 'load("me/t")' in card
    assert "path/to" not in card
    assert "errors.md" not in card
    manifest = json.loads((staged / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert set(manifest["files"]) == set(files_of(staged)) - {"manifest.json"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((staged / name).read_bytes()).hexdigest() == digest
    assert "modeling_task_heads.py" in manifest["code"]
    assert "config.json" not in manifest["code"]
    told = [name for name in files_of(staged) if str(tmp_path).encode() in (staged / name).read_bytes()]
    assert told == []


def test_staging_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    both = [stage(folder, tmp_path / str(i), repo_id="me/t", hub="modelscope") for i in range(2)]
    first, second = ({name: (at / name).read_bytes() for name in files_of(at)} for at in both)
    assert first == second


def test_modelscope_gets_its_configuration_and_its_call(folder: Path, tmp_path: Path) -> None:
    staged = stage(folder, tmp_path / "staged", repo_id="me/t", hub="modelscope", rows=True)
    assert json.loads((staged / "configuration.json").read_text()) == CONFIGURATION
    card = (staged / "README.md").read_text()
    assert 'snapshot_download("me/t")' in card
    assert "[errors.md](errors.md)" in card
    assert not (
        stage(folder, tmp_path / "hf", repo_id="me/t", hub="huggingface") / "configuration.json"
    ).exists()


@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
def test_a_card_of_a_branch_names_it_in_its_lines(folder: Path, tmp_path: Path, hub: str) -> None:
    staged = stage(folder, tmp_path / "staged", repo_id="me/t", hub=hub, revision="v9")
    card = (staged / "README.md").read_text()
    assert 'load("me/t", revision="v9")' in card
    assert ('snapshot_download("me/t", revision="v9")' in card) == (hub == "modelscope")


def test_links_and_folders_without_a_model_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "metrics.json").unlink()
    (folder / "metrics.json").symlink_to("/etc/hostname")
    (folder / "config.json").unlink()
    with pytest.raises(TaskHeadsError) as caught:
        stage(folder, tmp_path / "staged", repo_id="me/t", hub="huggingface")
    assert "metrics.json: found a link" in str(caught.value)
    assert "found no model" in str(caught.value)
    assert not (tmp_path / "staged").exists()
    with pytest.raises(TaskHeadsError, match="found files; accepted: a new or empty folder"):
        stage(folder, folder, repo_id="me/t", hub="huggingface")


@pytest.mark.parametrize("name", ["../config.json", "a/config.json", "CONFIG.JSON", "onnx/x/model.onnx", ""])
def test_names_that_look_like_those_that_travel_do_not(name: str) -> None:
    assert not is_publishable(name, rows=True)


def test_an_adapter_of_a_local_base_is_refused_before_and_after_training(folder: Path, bases: Any) -> None:
    for call in (
        lambda: publish(folder, repo_id="me/t"),
        lambda: check_publishable(bases["qwen2"], adapter=True),
        lambda: check_publishable("embedded", adapter=True),
    ):
        with pytest.raises(TaskHeadsError, match=r"a folder of this machine.*publish it merged"):
            call()
    for backbone, adapter in (("embedded", False), ("Qwen/Qwen3-0.6B", True), (bases["qwen2"], False)):
        assert check_publishable(backbone, adapter=adapter) is None


def test_what_no_longer_belongs_to_its_run_is_named_all_at_once(folder: Path, tmp_path: Path) -> None:
    assert check_run(folder) == ()
    (folder / "README.md").write_text("# My own words")
    (folder / "notes.txt").write_text("not of the model")
    (folder / "NOTICE").write_text("added afterwards")
    assert check_run(folder) == ("README.md was edited after the run, and is published as it is.",)
    for name in ("config.json", "metrics.json", "reference.json"):
        (folder / name).write_text("{ }")
    (folder / "training.png").unlink()
    (folder / "pooling_task_heads.py").unlink()
    with pytest.raises(TaskHeadsError) as caught:
        publish(folder, repo_id="me/t", form="merged", verify=False, dry_run=tmp_path / "staged")
    found = {Path(problem.where).name: problem.problem for problem in caught.value.problems}
    other = "found another file than the run wrote"
    assert found == {
        "config.json": other, "metrics.json": other, "reference.json": other,
        "pooling_task_heads.py": "found no such file", "training.png": "found no such file",
    }  # fmt: skip
    assert {Path(problem.where).parent for problem in caught.value.problems} == {folder}
    assert all("train again" in problem.fix for problem in caught.value.problems)
    assert not (tmp_path / "staged").exists()


@pytest.mark.parametrize("manifest", [None, "{", '{"files": ["config.json"]}', "[]"])
def test_a_run_without_its_list_of_files_is_refused(folder: Path, manifest: str | None) -> None:
    (folder / "manifest.json").unlink()
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    with pytest.raises(TaskHeadsError, match=r"found it without manifest\.json|found no such list") as caught:
        check_run(folder)
    assert "delete" not in str(caught.value)


def test_a_folder_that_was_only_saved_is_taken_and_says_so(folder: Path) -> None:
    for name in ("manifest.json", "metrics.json", ".eval_results/a.yaml"):
        (folder / name).unlink()
    assert check_run(folder) == ("The folder holds no account of a run: it is published without figures.",)


@torch.no_grad()
def test_merged_and_stock_forms_bring_the_account_of_the_run(folder: Path, tmp_path: Path) -> None:
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
            *STAYS,
        }
        assert ("modeling_task_heads.py" in names) == (form == "merged")
        assert "me/t" in (staged / "README.md").read_text()
        if form == "merged":
            assert (load(str(staged))(input_ids=ids).logits - wanted).abs().max() <= 1e-5


def test_what_cannot_be_published_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskHeadsError, match="--hub: found 'gitee'; accepted: huggingface, modelscope"):
        publish(folder, repo_id="me/t", hub="gitee")
    with pytest.raises(TaskHeadsError, match="--form: found 'gguf'; accepted: saved, merged, stock"):
        publish(folder, repo_id="me/t", form="gguf")
    with pytest.raises(TaskHeadsError, match=r"found no config\.json"):
        publish(tmp_path, repo_id="me/t")
