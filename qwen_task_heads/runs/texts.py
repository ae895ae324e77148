"""A run that trains a text classifier, regressor or ordinal model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import EarlyStoppingCallback

from qwen_task_heads.data.sequences import sources_of
from qwen_task_heads.data.text_datasets import TextSets
from qwen_task_heads.metrics.questions import dev_metrics_of
from qwen_task_heads.models import build, saved_task
from qwen_task_heads.reports.question_report import QuestionReport
from qwen_task_heads.reports.text_report import TextReport, finish_texts
from qwen_task_heads.runs.base import Run
from qwen_task_heads.runs.search import searched
from qwen_task_heads.tokenization.collators import TextCollator, text_datasets
from qwen_task_heads.tokenization.templates import bind_template
from qwen_task_heads.training.added_labels import read_datasets_for
from qwen_task_heads.training.classifier_arguments import MAX_SEQ_LENGTH, parse_classifier_arguments
from qwen_task_heads.training.run_checks import resume_hazards
from qwen_task_heads.training.warm_start import load_head


class ClassifierRun(Run):
    """A run of `recipes/classify.py`; its methods are called in the order of their definition.

    Example:
        >>> from qwen_task_heads import ClassifierRun
        >>> run = ClassifierRun.from_command_line(["--output_dir", "runs/x", "--use_cpu", "true"])
        Train a text classifier on the embedded sample ...
        >>> run.is_main
        True
    """

    @classmethod
    def from_command_line(cls, argv: Sequence[str] | None = None) -> ClassifierRun:
        """Parse options and `--config`; `argv` is None for the words of this process."""
        return cls(*searched(parse_classifier_arguments, argv))

    def read_datasets(self) -> TextSets:
        """Read and check train, dev and test with one set of labels, and claim the output folder.

        Most runs fail at their data, and a resumed run requires the same data, so they are read first.

        Raises:
            TaskHeadsError: all defects of the files.
        """
        revision = self.model_args.load_options()["revision"]
        self._saved = saved_task(self.model_args.model_name_or_path, revision=revision, hub=self.task.hub)
        source, options = self.task.dataset_name, self.task.data_options()
        self.datasets = read_datasets_for(source, self._saved, **options)
        self.args.choose_metric(self.datasets.problem_type)
        self.open_output()
        return self.datasets

    def load_model(self) -> tuple[Any, Any]:
        """Return the model with its head, and the tokenizer with its template."""
        hub, template = self.task.hub, self.task.template_for(self.datasets.labels)
        model, tokenizer = self._load_head_model(template)
        bind_template(tokenizer, model.config, template=template, pairs=self.datasets.have_pairs)
        load_head(model, self.task.init_head, tokenizer=tokenizer, messages=self.datasets.lines, hub=hub)
        return model, tokenizer

    def tokenize(self, tokenizer: Any) -> tuple[Dataset, Dataset]:
        """Return train and dev as token ids."""
        data = self.datasets
        options = {"tokenizer": tokenizer, "config": self._config, "num_labels": len(data.labels)}
        (train, cut), (dev, _), messages = text_datasets(data.train, data.dev, data.test, **options)
        self._truncation = cut.line()
        data.lines.extend([self._truncation, *messages])
        return train, dev

    def trainer_options(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        """Return loss, metrics, collator, adapter and callbacks, as `ClassifierTrainer` takes them."""
        data, patience = self.datasets, self.task.early_stopping_patience
        stop = [] if patience is None else [EarlyStoppingCallback(patience)]
        return {
            "args": self.args,
            "peft_config": self.peft_config(model),
            "data_collator": TextCollator(tokenizer.pad_token_id, data.problem_type),
            "compute_metrics": dev_metrics_of(data.problem_type, data.questions),
            "loss": self.task.loss,
            "loss_options": self.task.loss_options(),
            "token_dropout": self.task.token_dropout,
            "train_sources": sources_of(data.train),
            "eval_sources": sources_of(data.dev),
            "callbacks": [*self.callbacks(), *stop],
        }

    def train(self, trainer: Any, *, scored: int = 0) -> None:
        """Print what was read, and train or resume."""
        self.datasets.lines.extend(trainer.loss.messages)
        stops = self.task.early_stopping_patience is not None
        self.print_messages([*resume_hazards(self.args, early_stopping=stops), *self.task.messages()])
        super().train(trainer, scored=scored or len(self.datasets.dev) + len(self.datasets.test))

    def _report(self, trained: Any, trainer: Any) -> None:
        run = self._finished(trainer, config=self._config, truncation=self._truncation)
        options = {"tokenizer": trainer.processing_class, "folder": self.args.output_dir, "run": run}
        finish_texts(trained, **options, make=QuestionReport if self.datasets.questions else TextReport)

    def _build(self) -> Any:
        data = self.datasets
        length = {} if self._saved else {"max_seq_length": MAX_SEQ_LENGTH}
        return build(
            self.model_args.model_name_or_path,
            task="pooled_classifier",
            labels=data.labels.names,
            problem_type=data.problem_type,
            questions=[*data.questions] or None,
            hub=self.task.hub,
            **data.labels.described(),
            **self.model_args.load_options(),
            **length | self.task.head_options(),
        )
