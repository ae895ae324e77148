"""`TitleTrainer`: trl's RewardTrainer with pair and group losses, exact metrics and errors that name rows.

Differences from its parent:

- The loss is one of `losses.registry.LOSSES`: per row, in fp32, weighted. An update is the mean over
  all of its rows, for any split into batches (`updates`).
- No pair is dropped for its length.
- Dev accuracy is the mean over pairs and not over batches, on any number of processes. Equal titles or scores
  count as half right.
- A loss that is not finite stops the run and names the rows.
- It writes no stock model card.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from trl import RewardTrainer

from qwen_task_heads.adapters import quiet_peft
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.losses.groups import pair_indices
from qwen_task_heads.losses.pairs import center_rewards
from qwen_task_heads.losses.registry import PAIR_LOSSES, TITLE_LOSSES, option_problems, resolve_loss
from qwen_task_heads.metrics.ties import TIE
from qwen_task_heads.tokenization.collators import PREFERENCE_SIGNALS, TitleCollator
from qwen_task_heads.training.callbacks import NonFiniteGuard, name_sources
from qwen_task_heads.training.hub_saving import HubSaving
from qwen_task_heads.training.speed import ThroughputCallback
from qwen_task_heads.training.text_inputs import encode_titles
from qwen_task_heads.training.updates import ExactUpdates, set_up

COLUMNS = ["chosen_ids", "rejected_ids", "title_ids", "gains", "row", "length", *PREFERENCE_SIGNALS]


class TitleTrainer(HubSaving, ExactUpdates, RewardTrainer):
    """Train a `TitleScorer` on pairs or groups.

    Args:
        model: a `TitleScorer`, or a `PeftModel` around one.
        loss: name of a pair loss (`bradley_terry`, ...) or group loss (`plackett_luce`, `all_pairs`).
            Groups are for training; the dev set always contains pairs.
        loss_options: scalar options of the loss, such as `{"margin": 0.1}` or `{"nu": 0.5}`.
        train_sources: file and line of each row of the training set, by its `row`.
        eval_sources: the same for the dev set.
        **kwargs: as in `trl.RewardTrainer`. Data sets have the columns of `data.pair_readers` (`chosen`,
            `rejected`, ...), or contain `PairExample` or `GroupExample` objects, or come from
            `tokenization.collators`. Training pairs that are equal after truncation to `max_length` are
            dropped from rows and examples.

    Raises:
        TaskHeadsError: an unknown loss, data without the columns it needs, pairs that are all equal after
            truncation, or numbers that are not finite.

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
        self.loss = resolve_loss(loss, "pairs", "groups")
        self.grouped = self.loss.problem_type == "groups"
        # With a group loss, dev still contains pairs, whose loss is Bradley-Terry.
        self.pair_loss = PAIR_LOSSES["bradley_terry"] if self.grouped else self.loss
        self.loss_options = dict(loss_options or {})
        self.guard, self.throughput = NonFiniteGuard(), ThroughputCallback()
        self.sources = {"train": train_sources, "eval": eval_sources}
        args, tokenizer = kwargs.get("args"), kwargs["processing_class"]
        limit = None if args is None else args.max_length
        for split, name in (("train", "train_dataset"), ("eval", "eval_dataset")):
            kwargs[name], row_sources = encode_titles(
                kwargs.get(name),
                name=name,
                model=model,
                tokenizer=tokenizer,
                max_length=limit,
                grouped=self.grouped and split == "train",
                training=split == "train",
            )
            self.sources[split] = self.sources[split] or row_sources
        self._check_loss({"training set": kwargs["train_dataset"], "dev set": kwargs.get("eval_dataset")})
        if self.grouped and args is not None and args.center_rewards_coefficient is not None:
            where, fix = "--center_rewards_coefficient", "drop the option, or choose a loss over pairs"
            problem = f"found {args.center_rewards_coefficient} with loss {loss!r}, which takes groups"
            raise TaskHeadsError(Problem(where, problem, "a loss over pairs", fix, code="option-conflict"))
        kwargs.setdefault("data_collator", TitleCollator(tokenizer.pad_token_id))
        if args is not None:
            set_up(model, args)
        with quiet_peft():
            super().__init__(model, **kwargs)
        self.add_callback(self.guard)
        self.add_callback(self.throughput)

    def encode_rows(self, data: Any) -> Any:
        """Return pairs as token ids; a data set of token ids is returned unchanged."""
        dataset, _ = encode_titles(
            data,
            name="eval_dataset",
            model=self.model,
            tokenizer=self.processing_class,
            max_length=self.args.max_length,
        )
        return dataset

    def _check_loss(self, datasets: Mapping[str, Any]) -> None:
        """Check loss options and columns before the first step."""
        if problems := option_problems(self.loss_options, self.loss, known=TITLE_LOSSES.values()):
            raise TaskHeadsError(problems)
        if self.grouped:
            return
        for name, dataset in datasets.items():
            if dataset is not None:
                if both := sorted(self.loss_options.keys() & set(dataset.column_names)):
                    raise TaskHeadsError(
                        Problem(
                            f"--loss_{both[0]}",
                            f"found {self.loss_options[both[0]]}, and a column {both[0]!r} in the {name}",
                            "the option or the column",
                            f"drop --loss_{both[0]}, or the column from the data",
                            code="option-conflict",
                        )
                    )
                where = f"--loss, {name}"
                self.pair_loss.check([*dataset.column_names, *self.loss_options], where=where)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the data set unchanged: its rows are token ids, and trl would drop long rows silently."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = COLUMNS

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # trl's method writes its card at each checkpoint.
        super(RewardTrainer, self)._save_checkpoint(model, trial)

    def rows_in(self, batch: dict[str, Any]) -> int:
        """Count the pairs or groups of a batch; trl's own collator adds no `row` and stacks both halves."""
        return len(batch["row"]) if "row" in batch else len(batch["input_ids"]) // 2

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the mean loss of a batch from `TitleCollator`."""
        mode = "train" if self.model.training else "eval"
        inputs = dict(inputs)
        rows = inputs.pop("row", torch.arange(0))
        sizes, gains = inputs.pop("sizes", None), inputs.pop("gains", None)
        signals = {name: inputs.pop(name) for name in PREFERENCE_SIGNALS if name in inputs}
        outputs = model(**inputs, use_cache=False)
        scores = outputs.logits.squeeze(-1).float()  # (2B,) or (N,)
        if sizes is None:
            same = _equal_halves(inputs["input_ids"], inputs["attention_mask"])
            losses, credit, gap = self._pair_losses(scores, signals, same)
        else:
            losses, credit, gap = self._group_losses(scores, sizes.tolist(), gains)
        sources = name_sources(rows, self.sources[mode])
        if "weight" in signals:
            # Before the check, so that it also finds weights that are not finite.
            losses = losses * signals["weight"]
        self.guard.check_finite(
            losses.detach(), scores=scores.detach(), sources=sources, step=self.state.global_step + 1
        )
        loss = self.mean_of_update(losses, num_items_in_batch)
        values = {"accuracy": credit.detach(), "margin": gap.detach()}
        if mode == "eval":  # Trainer's own mean includes the rows that fill the last batch of all processes
            values["loss"] = losses.detach()
        self._record(mode, inputs["attention_mask"], scores.detach(), values)
        return (loss, outputs) if return_outputs else loss

    def _pair_losses(
        self, scores: torch.Tensor, signals: dict[str, torch.Tensor], same: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return losses, credit (1, .5 or 0) and score gaps, each (B,); `same` (B,) marks equal titles."""
        chosen, rejected = scores.chunk(2)
        options = {} if self.grouped else self.loss_options
        losses = self.pair_loss(chosen, rejected, **self.pair_loss.inputs(options, signals, like=chosen))
        if self.args.center_rewards_coefficient is not None:
            losses = losses + center_rewards(
                chosen, rejected, coefficient=self.args.center_rewards_coefficient
            )
        gap = (chosen - rejected).masked_fill(same, 0.0)  # scores of equal rows may differ by rounding
        return losses, _credit(gap, scores), gap

    def _group_losses(
        self, scores: torch.Tensor, sizes: list[int], gains: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return losses (G,), and credit and gaps over all pairs with different gains."""
        losses = self.loss(scores, sizes=sizes, gains=gains, **self.loss_options)
        left, right = (index.to(scores.device) for index in pair_indices(sizes))
        direction = torch.sign(gains[left] - gains[right])
        gap = (scores[left] - scores[right]) * direction
        return losses, _credit(gap, scores)[direction != 0], gap[direction != 0]

    @torch.no_grad()
    def _record(
        self, mode: str, mask: torch.Tensor, scores: torch.Tensor, values: dict[str, torch.Tensor]
    ) -> None:
        """Store values per example; `log` averages them, so that the last batch counts by its size."""
        metrics = self._metrics[mode]
        if mode == "train":
            self._total_train_tokens += int(self.accelerator.gather(mask.sum()).sum())
            if self.grouped:  # the number of pairs differs between processes
                values = {name: column.mean()[None] for name, column in values.items()}
        metrics["num_tokens"] = [self._total_train_tokens]
        # gather_for_metrics drops the rows that were repeated to fill the last batch of all processes. In
        # training it would truncate every batch of an epoch's last update, once the loader has ended.
        gather = self.accelerator.gather if mode == "train" else self.accelerator.gather_for_metrics
        for name, column in values.items():
            # Groups of equal gains have no ordered pair: the mean is NaN.
            if known := [value for value in gather(column).tolist() if not math.isnan(value)]:
                metrics[name].extend(known)
        for name, reward in (
            ("min_reward", scores.min()),
            ("max_reward", scores.max()),
            ("mean_reward", scores.mean()),
        ):
            metrics[name].append(float(self.accelerator.gather(reward).mean()))


def _equal_halves(input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return whether both titles of a pair are equal, (B,), for rows (2B, T) with the chosen half first."""
    chosen, rejected = (input_ids * mask).chunk(2)
    return (chosen == rejected).all(1) & (mask.chunk(2)[0] == mask.chunk(2)[1]).all(1)


def _credit(gap: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return 1 or 0 per gap, or .5 for ties (`metrics.ties`), relative to the largest score of the batch."""
    return 0.5 + 0.5 * torch.sign(gap).masked_fill(gap.abs() <= TIE * scores.abs().max(), 0.0)
