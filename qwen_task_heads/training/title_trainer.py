"""`TitleTrainer`: trl's RewardTrainer with the losses of this project, exact metrics and named failures.

What differs from its parent: any loss of `PAIR_LOSSES` or `GROUP_LOSSES` (per row, in fp32, weighted),
averaged over all rows of an update, however they are cut into batches (`updates`);
no pair is dropped for its length; dev accuracy is the mean over pairs and not over batches, on any
number of processes, and equal titles or scores are half right; a loss that is not finite stops the run and
names the rows; no stock card.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from trl import RewardTrainer

from qwen_task_heads.adapters import quiet_peft
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.metrics.ties import TIE
from qwen_task_heads.tokenization.collators import PREFERENCE_SIGNALS, TitleCollator
from qwen_task_heads.training.callbacks import NonFiniteGuard, name_sources
from qwen_task_heads.training.group_losses import GROUP_LOSSES, pair_indices, resolve_group_loss
from qwen_task_heads.training.hub_saving import HubSaving
from qwen_task_heads.training.pair_losses import center_rewards, resolve_pair_loss
from qwen_task_heads.training.speed import ThroughputCallback
from qwen_task_heads.training.text_inputs import encode_titles
from qwen_task_heads.training.updates import ExactUpdates, set_up

COLUMNS = ["chosen_ids", "rejected_ids", "title_ids", "gains", "row", "length", *PREFERENCE_SIGNALS]


class TitleTrainer(HubSaving, ExactUpdates, RewardTrainer):
    """Train a `TitleScorer` on pairs or groups.

    Args:
        model: a `TitleScorer`, or a `PeftModel` around one.
        loss: name of a pair loss (`bradley_terry`, ...) or group loss (`plackett_luce`, `all_pairs`).
            Groups are for training; the dev set always holds pairs.
        loss_options: scalar options of the loss, such as `{"margin": 0.1}` or `{"nu": 0.5}`.
        train_sources: where each row of the training set was read, by its `row`.
        eval_sources: the same of the dev set.
        **kwargs: as in `trl.RewardTrainer`. Data sets hold the columns of `data.pair_readers` (`chosen`,
            `rejected`, ...), or `PairExample` or `GroupExample` objects, or come from
            `tokenization.collators`. Of rows and examples for training, pairs that the cut to `max_length`
            has made equal are left out.

    Raises:
        TaskHeadsError: an unknown loss, data without the columns it needs, pairs that are all equal after the
            cut, or numbers that are not finite.

    Example:
        trainer = TitleTrainer(model=model, args=args, train_dataset=train, eval_dataset=dev,
                               processing_class=tokenizer, loss="bradley_terry")
    """

    def __init__(
        self,
        model: Any,
        *,
        loss: str = "bradley_terry",
        loss_options: dict[str, float] | None = None,
        train_sources: Sequence[str] = (),
        eval_sources: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        self.grouped = loss in GROUP_LOSSES
        self.group_loss = resolve_group_loss(loss) if self.grouped else None
        # A dev set of pairs is measured by Bradley-Terry when training looks at whole groups.
        self.pair_loss = resolve_pair_loss("bradley_terry" if self.grouped else loss)
        self.loss_options = dict(loss_options or {})
        self.guard, self.throughput = NonFiniteGuard(), ThroughputCallback()
        self.sources = {"train": train_sources, "eval": eval_sources}
        args, tokenizer = kwargs.get("args"), kwargs["processing_class"]
        limit = None if args is None else args.max_length
        for split, name in (("train", "train_dataset"), ("eval", "eval_dataset")):
            kwargs[name], read = encode_titles(
                kwargs.get(name), name=name, model=model, tokenizer=tokenizer, max_length=limit,
                grouped=self.grouped and split == "train", training=split == "train",
            )  # fmt: skip
            self.sources[split] = self.sources[split] or read
        self._check_loss(
            loss, {"training set": kwargs["train_dataset"], "dev set": kwargs.get("eval_dataset")}
        )
        if self.grouped and args is not None and args.center_rewards_coefficient is not None:
            found = f"found {args.center_rewards_coefficient} with loss {loss!r}, which takes groups"
            where, accepted = "--center_rewards_coefficient", "with a loss over pairs"
            raise TaskHeadsError(Problem(where, found, accepted, "drop it, or choose such a loss"))
        kwargs.setdefault("data_collator", TitleCollator(tokenizer.pad_token_id))
        if args is not None:
            set_up(model, args)
        with quiet_peft():
            super().__init__(model, **kwargs)
        self.add_callback(self.guard)
        self.add_callback(self.throughput)

    def encode_rows(self, data: Any) -> Any:
        """Return pairs as token ids; a data set that holds them already is returned as it is."""
        return encode_titles(
            data, name="eval_dataset", model=self.model, tokenizer=self.processing_class,
            max_length=self.args.max_length,
        )[0]  # fmt: skip

    def _check_loss(self, loss: str, datasets: Mapping[str, Any]) -> None:
        """Refuse, before training, what would fail at the first step or at the first look at dev."""
        accepted = () if self.grouped else (*self.pair_loss.uses, *self.pair_loss.options)
        if unknown := sorted(self.loss_options.keys() - set(accepted)):
            found = f"found {', '.join(unknown)} with loss {loss!r}"
            takes = f"{', '.join(accepted) or 'no option'}"
            raise TaskHeadsError(
                Problem(f"--loss_{unknown[0]}", found, takes, "drop it, or choose another loss")
            )
        if self.grouped:
            return
        for name, dataset in datasets.items():
            if dataset is not None:
                if both := sorted(self.loss_options.keys() & set(dataset.column_names)):
                    found = f"found {self.loss_options[both[0]]}, and a column {both[0]!r} in the {name}"
                    remedy = f"drop --loss_{both[0]}, or the column from the data"
                    one = "the option or the column"
                    raise TaskHeadsError(Problem(f"--loss_{both[0]}", found, one, remedy))
                where = f"--loss, {name}"
                self.pair_loss.check([*dataset.column_names, *self.loss_options], where=where)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Take data sets as they are: ours are encoded already, and trl would drop long rows in silence."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = COLUMNS

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super(RewardTrainer, self)._save_checkpoint(model, trial)  # trl's writes a card at each checkpoint

    def rows_in(self, batch: dict[str, Any]) -> int:
        """Pairs or groups; trl's own collator gives pairs without `row`, both halves in `input_ids`."""
        return len(batch["row"]) if "row" in batch else len(batch["input_ids"]) // 2

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss of a batch from `TitleCollator`."""
        mode = "train" if self.model.training else "eval"
        inputs = dict(inputs)
        rows = inputs.pop("row", torch.arange(0))
        sizes, gains = inputs.pop("sizes", None), inputs.pop("gains", None)
        evidence = {name: inputs.pop(name) for name in PREFERENCE_SIGNALS if name in inputs}
        outputs = model(**inputs, use_cache=False)
        scores = outputs.logits.squeeze(-1).float()  # (2B,) or (N,)
        if sizes is None:
            same = _equal_halves(inputs["input_ids"], inputs["attention_mask"])
            losses, credit, gap = self._of_pairs(scores, evidence, same)
        else:
            losses, credit, gap = self._of_groups(scores, sizes.tolist(), gains)
        sources = name_sources(rows, self.sources[mode])
        if "weight" in evidence:
            losses = losses * evidence["weight"]  # before the check, which then finds a bad weight's row too
        self.guard.check_finite(
            losses.detach(), scores=scores.detach(), sources=sources, step=self.state.global_step + 1
        )
        loss = self.mean_of_update(losses, num_items_in_batch)
        figures = {"accuracy": credit.detach(), "margin": gap.detach()}
        if mode == "eval":  # Trainer's own mean counts the rows that fill the last batch of all processes
            figures["loss"] = losses.detach()
        self._record(mode, inputs["attention_mask"], scores.detach(), figures)
        return (loss, outputs) if return_outputs else loss

    def _of_pairs(
        self, scores: torch.Tensor, evidence: dict[str, torch.Tensor], same: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Losses, credit (1, .5 or 0) and score gaps per pair, each (B,); `same` (B,) marks equal titles."""
        chosen, rejected = scores.chunk(2)
        inputs: dict[str, Any] = {}
        if not self.grouped:
            for name, value in self.loss_options.items():  # one margin for all rows is a column of it
                inputs[name] = torch.full_like(chosen, value) if name in self.pair_loss.uses else value
            inputs |= {name: evidence[name] for name in self.pair_loss.uses if name in evidence}
        losses = self.pair_loss(chosen, rejected, **inputs)
        if self.args.center_rewards_coefficient is not None:
            losses = losses + center_rewards(
                chosen, rejected, coefficient=self.args.center_rewards_coefficient
            )
        gap = (chosen - rejected).masked_fill(same, 0.0)  # two rows of one batch may differ by rounding
        return losses, _credit(gap, scores), gap

    def _of_groups(
        self, scores: torch.Tensor, sizes: list[int], gains: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Losses (G,), and credit and gaps over all pairs with different gains."""
        losses = self.group_loss.function(scores, sizes=sizes, gains=gains, **self.loss_options)  # type: ignore[union-attr]
        left, right = (index.to(scores.device) for index in pair_indices(sizes))
        direction = torch.sign(gains[left] - gains[right])
        gap = (scores[left] - scores[right]) * direction
        return losses, _credit(gap, scores)[direction != 0], gap[direction != 0]

    @torch.no_grad()
    def _record(
        self, mode: str, mask: torch.Tensor, scores: torch.Tensor, figures: dict[str, torch.Tensor]
    ) -> None:
        """Keep the figures per example; `log` averages them, so the last batch counts by its size."""
        metrics = self._metrics[mode]
        if mode == "train":
            self._total_train_tokens += int(self.accelerator.gather(mask.sum()).sum())
            if self.grouped:  # groups give other numbers of pairs on each process
                figures = {name: values.mean()[None] for name, values in figures.items()}
        metrics["num_tokens"] = [self._total_train_tokens]
        # gather_for_metrics drops the rows that were repeated to fill the last batch of all processes. Not in
        # training: it would cut every batch of an epoch's last update, once the loader has ended.
        gather = self.accelerator.gather if mode == "train" else self.accelerator.gather_for_metrics
        for name, values in figures.items():
            # Groups without any order have no pair to be right about: NaN, a mean over nothing.
            if known := [value for value in gather(values).tolist() if not math.isnan(value)]:
                metrics[name].extend(known)
        for name, value in (
            ("min_reward", scores.min()),
            ("max_reward", scores.max()),
            ("mean_reward", scores.mean()),
        ):
            metrics[name].append(float(self.accelerator.gather(value).mean()))


def _equal_halves(input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Whether both titles of a pair are the same tokens, (B,), in rows (2B, T) with the chosen half first."""
    chosen, rejected = (input_ids * mask).chunk(2)
    return (chosen == rejected).all(1) & (mask.chunk(2)[0] == mask.chunk(2)[1]).all(1)


def _credit(gap: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Credit per gap, 1 or 0, and .5 of ties as in `ties.py`, relative to the largest score of the batch."""
    return 0.5 + 0.5 * torch.sign(gap).masked_fill(gap.abs() <= TIE * scores.abs().max(), 0.0)
