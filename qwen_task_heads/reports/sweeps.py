"""Sweep over heads on frozen features, for labelled texts and for titles.

`recipes/sweep_heads.py` has the steps of both: read the data, encode it, run the backbone once, fit the
heads, save the best, measure. A `Sweep` has data, model and tokenizer, and implements the steps that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from transformers import set_seed

from qwen_task_heads.adapters import with_adapter
from qwen_task_heads.data.sequences import pick
from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.data.title_datasets import read_title_sets
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at
from qwen_task_heads.losses.registry import GROUP_LOSSES, PAIR_LOSSES
from qwen_task_heads.metrics.classification import BEST_METRIC
from qwen_task_heads.models import adapter_config, build, load_tokenizer, saved_config
from qwen_task_heads.reports.finishing import FinishedTraining
from qwen_task_heads.reports.run_manifest import settings_of
from qwen_task_heads.reports.text_report import TFIDF, finish_texts
from qwen_task_heads.reports.title_report import TFIDF as TFIDF_PAIRS
from qwen_task_heads.reports.title_report import finish_titles
from qwen_task_heads.tokenization.collators import (
    PREFERENCE_SIGNALS,
    group_dataset,
    pair_dataset,
    text_datasets,
)
from qwen_task_heads.tokenization.equal_rows import check_equal
from qwen_task_heads.tokenization.templates import bind_template, compile_template
from qwen_task_heads.training.classifier_arguments import MAX_SEQ_LENGTH
from qwen_task_heads.training.feature_rows import FeatureRows, GroupRows, PairRows
from qwen_task_heads.training.head_sweep import Combination, MakeRows, Result, text_rows
from qwen_task_heads.training.sweep_arguments import SweepArguments, TitleSweepArguments
from qwen_task_heads.training.usage import Usage


class Sweep:
    """Data, model and tokenizer of a sweep; `open_sweep` creates it.

    Args:
        options: of the task.
        training: options of the heads.
        model_args: options of the backbone.
    """

    TASK: ClassVar[str]
    BASELINE: ClassVar[str]  # row of the metrics at the end of the table of the sweep

    FINISH: ClassVar[Callable[..., dict[str, Any]]]  # saves and measures a model

    metric: str  # selects the head on dev, as in `metrics.json`
    losses: list[str]  # to try
    layers: list[tuple[int, ...]]  # to try
    _cut = ""  # summary of the truncation of texts

    def __init__(self, options: Any, training: Any, model_args: Any) -> None:
        self.options, self.training, self.model_args = options, training, model_args
        self.base, self.where = model_args.model_name_or_path, {"hub": options.hub}
        self.revision = model_args.load_options()["revision"]
        _refuse_head(self.base, revision=self.revision, **self.where)
        self.sets: Any = self._read()
        self.tokenizer: Any = None
        self.model: Any = None
        self.usage = Usage()

    def _read(self) -> Any:
        """Read the data, and set `metric` and `losses`."""
        raise NotImplementedError

    def _head(self) -> dict[str, Any]:
        """Return the arguments of `build` other than backbone and swept options."""
        raise NotImplementedError

    def _bind(self, model: Any) -> None:
        """Compile the template of a model into the tokenizer."""
        raise NotImplementedError

    def encode(self) -> tuple[list[Sequence[int]], list[str]]:
        """Build model and tokenizer; return the rows for the backbone, and a summary of the data."""
        raise NotImplementedError

    @property
    def rows(self) -> MakeRows:
        """Return a function from the features of the encoded rows to the rows of train and dev."""
        raise NotImplementedError

    @property
    def timed(self) -> list[Sequence[int]]:
        """Return the rows that are timed."""
        raise NotImplementedError

    def with_head(self, combination: Combination | None = None) -> Any:
        """Build a model with the new head of a combination; without a combination, one of all layers."""
        set_seed(self.training.seed)
        head = {} if combination is None else combination.head_options()
        model = build(self.base, **self._head(), **self.model_args.load_options(), **head, **self.where)
        self._bind(model)
        return model.to(self.training.device)

    def _open(self) -> None:
        """Build the model of all layers that are read, and the tokenizer."""
        self.tokenizer = load_tokenizer(self.base, revision=self.revision, **self.where)
        self.model = self.with_head()
        self.layers = self.options.layers_of(self.model.config.text_config)

    @property
    def read_layers(self) -> list[int]:
        """Return the numbers of all layers that at least one head reads."""
        return sorted({layer for layers in self.layers for layer in layers})

    def finish(self, chosen: Result, *, seconds: float, trackers: Sequence[Any]) -> dict[str, Any]:
        """Save the best head as a model, measure it with the baselines, and return `metrics.json`.

        Args:
            chosen: result of the saved head.
            seconds: duration of the sweep.
            trackers: receive the metrics.
        """
        best, options = chosen.combination, self.options
        model = self.with_head(best)
        model.score.load_state_dict(chosen.fitted.state)
        settings = {**vars(options), **options.resolved(model.config), "loss": best.loss, "base": self.base}
        if chosen.fitted.penalty is not None:
            settings["penalty"] = chosen.fitted.penalty
        settings |= {"dtype": self.model_args.dtype or "float32", "seed": chosen.seed}
        if options.save_as == "adapter":
            model = with_adapter(model, adapter_config(model, head_only=True))
        run = FinishedTraining(
            sets=self.sets,
            backbone=self.base,
            seed=chosen.seed,
            seconds=seconds,
            settings=settings_of(self.training, settings),
            log_history=chosen.fitted.history,
            trackers=trackers,
            usage=self.usage,
            truncation=self._cut,
        )
        folder = self.training.output_dir
        return self.FINISH(model, tokenizer=self.tokenizer, folder=folder, run=run)


class TextSweep(Sweep):
    """Sweep over labelled texts; its options are `SweepArguments`."""

    TASK, BASELINE, FINISH = "pooled_classifier", TFIDF, staticmethod(finish_texts)

    def _read(self) -> Any:
        sets = _read_for(read_text_sets, self.options)
        if sets.questions:
            problem, fix = "found records of several questions", "train all heads at once: qth classify"
            expected = "texts with one kind of label"
            raise error_at("--dataset_name", problem, expected, fix, code="option-unsupported")
        self.losses = self.options.losses_for(sets.problem_type)
        self.metric = BEST_METRIC[sets.problem_type][0].removeprefix("eval_")
        return sets

    def _head(self) -> dict[str, Any]:
        labels = self.sets.labels
        return {
            "task": self.TASK,
            "labels": labels.names,
            "problem_type": self.sets.problem_type,
            **labels.described(),
            "max_seq_length": MAX_SEQ_LENGTH,
            **self.options.head_options(),
        }

    def _bind(self, model: Any) -> None:
        template = self.options.template_for(self.sets.labels)
        bind_template(self.tokenizer, model.config, template=template, pairs=self.sets.have_pairs)

    def encode(self) -> tuple[list[Sequence[int]], list[str]]:
        """See `Sweep`."""
        self._open()
        labels = len(self.sets.labels)
        encode = {"tokenizer": self.tokenizer, "config": self.model.config, "num_labels": labels}
        (self._train, cut), (self._dev, _), lines = text_datasets(
            self.sets.train, self.sets.dev, self.sets.test, **encode
        )
        self._cut, self.usage.scored = cut.line(), len(self.sets.dev) + len(self.sets.test)
        smoothing = self.training.label_smoothing_factor
        kind = {"problem_type": self.sets.problem_type, "label_smoothing": smoothing}
        options = {loss: self.options.options_of(loss, **kind) for loss in self.losses}
        self._rows = text_rows(self._train, self._dev, config=self.model.config, options=options)
        rows = [*self._train["input_ids"], *self._dev["input_ids"]]
        return rows, [*self.sets.lines, self._cut, *lines]

    @property
    def rows(self) -> MakeRows:
        """See `Sweep`."""
        return self._rows

    @property
    def timed(self) -> list[Sequence[int]]:
        """See `Sweep`."""
        return list(self._dev["input_ids"])


class TitleSweep(Sweep):
    """Sweep over pairs, votes, clicks or arms of titles; its options are `TitleSweepArguments`."""

    TASK, BASELINE, FINISH = "title_scorer", TFIDF_PAIRS, staticmethod(finish_titles)
    metric = "pair_accuracy"

    def _read(self) -> Any:
        sets = _read_for(read_title_sets, self.options)
        self.losses = self.options.losses_for(has_groups=bool(sets.groups))
        return sets

    def _head(self) -> dict[str, Any]:
        return {"task": self.TASK, **self.options.head_options()}

    def _bind(self, model: Any) -> None:
        family, length = model.model.config.model_type, self.training.max_length
        compile_template(
            self.tokenizer, template=self.options.template(), model_type=family, max_length=length
        )

    def encode(self) -> tuple[list[Sequence[int]], list[str]]:
        """See `Sweep`."""
        self._open()
        encode = {"tokenizer": self.tokenizer, "max_length": self.training.max_length}
        self._train, cut = pair_dataset(self.sets.train, drop_equal=True, **encode)
        (self._dev, of_dev), (_, of_test) = (
            pair_dataset(rows, **encode) for rows in (self.sets.dev, self.sets.test)
        )
        for name in self.losses:
            for table in (self._train, self._dev) if name in PAIR_LOSSES else ():
                columns = set(table.column_names) - {"weight"}  # every loss takes weights
                signals = [column for column in PREFERENCE_SIGNALS if column in columns]
                PAIR_LOSSES[name].check([*signals, *self.options.loss_options()], where="--losses")
        equal = {"train": cut.equal, "dev": of_dev.equal, "test": of_test.equal}
        lines = [*self.sets.lines, cut.line(), *check_equal(equal, option="--max_length ")]
        kept = self._train.with_format("numpy")["row"][:]
        self.sets = replace(self.sets, train=pick(self.sets.train, kept))  # without pairs of equal titles
        rows = [ids for table in (self._train, self._dev) for ids in _titles(table)]
        self.usage.scored = 2 * (len(self.sets.dev) + len(self.sets.test))
        self._ends = [2 * len(self._train), 2 * len(self._dev)]
        self._groups: Any = None
        if any(loss in GROUP_LOSSES for loss in self.losses):
            self._groups, of_groups = group_dataset(self.sets.groups, **encode)
            lines += [of_groups.line(), *check_equal({"train": of_groups.equal}, option="--max_length ")]
            rows += [ids for titles in self._groups["title_ids"] for ids in titles]
        return rows, lines

    @property
    def rows(self) -> MakeRows:
        """See `Sweep`."""

        def make(features: torch.Tensor, loss: str) -> tuple[FeatureRows, FeatureRows]:
            of_train, of_dev = features[: sum(self._ends)].split(self._ends)
            if loss in GROUP_LOSSES:
                of_groups = features[sum(self._ends) :]
                row = GROUP_LOSSES[loss]
                train: FeatureRows = GroupRows.of_table(
                    of_groups, self._groups, loss=row, options=self.options.options_of(row)
                )
                row, options = PAIR_LOSSES["bradley_terry"], {}
            else:
                row = PAIR_LOSSES[loss]
                options = self.options.options_of(row)
                train = PairRows.of_table(of_train, self._train, loss=row, options=options)
            return train, PairRows.of_table(of_dev, self._dev, loss=row, options=options)

        return make

    @property
    def timed(self) -> list[Sequence[int]]:
        """See `Sweep`."""
        return _titles(self._dev)


def open_sweep(options: Any, training: Any, model_args: Any) -> Sweep:
    """Create the sweep of the options that `parse_sweep_arguments` returned, and read its data.

    Raises:
        TaskHeadsError: invalid data or options, or a model that already has a head.
    """
    kinds: dict[type, type[Sweep]] = {SweepArguments: TextSweep, TitleSweepArguments: TitleSweep}
    return kinds[type(options)](options, training, model_args)


def _titles(table: Any) -> list[Sequence[int]]:
    """Return the token ids of the chosen titles of a dataset of pairs, then of the rejected ones."""
    return [*table["chosen_ids"], *table["rejected_ids"]]


def _read_for(read: Callable[..., Any], options: Any) -> Any:
    """Read the data of a task.

    Raises:
        TaskHeadsError: problems of the reader, after one of `--task` if the other task can read the data.
    """
    try:
        return read(options.dataset_name, **options.data_options())
    except TaskHeadsError as error:
        read_other: Callable[..., Any]
        other, read_other = "titles", read_title_sets
        contents, expected = "pairs or arms of titles", "labelled texts"
        if read is read_title_sets:
            other, read_other = "texts", read_text_sets
            contents, expected = expected, contents
        names = ("dev_fraction", "test_fraction", "hub", "encoding")
        given = {name: vars(options)[name] for name in names}
        given |= {"dev": options.dev_dataset, "test": options.test_dataset, "columns": options.columns or ()}
        try:
            read_other(options.dataset_name, bad_rows="skip", **given)
        except TaskHeadsError:
            raise error from None
        wrong_task = Problem(
            "--task",
            f"found {options.task!r}, but the data contains {contents}",
            expected,
            f"give --task {other}",
            code="option-unsupported",
        )
        raise TaskHeadsError([wrong_task, *error.problems]) from error


def _refuse_head(base: str, *, revision: str | None, hub: str) -> None:
    """Refuse a model with a head, because a sweep needs a backbone."""
    config = saved_config(base, revision=revision, hub=hub)
    if config is not None:
        backbone = config.backbone_name_or_path  # None for a full model whose backbone was a folder
        fix = f"give --model_name_or_path {backbone}" if backbone else "name the backbone it was built on"
        problem, expected = "found a model that has a head", "a backbone without a head"
        raise TaskHeadsError(Problem("--model_name_or_path", problem, expected, fix, code="model-type"))
