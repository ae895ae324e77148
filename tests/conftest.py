"""Fixtures of the whole suite: tiny backbones, the embedded tokenizer, and a machine without a network.

Sockets may reach loopback only, the hub client is told to be offline, and its cache is a fresh
folder, so that no test can pass because of what an earlier run downloaded.
"""

from __future__ import annotations

import gc
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

# Before transformers is imported: huggingface_hub and torch read these once.
_CACHE = tempfile.mkdtemp(prefix="task-heads-cache-")
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HOME=_CACHE, HF_MODULES_CACHE=f"{_CACHE}/modules", TOKENIZERS_PARALLELISM="false"
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from clean_process import CleanProcess  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from qwen_task_heads import load_tokenizer  # noqa: E402

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
    # score would hang on the last token alone, and an invariance would say little.
    "initializer_range": 0.11,
}
FAMILIES: dict[str, Callable[..., PreTrainedConfig]] = {
    "qwen2": Qwen2Config,
    "qwen3": lambda **sizes: Qwen3Config(head_dim=8, **sizes),
    "llama": LlamaConfig,
}
# Rooms whose files take longest, in the order in which they start.
LONG = ("training", "recipes", "hubcode", "faults", "publishing")
LOOPBACK = ("127.0.0.1", "::1", "localhost", "", b"127.0.0.1", b"localhost", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the cache of this run."""
    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    """One core per process, and the warnings of other libraries that we cannot act on.

    A figure must not depend on how many cores there are, nor slow down its neighbours.
    """
    torch.set_num_threads(1)
    # peft 0.21 asks transformers 5.23 for a property by its old name when it wraps a model.
    config.addinivalue_line(
        "filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers"
    )
    # Forks of a process with threads: the launchers' own code.
    config.addinivalue_line("filterwarnings", r"ignore::DeprecationWarning:multiprocessing\..*")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: with several workers the short ones then fill the gaps at the end."""
    items.sort(key=lambda item: LONG.index(item.path.parent.name) if item.path.parent.name in LONG else 99)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the garbage collector pass over the modules of the libraries from here on.

    Every training ends with a full collection, and looking through a million objects takes 0.3 s.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Refuse to connect, to send or to look up a name anywhere but on this machine."""
    originals = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
    lookup = socket.getaddrinfo

    def guard(name: str) -> Callable[..., Any]:
        def call(self: socket.socket, *args: Any) -> Any:
            address = args[-1]
            if self.family != socket.AF_UNIX and address[0] not in LOOPBACK:
                raise OSError(f"tests have no network: {name} to {address!r}")
            return originals[name](self, *args)

        return call

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in LOOPBACK:
            raise OSError(f"tests have no network: getaddrinfo of {host!r}")
        return lookup(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name in originals:
            patch.setattr(socket.socket, name, guard(name))
        patch.setattr(socket, "getaddrinfo", guarded_lookup)
        yield


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanProcess]:
    """Give `clean.run(code, *words, folder=...)`: run code where the package cannot be imported."""
    process = CleanProcess(tmp_path_factory.mktemp("clean"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., PreTrainedConfig]:
    """Give `config(family, **changes)`: two layers, 32 channels, the embedded vocabulary."""

    def config(family: str = "qwen2", **changes: Any) -> PreTrainedConfig:
        return FAMILIES[family](**{**SIZES, **changes})

    return config


@pytest.fixture(scope="session")
def shake() -> Callable[..., Any]:
    """Give `shake(model)`: move every trainable tensor at random, as training would, and set eval mode."""

    def apply(model: Any, *, seed: int = 0, width: float = 0.05) -> Any:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * width)
        return model.eval()

    return apply


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The embedded tokenizer, without a template. Do not change it: the session shares it."""
    return load_tokenizer("embedded")


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_config: Any, tokenizer: Any) -> dict[str, str]:
    """Folders of random backbones saved with their `lm_head`, one per family. Read-only by agreement."""
    root = tmp_path_factory.mktemp("bases")
    for seed, family in enumerate(FAMILIES):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(tiny_config(family)).save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
    return {family: str(root / family) for family in FAMILIES}
