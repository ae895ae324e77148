"""Fixtures of the whole suite: tiny backbones, the embedded tokenizer, and a process without the package."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from clean_process import CleanProcess
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from qwen_task_heads import load_tokenizer, throughput
from qwen_task_heads.verification import parity
from qwen_task_heads.verification.artifacts import PROGRAM

# The embedded tokenizer has 5026 ids; a backbone that it feeds needs as many rows.
VOCABULARY = 5026
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # 0.02 * sqrt(1024 / 32): the gain per layer of a real model of 1024 channels. With 0.02 here, a
    # score would depend only on the last token, and tests of invariance would be weak.
    "initializer_range": 0.11,
}
FAMILIES: dict[str, Callable[..., PreTrainedConfig]] = {
    "qwen2": Qwen2Config,
    "qwen3": lambda **sizes: Qwen3Config(head_dim=8, **sizes),
    "llama": LlamaConfig,
}

# Results must not depend on the number of cores, and parallel tests must not slow each other down.
torch.set_num_threads(1)
# One thread reaches its matrix peak, which each training measures twice, with small matrices too.
throughput.SIDE["cpu"] = 256


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanProcess]:
    """Return `clean.run(code, *words, folder=...)`, which runs code without the package."""
    process = CleanProcess(tmp_path_factory.mktemp("clean"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def open_in(clean: CleanProcess, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Return `open_in(job)`, which runs `clean_process.py` in the process without the package."""
    folder = tmp_path_factory.mktemp("opened")
    code = f"import runpy; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"

    def run(job: Path) -> str:
        try:
            clean.run(code, job, folder=folder)
        except AssertionError as error:
            return str(error)
        return ""

    return run


@pytest.fixture
def quick_proof(open_in: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify published models in the clean process; a separate process would import for 4 s each time.

    A separate process runs in `test_gate.py`, and for both hubs in slow tests of pushes.
    """
    monkeypatch.setattr(parity, "in_subprocess", open_in)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., PreTrainedConfig]:
    """Return `config(family, **changes)`: two layers, 32 channels, the embedded vocabulary."""

    def config(family: str = "qwen2", **changes: Any) -> PreTrainedConfig:
        return FAMILIES[family](**{**SIZES, **changes})

    return config


@pytest.fixture(scope="session")
def shake() -> Callable[..., Any]:
    """Return `shake(model)`, which changes all trainable tensors at random and sets eval mode."""

    def apply(model: Any, *, seed: int = 0, width: float = 0.05) -> Any:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * width)
        return model.eval()

    return apply


SHARED: dict[str, Any] = {}  # the session's tokenizer, and its state


def tokenizer_state(tokenizer: Any) -> dict[str, Any]:
    """Return what a test could change of a tokenizer; each call sets truncation and padding itself."""
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: part for name, part in state.items() if name not in ("truncation", "padding")}


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The embedded tokenizer, without a template. Do not change it: the session shares it."""
    found = load_tokenizer("embedded")
    SHARED.update(tokenizer=found, state=tokenizer_state(found))
    return found


@pytest.fixture(scope="module", autouse=True)
def shared_tokenizer_is_unchanged() -> Iterator[None]:
    """Fail in the module that changed the shared tokenizer, not in a later one."""
    yield
    if SHARED and tokenizer_state(SHARED["tokenizer"]) != SHARED["state"]:
        SHARED["state"] = tokenizer_state(SHARED["tokenizer"])
        pytest.fail("a test of this module changed the tokenizer that the session shares")


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_config: Any, tokenizer: Any) -> dict[str, str]:
    """Folders of random backbones saved with their `lm_head`, one per family. Read-only."""
    root = tmp_path_factory.mktemp("bases")
    for seed, family in enumerate(FAMILIES):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(tiny_config(family)).save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
    return {family: str(root / family) for family in FAMILIES}
