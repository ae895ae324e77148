"""A new hub is one class and one row of `HUBS`: a folder on disk, to publish to and to load from."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from equality import assert_same_weights
from peft import get_peft_model
from problem_assertions import raises_problem

from qwen_task_heads import adapter_config, bind_template, build, load, load_tokenizer, merge, save
from qwen_task_heads.hubs import HUBS, Hub
from qwen_task_heads.hubs.base import Kind, State
from qwen_task_heads.publishing.publish import publish
from qwen_task_heads.sources.formats import read_rows


class Shelf(Hub):
    """A folder as a hub: `kind/owner/name` has a folder for each commit, and `refs.json`."""

    name, title, branch = "shelf", "the shelf", "main"
    login = "set SHELF_TOKEN"
    library = "shelf"
    makes_branches = True

    def __init__(self, *, token: bool | str | None = None) -> None:
        self.root = Path(os.environ["SHELF"])

    def snapshot(self, repo_id: str, *, kind: Kind, revision: str | None) -> tuple[Path, str]:
        refs = self._refs(repo_id, kind)
        wanted = revision or self.branch
        commit = {**refs["branches"], **refs["tags"]}.get(wanted, wanted)
        return self.root / kind / repo_id / commit, commit

    def download(self, repo_id: str, name: str, *, revision: str | None, folder: str | None = None) -> Path:
        place, _ = self.snapshot(repo_id, kind="model", revision=revision)
        return place / name if folder is None else Path(shutil.copy(place / name, folder))

    def status_of(self, error: Exception) -> tuple[int | None, str | None]:
        return (404 if isinstance(error, FileNotFoundError) else None), None

    def user(self) -> str:
        if "SHELF_TOKEN" not in os.environ:
            raise self.not_logged_in()
        return "me"

    def check_access(self, repo_id: str) -> None:
        if repo_id.split("/")[0] != self.user():
            raise self.no_right(repo_id, "the repo has another owner")

    def state(self, repo_id: str, branch: str) -> State | None:
        if not (self.root / "model" / repo_id).is_dir():
            return None
        refs = self._refs(repo_id)
        head = refs["branches"].get(branch, refs["branches"].get(self.branch))
        folder = self.root / "model" / repo_id / str(head)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
        return State(**refs, head=head, files=digests)

    def create(self, repo_id: str, *, private: bool | None) -> None:
        (self.root / "model" / repo_id).mkdir(parents=True)
        self._set_refs(repo_id, {"private": bool(private), "branches": {}, "tags": {}})

    def make_branch(self, repo_id: str, branch: str, *, head: str) -> None:
        refs = self._refs(repo_id)
        self._set_refs(repo_id, {**refs, "branches": {**refs["branches"], branch: head}})

    def commit(
        self, repo_id: str, files: Mapping[str, Path], *, deleted: list[str], branch: str, head: str | None,
        message: str, create_pr: bool,
    ) -> str:  # fmt: skip
        repo = self.root / "model" / repo_id
        commit = hashlib.sha1(f"{head} {sorted(files)} {deleted}".encode()).hexdigest()
        if head:
            shutil.copytree(repo / head, repo / commit)
        for name, path in files.items():
            (repo / commit / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, repo / commit / name)
        for name in deleted:
            (repo / commit / name).unlink()
        self.make_branch(repo_id, branch, head=commit)
        return commit

    def tag(self, repo_id: str, tag: str, *, branch: str, commit: str) -> None:
        refs = self._refs(repo_id)
        self._set_refs(repo_id, {**refs, "tags": {**refs["tags"], tag: commit}})

    def url(self, repo_id: str, revision: str) -> str:
        return f"shelf://{repo_id}@{revision}"

    @classmethod
    def card_notes(cls, repo_id: str, pinned: str) -> str:
        return f"\nFrom the shelf: `load({repo_id!r}{pinned}, hub='shelf')`.\n"

    @classmethod
    def extra_files(cls, *, generates: bool) -> dict[str, dict[str, Any]]:
        return {"shelf.json": {"generates": generates}}

    def _refs(self, repo_id: str, kind: str = "model") -> dict[str, Any]:
        refs: dict[str, Any] = json.loads((self.root / kind / repo_id / "refs.json").read_text())
        return refs

    def _set_refs(self, repo_id: str, refs: dict[str, Any]) -> None:
        (self.root / "model" / repo_id / "refs.json").write_text(json.dumps(refs))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bases: dict[str, str]) -> Path:
    """A shelf with a backbone, `lab/base`, which is a row of `HUBS`; its user is logged in."""
    root = tmp_path / "shelf"
    monkeypatch.setitem(HUBS, "shelf", Shelf)
    monkeypatch.setenv("SHELF", str(root))
    monkeypatch.setenv("SHELF_TOKEN", "held-by-the-shelf-only")
    shutil.copytree(bases["qwen2"], root / "model" / "lab" / "base" / ("0" * 40))
    refs = {"private": False, "branches": {"main": "0" * 40}, "tags": {}}
    (root / "model" / "lab" / "base" / "refs.json").write_text(json.dumps(refs))
    return root


@pytest.fixture
def words(tokenizer: Any) -> Any:
    """A tokenizer to bind a template to."""
    return copy.deepcopy(tokenizer)


def saved(folder: Path, *, words: Any, shake: Any, lora: bool) -> Any:
    model: Any = build("lab/base", hub="shelf", task="pooled_classifier", labels=["a", "b", "c"])
    bind_template(words, model.config)
    model = shake(get_peft_model(model, adapter_config(model, r=2)) if lora else model)
    save(model, tokenizer=words, folder=folder)
    return model


@pytest.mark.parametrize("lora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_model_is_published_to_a_new_hub_and_loaded_from_it(
    shelf: Path, words: Any, shake: Any, tmp_path: Path, lora: bool
) -> None:
    folder = tmp_path / "run"
    model = saved(folder, words=words, shake=shake, lora=lora)
    published = publish(folder, repo_id="me/news", hub="shelf", tag="v1")
    assert (published.hub, published.private, published.unchanged) == ("shelf", True, False)
    assert published.url == "shelf://me/news@v1"
    files = shelf / "model" / "me" / "news" / str(published.commit)
    assert json.loads((files / "shelf.json").read_text()) == {"generates": False}
    assert "hub='shelf'" in (files / "README.md").read_text()
    assert publish(folder, repo_id="me/news", hub="shelf", tag="v1").unchanged

    loaded = (merge if lora else load)("me/news", hub="shelf", revision="v1")
    assert_same_weights(loaded, model.merge_and_unload() if lora else model)
    assert (loaded.config.backbone_name_or_path, loaded.config.backbone_hub) == ("lab/base", "shelf")
    assert loaded.config.backbone_revision == "0" * 40
    reloaded = load_tokenizer("me/news", hub="shelf", revision="v1")
    assert reloaded("a text")["input_ids"] == words("a text")["input_ids"]
    with raises_problem("model-not-found", "me/none"):
        load("me/none", hub="shelf")


def test_a_new_hub_is_checked_like_the_others(
    shelf: Path, words: Any, shake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    saved(folder, words=words, shake=shake, lora=False)
    with raises_problem("hub-denied", "you/news"):
        publish(folder, repo_id="you/news", hub="shelf")
    with raises_problem("option-unsupported", "create_pr"):
        publish(folder, repo_id="me/news", hub="shelf", create_pr=True, verify=False)
    monkeypatch.delenv("SHELF_TOKEN")
    with raises_problem("hub-denied", "the shelf"):
        publish(folder, repo_id="me/news", hub="shelf")
    with raises_problem("option-value", "--hub", match="huggingface, modelscope, shelf"):
        publish(folder, repo_id="me/news", hub="none")
    assert not (shelf / "model" / "me").exists()


def test_a_data_set_is_read_from_a_new_hub(shelf: Path) -> None:
    repo = shelf / "dataset" / "me" / "rows"
    (repo / "1" / "data").mkdir(parents=True)
    (repo / "1" / "data" / "train.jsonl").write_text('{"text": "one", "label": "a"}\n')
    (repo / "refs.json").write_text(json.dumps({"branches": {"main": "1"}, "tags": {}}))
    for source, hub in (("me/rows", "shelf"), ("shelf:me/rows", "huggingface")):
        assert [row for _, row in read_rows(source, split="train", hub=hub)] == [
            {"text": "one", "label": "a"}
        ]
    with raises_problem("path-not-found", "me/none"):
        list(read_rows("me/none", hub="shelf"))
