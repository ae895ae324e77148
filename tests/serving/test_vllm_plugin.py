"""The vLLM plugin without vLLM: what its environment lacks is not imported, and its entry points exist.

`make serve-matrix` runs the plugin in vLLM.
"""

import asyncio
import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
import torch
from problem_assertions import raises_problem

from qwen_task_heads import PooledClassifier, build
from qwen_task_heads.serving import vllm_plugin
from qwen_task_heads.serving.vllm_plugin import VllmEngine, is_active

CODE = """
import sys
for name in ("trl", "datasets", "accelerate", "sklearn", "matplotlib"):
    sys.modules[name] = None  # importing it fails
import qwen_task_heads.serving.vllm_plugin
import qwen_task_heads.serving.routes
import qwen_task_heads.models
"""


@pytest.mark.slow
def test_the_environment_of_vllm_has_no_training_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("group", ["vllm.general_plugins", "vllm.endpoint_plugins"])
def test_the_entry_points_can_be_loaded(group: str) -> None:
    [found] = [entry for entry in entry_points(group=group) if entry.name == vllm_plugin.NAME]
    assert callable(found.load())


@pytest.mark.parametrize(
    ("stated", "active"), [("", False), ("other", False), ("other,qwen_task_heads", True)]
)
def test_the_plugin_is_active_if_it_is_named(
    monkeypatch: pytest.MonkeyPatch, stated: str, active: bool
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", stated)
    assert is_active() == active


class Engine(VllmEngine):
    """An engine whose rows are computed by the model of this process."""

    def __init__(self, model: PooledClassifier, *, change: float = 0.0) -> None:
        super().__init__(SimpleNamespace(), model.config)
        self.model, self.change = model, change

    async def _row(self, row: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return self.model.probe_logits(torch.tensor([row]))[0].float() + self.change


def test_a_probe_that_differs_ends_the_start() -> None:
    model = build("embedded", task="pooled_classifier", labels=["a", "b", "c"]).eval()
    ids = torch.arange(10, 34).reshape(2, 12)
    logits = model.probe_logits(ids).tolist()
    model.config.probe = {"input_ids": ids.tolist(), "logits": logits, "dtype": "float32"}
    asyncio.run(Engine(model).check_probe("float32"))
    with raises_problem("verification-failed", "vLLM"):
        asyncio.run(Engine(model, change=0.01).check_probe("float32"))
    with raises_problem("verification-failed", "vLLM"):
        asyncio.run(Engine(model, change=float("nan")).check_probe("float32"))


@pytest.mark.parametrize(
    ("dtype", "stored", "change", "passes"),
    [
        ("float32", "float32", 1e-4, True),  # limits of `load`, see tests/hubcode/test_strict_loading.py
        ("float32", "float32", 4e-4, False),
        ("bfloat16", "float32", 7e-2, True),
        ("bfloat16", "float32", 9e-2, False),
        ("float32", "float16", 2.5e-2, True),
        ("float32", "quantized", 9.0, True),
        ("float32", "quantized", float("inf"), False),
    ],
)
def test_the_probe_has_the_limits_of_loading(dtype: str, stored: str, change: float, passes: bool) -> None:
    model = build("embedded", task="pooled_classifier", labels=["a", "b", "c"]).eval()
    ids = torch.arange(10, 34).reshape(2, 12)
    logits = model.probe_logits(ids)
    model.config.probe = {"input_ids": ids.tolist(), "logits": logits.tolist(), "dtype": stored}
    engine = Engine(model, change=change * float(logits.abs().max()))
    if passes:
        asyncio.run(engine.check_probe(dtype))
        return
    with raises_problem("verification-failed", "vLLM"):
        asyncio.run(engine.check_probe(dtype))


def test_a_probe_of_another_shape_ends_the_start() -> None:
    model = build("embedded", task="pooled_classifier", labels=["a", "b", "c"]).eval()
    model.config.probe = {"input_ids": [[1, 2]], "logits": [[0.0, 1.0]], "dtype": "float32"}
    with raises_problem("config-invalid", "config.json probe"):
        asyncio.run(Engine(model).check_probe("float32"))
