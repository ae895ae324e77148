"""A run that trains a title generator by GRPO, with a title scorer as its reward.

Importing trl takes seconds, so that missing options are reported before its modules are imported.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from qwen_task_heads.errors import Problem, TaskHeadsError

if TYPE_CHECKING:
    from datasets import Dataset

# Required options: expected value and fix.
NEEDED = {
    "--model_name_or_path": ("id or folder of a chat model, or embedded", "name the model to train"),
    "--reward_model": ("folder or repo id of a title scorer", "train one by recipes/reward_titles.py"),
    "--dataset_name": ("a file, folder or dataset id with a text in each row", "name the texts"),
    "--output_dir": ("a folder", "name one for the run"),
}


class TitleGeneratorRun:
    """A run of `recipes/grpo_titles.py`; its methods are called in their order.

    Args:
        task: a `TitleGeneratorArguments`.
        args: a `TitleGeneratorConfig`.
        model_args: trl's `ModelConfig` of the generator.

    Attributes:
        reward: the `TitleReward`.
        trackers: of `--report_to`.

    Raises:
        TaskHeadsError: a reward model that is no title scorer, or a tracker that is not installed.

    Example:
        >>> from qwen_task_heads import TaskHeadsError, TitleGeneratorRun
        >>> try:
        ...     TitleGeneratorRun.from_command_line(["--reward_model", "runs/titles"])
        ... except TaskHeadsError as error:
        ...     [problem.where for problem in error.problems]
        ['--model_name_or_path', '--dataset_name', '--output_dir']
    """

    def __init__(self, task: Any, args: Any, model_args: Any) -> None:
        from transformers import set_seed

        from qwen_task_heads.inference.rewards import TitleReward
        from qwen_task_heads.tracking.open_trackers import track

        self.task, self.args, self.model_args = task, args, model_args
        self.trackers = track(args, task=task)
        set_seed(args.seed)
        self.reward = TitleReward(
            task.reward_model,
            length_penalty=task.length_penalty,
            context="context" if task.with_context else None,
            device=args.device,
        )

    @classmethod
    def from_command_line(cls, argv: Sequence[str] | None = None) -> TitleGeneratorRun:
        """Parse options and `--config`; `argv` is None for the words of this process.

        Raises:
            TaskHeadsError: options that are missing, unknown or not usable.
        """
        check_named(sys.argv[1:] if argv is None else argv)
        from qwen_task_heads.training.grpo_arguments import parse_title_generator_arguments

        return cls(*parse_title_generator_arguments(argv))

    def read_texts(self) -> tuple[Dataset, Any]:
        """Return rows of `prompt` and `context`, the text that the scorer may read, and the tokenizer.

        Raises:
            TaskHeadsError: all rows without a text, or a source without rows.
        """
        from datasets import Dataset

        from qwen_task_heads.models import load_tokenizer
        from qwen_task_heads.sources.formats import read_rows

        tokenizer = load_tokenizer(
            self.model_args.model_name_or_path, revision=self.model_args.model_revision
        )
        self._is_chat = tokenizer.chat_template is not None
        rows, problems = [], []
        for where, row in read_rows(self.task.dataset_name):
            text = None if isinstance(row, Problem) else row.get(self.task.text_column)
            if isinstance(row, Problem):
                problems.append(row)
            elif not isinstance(text, str) or not text.strip():
                problem = f"found no text in column {self.task.text_column!r}"
                expected, fix = f"columns: {', '.join(row)}", "name it by --text_column"
                problems.append(Problem(where, problem, expected, fix, code="column-missing"))
            else:
                content = self.task.instruction.replace("{text}", text)
                prompt = [{"role": "user", "content": content}] if self._is_chat else content
                rows.append({"prompt": prompt, "context": text})
        if problems:
            raise TaskHeadsError(problems)
        self._texts = Dataset.from_list(rows)
        return self._texts, tokenizer

    def load_model(self) -> Any:
        """Return the generator."""
        from qwen_task_heads.generators import load_generator

        model_args = self.model_args
        return load_generator(
            model_args.model_name_or_path,
            revision=model_args.model_revision,
            dtype=model_args.dtype or "auto",
        )

    def trainer_options(self) -> dict[str, Any]:
        """Return reward, adapter, card and trackers, as `TitleGeneratorTrainer` takes them."""
        from trl import get_peft_config

        from qwen_task_heads.reports.grpo_card import GeneratorRun, generator_card

        self._facts = GeneratorRun.of(
            self.task, self.args, self.model_args, texts=self._texts["context"], chat=self._is_chat
        )
        return {
            "args": self.args,
            "reward_funcs": self.reward,
            "peft_config": get_peft_config(self.model_args),
            "card": partial(generator_card, self._facts, name=Path(self.args.output_dir).name),
            "callbacks": [*self.trackers],
        }

    def train(self, trainer: Any) -> None:
        """Check the length of the run, and train."""
        from qwen_task_heads.tracking.open_trackers import name_for_texts
        from qwen_task_heads.training.run_checks import check_run

        # trl logs its tables of completions to those that are named.
        without = [name for name in name_for_texts(self.args, self.trackers) if name in ("trackio", "wandb")]
        if without and self.args.log_completions and trainer.accelerator.is_main_process:
            message = f"Tables of completions are not sent to {' and '.join(without)}"
            print(f"{message}: --log_predictions true sends them", flush=True)
        check_run(trainer, save_total_limit=self.args.save_total_limit, loader=trainer.get_train_dataloader())
        start = time.monotonic()
        trainer.train()
        self._seconds = time.monotonic() - start

    def finish(self, trainer: Any) -> None:
        """Save the generator with its card, and report its rewards and titles."""
        from qwen_task_heads.reports.grpo_report import finish_generator
        from qwen_task_heads.tracking.open_trackers import finish_trackers

        trainer.save_model()
        trainer.create_model_card()
        if trainer.accelerator.is_main_process:
            folder = Path(self.args.output_dir)
            finish_generator(
                trainer.state,
                self.reward.last,
                texts=len(self._texts),
                seconds=self._seconds,
                folder=folder,
            )
            finish_trackers(
                self.trackers, folder=folder, metrics={}, settings=self._facts.settings, reported=None
            )


def check_named(words: Sequence[str]) -> None:
    """Refuse a command without the options of `NEEDED`.

    Raises:
        TaskHeadsError: all missing options, or a config that cannot be read.
    """
    words = [part for word in words for part in word.split("=", 1)]
    named = {word.replace("-", "_").removeprefix("__") for word in words if word.startswith("--")}
    if "help" in named or "-h" in words:
        return
    file = Path(words[words.index("--config") + 1]) if "--config" in words[:-1] else None
    try:
        known = yaml.safe_load(file.read_text(encoding="utf-8")) if file else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem, fix = f"found {file}: {error}", "check the name"
        unread = Problem("--config", problem, "a YAML file", fix, code="file-format")
        raise TaskHeadsError(unread) from error
    named |= set(known) if isinstance(known, dict) else set()
    missing = [
        Problem(option, "found nothing", expected, fix, code="option-missing")
        for option, (expected, fix) in NEEDED.items()
        if option[2:] not in named
    ]
    if missing:
        raise TaskHeadsError(missing)
