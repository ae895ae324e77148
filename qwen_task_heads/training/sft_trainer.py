"""`AnswerTrainer`: trl's SFTTrainer on prompts and labels, which reports dev accuracy at every evaluation.

The loss covers only the tokens of the label and the end of the turn. `AnswerPrompts` encodes the rows, as it
does for scoring: a long text is truncated and the answer is kept, whereas truncating rows at `max_length`
would remove the answer first. `LabelScorer` scores dev by the labels' tokens, so that the metric that selects
the best checkpoint is the accuracy of the final model, not a loss.
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
    """Return rows for `SFTTrainer`, in their order, and a message on truncated texts.

    Returns:
        A data set of `input_ids` (prompt, answer, end) and `labels` (-100 on the prompt), and the message.

    Raises:
        TaskHeadsError: candidates that leave no room for the text; each set of candidates is reported once.
    """
    columns: dict[str, list[Any]] = {name: [None] * len(examples) for name in ("input_ids", "labels")}
    truncated, problems = 0, []
    for candidates, indices in _by_candidates(examples, range(len(examples))).items():
        try:
            texts = [examples[index].text for index in indices]
            encoded = prompts.encode(texts, candidates=candidates or None)
        except TaskHeadsError as error:  # collected, so that one run reports all of them
            first = examples[indices[0]].source
            problems += [replace(problem, where=f"{first}: {problem.where}") for problem in error.problems]
            continue
        truncated += encoded.cut
        for index, prompt in zip(indices, encoded.input_ids, strict=True):
            answer = [*prompts.answers[_label(examples[index])], prompts.end]
            columns["input_ids"][index] = [*prompt, *answer]
            columns["labels"][index] = [IGNORED] * len(prompt) + answer
    if problems:
        raise TaskHeadsError(problems)
    if truncated:
        message = (
            f"of {len(examples):,} texts, {truncated:,} were truncated to fit into {prompts.max_length:,} "
            "tokens with their prompt; no answer was truncated"
        )
    else:
        message = f"all {len(examples):,} texts fit without truncation"
    return Dataset.from_dict(columns), message


def equal_answers(examples: Sequence[TextExample], *, prompts: AnswerPrompts) -> EqualRows:
    """Find texts whose truncated prompt equals that of another text with another label."""
    untruncated = copy(prompts)
    untruncated.max_length = WHOLE

    def encode(indices: Sequence[int], *, encoder: AnswerPrompts) -> list[list[int]]:
        rows: dict[int, list[int]] = {}
        for candidates, members in _by_candidates(examples, indices).items():
            encoded = encoder.encode(
                [examples[index].text for index in members], candidates=candidates or None
            )
            rows |= zip(members, encoded.input_ids, strict=True)
        return [rows[index] for index in indices]

    return equal_texts(
        examples,
        encode(range(len(examples)), encoder=prompts),
        whole=partial(encode, encoder=untruncated),
        limit=prompts.max_length,
        behind=prompts.behind,
        answer=prompts.room,
        keeps_head=prompts.truncation == "head",
    )


class Scores(Protocol):
    """Protocol of `LabelScorer`, whose package the trainers do not import."""

    model: Any

    def log_scores(
        self, texts: Sequence[str], *, candidates: Sequence[Sequence[str] | None] | None = None
    ) -> torch.Tensor:
        """Return log-scores (n, labels)."""
        ...


class Clock(TrainerCallback):
    """Callback that measures seconds and real tokens of a training run.

    Attributes:
        seconds: of the whole training, including evaluation and saving.
        result: the callback itself; `line()` returns the speed.
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
        """Stop the clock, and read the number of tokens that trl has logged."""
        self.seconds = time.monotonic() - self._start
        logged = [entry["num_tokens"] for entry in state.log_history if "num_tokens" in entry]
        self.tokens = int(logged[-1]) if logged else 0

    def summary(self) -> str:
        """Return the speed in one line; "" if no tokens were counted."""
        if not self.seconds or not self.tokens:
            return ""
        return f"speed: {self.tokens / self.seconds:,.0f} real tokens a second, including evaluation"


class AnswerTrainer(WithoutTrainingArgs, SFTTrainer):
    """Train a causal language model to generate the label.

    Args:
        model: of `AutoModelForCausalLM`.
        scorer: a `LabelScorer` of the same model object; an adapter is added to that model in place.
        dev: the texts of `eval_dataset`, for `eval_accuracy`.
        **kwargs: as in `trl.SFTTrainer`; data sets come from `answer_dataset`.
    """

    def __init__(self, model: Any, *, scorer: Scores, dev: Sequence[TextExample] = (), **kwargs: Any) -> None:
        self.throughput = Clock()
        with quiet_peft():
            super().__init__(model, **kwargs)
        self.scorer, self.dev = scorer, list(dev)
        self.add_callback(self.throughput)

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is trained instead of the whole model."""
        from peft import PeftModel

        return isinstance(self.accelerator.unwrap_model(self.model), PeftModel)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Run the parent's loop, and add `eval_accuracy`.

        Every process scores its share of dev. If weights are sharded, every process scores all of dev,
        because all processes must take part in each forward pass.
        """
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if metric_key_prefix == "eval" and self.dev:
            output.metrics["eval_accuracy"] = self._accuracy()
        return output

    def _accuracy(self) -> float:
        world = self.args.world_size
        if is_in_lockstep(self):  # weights are gathered only if the whole model with its adapter is called
            world, self.scorer.model = 1, self.model
        own = self.dev[self.args.process_index % world :: world]
        correct = 0.0
        if own:
            texts = [example.text for example in own]
            candidates = [example.candidates or None for example in own]
            scores = self.scorer.log_scores(texts, candidates=candidates).numpy()
            correct = float(top_credit(scores, [_label(example) for example in own]).sum())
        total = self.accelerator.reduce(torch.tensor(correct, device=self.args.device), reduction="sum")
        return float(total) * world / self.args.world_size / len(self.dev)


def _by_candidates(
    examples: Sequence[TextExample], indices: Sequence[int]
) -> dict[tuple[str, ...], list[int]]:
    """Return the indices of examples by their candidate labels, which are part of the prompt."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index in indices:
        groups.setdefault(examples[index].candidates, []).append(index)
    return groups


def _label(example: TextExample) -> int:
    """Return the label id of a single-label row."""
    return int(example.target)  # type: ignore[arg-type]
