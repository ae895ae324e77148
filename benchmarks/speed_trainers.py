"""Rows of trainers: the same updates inside `train()`, timed from the end of one update to the next.

trl's RewardTrainer runs with its documented defaults (gradient checkpointing on) and, as another peer, in its
fastest setting (checkpointing off, pairs of similar length together). bf16, its default on a GPU, is off on a
CPU without it. Ours runs with the defaults of `recipes/reward_titles.py`. The first run of both is a warm-up,
in which the gradients of the first update are compared.
"""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import torch
from speed_measure import Bench, Result, largest_difference, take_turns
from speed_rows import GRADIENTS
from speed_workloads import row_of, scorer, stock_of, titles
from transformers import TrainerCallback

from qwen_task_heads import TitleTrainer, load_tokenizer
from qwen_task_heads.training.title_arguments import TitleConfig

DEFAULTS, BEST = "trl RewardTrainer, defaults", "trl RewardTrainer, checkpointing off, grouped by length"
QUIET = {"report_to": "none", "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True}


class StepClock(TrainerCallback):
    """Record the end times of updates, and the gradients of the first update of the first run."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.ends: list[float] = []
        self.first: list[torch.Tensor | None] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if not self.first:
            named = sorted(model.named_parameters())
            self.first = [value.grad.clone() for _, value in named if value.grad is not None]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(self.bench.clock())

    def per_step(self) -> float:
        """Return the mean seconds of an update, without the first one."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def run(trainer: Any, clock: StepClock) -> float:
    """Train again; return the seconds per update."""
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return clock.per_step()


def compare_trainers(bench: Bench, theirs: Any, mine: Any, **fields: Any) -> Result:
    """Measure two trainers in alternating turns."""
    clocks = StepClock(bench), StepClock(bench)
    for trainer, clock in zip((theirs, mine), clocks, strict=True):
        trainer.add_callback(clock)
        run(trainer, clock)
    timing = take_turns(bench, peer=lambda: run(theirs, clocks[0]), ours=lambda: run(mine, clocks[1]))
    difference = largest_difference(clocks[0].first, clocks[1].first)
    fields = {"difference": difference, "compared": "gradients of the first update", **fields}
    return Result(**timing.result_fields(), **fields)


def our_titles(
    bench: Bench, model: Any, table: Any, *, loss: str, tokenizer: Any = None, **options: Any
) -> TitleTrainer:
    """Return our trainer with the recipe's defaults."""
    args = TitleConfig(
        output_dir=str(bench.scratch / "ours"),
        use_cpu=bench.on_cpu,
        load_best_model_at_end=False,
        bf16=False,
        **QUIET,
        **options,
    )
    words = tokenizer or load_tokenizer("embedded")
    return TitleTrainer(model, args=args, train_dataset=table, processing_class=words, loss=loss)


def trl_rewards(
    bench: Bench, model: Any, table: Any, *, best: bool = False, tokenizer: Any = None, **options: Any
) -> Any:
    """Return trl's trainer with its defaults or in its fastest setting."""
    from trl import RewardConfig, RewardTrainer

    if best:
        options = {**options, "activation_checkpointing": False}
    args = RewardConfig(
        output_dir=str(bench.scratch / "trl"), use_cpu=bench.on_cpu, bf16=False, **QUIET, **options
    )
    words = tokenizer or load_tokenizer("embedded")
    return RewardTrainer(model, args=args, train_dataset=table, processing_class=words)


def pairs(bench: Bench) -> Iterator[Result]:
    """Measure training on pairs of titles of 8 to 40 tokens, each pair with its own prompt of 100."""
    from datasets import Dataset

    updates, batch, prompt = (8 if bench.full else 4), 8, 100
    draw, sizes = random.Random(0), iter(titles(2 * updates * batch))
    table: dict[str, list[Any]] = {"chosen_ids": [], "rejected_ids": []}
    for _ in range(updates * batch):
        before = row_of(prompt, draw=draw)
        for column in table.values():
            column.append(before + row_of(next(sizes), draw=draw))
    # Both sides use the same order, so that the first update has the same pairs.
    options = {
        "per_device_train_batch_size": batch,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
    }
    needed = sum(len(c) + len(r) - prompt for c, r in zip(*table.values(), strict=True))
    for best in (False, True):
        model = scorer(bench, "small")
        rows = dict(table)
        if best:  # pairs are sorted by length
            order = sorted(range(len(rows["chosen_ids"])), key=lambda at: longer(rows, at))
            rows = {name: [column[at] for at in order] for name, column in rows.items()}
        trl = trl_rewards(bench, stock_of(model), Dataset.from_dict(rows), best=best, **options)
        yield compare_trainers(
            bench,
            trl,
            our_titles(bench, model, _with_rows(rows), loss="bradley_terry", **options),
            workload="training on pairs, prompt of 100",
            peer=BEST if best else DEFAULTS,
            settings={"shape": "small", "titles": "8 to 40 tokens", "batch": batch, "updates": updates},
            target=None if best else 2.7,
            limit=padded_tokens(rows, batch) / needed,
        )


def longer(table: dict[str, list[Any]], at: int) -> int:
    """Return the length of the longer title of a pair."""
    return max(len(column[at]) for column in table.values())


def padded_tokens(table: dict[str, list[Any]], batch: int) -> int:
    """Return the tokens that trl computes: both halves of a batch are as long as its longest row."""
    count = len(table["chosen_ids"])
    tokens = 0
    for start in range(0, count, batch):
        part = range(start, min(start + batch, count))
        tokens += 2 * len(part) * max(longer(table, at) for at in part)
    return tokens


def _with_rows(table: dict[str, list[Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({**table, "row": list(range(len(table["chosen_ids"])))})


def groups(bench: Bench) -> Iterator[Result]:
    """Measure groups of titles with one prompt: all their pairs are rows in trl, and one group in ours."""
    from datasets import Dataset

    prompt, together, updates = (100, 2, 4) if bench.full else (100, 1, 3)
    for count, target in ((8, 15.0), (16, 40.0)) if bench.full else ((8, 15.0),):
        draw = random.Random(0)
        ours: dict[str, list[Any]] = {"title_ids": [], "gains": [], "row": list(range(together * updates))}
        theirs: dict[str, list[Any]] = {"chosen_ids": [], "rejected_ids": []}
        for index in range(together * updates):
            before = row_of(prompt, draw=draw)
            rows = [before + row_of(size, draw=draw) for size in titles(count, seed=index)]
            ours["title_ids"].append(rows)
            ours["gains"].append([float(count - rank) for rank in range(count)])
            for better, worse in permutations(range(count), 2):
                if better < worse:
                    theirs["chosen_ids"].append(rows[better])
                    theirs["rejected_ids"].append(rows[worse])
        each = count * (count - 1) // 2 * together
        options = {"num_train_epochs": 1, "train_sampling_strategy": "sequential"}
        model = scorer(bench, "small")
        needed = sum(prompt + sum(len(row) - prompt for row in rows) for rows in ours["title_ids"])
        trl = trl_rewards(
            bench, stock_of(model), Dataset.from_dict(theirs), per_device_train_batch_size=each, **options
        )
        mine = our_titles(
            bench,
            model,
            Dataset.from_dict(ours),
            loss="all_pairs",
            per_device_train_batch_size=together,
            **options,
        )
        yield compare_trainers(
            bench,
            trl,
            mine,
            workload=f"training on all pairs of groups of {count} titles, prompt of {prompt}",
            peer=DEFAULTS,
            settings={"shape": "small", "titles": "8 to 40 tokens", "groups": together, "updates": updates},
            target=target,
            limit=padded_tokens(theirs, each) / needed,
        )


__all__ = ["GRADIENTS", "compare_trainers", "groups", "our_titles", "pairs", "trl_rewards"]
