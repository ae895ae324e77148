"""`PooledClassifier` and `TitleScorer`: any decoder of transformers, pooled, with a head called `score`.

One class supports every backbone family, because `AutoModel` builds the backbone from the nested config.
There is no language-model head, so no vocabulary logits are computed. This file is copied into every
published model; it imports only torch, transformers and its siblings.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from .attention_task_heads import (
    packing_fallback_reason,
    rotates_by_length,
    splits_prefix,
    two_sided_mask,
    window_of,
)
from .bucketing_task_heads import buckets_of, in_order, is_distributed, take_rows
from .configuration_task_heads import PooledClassifierConfig, TaskHeadConfig, TitleScorerConfig
from .decision_task_heads import DecisionMixin, HeadDecisionConfig, answer_scores
from .errors_task_heads import TaskHeadError, refuse
from .families_task_heads import family_of
from .head_layers_task_heads import LayerStates, join, keep_states
from .last_layer_task_heads import prepare
from .loading_task_heads import StrictLoading
from .long_rows_task_heads import aggregate, cut_rows, is_long
from .packing_task_heads import KeysAndValues, PackedRows, Store, pack
from .pooling_task_heads import (
    build_head,
    init_head,
    mask_for,
    mean_loss,
    pool,
    real_tokens,
    rows_of,
)

# Windows per pass in evaluation on one process. Training keeps all activations and needs no limit.
WINDOWS_PER_PASS = 64


class TaskHeadModel(StrictLoading):
    """Backbone, pooling and head. Use `PooledClassifier` or `TitleScorer`."""

    config_class = TaskHeadConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["score"]
    # The loss below is a mean; Trainer must divide it under gradient accumulation.
    accepts_loss_kwargs = False

    def __init__(self, config: TaskHeadConfig) -> None:
        if config.text_config is None:
            raise refuse(
                "text_config",
                None,
                "the config of a backbone",
                "use qwen_task_heads.build(backbone)",
                code="config-invalid",
            )
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = AutoModel.from_config(config.text_config)
        self.score = build_head(config, hidden_size=self.model.config.hidden_size)
        # Decoders without rotary or learned positions (ALiBi, state spaces) accept no position_ids.
        self._takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters
        self.packing, self.prefix_sharing = True, True
        self._window = window_of(self.model.config)
        prepare(self.model)
        keep_states(self.model, config.lower_layers)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the backbone's token embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's token embeddings."""
        self.model.set_input_embeddings(value)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_head(module)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        margin: torch.Tensor | None = None,
        use_cache: bool = False,
        prefix: KeysAndValues | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Compute logits, and a loss when labels are given.

        No padding is computed: the real tokens are packed into one row, and prefixes that rows share are
        encoded once (`packing_task_heads`). If `fallback_reason` is not None, rows of similar length are
        padded together (`bucketing_task_heads`). The results are those of the padded batch, which is computed
        if a caller requests states, attentions or a cache, or passes positions.

        A classifier first cuts rows over `max_seq_length`. Only logits and loss are returned then, because
        states and attentions would be those of the pieces.

        Args:
            input_ids: (B, T) int64 token ids, padded on any side.
            attention_mask: (B, T), 1 for real tokens; without it, see `derive_mask`.
            position_ids: (B, T); derived from the mask if None, so that padding cannot change a score.
            inputs_embeds: (B, T, H) instead of `input_ids`.
            labels: (B,) int64 for single-label and ordinal, (B, L) floats for multi-label,
                (B,) or (B, L) floats for regression, (B, L) floats for questions, see `question_mean`.
            margin: ignored here; trl's RewardTrainer passes it to the model and uses it in its loss.
            use_cache: return past key values; off by default, because a head does not need them.
            prefix: keys and values from `encode_prefix` of the tokens before every row.

        Returns:
            `logits` (B, num_labels) in fp32; for `ordinal` they are log-probabilities.

        Raises:
            ValueError: a mask row without a real token, labels that do not match the problem type, a prefix
                with rows that cannot be packed, or a long row that cannot be cut: a pair, or a row without
                the template.
        """
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        if tokens is None:
            raise refuse(
                "input_ids", None, "input_ids or inputs_embeds", "pass one of them", code="argument-type"
            )
        if attention_mask is None:
            attention_mask = mask_for(self, input_ids)
        if prefix is None and is_long(self.config, tokens, attention_mask):
            ids, mask, counts = cut_rows(
                self.config,
                input_ids,
                attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
            )
            whole = aggregate(self.config, self._logits_of_pieces(ids, mask, **kwargs), counts)
            return self._output(whole, labels)
        mask = real_tokens(attention_mask, tokens)
        kwargs.pop("return_dict", None)  # PEFT always passes it; the result always has this class
        # Not by truth value: an empty cache is falsy but must be filled, and a tensor has no truth value.
        given = (position_ids, *kwargs.values())
        free = not use_cache and all(value is None or value is False for value in given)
        logits = None
        if free and self._can_pack(mask, prefix):
            lower = LayerStates(self.config.lower_layers)
            packed = self._pack(input_ids, mask, prefix)
            states = self._states_of(packed, lower, input_ids=input_ids, inputs_embeds=inputs_embeds)
            below = [packed.unpack(own)[0] for own in lower.take(states.device)]
            logits = self._head(*packed.unpack(states), below)
        elif prefix is not None:
            raise TaskHeadError(
                "prefix",
                "the rows cannot be packed",
                "rows without a prefix",
                "pass whole rows",
                code="option-unsupported",
            )
        elif free and (groups := buckets_of(self, mask)):
            name = "input_ids" if inputs_embeds is None else "inputs_embeds"
            parts = [take_rows(tokens, mask, group) for group in groups]
            found = [self._padded(own, own.long(), **{name: part}, use_cache=False)[0] for part, own in parts]
            logits = in_order(found, groups)
        if logits is not None:
            return self._output(logits, labels)
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        kwargs |= {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "use_cache": use_cache}
        logits, output = self._padded(mask, attention_mask, **kwargs)
        return self._output(
            logits,
            labels,
            past_key_values=output.past_key_values if use_cache else None,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )

    def _output(
        self, logits: torch.Tensor, labels: torch.Tensor | None, **others: Any
    ) -> SequenceClassifierOutputWithPast:
        """Return the output with the mean loss by `problem_type`, which the labels imply if it is None."""
        config = self.config
        options = {"problem_type": config.problem_type, "questions": config.__dict__.get("questions")}
        loss = None if labels is None else mean_loss(logits, labels, **options)
        return SequenceClassifierOutputWithPast(loss=loss, logits=logits, **others)

    def _logits_of_pieces(self, ids: torch.Tensor, mask: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return the logits (P, L) of the pieces (P, T) of long rows."""
        size = len(ids) if self.training or is_distributed() else WINDOWS_PER_PASS
        passes = [
            TaskHeadModel.forward(self, *part, **kwargs).logits  # not through the hooks of `self.forward`
            for part in zip(ids.split(size), mask.split(size), strict=True)
        ]
        return torch.cat(passes)

    def _padded(
        self, mask: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any
    ) -> tuple[torch.Tensor, Any]:
        """Return the logits (B, L) of a padded batch with mask (B, T) bool, and the backbone's output."""
        if attention_mask is not None and self._takes_positions and "position_ids" not in kwargs:
            kwargs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
        if self.config.bidirectional:
            attention_mask = two_sided_mask(self.model.config, mask, dtype=self.dtype)
        lower = LayerStates(self.config.lower_layers)
        output = self.model(attention_mask=attention_mask, **lower.argument, **kwargs)
        rows = rows_of(output.last_hidden_state, mask)
        return self._head(*rows, lower.take(rows[0].device)), output

    def _head(
        self, rows: torch.Tensor, mask: torch.Tensor, last: torch.Tensor, lower: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return the logits (B, L) of the states (B, T, H) of rows and of lower layers before the norm."""
        layers = [*(self.model.norm(own) for own in lower), rows]
        if self.config.pooling == "attention":
            return self.score(join(layers), mask)
        return self.score(join([pool(own, mask, last, pooling=self.config.pooling) for own in layers]))

    @property
    def fallback_reason(self) -> str | None:
        """Why batches are not packed; None if they are."""
        return packing_fallback_reason(self.model.config) if self.packing else "packing is switched off"

    def _can_pack(self, mask: torch.Tensor, prefix: KeysAndValues | None = None) -> bool:
        """Return whether packed rows give the results of a batch with mask (B, T) bool."""
        # A traced graph must not depend on the lengths of one batch.
        if self.fallback_reason or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        before = next(iter(prefix.values()))[0].shape[1] if prefix else 0
        return len(mask) > 0 and (self._window is None or before + int(mask.sum(1).max()) <= self._window)

    def prefix_fallback_reason(self, longest: int) -> str | None:
        """Return why rows of at most `longest` tokens cannot use a cached prefix; None if they can."""
        reasons = {
            self.fallback_reason: self.fallback_reason is not None,
            f"pooling is {self.config.pooling!r}": self.config.pooling != "last",
            "attention is bidirectional": self.config.bidirectional,
            "rotations depend on the longest row": rotates_by_length(self.model.config),
            f"rows have {longest} tokens": self._window is not None and longest > self._window,
        }
        return next((reason for reason, applies in reasons.items() if applies), None)

    def _pack(
        self, input_ids: torch.Tensor | None, mask: torch.Tensor, prefix: KeysAndValues | None
    ) -> PackedRows:
        last_only = self.config.pooling == "last"
        cast = torch.is_autocast_enabled(mask.device.type)  # not applied to attention to a separate prefix
        return pack(
            mask,
            input_ids=input_ids if self.prefix_sharing else None,
            causal=not self.config.bidirectional,
            last_only=last_only,
            pooled_only=last_only and family_of(self.model.config.model_type).last_layer_pooling,
            prefix=prefix,
            apart=bool(prefix) and not (torch.is_grad_enabled() or cast) and splits_prefix(mask.device.type),
        )

    def _states_of(
        self, packed: PackedRows, lower: LayerStates | None = None, **tokens: torch.Tensor | None
    ) -> torch.Tensor:
        """Run the backbone over a packed row: (1, N, H), or (1, B, H) of the pooled tokens."""
        row = {
            name: None if value is None else value.flatten(0, 1).index_select(0, packed.source)[None]
            for name, value in tokens.items()
        }
        # transformers passes a 4D mask on unchanged. `packed_sdpa` needs no mask, so no (N, N) mask is made.
        return self.model(
            **row,
            position_ids=packed.position_ids,
            attention_mask=packed.position_ids.new_empty(1, 1, 1, 1),
            use_cache=False,
            packed_rows=packed,
            **({} if lower is None else lower.argument),
        ).last_hidden_state

    @torch.no_grad()
    def encode_prefix(self, input_ids: torch.Tensor) -> KeysAndValues:
        """Return the keys and values of tokens before many rows, such as a long instruction.

        Args:
            input_ids: (1, P) int64, on the model's device.

        Returns:
            The argument `prefix` of `forward`, which is then called with the rest of each row.

        Raises:
            ValueError: a model that cannot use a cached prefix, see `prefix_fallback_reason`.
        """
        if reason := self.prefix_fallback_reason(input_ids.shape[1]):
            raise TaskHeadError(
                "prefix",
                reason,
                "packed causal rows and pooling 'last'",
                "pass whole rows",
                code="option-unsupported",
            )
        store = Store()
        packed = pack(torch.ones_like(input_ids, dtype=torch.bool))._replace(store=store)
        self._states_of(packed, input_ids=input_ids)
        return store.layers


class PooledClassifier(TaskHeadModel, DecisionMixin):
    """Text classifier: single-label, multi-label, regression or ordinal; or several questions of a text.

    It is also a decision model: `pipeline("decision")` answers typed questions by its head.

    Example:
        >>> import torch
        >>> from transformers import Qwen2Config
        >>> from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig
        >>> from qwen_task_heads.hubcode.modeling_task_heads import PooledClassifier
        >>> backbone = Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        ...                        num_attention_heads=2, num_key_value_heads=1)
        >>> model = PooledClassifier(PooledClassifierConfig(text_config=backbone, num_labels=3))
        >>> model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3])
    """

    config_class = PooledClassifierConfig

    @property
    def decision_config(self) -> HeadDecisionConfig:
        """Settings of `pipeline("decision")`, which encode requests as in training."""
        return HeadDecisionConfig(self.config)

    @torch.no_grad()
    def decide(
        self, input_ids: torch.Tensor, marks: torch.Tensor, decision_questions: list[Any], **kwargs: Any
    ) -> list[torch.Tensor]:
        """Return log-probabilities of the options of each question, from one pass over the state.

        Args:
            input_ids: (1, N) int64.
            marks: not used: the pooling finds its tokens.
            decision_questions: of `decision_config.prepare_inputs`.
            **kwargs: not used.

        Raises:
            ValueError: a question that the head was not trained for.
        """
        logits = self(input_ids=input_ids.to(self.device)).logits[0].float().cpu()
        return [answer_scores(logits, question, self.config) for question in decision_questions]


class TitleScorer(TaskHeadModel):
    """One score per text, higher is better: P(a preferred to b) = sigmoid(score(a) - score(b)).

    A Bradley-Terry reward model (Bradley and Terry 1952, https://doi.org/10.1093/biomet/39.3-4.324) with
    `logits` (B, 1), as trl's RewardTrainer trains it.

    Example:
        >>> import torch
        >>> from transformers import Qwen2Config
        >>> from qwen_task_heads.hubcode.configuration_task_heads import TitleScorerConfig
        >>> from qwen_task_heads.hubcode.modeling_task_heads import TitleScorer
        >>> backbone = Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        ...                        num_attention_heads=2, num_key_value_heads=1)
        >>> model = TitleScorer(TitleScorerConfig(text_config=backbone))
        >>> model(input_ids=torch.tensor([[1, 2, 3], [4, 5, 6]])).logits.shape
        torch.Size([2, 1])
    """

    config_class = TitleScorerConfig


# Saving copies this file and its siblings into the model's folder.
for _model in (PooledClassifier, TitleScorer):
    _model.register_for_auto_class("AutoModelForSequenceClassification")
