"""Files of a repo or of its base that changed after saving are named in an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from peft import get_peft_model
from problem_assertions import raises_problem
from transformers import AutoModel

from qwen_task_heads import TaskHeadsError, adapter_config, build, load, merge, save
from qwen_task_heads.files import check_manifest, hash_files
from qwen_task_heads.repo_checks import commit_of
from qwen_task_heads.verification.artifacts import lay_out


@pytest.fixture(scope="module")
def saved(bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the folder of a base, a full model and an adapter with their manifests."""
    root = tmp_path_factory.mktemp("manifests")
    shutil.copytree(bases["qwen2"], root / "base")
    full = build(str(root / "base"))
    adapter = shake(get_peft_model(build(str(root / "base")), adapter_config(full, r=2)))
    for name, model in (("full", full), ("adapter", adapter)):
        folder = save(model, tokenizer=tokenizer, folder=root / name)
        write_manifest(folder)
    return root


@pytest.fixture
def root(saved: Path, tmp_path: Path) -> Path:
    """Copy of `saved`, whose adapter names the copied base."""
    shutil.copytree(saved, tmp_path / "it")
    path = tmp_path / "it" / "adapter" / "config.json"
    config = json.loads(path.read_text())
    config["backbone_name_or_path"] = str(tmp_path / "it" / "base")
    path.write_text(json.dumps(config))
    write_manifest(tmp_path / "it" / "adapter")
    return tmp_path / "it"


def write_manifest(folder: Path) -> None:
    (folder / "README.md").write_text("# A card")
    (folder / "manifest.json").write_text(json.dumps({"seed": 1, "files": hash_files(folder)}))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("entrance", [load, build, merge], ids=lambda function: function.__name__)
@pytest.mark.parametrize(
    "name", ["tokenizer.json", "pooling_task_heads.py", "adapter/adapter_model.safetensors"]
)
def test_a_changed_file_is_named(root: Path, name: str, entrance: Callable[[str], Any]) -> None:
    entrance(str(root / "adapter"))
    _flip(root / "adapter" / name)
    with raises_problem("model-corrupted", f"{root}/adapter/{name}", match="[0-9a-f]{64}.*[0-9a-f]{64}"):
        entrance(str(root / "adapter"))


def test_all_changed_and_missing_files_are_named_except_cards(
    root: Path,
) -> None:
    folder = root / "full"
    (folder / "packing_task_heads.py").unlink()
    (folder / "README.md").write_text("# Another card")
    with pytest.raises(TaskHeadsError) as caught:
        check_manifest(str(folder))
    assert [Path(problem.where).name for problem in caught.value.problems] == ["packing_task_heads.py"]
    _flip(folder / "model.safetensors")
    with raises_problem("model-corrupted", match="2 problems"):
        load(str(folder))
    assert load(str(folder), verify=False).config.model_type == "title_scorer"


def test_saving_over_a_run_leaves_no_stale_manifest(root: Path, tokenizer: Any, shake: Any) -> None:
    folder = root / "full"
    model = shake(load(str(folder)))
    save(model, tokenizer=tokenizer, folder=folder)
    load(str(folder))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"files": ', "JSONDecodeError"),
        ("[" * 100_000, "RecursionError"),
        (" " * 10_000_001, "10,000,001 bytes"),
    ],
    ids=["truncated", "nested", "huge"],
)
def test_an_unreadable_manifest_is_an_error(root: Path, content: str, named: str) -> None:
    (root / "full" / "manifest.json").write_text(content)
    with raises_problem("file-format", f"{root}/full/manifest.json", match=named):
        load(str(root / "full"))


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": ["config.json"]}', '{"files": {"../x.py": "0"}}'])
def test_a_manifest_without_hashes_verifies_nothing(root: Path, content: str) -> None:
    (root / "full" / "manifest.json").write_text(content)
    load(str(root / "full"))


def test_a_repo_is_verified_against_its_manifest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root / "hub"))
    lay_out(root / "full", cache=root / "hub", repo_id="me/it")
    load("me/it")
    _flip(root / "full" / "tokenizer_config.json")  # the snapshot links to it
    with raises_problem("model-corrupted", "me/it/tokenizer_config.json"):
        load("me/it")


# The base


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base: _flip(base / "model.safetensors"), r"model\.safetensors has changed"),
        (lambda base: (base / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
        (lambda base: shutil.copy(base / "model.safetensors", base / "more.safetensors"), "more.* is new"),
    ],
    ids=["changed", "missing", "new"],
)
def test_a_changed_byte_of_a_base_in_a_folder_is_named(root: Path, change: Any, message: str) -> None:
    change(root / "base")
    for entrance in (load, merge, build, AutoModel.from_pretrained):
        with raises_problem("base-changed", f"base {root / 'base'}", match=message):
            entrance(str(root / "adapter"))
    load(str(root / "adapter"), verify=False)


def test_only_adapters_store_hashes_of_their_base(root: Path) -> None:
    files = json.loads((root / "adapter" / "config.json").read_text())["backbone_files"]
    assert sorted(files) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert json.loads((root / "full" / "config.json").read_text())["backbone_files"] is None
    (root / "base" / "README.md").write_text("of no meaning")
    model = load(str(root / "adapter"))
    assert model.config.backbone_files == files


def test_a_base_of_a_hub_is_pinned_by_its_commit(
    bases: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    commit = lay_out(Path(bases["qwen2"]), cache=cache, repo_id="base/qwen2")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    for revision in (None, "main", commit):
        config = build("base/qwen2", revision=revision).config
        assert config.backbone_revision == commit
        assert config.backbone_files is None
    # a cache of another layout
    monkeypatch.setattr(
        "qwen_task_heads.repo_checks.cached_file", lambda *args, **kwargs: str(tmp_path / "x.json")
    )
    with raises_problem("model-not-found", "base/qwen2"):
        commit_of("base/qwen2", None)
