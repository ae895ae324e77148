"""Fixes in errors of GGUF files and packaged models are applied, and work."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import test_pretrained
from fixes import refused
from gguf_files import write_gguf

from qwen_task_heads import build
from qwen_task_heads.gguf_weights import dequantize
from qwen_task_heads.hubcode.hashes_task_heads import sha256
from qwen_task_heads.pretrained import SMOLLM2

no_wheel = test_pretrained.no_wheel


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWEN_TASK_HEADS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete file, as it would be fetched again."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf")


@pytest.fixture
def file(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / whole.name))


def test_a_missing_file_is_replaced_by_an_existing_one(file: Path) -> None:
    with refused("gguf_weights.py::dequantize::str(path)") as found:
        build(str(file.parent), gguf_file="tiny.gguf")
    [name] = re.findall(r"GGUF files there: (\S+)\)", found[0].fix)
    assert build(str(file.parent), gguf_file=name)


def pointer(file: Path) -> None:
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20_000])


def incomplete(file: Path) -> None:
    write_gguf(file, leave_out="blk.1.ffn_up")


def not_finite(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4] + bytes.fromhex("0000c07f"))


def other_architecture(file: Path) -> None:
    write_gguf(file, architecture="clip")


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "gguf_weights.py::dequantize::str(path)#2": ("fetch it again", pointer),
    "gguf_weights.py::_contents::str(path)": ("fetch it again", truncated),
    "gguf_weights.py::_convert::str(path)": ("use the checkpoint in safetensors", other_architecture),
    "gguf_weights.py::_check_loaded::str(path)": ("or the checkpoint in safetensors", incomplete),
    "gguf_weights.py::_check_loaded::str(path)#2": ("fetch it again", not_finite),
}


@pytest.mark.parametrize("site", DAMAGES)
def test_a_corrupted_file_is_fetched_again(site: str, file: Path, whole: Path, bases: dict[str, str]) -> None:
    fix, damage = DAMAGES[site]
    damage(file)
    with refused(site) as found:
        build(str(file))
    assert fix in found[0].fix
    if "safetensors" in fix:
        assert build(bases["llama"])
    else:
        shutil.copy(whole, file)
        assert build(str(file))


def test_another_file_than_the_tested_one_is_deleted_and_fetched_again(file: Path, whole: Path) -> None:
    write_gguf(file, leave_out="nothing of this name")
    file.write_bytes(file.read_bytes() + b"x")
    with refused("gguf_weights.py::dequantize::str(path)#3") as found:
        dequantize(file, expected=sha256(whole))
    assert "delete it and fetch it again" in found[0].fix
    file.unlink()
    shutil.copy(whole, file)
    assert dequantize(file, expected=sha256(whole)).is_dir()


def test_a_cache_that_cannot_be_written_is_set_elsewhere(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    with refused("gguf_weights.py::_unwritable::str(folder.parent)") as found:
        build(str(file))
    [variable] = re.findall(r"set (\w+) to a folder", found[0].fix)
    monkeypatch.setenv(variable, str(tmp_path / "another"))
    assert build(str(file))


def test_a_package_that_is_not_installed_has_a_stand_in(no_wheel: None) -> None:
    with refused("pretrained.py::_from_hub::name") as found:
        build(SMOLLM2)
    [name] = re.findall(r"--model_name_or_path (\S+)", found[0].fix)
    assert "pip install" in found[0].fix
    assert build(name)
