"""A task head on a backbone of vLLM. Imported by vLLM's engine; needs vLLM 0.32.

Source: https://docs.vllm.ai/en/latest/contributing/model/registration/
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler import DispatchPooler
from vllm.model_executor.layers.pooler.seqwise import SequencePooler
from vllm.model_executor.models.interfaces_base import default_pooling_type
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.head_layers_task_heads import join
from qwen_task_heads.hubcode.pooling_task_heads import build_head, pool
from qwen_task_heads.serving.vllm_plugin import NAME, is_active


# With MEAN as the default vLLM computes each row as a whole: no chunks, and no cached prefixes.
@default_pooling_type(seq_pooling_type="MEAN")
class TaskHeadForVllm(nn.Module):
    """Backbone of vLLM, our pooling and head; returns logits, since `Responder` makes answers of them."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        _check(config)
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING[type(config.text_config)].__name__
        inner = init_vllm_registered_model(
            vllm_config, prefix=prefix, hf_config=config.text_config, architectures=[architecture]
        )
        self.config = config
        self.model = inner.model
        self.lower = tuple(config.lower_layers)
        if self.lower:
            self.model._set_aux_hidden_state_layers(self.lower)
        # fp32, as in training; the loader copies values into it
        self.score = build_head(config, hidden_size=config.text_config.hidden_size).float()
        self.pooler = DispatchPooler({"classify": SequencePooler(self._pool, _logits)})

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of tokens."""
        embeddings: torch.Tensor = self.model.embed_input_ids(input_ids)
        return embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the states of all tokens (N, H); with several layers, their states side by side."""
        states = self.model(input_ids, positions, intermediate_tensors, inputs_embeds)
        if not self.lower:
            found: torch.Tensor = states
            return found
        last, lower = states
        return join([*(self.model.norm(own) for own in lower), last])

    def _pool(self, states: torch.Tensor, metadata: Any) -> torch.Tensor:
        """Return the logits (n, L) of n rows whose tokens follow each other in `states` (N, H)."""
        lengths = metadata.get_pooling_cursor().prompt_lens_cpu.tolist()
        parts = states[: sum(lengths)].split(lengths)
        # Row by row: without pad tokens a row does not depend on the others of its batch.
        rows = []
        for part in parts:
            mask = torch.ones(1, len(part), dtype=torch.bool, device=part.device)
            if self.config.pooling == "attention":
                rows.append(self.score(part[None], mask))
                continue
            last = torch.tensor([len(part) - 1], device=part.device)
            rows.append(self.score(pool(part[None], mask, last, pooling=self.config.pooling)))
        return torch.cat(rows)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load all tensors of a saved model; missing and unknown ones are refused."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights)
        missing = {name for name, _ in self.named_parameters()} - loaded
        if missing:
            raise TaskHeadsError(
                Problem(
                    "weights",
                    f"found no {sorted(missing)[0]} and {len(missing) - 1} more",
                    "all tensors of the model",
                    "serve a merged folder: qth publish --form merged",
                    code="model-corrupted",
                )
            )
        return loaded


def _logits(logits: torch.Tensor, metadata: Any) -> torch.Tensor:
    return logits


def _check(config: Any) -> None:
    """Raise for settings that vLLM does not run, and for a server without our routes."""
    problems = []
    if config.bidirectional:
        found = ("bidirectional", "found true", "causal attention, as vLLM's decoders have")
        problems.append(Problem(*found, "serve it by qth serve", code="model-unsupported"))
    if not is_active():
        found = ("VLLM_PLUGINS", f"{NAME} is missing", f"{NAME}, whose routes read requests as in training")
        problems.append(Problem(*found, f"export VLLM_PLUGINS={NAME}", code="option-missing"))
    if problems:
        raise TaskHeadsError(problems)
