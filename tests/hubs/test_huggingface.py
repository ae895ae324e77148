"""The Hugging Face Hub as a source: snapshots and files from a server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hf_server
import pytest
from loopback import no_waiting
from problem_assertions import raises_problem

from qwen_task_heads.hubs import HuggingFace, resolve

REPO = "me/titles"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hf_server.HfHub]:
    no_waiting(monkeypatch)
    with hf_server.serve() as running:
        hf_server.point_client(running, monkeypatch, cache=tmp_path / "cache")
        yield running


def test_a_snapshot_has_the_files_that_are_read_at_one_commit(
    server: hf_server.HfHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = server.put(REPO, {"config.json": b"{}", "model.safetensors": b"s", "model.onnx": b"o"})
    server.put(REPO, {"config.json": b"{} "})
    folder, found = HuggingFace().resolve(REPO, revision=commit)
    assert found == commit
    assert sorted(path.name for path in Path(folder).iterdir()) == [
        ".gitattributes",
        "config.json",
        "model.safetensors",
    ]
    assert Path(folder, "config.json").read_bytes() == b"{}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert HuggingFace().resolve(REPO, revision=commit) == (folder, commit)


def test_one_file_is_fetched_without_the_others(server: hf_server.HfHub) -> None:
    server.put(REPO, {"tiny.gguf": b"g", "model.safetensors": b"s"})
    path = HuggingFace().download(REPO, "tiny.gguf", revision=None)
    assert path.read_bytes() == b"g"
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny.gguf"]


def test_missing_and_unreachable_repos_have_their_codes(
    server: hf_server.HfHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raises_problem("model-not-found", "me/none"):
        HuggingFace().resolve("me/none")
    server.put(REPO, {"config.json": b"{}"})
    server.fail(at=1, how="503", lasting=True)
    with raises_problem("hub-unreachable", REPO):
        HuggingFace().resolve(REPO)


def test_transformers_opens_its_ids_without_a_request(server: hf_server.HfHub) -> None:
    assert resolve(REPO, hub="huggingface", revision="v1") == (REPO, None)
    assert server.log == []
