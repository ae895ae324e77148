"""A run that trains a chat model to write the label of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import get_peft_config

from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.generators import base_of, load_generator
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.models import load_tokenizer
from qwen_task_heads.reports.generative_report import finish_answers
from qwen_task_heads.runs.base import Run
from qwen_task_heads.tokenization.equal_rows import check_equal
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts
from qwen_task_heads.training.checkpoints import refuse_foreign_output
from qwen_task_heads.training.run_checks import resume_hazards
from qwen_task_heads.training.sft_arguments import parse_sft_arguments
from qwen_task_heads.training.sft_trainer import answer_dataset, equal_answers


class GenerativeRun(Run):
    """A run of `recipes/sft_classify.py`; its methods are called in the order of their definition.

    Example:
        >>> from qwen_task_heads import GenerativeRun
        >>> run = GenerativeRun.from_command_line(["--output_dir", "runs/x", "--use_cpu", "true"])
        Train a generative classifier on the embedded sample ...
        >>> run.task.length_normalized
        False
    """

    @classmethod
    def from_command_line(cls, argv: Sequence[str] | None = None) -> GenerativeRun:
        """Parse options and `--config`; `argv` is None for the words of this process."""
        return cls(*parse_sft_arguments(argv))

    def read_datasets(self) -> TextSets:
        """Read and check train, dev and test with one set of labels.

        Raises:
            TaskHeadsError: all defects of the files, or rows that have not one label each.
        """
        self.datasets = read_text_sets(self.task.dataset_name, **self.task.data_options())
        if self.datasets.problem_type != "single_label_classification":
            problem, fix = f"found {self.datasets.problem_type}", "train a head: recipes/classify.py"
            raise TaskHeadsError(
                Problem("--dataset_name", problem, "one label per text", fix, code="dataset-mismatch")
            )
        refuse_foreign_output(self.args.output_dir, self.args.resume_from_checkpoint)
        return self.datasets

    def load_model(self) -> tuple[Any, Any]:
        """Return the chat model and its tokenizer, and make the prompts that ask for a label."""
        name, hub, options = self.model_args.model_name_or_path, self.task.hub, self.model_args.load_options()
        self._base = base_of(name, revision=options["revision"], hub=hub)
        model = self._build()
        tokenizer = load_tokenizer(name, revision=options["revision"], hub=hub)
        labels = self.datasets.labels
        prompts = AnswerPrompts(
            tokenizer,
            labels,
            model_type=model.config.get_text_config().model_type,
            **self.task.prompt_options(labels, self.args.max_length),
        )
        normalized = self.task.length_normalized
        self.scorer = LabelScorer(model, prompts=prompts, length_normalized=normalized)
        return model, tokenizer

    def tokenize(self) -> tuple[Dataset, Dataset]:
        """Return train and dev as token ids, claim the output folder, and print what was read."""
        data, prompts = self.datasets, self.scorer.prompts
        train, self._truncation = answer_dataset(data.train, prompts=prompts)
        dev, _ = answer_dataset(data.dev, prompts=prompts)
        splits = {"train": data.train, "dev": data.dev, "test": data.test}
        equal = {name: equal_answers(rows, prompts=prompts) for name, rows in splits.items()}
        data.lines.extend([self._truncation, *check_equal(equal, option="--max_length ")])
        self.open_output()  # not earlier, so that an error above leaves no folder
        reason = self.scorer.fallback_reason
        alone = f"labels are scored one by one: {reason}" if reason else None
        self.print_messages([*resume_hazards(self.args), alone])
        return train, dev

    def trainer_options(self) -> dict[str, Any]:
        """Return scorer, dev examples, adapter and callbacks, as `AnswerTrainer` takes them."""
        self.adapter = get_peft_config(self.model_args)
        return {
            "args": self.args,
            "peft_config": self.adapter,
            "scorer": self.scorer,
            "dev": self.datasets.dev,
            "callbacks": self.callbacks(),
        }

    def _report(self, trained: Any, trainer: Any) -> None:
        more = {"adapter": trainer.is_adapter, "truncation": self._truncation}
        finish_answers(
            trained,
            scorer=self.scorer,
            tokenizer=trainer.processing_class,
            folder=self.args.output_dir,
            run=self._finished(trainer, config=trained.config, **more),
            base=self._base,
        )

    def _build(self) -> Any:
        return load_generator(
            self.model_args.model_name_or_path, hub=self.task.hub, **self.model_args.load_options()
        )
