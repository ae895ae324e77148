"""A GGUF file is converted to a folder once, completely or not at all; its hash pins an adapter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import tiny_llama, write_gguf
from problem_assertions import raises_problem

from qwen_task_heads import build, gguf_weights, load, load_tokenizer
from qwen_task_heads.gguf_weights import dequantize
from qwen_task_heads.hubcode.hashes_task_heads import hash_base, sha256
from qwen_task_heads.pretrained import locate


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("QWEN_TASK_HEADS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def file(tmp_path) -> Path:
    return write_gguf(tmp_path / "tiny.Q8_0.gguf")


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.is_dir() else []


def test_the_folder_contains_the_weights_and_the_tokenizer(file, cache) -> None:
    folder = dequantize(file)
    assert folder.parent == cache
    assert left(cache) == [folder.name]
    model, truth = build(str(folder), pooling="mean"), tiny_llama().model
    for name, tensor in truth.state_dict().items():
        torch.testing.assert_close(model.model.state_dict()[name], tensor, rtol=0.02, atol=2e-3)
    ids = torch.tensor([[5, 9, 40]])
    torch.testing.assert_close(
        model.model(ids).last_hidden_state, truth(ids).last_hidden_state, rtol=0, atol=0.05
    )
    assert load_tokenizer(str(folder))("at")["input_ids"] == load_tokenizer(str(folder))("at")["input_ids"]


def test_the_file_is_converted_once(file, cache, monkeypatch) -> None:
    first = dequantize(file)
    monkeypatch.setattr(gguf_weights, "_convert", lambda *_: pytest.fail("made again"))
    assert dequantize(file) == first


def test_an_incomplete_folder_is_converted_again(file) -> None:
    folder = dequantize(file)
    (folder / "gguf.json").unlink()
    assert dequantize(file) == folder
    assert (folder / "gguf.json").is_file()


def test_its_identity_is_the_file_until_the_folder_changes(file) -> None:
    folder = dequantize(file)
    assert hash_base(folder) == {file.name: sha256(file)}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert set(hash_base(folder)) == {"config.json", "model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize("given", ["file", "folder and name", "build"])
def test_every_name_of_the_file_loads_the_same_folder(file, given) -> None:
    folder = str(dequantize(file))
    if given == "file":
        assert locate(str(file)) == folder
    elif given == "folder and name":
        assert locate(str(file.parent), gguf_file=file.name) == folder
    else:
        assert build(str(file.parent), gguf_file=file.name).config.backbone_name_or_path == folder


def test_a_model_on_it_is_saved_and_loaded(file, tmp_path) -> None:
    model = build(str(file), pooling="mean")
    model.save_pretrained(tmp_path / "saved")
    again = load(str(tmp_path / "saved"))
    ids = torch.tensor([[5, 9, 40]])
    torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits, rtol=0, atol=1e-6)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20_000])


def no_gguf(file: Path) -> None:
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def claims_more(file: Path) -> None:
    """State a number of tensors that no file has."""
    content = bytearray(file.read_bytes())
    content[8:16] = (2**40).to_bytes(8, "little")
    file.write_bytes(bytes(content))


def other_architecture(file: Path) -> None:
    write_gguf(file, architecture="clip")


def lacks_a_tensor(file: Path) -> None:
    write_gguf(file, leave_out="blk.1.ffn_up")


def is_not_a_number(file: Path) -> None:
    content = file.read_bytes()
    nan = bytes.fromhex("0000c07f")
    file.write_bytes(content[:-4] + nan)  # the last tensor, output_norm, is fp32


DAMAGES = {
    truncated: "file-truncated",
    no_gguf: "file-format",
    claims_more: "file-truncated",
    other_architecture: "model-unsupported",
    lacks_a_tensor: "model-corrupted",
    is_not_a_number: "number-not-finite",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_corrupted_file_is_an_error_and_not_cached(file, cache, damage) -> None:
    damage(file)
    with raises_problem(DAMAGES[damage], str(file)) as problems:
        dequantize(file)
    assert len(problems) == 1
    assert left(cache) == []


def test_another_hash_than_expected_is_an_error(file, cache) -> None:
    with raises_problem("model-corrupted", str(file), match="0" * 64):
        dequantize(file, expected="0" * 64)
    assert left(cache) == []


def test_a_full_disk_is_an_error_before_anything_is_written(file, cache, monkeypatch) -> None:
    usage = shutil.disk_usage(file.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with raises_problem("disk-full", str(cache), match="QWEN_TASK_HEADS_CACHE"):
        dequantize(file)
    assert left(cache) == []


def test_a_write_that_fails_leaves_nothing(file, cache, monkeypatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)  # after the weights
    with raises_problem("disk-full", str(cache), match="No space left"):
        dequantize(file)
    assert left(cache) == []


@pytest.mark.slow
def test_two_processes_at_once_write_one_complete_folder(file, cache, tmp_path) -> None:
    line = f"from qwen_task_heads.gguf_weights import dequantize; print(dequantize({str(file)!r}))"
    options: dict[str, Any] = {"env": {**os.environ}, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", line], **options) for _ in range(2)]
    places = {process.communicate(timeout=120)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(places) == 1
    assert left(cache) == [Path(places.pop()).name]
    assert hash_base(dequantize(file)) == {file.name: sha256(file)}
