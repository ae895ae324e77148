"""`ClassifierTrainer`: transformers' Trainer with the losses of this project, exact sums and named failures.

What differs from its parent:

- The loss is any of `TEXT_LOSSES`, computed from the logits: per row, in fp32, weighted.
- An update is the mean over all of its rows, on all processes and in all accumulated batches (`updates`).
- `eval_loss` is the mean over rows, each counted once; on several processes the parent's also holds rows
  that fill up the last batch.
- A loss that is not finite stops the run and names the rows; labels that torch would leave out are refused.
- `peft_config`, as trl's trainers have it; no stock card.

Dropout is as the model's and the adapter's configs say. trl's RewardTrainer switches it off; Qwen has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer, set_seed

from qwen_task_heads.adapters import with_adapter
from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.metrics.classification import dev_metrics
from qwen_task_heads.pretrained import EMBEDDED_FOLDER
from qwen_task_heads.tokenization.collators import TextCollator
from qwen_task_heads.training.backbone_defaults import rates_for
from qwen_task_heads.training.callbacks import NonFiniteGuard, name_sources
from qwen_task_heads.training.class_balance import count_labels
from qwen_task_heads.training.hub_saving import HubSaving
from qwen_task_heads.training.speed import ThroughputCallback
from qwen_task_heads.training.text_inputs import encode_texts
from qwen_task_heads.training.text_losses import TEXT_LOSSES, TextLoss, resolve_text_loss
from qwen_task_heads.training.updates import ExactUpdates, set_up

COLUMNS = ["row", "input_ids", "attention_mask", "labels", "soft", "weight"]


class ClassifierTrainer(HubSaving, ExactUpdates, Trainer):
    """Train a `PooledClassifier`.

    Args:
        model: a `PooledClassifier`, or a `PeftModel` around one.
        loss: name out of `TEXT_LOSSES`; None for that of the problem type.
        loss_options: `class_weights`, `label_smoothing`, `focal_gamma`, `pos_weight`,
            `logit_adjustment_tau`, as `resolve_text_loss` takes them. `args.label_smoothing_factor` is used
            where no `label_smoothing` is given.
        class_counts: training rows with each label; counted in `train_dataset` when None.
        problem_type: must be that of the model's config, and may be left out.
        peft_config: an adapter to put on the model, from `models.adapter_config`.
        token_dropout: share of a text's tokens that training hides, anew at every step; see `hide_tokens`.
        train_sources: where each row of the training set was read, by its `row`.
        eval_sources: the same of the dev set.
        **kwargs: as in `transformers.Trainer`. Data sets hold the columns of `data.text_readers` (`text`,
            `label`, ...), or `TextExample` objects, or come from `tokenization.collators.text_dataset`.
            `compute_metrics` is `dev_metrics` of the problem type, if not given.

    Attributes:
        loss: the `TextLoss`; its `lines` belong into the run's report.

    Raises:
        TaskHeadsError: an unknown loss, options that do not fit, labels out of range, soft labels that the
            loss would leave out, or numbers that are not finite.

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
        # None is what transformers' own classifiers start with, and they take it for this.
        self.problem_type = config.problem_type or problem_type or "single_label_classification"
        if problem_type not in (None, self.problem_type):
            found = f"found {problem_type!r}, and a model for {self.problem_type!r}"
            raise TaskHeadsError(
                Problem("problem_type", found, "that of the model", "build the model with it")
            )
        if args.learning_rate is None:  # a `ClassifierConfig` from Python: the recipe has set it
            args.learning_rate = default_rate(model, adapted=peft_config is not None)
        self.sources = {"train": train_sources, "eval": eval_sources}
        for split, name in (("train", "train_dataset"), ("eval", "eval_dataset")):
            kwargs[name], read = encode_texts(
                kwargs.get(name), name=name, config=config, tokenizer=kwargs["processing_class"]
            )
            self.sources[split] = self.sources[split] or read
        kwargs.setdefault("compute_metrics", dev_metrics(self.problem_type))
        sets = {"train": kwargs.get("train_dataset"), "eval": kwargs.get("eval_dataset")}
        counts = self._check_labels(sets, num_labels=config.num_labels)
        options = dict(loss_options or {})
        if args.label_smoothing_factor:
            options.setdefault("label_smoothing", args.label_smoothing_factor)
        self.loss: TextLoss = resolve_text_loss(
            loss,
            problem_type=self.problem_type,
            num_labels=config.num_labels,
            options=options,
            class_counts=counts if class_counts is None else class_counts,
            rows=None if counts is None else len(sets["train"]),  # type: ignore[arg-type]
            labels=[config.id2label[index] for index in range(config.num_labels)],
        )
        self._check_soft(sets)
        self.token_dropout = token_dropout
        template = config.template or {"before": [], "after": []}
        self._template = len(template["before"]), len(template["after"])
        self.guard, self.throughput = NonFiniteGuard(), ThroughputCallback()
        self._split = "eval"  # the metric prefix of the evaluation under way
        self._losses: list[torch.Tensor] = []  # its losses per row, gathered
        set_up(model, args)
        if peft_config is not None:
            model = put_adapter(model, peft_config, args=args)
        kwargs.setdefault(
            "data_collator", TextCollator(kwargs["processing_class"].pad_token_id, self.problem_type)
        )
        # The parent's smoother would never be called, and its constructor warns that there will be none.
        smoothing, args.label_smoothing_factor = args.label_smoothing_factor, 0.0
        super().__init__(model, args, **kwargs)
        args.label_smoothing_factor = smoothing
        self.label_names = ["labels"]
        self.add_callback(self.guard)
        self.add_callback(self.throughput)

    def encode_rows(self, data: Any) -> Any:
        """Return texts as token ids; a data set that holds them already is returned as it is."""
        config, tokenizer = self.task_head.config, self.processing_class
        return encode_texts(data, name="eval_dataset", config=config, tokenizer=tokenizer)[0]

    def _check_labels(self, sets: Mapping[str, Any], *, num_labels: int) -> list[int] | None:
        """Counts of the labels of the training set; None for a stream, which nobody has seen yet."""
        from datasets import Dataset

        counts = None
        for name, table in _tables(sets):
            if isinstance(table, Dataset) and "labels" in table.column_names:
                found = count_labels(
                    list(table["labels"]),
                    problem_type=self.problem_type,
                    num_labels=num_labels,
                    sources=self.sources[name],
                )
                counts = found if name == "train" else counts
        return counts

    def _check_soft(self, sets: Mapping[str, Any]) -> None:
        """Refuse soft labels that the loss would leave out: another loss than the user thinks."""
        for name, table in _tables(sets):
            if "soft" in (table.column_names or ()) and "soft" not in self.loss.form.uses:
                takes = [key for key, form in TEXT_LOSSES[self.problem_type].items() if form.uses]
                found = f"found {self.loss.name!r}, and soft labels in the {name} set"
                accepted = f"accepted with soft labels: {', '.join(takes) or 'no loss of this problem type'}"
                remedy = "choose one of these, or drop the soft labels"
                raise TaskHeadsError(Problem("--loss", found, accepted, remedy))

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = COLUMNS

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of a batch from `TextCollator`.

        Args:
            model: as wrapped for training.
            inputs: `input_ids` and `attention_mask` (B, T), `labels`, and perhaps `row`, `soft`, `weight`.
            return_outputs: give the model's outputs too.
            num_items_in_batch: rows of the whole update. With it, the losses of all its batches add up, after
                the parent has divided them, to the mean over these rows; None gives the mean of the batch.
        """
        inputs = dict(inputs)
        rows = inputs.pop("row", torch.arange(0))
        labels, weight = inputs.pop("labels"), inputs.pop("weight", None)
        columns = {name: inputs.pop(name) for name in self.loss.form.uses if name in inputs}
        if self.model.training and self.token_dropout:
            inputs["attention_mask"] = hide_tokens(
                inputs["attention_mask"], share=self.token_dropout, template=self._template
            )
        outputs = model(**inputs, use_cache=False)
        losses = self.loss(outputs.logits, labels, **columns)
        if weight is not None:
            losses = losses * weight  # before the check, which then finds a bad weight's row too
        named = self.sources.get("train" if self.model.training else self._split, ())
        self.guard.check_finite(
            losses, scores=outputs.logits, sources=name_sources(rows, named), step=self.state.global_step + 1
        )
        if not self.model.training:
            # Without the rows that fill the last batch of all processes.
            self._losses.append(self.accelerator.gather_for_metrics(losses.detach()))
        loss = self.mean_of_update(losses, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As the parent; rows without labels go to the model without their number."""
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
        """As the parent, with a loss that is the mean over all rows, each counted once."""
        self._split, self._losses = metric_key_prefix, []
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if self._losses:
            output.metrics[f"{metric_key_prefix}_loss"] = torch.cat(self._losses).double().mean().item()
        return output


def default_rate(model: Any, *, adapted: bool) -> float:
    """Return the learning rate of a run that names none, by what is trained and on which backbone."""
    base = model.config.backbone_name_or_path
    embedded = base is not None and base == str(EMBEDDED_FOLDER.resolve())
    return rates_for("classifier", EMBEDDED if embedded else base)["lora" if adapted else "full"]


def hide_tokens(mask: torch.Tensor, *, share: float, template: tuple[int, int]) -> torch.Tensor:
    """Hide a random share of the tokens of right-padded rows, as if they did not stand in the text.

    Positions are counted over what is left, so a hidden token is a token left out. The template stays whole.

    Args:
        mask: (B, T), 1 for real tokens.
        share: probability for each token of the text.
        template: how many tokens stand before and after the text.

    Source: word dropout, Iyyer et al. 2015, https://aclanthology.org/P15-1162.
    """
    place = torch.arange(mask.shape[1], device=mask.device)[None]  # (1, T)
    before, after = template
    text = (place >= before) & (place < mask.sum(1, keepdim=True) - after)  # (B, T)
    hidden = text & (torch.rand(mask.shape, device=mask.device) < share)
    # A row of its template alone, or of nothing, has no text to learn from: it stays as it is.
    hidden &= (hidden != text).any(1, keepdim=True)
    return mask * ~hidden


def put_adapter(model: Any, peft_config: Any, *, args: Any) -> Any:
    """Put an adapter on a model, set up for training as trl's trainers do it.

    The base, quantised or not, is frozen; LoRA matrices are fp32, PEFT's default, beside a base of any dtype.

    Args:
        model: a `PooledClassifier`, perhaps loaded with a `quantization_config`.
        peft_config: from `models.adapter_config`.
        args: the `TrainingArguments`; with ZeRO-3 and checkpointing, `use_reentrant` is set in them.

    Returns:
        The `PeftModel`.

    Raises:
        TaskHeadsError: the model has an adapter already.

    Source: trl 1.16, `RewardTrainer.__init__`.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        found = "found a model that has an adapter, and peft_config"
        remedy = "drop one, or merge the first adapter with models.merge"
        raise TaskHeadsError(Problem("peft_config", found, "one adapter", remedy))
    set_seed(args.seed)  # LoRA's first matrix is drawn, whatever was drawn before it
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
        # Frozen embeddings give no gradient, and reentrant checkpointing would cut the adapters off.
        # transformers 5.23 sees to it itself; earlier ones did not (transformers issue 42489).
        adapted.enable_input_require_grads()
    return adapted


def _tables(sets: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The data sets that are there; the dev set may be several."""
    for name, dataset in sets.items():
        for table in dataset.values() if isinstance(dataset, dict) else [dataset]:
            if table is not None:
                yield name, table
