"""A run that trains a title scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from datasets import Dataset

from qwen_task_heads.data.sequences import pick, sources_of
from qwen_task_heads.data.title_datasets import TitleSets, read_title_sets
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.losses.registry import GROUP_LOSSES, unused_signals
from qwen_task_heads.models import build
from qwen_task_heads.reports.title_report import finish_titles
from qwen_task_heads.runs.base import Run
from qwen_task_heads.runs.search import searched
from qwen_task_heads.tokenization.collators import group_dataset, pair_dataset
from qwen_task_heads.tokenization.equal_rows import check_equal
from qwen_task_heads.tokenization.templates import compile_template
from qwen_task_heads.training.callbacks import SwappedLabelsCallback
from qwen_task_heads.training.run_checks import resume_hazards
from qwen_task_heads.training.title_arguments import parse_title_arguments
from qwen_task_heads.training.warm_start import load_head


class TitleRun(Run):
    """A run of `recipes/reward_titles.py`; its methods are called in the order of their definition.

    Example:
        >>> from qwen_task_heads import TitleRun
        >>> run = TitleRun.from_command_line(["--output_dir", "runs/x", "--use_cpu", "true"])
        Train a title scorer on the embedded sample ...
        >>> run.task.loss
        'bradley_terry'
    """

    @classmethod
    def from_command_line(cls, argv: Sequence[str] | None = None) -> TitleRun:
        """Parse options and `--config`; `argv` is None for the words of this process."""
        return cls(*searched(parse_title_arguments, argv))

    @property
    def is_grouped(self) -> bool:
        """Whether the loss compares all titles of an experiment at once."""
        return self.task.loss in GROUP_LOSSES

    def read_datasets(self) -> TitleSets:
        """Read and check train, dev and test, and claim the output folder.

        Most runs fail at their data, and a resumed run requires the same data, so they are read first.

        Raises:
            TaskHeadsError: all defects of the files, or pairs for a loss over groups.
        """
        self.datasets = read_title_sets(self.task.dataset_name, **self.task.data_options())
        self.open_output()
        if self.is_grouped and not self.datasets.groups:
            problem = f"found {self.task.loss!r} with pairs only"
            expected = "a file of arms (headline, clicks, impressions, test_id)"
            fix = "give such a file, or choose a loss over pairs"
            raise TaskHeadsError(Problem("--loss", problem, expected, fix, code="dataset-mismatch"))
        return self.datasets

    def load_model(self) -> tuple[Any, Any]:
        """Return the model with its head, and the tokenizer with its template."""
        template = self.task.template()
        model, tokenizer = self._load_head_model(template)
        family = model.model.config.model_type
        compile_template(tokenizer, template=template, model_type=family, max_length=self.args.max_length)
        load_head(model, self.task.init_head, tokenizer=tokenizer, hub=self.task.hub)
        return model, tokenizer

    def tokenize(self, tokenizer: Any) -> tuple[Dataset, Dataset]:
        """Return train and dev as token ids, and print what was read, truncated and left out."""
        options = {"tokenizer": tokenizer, "max_length": self.args.max_length}
        if self.is_grouped:
            train, cut = group_dataset(self.datasets.groups, **options)
        else:
            train, cut = pair_dataset(self.datasets.train, drop_equal=True, **options)
            kept = train.with_format("numpy")["row"][:]
        dev, dev_cut = pair_dataset(self.datasets.dev, **options)
        _, test_cut = pair_dataset(self.datasets.test, **options)
        equal = {"train": cut.equal, "dev": dev_cut.equal, "test": test_cut.equal}
        self.datasets.lines.extend([cut.line(), *check_equal(equal, option="--max_length ")])
        self.print_messages([*resume_hazards(self.args), unused_signals(self.task.loss, train.column_names)])
        self._read = self.datasets
        if not self.is_grouped:  # without the pairs that truncation made equal
            self._read = replace(self.datasets, train=pick(self.datasets.train, kept))
        return train, dev

    def trainer_options(self, model: Any) -> dict[str, Any]:
        """Return loss, adapter, sources of rows and callbacks, as `TitleTrainer` takes them."""
        dev = self.datasets.dev
        self.swapped = SwappedLabelsCallback(len(dev), groups=len({pair.group for pair in dev}))
        return {
            "args": self.args,
            "peft_config": self.peft_config(model),
            "loss": self.task.loss,
            "loss_options": self.task.loss_options(),
            "train_sources": sources_of(self.datasets.groups if self.is_grouped else self.datasets.train),
            "eval_sources": sources_of(dev),
            "callbacks": self.callbacks(self.swapped),
        }

    def train(self, trainer: Any, *, scored: int = 0) -> None:
        """Train or resume; dev and test are scored at the end."""
        super().train(trainer, scored=scored or len(self.datasets.dev) + len(self.datasets.test))

    def _report(self, trained: Any, trainer: Any) -> None:
        warning = self.swapped.finding
        run = self._finished(trainer, config=self._config, sets=self._read, warning=warning)
        folder = self.args.output_dir
        finish_titles(trained, tokenizer=trainer.processing_class, folder=folder, run=run)

    def _build(self) -> Any:
        make = partial(build, self.model_args.model_name_or_path, hub=self.task.hub)
        return make(**self.model_args.load_options(), **self.task.head_options())
