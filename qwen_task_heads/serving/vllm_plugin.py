"""Plugin of vLLM: serve `saved` and `merged` folders with the answers of `Scorer`.

    VLLM_PLUGINS=qwen_task_heads vllm serve runs/intents --runner pooling --dtype float32

vLLM runs the backbone, and this package reads requests, pools, and applies the head: every pooling and head,
several layers, ordinal labels, prompts and pairs, all truncations, calibration and thresholds. The routes are
those of `qth serve`; `/classify` of vLLM is replaced. At the start the stored probe of the model is computed
by the engine; a server that would answer otherwise does not start.

Written for vLLM 0.32, with the entry points `vllm.general_plugins` and `vllm.endpoint_plugins`. vLLM loads
endpoint plugins only if `VLLM_PLUGINS` names them.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import Any

import torch

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.probe_task_heads import probe_difference
from qwen_task_heads.loading_errors import as_our_errors

NAME = "qwen_task_heads"
CLASSES = ("PooledClassifier", "TitleScorer")


def register() -> None:
    """Register the models with vLLM and the configs with transformers; called in every process of vLLM."""
    from vllm import ModelRegistry

    import qwen_task_heads  # noqa: F401 - registers the configs

    known = ModelRegistry.get_supported_archs()
    for name in CLASSES:
        if name not in known:
            ModelRegistry.register_model(name, "qwen_task_heads.serving.vllm_model:TaskHeadForVllm")


class Endpoints:
    """Routes of a task head in vLLM's API server."""

    name = NAME
    required_tasks = ("classify",)

    def __init__(self) -> None:
        self._app: Any = None

    def attach_router(self, app: Any) -> None:
        """Keep the app; the routes depend on the model, which is known in `init_state`."""
        self._app = app

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Verify the stored probe, and add the routes.

        Raises:
            TaskHeadsError: logits that differ from the stored ones.
        """
        from qwen_task_heads.models import load_tokenizer
        from qwen_task_heads.serving.responder import Responder
        from qwen_task_heads.serving.routes import model_router

        model_config = engine_client.model_config
        config = model_config.hf_config
        if config.model_type not in ("pooled_classifier", "title_scorer"):
            return
        engine = VllmEngine(engine_client, config)
        await engine.check_probe(str(model_config.dtype).removeprefix("torch."))
        tokenizer = load_tokenizer(model_config.tokenizer, revision=model_config.tokenizer_revision)
        name = (args.served_model_name or [model_config.model])[0]
        router = model_router(Responder(config, tokenizer, engine.logits, name=name))
        # The first route of a path answers: ours are put before those of vLLM.
        self._app.router.routes[:] = [*router.routes, *self._app.router.routes]
        self._app.openapi_schema = None


class VllmEngine:
    """Logits of rows by an engine of vLLM.

    Args:
        client: vLLM's `EngineClient`.
        config: config of the model.
    """

    def __init__(self, client: Any, config: Any) -> None:
        self._client, self._config = client, config

    async def logits(self, rows: list[list[int]]) -> torch.Tensor:
        """Return logits (n, L) of n rows of ids, fp32 on the CPU."""
        return torch.stack(await asyncio.gather(*map(self._row, rows)))

    async def _row(self, row: list[int]) -> torch.Tensor:
        from vllm import PoolingParams

        params = PoolingParams(task="classify", use_activation=False)
        outputs = self._client.encode({"prompt_token_ids": row}, params, f"qth-{uuid.uuid4().hex}")
        async for output in outputs:
            result = output
        logits: torch.Tensor = result.outputs.data.float().cpu()
        return logits.reshape(-1)

    async def check_probe(self, dtype: str) -> None:
        """Compute the stored probe and compare its logits; a model without a probe passes.

        Args:
            dtype: dtype of the engine.

        Raises:
            TaskHeadsError: logits that differ.
        """
        if not self._config.probe:
            return
        found = await self.logits(self._config.probe["input_ids"])
        with as_our_errors():
            difference, limit = probe_difference(self._config, found, dtype=dtype, where="config.json probe")
        if not difference <= limit:  # also true for NaN
            raise TaskHeadsError(
                Problem(
                    "vLLM",
                    f"found logits that differ by {difference:.1g} of the largest from the stored probe",
                    "the logits of the trained model",
                    "pass --dtype float32, or the dtype of the base",
                    code="verification-failed",
                )
            )


def is_active() -> bool:
    """Return whether vLLM loads the routes of this package, which read requests as the model needs them."""
    return NAME in os.environ.get("VLLM_PLUGINS", "").split(",")
