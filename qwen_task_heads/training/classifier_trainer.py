"""`ClassifierTrainer`: transformers' Trainer with row-weighted losses, exact means and errors that name rows.

Differences from its parent:

- The loss is one of `losses.registry.LOSSES`, computed from the logits: per row, in fp32, weighted.
- An update is the mean over all of its rows, on all processes and in all accumulated batches (`updates`).
- `eval_loss` is the mean over rows, each counted once. On several processes the parent's `eval_loss` also
  contains the rows that fill the last batch.
- A loss that is not finite stops the run and names the rows. Labels that torch would ignore are rejected.
- It takes `peft_config`, as trl's trainers do, and writes no stock model card.

Dropout follows the configs of the model and the adapter. trl's RewardTrainer disables it; Qwen has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer, set_seed

from qwen_task_heads.adapters import with_adapter
from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.questions_task_heads import sizes_of
from qwen_task_heads.losses.class_balance import count_labels
from qwen_task_heads.losses.registry import TextLoss, resolve_text_loss
from qwen_task_heads.metrics.questions import dev_metrics_of
from qwen_task_heads.pretrained import EMBEDDED_FOLDER
from qwen_task_heads.tokenization.collators import TextCollator
from qwen_task_heads.training.backbone_defaults import rates_for
from qwen_task_heads.training.callbacks import NonFiniteGuard, name_sources
from qwen_task_heads.training.hub_saving import HubSaving
from qwen_task_heads.training.speed import ThroughputCallback
from qwen_task_heads.training.text_inputs import encode_texts
from qwen_task_heads.training.updates import ExactUpdates, set_up

COLUMNS = ["row", "input_ids", "attention_mask", "labels", "soft", "weight"]


class ClassifierTrainer(HubSaving, ExactUpdates, Trainer):
    """Train a `PooledClassifier`.

    Args:
        model: a `PooledClassifier`, or a `PeftModel` around one.
        loss: name from `losses.registry.LOSSES`; None for the default of the problem type.
        loss_options: `class_weights`, `label_smoothing`, `focal_gamma`, `pos_weight`,
            `logit_adjustment_tau`, as `resolve_text_loss` takes them. Without `label_smoothing`,
            `args.label_smoothing_factor` is used.
        class_counts: training rows with each label; counted in `train_dataset` if None.
        problem_type: the problem type of the model's config; may be omitted.
        peft_config: an adapter to add to the model, from `models.adapter_config`.
        token_dropout: share of a text's tokens that each training step hides; see `hide_tokens`.
        train_sources: file and line of each row of the training set, by its `row`.
        eval_sources: the same for the dev set.
        **kwargs: as in `transformers.Trainer`. Data sets have the columns of `data.text_readers` (`text`,
            `label`, ...), or contain `TextExample` objects, or come from
            `tokenization.collators.text_dataset`. `compute_metrics` defaults to `dev_metrics` of the problem
            type.

    Attributes:
        loss: the `TextLoss`; its `messages` are written to the report of the run.

    Raises:
        TaskHeadsError: an unknown loss, options that it does not take, labels out of range, soft labels that
            the loss does not use, or numbers that are not finite.

    Example:
        trainer = ClassifierTrainer(model=model, args=args, train_dataset=train, eval_dataset=dev,
                                    processing_class=tokenizer, loss_options={"class_weights": "balanced"})
    """

    def __init__(
        self,
        model: Any,
        *,
        args: Any,
        loss: str | None = None,
        loss_options: Mapping[str, Any] | None = None,
        class_counts: Sequence[int] | None = None,
        problem_type: str | None = None,
        peft_config: Any = None,
        token_dropout: float = 0.0,
        train_sources: Sequence[str] = (),
        eval_sources: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        config = model.config
        # The config of transformers' own classifiers starts with None, which they treat as single-label.
        self.problem_type = config.problem_type or problem_type or "single_label_classification"
        if problem_type not in (None, self.problem_type):
            where, expected = "problem_type", f"{self.problem_type!r}, the problem type of the model"
            fix = "build the model with this problem type"
            raise TaskHeadsError(Problem(where, f"found {problem_type!r}", expected, fix, code="model-type"))
        if args.learning_rate is None:  # a `ClassifierConfig` from Python; recipes set the rate
            args.learning_rate = default_rate(model, adapted=peft_config is not None)
        self.sources = {"train": train_sources, "eval": eval_sources}
        for split, name in (("train", "train_dataset"), ("eval", "eval_dataset")):
            kwargs[name], row_sources = encode_texts(
                kwargs.get(name), name=name, config=config, tokenizer=kwargs["processing_class"]
            )
            self.sources[split] = self.sources[split] or row_sources
        questions = config.__dict__.get("questions") or ()
        kwargs.setdefault("compute_metrics", dev_metrics_of(self.problem_type, questions))
        datasets = {"train": kwargs.get("train_dataset"), "eval": kwargs.get("eval_dataset")}
        counts = self._count_labels(datasets, num_labels=config.num_labels)
        options = dict(loss_options or {})
        if args.label_smoothing_factor:
            options.setdefault("label_smoothing", args.label_smoothing_factor)
        self.loss: TextLoss = resolve_text_loss(
            loss,
            problem_type=self.problem_type,
            num_labels=config.num_labels,
            options=options,
            class_counts=counts if class_counts is None else class_counts,
            rows=None if counts is None else len(datasets["train"]),  # type: ignore[arg-type]
            labels=[config.id2label[index] for index in range(config.num_labels)],
            sizes=sizes_of(questions),
        )
        for name, table in _tables(datasets):
            self.loss.check_soft(table, name=name)
        self.token_dropout = token_dropout
        template = config.template or {"before": [], "after": []}
        self._template = len(template["before"]), len(template["after"])
        self.guard, self.throughput = NonFiniteGuard(), ThroughputCallback()
        self._split = "eval"  # metric prefix of the current evaluation
        self._losses: list[torch.Tensor] = []  # losses per row of the current evaluation, gathered
        set_up(model, args)
        if peft_config is not None:
            model = add_adapter(model, peft_config, args=args)
        kwargs.setdefault(
            "data_collator", TextCollator(kwargs["processing_class"].pad_token_id, self.problem_type)
        )
        # `compute_loss` does the smoothing. With a factor, the parent's constructor warns that it does none.
        smoothing, args.label_smoothing_factor = args.label_smoothing_factor, 0.0
        super().__init__(model, args, **kwargs)
        args.label_smoothing_factor = smoothing
        self.label_names = ["labels"]
        self.add_callback(self.guard)
        self.add_callback(self.throughput)

    def encode_rows(self, data: Any) -> Any:
        """Return texts as token ids; a data set of token ids is returned unchanged."""
        config, tokenizer = self.task_head.config, self.processing_class
        return encode_texts(data, name="eval_dataset", config=config, tokenizer=tokenizer)[0]

    def _count_labels(self, datasets: Mapping[str, Any], *, num_labels: int) -> list[int] | None:
        """Check all labels; return the counts of the training set, or None for a stream."""
        from datasets import Dataset

        train_counts = None
        for name, table in _tables(datasets):
            if isinstance(table, Dataset) and "labels" in table.column_names:
                counts = count_labels(
                    list(table["labels"]),
                    problem_type=self.problem_type,
                    num_labels=num_labels,
                    sources=self.sources[name],
                )
                train_counts = counts if name == "train" else train_counts
        return train_counts

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = COLUMNS

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss of a batch from `TextCollator`.

        Args:
            model: as wrapped for training.
            inputs: `input_ids` and `attention_mask` (B, T), `labels`, and optionally `row`, `soft`, `weight`.
            return_outputs: return the model's outputs too.
            num_items_in_batch: rows of the whole update. The losses of its batches, as the parent divides
                them, then sum to the mean over these rows. None gives the mean over the batch.
        """
        inputs = dict(inputs)
        rows = inputs.pop("row", torch.arange(0))
        labels, weight = inputs.pop("labels"), inputs.pop("weight", None)
        columns = {name: inputs.pop(name) for name in self.loss.row.uses if name in inputs}
        if self.model.training and self.token_dropout:
            inputs["attention_mask"] = hide_tokens(
                inputs["attention_mask"], share=self.token_dropout, template=self._template
            )
        outputs = model(**inputs, use_cache=False)
        losses = self.loss(outputs.logits, labels, **columns)
        if weight is not None:
            losses = losses * weight  # before the check, so that it also finds weights that are not finite
        sources = self.sources.get("train" if self.model.training else self._split, ())
        self.guard.check_finite(
            losses,
            scores=outputs.logits,
            sources=name_sources(rows, sources),
            step=self.state.global_step + 1,
        )
        if not self.model.training:
            # gather_for_metrics drops the rows that fill the last batch of all processes.
            self._losses.append(self.accelerator.gather_for_metrics(losses.detach()))
        loss = self.mean_of_update(losses, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the parent's step; for rows without labels, only the token columns go to the model."""
        if "labels" not in inputs:
            inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return super().prediction_step(model, inputs, *args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Run the parent's loop; the loss is the mean over all rows, each counted once."""
        self._split, self._losses = metric_key_prefix, []
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if self._losses:
            output.metrics[f"{metric_key_prefix}_loss"] = torch.cat(self._losses).double().mean().item()
        return output


def default_rate(model: Any, *, adapted: bool) -> float:
    """Return the default learning rate for a backbone and full or adapter training."""
    base = model.config.backbone_name_or_path
    embedded = base is not None and base == str(EMBEDDED_FOLDER.resolve())
    return rates_for("classifier", EMBEDDED if embedded else base)["lora" if adapted else "full"]


def hide_tokens(mask: torch.Tensor, *, share: float, template: tuple[int, int]) -> torch.Tensor:
    """Mask a random share of the text tokens of right-padded rows.

    Positions are counted over the remaining tokens, so that a hidden token has the effect of a removed one.
    Tokens of the template are never hidden.

    Args:
        mask: (B, T), 1 for real tokens.
        share: probability for each token of the text.
        template: number of template tokens before and after the text.

    Source: word dropout, Iyyer et al. 2015, https://aclanthology.org/P15-1162.
    """
    place = torch.arange(mask.shape[1], device=mask.device)[None]  # (1, T)
    before, after = template
    text = (place >= before) & (place < mask.sum(1, keepdim=True) - after)  # (B, T)
    hidden = text & (torch.rand(mask.shape, device=mask.device) < share)
    # Rows whose text would be hidden completely, or that have no text, stay unchanged.
    hidden &= (hidden != text).any(1, keepdim=True)
    return mask * ~hidden


def add_adapter(model: Any, peft_config: Any, *, args: Any) -> Any:
    """Add an adapter to a model, and prepare it for training as trl's trainers do.

    The base, quantised or not, is frozen. LoRA matrices are fp32, PEFT's default, for a base of any dtype.

    Args:
        model: a `PooledClassifier`, optionally loaded with a `quantization_config`.
        peft_config: from `models.adapter_config`.
        args: the `TrainingArguments`; with ZeRO-3 and checkpointing, `use_reentrant` is set in them.

    Returns:
        The `PeftModel`.

    Raises:
        TaskHeadsError: the model already has an adapter.

    Source: trl 1.16, `RewardTrainer.__init__`.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        problem, expected = "found a model that already has an adapter", "a model without an adapter"
        fix = "drop peft_config, or merge the first adapter with models.merge"
        raise TaskHeadsError(Problem("peft_config", problem, expected, fix, code="option-unsupported"))
    set_seed(args.seed)  # LoRA's first matrix is random; it must not depend on earlier draws
    plugin = args.deepspeed_plugin
    sharded = plugin is not None and plugin.zero_stage == 3
    # ZeRO-3 gathers parameters into one buffer of one dtype (trl issue 6089), and needs reentrant
    # checkpointing with PEFT (trl issue 2514).
    adapted = with_adapter(model, peft_config, autocast_adapter_dtype=not sharded)
    if args.gradient_checkpointing:
        if sharded:
            for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):  # old, new
                if name in vars(args):
                    setattr(args, name, {**(vars(args)[name] or {}), "use_reentrant": True})
        # Frozen embeddings have no gradient, so that reentrant checkpointing would give the adapters none.
        # transformers 5.23 handles this itself; earlier versions did not (transformers issue 42489).
        adapted.enable_input_require_grads()
    return adapted


def _tables(datasets: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield name and table of each given data set; the dev set may be a dict of several."""
    for name, dataset in datasets.items():
        for table in dataset.values() if isinstance(dataset, dict) else [dataset]:
            if table is not None:
                yield name, table
