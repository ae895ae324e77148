"""`AnswerTrainer`: trl's SFTTrainer on prompts and labels, with the accuracy of dev at every look.

The loss is on the label's tokens and the end of the turn alone. Rows come as token ids with labels, made by
the `AnswerPrompts` that scores afterwards: so a long text loses its own end and never the answer, which
cutting rows at `max_length` would take first. Dev is scored by the labels' tokens (`LabelScorer`): the figure
that picks the best checkpoint is what the finished model will do, not a loss.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTTrainer

from qwen_task_heads.adapters import quiet_peft
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.metrics.ties import top_credit
from qwen_task_heads.tokenization.equal_rows import WHOLE, EqualRows, equal_texts
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts
from qwen_task_heads.training.hub_saving import WithoutTrainingArgs
from qwen_task_heads.training.sharding import is_in_lockstep
from qwen_task_heads.training.usage import Usage

IGNORED = -100  # no loss on these tokens


def answer_dataset(examples: Sequence[TextExample], *, prompts: AnswerPrompts) -> tuple[Dataset, str]:
    """Rows for `SFTTrainer`, in their order, and what became of long texts.

    Args:
        examples: with one label each.
        prompts: of the model.

    Returns:
        A data set of `input_ids` (prompt, answer, end) and `labels` (-100 on the prompt), and a line of text.

    Raises:
        TaskHeadsError: rows whose candidates leave no room for the text, each set of them once.
    """
    columns: dict[str, list[Any]] = {name: [None] * len(examples) for name in ("input_ids", "labels")}
    offered: dict[tuple[str, ...], list[int]] = {}
    for index, example in enumerate(examples):
        offered.setdefault(example.candidates, []).append(index)
    cut, problems = 0, []
    for names, places in offered.items():
        try:
            encoded = prompts.encode([examples[index].text for index in places], candidates=names or None)
        except TaskHeadsError as error:  # too many candidates for the limit: all such rows in one run
            first = examples[places[0]].source
            problems += [replace(problem, where=f"{first}: {problem.where}") for problem in error.problems]
            continue
        cut += encoded.cut
        for index, prompt in zip(places, encoded.input_ids, strict=True):
            answer = [*prompts.answers[_label(examples[index])], prompts.end]
            columns["input_ids"][index] = [*prompt, *answer]
            columns["labels"][index] = [IGNORED] * len(prompt) + answer
    if problems:
        raise TaskHeadsError(problems)
    said = f"of {len(examples):,} texts, {cut:,} were cut to fit into {prompts.max_length:,} tokens"
    line = f"{said} with their prompt; no answer was" if cut else f"all {len(examples):,} texts fit whole"
    return Dataset.from_dict(columns), line


def equal_answers(examples: Sequence[TextExample], *, prompts: AnswerPrompts) -> EqualRows:
    """Find texts whose prompt, as it was cut, is that of another text with another label.

    Args:
        examples: with one label each.
        prompts: of the model.
    """
    whole = copy(prompts)
    whole.max_length = WHOLE

    def encode(places: Sequence[int], *, by: AnswerPrompts) -> list[list[int]]:
        rows: dict[int, list[int]] = {}
        offered: dict[tuple[str, ...], list[int]] = {}
        for place in places:
            offered.setdefault(examples[place].candidates, []).append(place)
        for names, alike in offered.items():
            found = by.encode([examples[place].text for place in alike], candidates=names or None)
            rows |= zip(alike, found.input_ids, strict=True)
        return [rows[place] for place in places]

    return equal_texts(
        examples,
        encode(range(len(examples)), by=prompts),
        whole=partial(encode, by=whole),
        limit=prompts.max_length,
        behind=prompts.behind,
        answer=prompts.room,
        keeps_head=prompts.truncation == "head",
    )


class Scores(Protocol):
    """What scores labels: a `LabelScorer`, of a room that trainers do not know."""

    model: Any

    def log_scores(
        self, texts: Sequence[str], *, candidates: Sequence[Sequence[str] | None] | None = None
    ) -> torch.Tensor:
        """Log-scores (n, labels)."""
        ...


class Clock(TrainerCallback):
    """Seconds and real tokens of a training run.

    Attributes:
        seconds: of the whole training, evaluation and saving included.
        result: itself; `line()` says how fast it was.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens = 0
        self.result = self
        self.usage = Usage()  # nothing is estimated
        self._start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop it; trl counts the tokens."""
        self.seconds = time.monotonic() - self._start
        logged = [entry["num_tokens"] for entry in state.log_history if "num_tokens" in entry]
        self.tokens = int(logged[-1]) if logged else 0

    def line(self) -> str:
        """Say it in one sentence; "" where nothing was counted."""
        if not self.seconds or not self.tokens:
            return ""
        return f"speed: {self.tokens / self.seconds:,.0f} real tokens a second, looks at dev included"


class AnswerTrainer(WithoutTrainingArgs, SFTTrainer):
    """Train a causal language model to write the label.

    Args:
        model: of `AutoModelForCausalLM`.
        scorer: a `LabelScorer` of the same model object, which an adapter is put into in place.
        dev: texts that `eval_accuracy` is measured on; those of `eval_dataset`.
        **kwargs: as of `trl.SFTTrainer`; data sets come from `answer_dataset`.
    """

    def __init__(self, model: Any, *, scorer: Scores, dev: Sequence[TextExample] = (), **kwargs: Any) -> None:
        self.throughput = Clock()
        with quiet_peft():
            super().__init__(model, **kwargs)
        self.scorer, self.dev = scorer, list(dev)
        self.add_callback(self.throughput)

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is trained, and not the whole model."""
        from peft import PeftModel

        return isinstance(self.accelerator.unwrap_model(self.model), PeftModel)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As the parent, with `eval_accuracy`.

        Every process scores its share of dev, and all of it where weights are sharded: each pass is then one
        of all processes.
        """
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if metric_key_prefix == "eval" and self.dev:
            output.metrics["eval_accuracy"] = self._accuracy()
        return output

    def _accuracy(self) -> float:
        world = self.args.world_size
        if is_in_lockstep(self):  # weights are gathered where the whole model is called, adapter and all
            world, self.scorer.model = 1, self.model
        mine = self.dev[self.args.process_index % world :: world]
        right = 0.0
        if mine:
            texts = [example.text for example in mine]
            offered = [example.candidates or None for example in mine]
            found = self.scorer.log_scores(texts, candidates=offered).numpy()
            right = float(top_credit(found, [_label(example) for example in mine]).sum())
        total = self.accelerator.reduce(torch.tensor(right, device=self.args.device), reduction="sum")
        return float(total) * world / self.args.world_size / len(self.dev)


def _label(example: TextExample) -> int:
    """The id of the label of a single-label row."""
    return int(example.target)  # type: ignore[arg-type]
