"""A sweep over heads on frozen features, for labelled texts and for titles: what differs between the two.

Both have the same life, which `recipes/sweep_heads.py` shows: read the data, encode it, run the backbone
once, fit the heads, save the best, measure. A sweep here owns data, model and tokenizer, and answers the
questions in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from transformers import set_seed

from qwen_task_heads.adapters import with_adapter
from qwen_task_heads.data.sequences import pick
from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.data.title_datasets import read_title_sets
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.metrics.classification import BEST_METRIC
from qwen_task_heads.models import adapter_config, build, load_tokenizer, saved_config
from qwen_task_heads.reports.records import card_facts
from qwen_task_heads.reports.run_manifest import settings_of
from qwen_task_heads.reports.text_report import TFIDF, TextRun, finish_texts
from qwen_task_heads.reports.title_report import TFIDF as TFIDF_PAIRS
from qwen_task_heads.reports.title_report import Run, finish_titles
from qwen_task_heads.tokenization.collators import group_dataset, pair_dataset, text_datasets
from qwen_task_heads.tokenization.equal_rows import check_equal
from qwen_task_heads.tokenization.templates import bind_template, compile_template
from qwen_task_heads.training.classifier_arguments import MAX_SEQ_LENGTH
from qwen_task_heads.training.feature_rows import PREFERENCE_SIGNALS, FeatureRows, GroupRows, PairRows
from qwen_task_heads.training.group_losses import GROUP_LOSSES
from qwen_task_heads.training.head_sweep import Combination, MakeRows, Result, text_rows
from qwen_task_heads.training.pair_losses import PAIR_LOSSES
from qwen_task_heads.training.sweep_arguments import SweepArguments, TitleSweepArguments
from qwen_task_heads.training.usage import Usage


class Sweep:
    """Data, model and tokenizer of a sweep. Use `open_sweep`.

    Args:
        options: of the task.
        training: of the heads.
        model_args: of the backbone.
    """

    TASK: ClassVar[str]
    BASELINE: ClassVar[str]  # row of the metrics that the table of the sweep ends with

    metric: str  # that dev picks by, as `metrics.json` names it
    losses: list[str]  # to try
    layers: list[tuple[int, ...]]  # to try

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
        """Arguments of `build` beside backbone and swept options."""
        raise NotImplementedError

    def _bind(self, model: Any) -> None:
        """Compile the template into the tokenizer, for a model."""
        raise NotImplementedError

    def encode(self) -> tuple[list[Sequence[int]], list[str]]:
        """Build model and tokenizer; return the rows that the backbone runs over, and lines on the data."""
        raise NotImplementedError

    @property
    def rows(self) -> MakeRows:
        """Rows of train and dev from the features of what `encode` returned."""
        raise NotImplementedError

    @property
    def timed(self) -> list[Sequence[int]]:
        """Rows whose scoring is timed."""
        raise NotImplementedError

    def _finish(self, model: Any, run: Mapping[str, Any]) -> dict[str, Any]:
        """Save and measure a model; return `metrics.json`."""
        raise NotImplementedError

    def with_head(self, combination: Combination | None = None) -> Any:
        """Build the model of a combination, its head fresh; without one, that of all layers."""
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
        """Numbers of all layers that some head reads."""
        return sorted({layer for layers in self.layers for layer in layers})

    def finish(self, chosen: Result, *, seconds: float, trackers: Sequence[Any]) -> dict[str, Any]:
        """Save the best head as a model, measure it beside the baselines, and return `metrics.json`.

        Args:
            chosen: of the sweep.
            seconds: that the sweep took.
            trackers: which hear what was measured.
        """
        best, options = chosen.combination, self.options
        model = self.with_head(best)
        model.score.load_state_dict(chosen.fitted.state)
        told = {**vars(options), **options.settled(model.config), "loss": best.loss, "base": self.base}
        if chosen.fitted.penalty is not None:
            told["penalty"] = chosen.fitted.penalty
        told |= {"dtype": self.model_args.dtype or "float32", "seed": chosen.seed}
        if options.save_as == "adapter":
            model = with_adapter(model, adapter_config(model, head_only=True))
        run = {
            "sets": self.sets, "card": card_facts(options), "backbone": self.base, "seed": chosen.seed,
            "seconds": seconds, "settings": settings_of(self.training, told),
            "log_history": chosen.fitted.history, "trackers": trackers, "usage": self.usage,
        }  # fmt: skip
        return self._finish(model, run)


class TextSweep(Sweep):
    """A sweep over labelled texts; its options are `SweepArguments`."""

    TASK, BASELINE = "pooled_classifier", TFIDF

    def _read(self) -> Any:
        sets = _read_for(read_text_sets, self.options)
        self.losses = self.options.losses_for(sets.problem_type)
        self.metric = BEST_METRIC[sets.problem_type][0].removeprefix("eval_")
        return sets

    def _head(self) -> dict[str, Any]:
        labels = self.sets.labels
        return {
            "task": self.TASK, "labels": labels.names, "problem_type": self.sets.problem_type,
            **labels.described(), **{"max_seq_length": MAX_SEQ_LENGTH} | self.options.head_options(),
        }  # fmt: skip

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

    def _finish(self, model: Any, run: Mapping[str, Any]) -> dict[str, Any]:
        made = TextRun(cut=self._cut, **run)
        return finish_texts(model, tokenizer=self.tokenizer, folder=self.training.output_dir, run=made)


class TitleSweep(Sweep):
    """A sweep over pairs, votes, clicks or arms of titles; its options are `TitleSweepArguments`."""

    TASK, BASELINE, metric = "title_scorer", TFIDF_PAIRS, "pair_accuracy"

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
                stated = [column for column in table.column_names if column in PREFERENCE_SIGNALS]
                PAIR_LOSSES[name].check([*stated, *self.options.loss_options()], where="--losses")
        equal = {"train": cut.equal, "dev": of_dev.equal, "test": of_test.equal}
        lines = [*self.sets.lines, cut.line(), *check_equal(equal, option="--max_length ")]
        kept = self._train.with_format("numpy")["row"][:]
        self.sets = replace(self.sets, train=pick(self.sets.train, kept))  # equal pairs were left out
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
                train: FeatureRows = GroupRows.of_table(of_groups, self._groups, loss=GROUP_LOSSES[loss])
                row, options = PAIR_LOSSES["bradley_terry"], {}
            else:
                row, given = PAIR_LOSSES[loss], self.options.loss_options()
                options = {name: value for name, value in given.items() if name in (*row.options, *row.uses)}
                train = PairRows.of_table(of_train, self._train, loss=row, options=options)
            return train, PairRows.of_table(of_dev, self._dev, loss=row, options=options)

        return make

    @property
    def timed(self) -> list[Sequence[int]]:
        """See `Sweep`."""
        return _titles(self._dev)

    def _finish(self, model: Any, run: Mapping[str, Any]) -> dict[str, Any]:
        return finish_titles(model, tokenizer=self.tokenizer, folder=self.training.output_dir, run=Run(**run))


def open_sweep(options: Any, training: Any, model_args: Any) -> Sweep:
    """Read the data of a sweep, by what `parse_sweep_arguments` returned.

    Raises:
        TaskHeadsError: data or options that cannot be used, or a model that has a head already.
    """
    kinds: dict[type, type[Sweep]] = {SweepArguments: TextSweep, TitleSweepArguments: TitleSweep}
    return kinds[type(options)](options, training, model_args)


def _titles(table: Any) -> list[Sequence[int]]:
    """Token ids of the chosen titles of a data set of pairs, then of the rejected ones."""
    return [*table["chosen_ids"], *table["rejected_ids"]]


def _read_for(read: Callable[..., Any], options: Any) -> Any:
    """Read the data of a task.

    Raises:
        TaskHeadsError: what the reader refuses; if the other task can read it, that `--task` comes first.
    """
    try:
        return read(options.dataset_name, **options.data_options())
    except TaskHeadsError as error:
        other, its_reader, has, takes = (
            ("titles", read_title_sets, "pairs or arms of titles", "labelled texts")
            if read is read_text_sets
            else ("texts", read_text_sets, "labelled texts", "pairs or arms of titles")
        )
        names = ("dev_fraction", "test_fraction", "hub", "encoding")
        given = {name: vars(options)[name] for name in names}
        given |= {"dev": options.dev_dataset, "test": options.test_dataset, "columns": options.columns or ()}
        try:
            its_reader(options.dataset_name, bad_rows="skip", **given)
        except TaskHeadsError:
            raise error from None
        problem = Problem("--task", f"found {options.task!r}, and {has}", takes, f"give --task {other}")
        raise TaskHeadsError([problem, *error.problems]) from error


def _refuse_head(base: str, *, revision: str | None, hub: str) -> None:
    """Refuse a model that has a head: a sweep is over a backbone."""
    config = saved_config(base, revision=revision, hub=hub)
    if config is not None:
        backbone = config.backbone_name_or_path  # None of a full model whose backbone was a folder
        remedy = f"give --model_name_or_path {backbone}" if backbone else "name the backbone it was built on"
        found, accepted = "a model of ours, which has a head", "a plain backbone"
        raise TaskHeadsError(Problem("--model_name_or_path", f"found {found}", accepted, remedy))
