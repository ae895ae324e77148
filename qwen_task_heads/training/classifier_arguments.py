"""Options of the classification recipe, and the function that parses them.

The metric that selects the best checkpoint depends on the problem type, which may be known only once the data
are read. `ClassifierConfig.choose_metric` sets it then, unless the user names one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import AGGREGATIONS, PROBLEM_TYPES, TRUNCATIONS
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.losses.registry import TEXT_LOSSES, given_options, with_loss_options
from qwen_task_heads.metrics.classification import BEST_METRIC, DEV_METRICS, MULTI
from qwen_task_heads.metrics.thresholds import read_rule
from qwen_task_heads.tokenization.templates import Template, label_template
from qwen_task_heads.training.argument_checks import not_one_of
from qwen_task_heads.training.arguments import (
    HeadArguments,
    HeadModelConfig,
    parse_arguments,
    set_default_rate,
)
from qwen_task_heads.training.option_checks import FOLLOW_A_METRIC, direction_problems, metric_problems
from qwen_task_heads.training.run_defaults import RunDefaults
from qwen_task_heads.training.search_options import SearchOptions
from qwen_task_heads.training.text_arguments import TextArguments

MAX_SEQ_LENGTH = 512  # on a plain backbone; a saved model keeps its own


@dataclass
@with_loss_options(*TEXT_LOSSES)
class ClassifierArguments(SearchOptions, TextArguments, HeadArguments):
    """Data, labels, template, head and loss of a text classifier."""

    HEAD_OPTIONS: ClassVar[tuple[str, ...]] = (
        *HeadArguments.HEAD_OPTIONS,
        "max_seq_length",
        "truncation",
        "window_overlap",
        "window_aggregation",
    )

    DATA_OPTIONS: ClassVar[tuple[str, ...]] = (*TextArguments.DATA_OPTIONS, "problem_type", "streaming")

    problem_type: str | None = field(
        default=None, metadata={"help": ", ".join(PROBLEM_TYPES) + "; inferred from the columns if None."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read a hub data set row by row, without storing it."}
    )
    loss: str | None = field(
        default=None,
        metadata={
            "help": "; ".join(f"{', '.join(losses)} ({kind})" for kind, losses in TEXT_LOSSES.items())
            + ". The first one of the problem type if None."
        },
    )
    max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": f"Longest text or window with its template, in tokens; {MAX_SEQ_LENGTH} on a plain "
            "backbone if None."
        },
    )
    truncation: str | None = field(
        default=None,
        metadata={"help": ", ".join(TRUNCATIONS) + ": treatment of texts longer than max_seq_length."},
    )
    window_overlap: int | None = field(
        default=None, metadata={"help": "Tokens shared by neighbouring windows."}
    )
    window_aggregation: str | None = field(default=None, metadata={"help": ", ".join(AGGREGATIONS)})
    token_dropout: float = field(
        default=0.0, metadata={"help": "Share of tokens that are masked in training; for small backbones."}
    )
    thresholds: str | None = field(
        default=None,
        metadata={
            "help": "For multi-label: f1, the threshold per label with the best F1 on dev (if None); "
            "precision:0.9, the lowest with that precision; none, .5 for all."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better metric."}
    )

    def __post_init__(self) -> None:
        # A YAML file may state a scalar: `class_weights: balanced`.
        for name in ("class_weights", "pos_weight"):
            given = vars(self)[name]
            setattr(self, name, given if given is None or isinstance(given, list) else [str(given)])

    def template_for(self, labels: LabelMap) -> Template | None:
        """Return the template of the options with the labels filled in; None if none is given."""
        plain = self.template()
        if plain is None or not self.instruction:
            return plain
        return label_template(self.instruction, labels, between=plain.between, after=plain.after)

    def loss_options(self) -> dict[str, Any]:
        """Return the options of the loss that are given; weights as `balanced` or as numbers."""
        return given_options(self, TEXT_LOSSES)


@dataclass
class ClassifierConfig(RunDefaults, TrainingArguments):
    """transformers' `TrainingArguments` with defaults for classifiers."""

    RECIPE: ClassVar[str] = "classifier"
    TRAINS: ClassVar[str] = "a text classifier"
    SAMPLE: ClassVar[str] = "BANKING77, ten intents"

    learning_rate: float | None = field(
        default=None,
        metadata={"help": "5e-5; with LoRA 2e-4; for the head alone 1e-3; embedded backbone: 40 times that."},
    )
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "Metric that selects the best checkpoint; by problem type if None."}
    )

    def __post_init__(self) -> None:
        self._metric_was_given = self.metric_for_best_model is not None
        super().__post_init__()

    def choose_metric(self, problem_type: str) -> None:
        """Set the metric that selects the best checkpoint of a problem type, unless the user names one.

        Raises:
            TaskHeadsError: the evaluation does not compute the metric that the user names, or a schedule of
                the learning rate follows the metric in the wrong direction.
        """
        if not self._metric_was_given and (
            self.load_best_model_at_end
            or self.save_strategy == SaveStrategy.BEST
            or self.lr_scheduler_type in FOLLOW_A_METRIC
        ):
            self.metric_for_best_model, self.greater_is_better = BEST_METRIC[problem_type]
        if problems := [*self.metric_problems(problem_type), *direction_problems(self)]:
            raise TaskHeadsError(problems)

    def metric_problems(self, problem_type: str) -> list[Problem]:
        """Refuse a metric that the evaluation of a problem type does not compute."""
        return metric_problems(self, (*DEV_METRICS[problem_type], "loss"), where=f" ({problem_type})")


def parse_classifier_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[ClassifierArguments, ClassifierConfig, HeadModelConfig]:
    """Parse the command line and the `--config` YAML, as `arguments.parse_arguments` does."""
    texts, training, model = parse_arguments(
        (ClassifierArguments, ClassifierConfig, HeadModelConfig), argv, check=check_texts
    )
    if texts.early_stopping_patience is not None:
        # A resumed run that counted its patience from zero would end with other weights.
        training.restore_callback_states_from_checkpoint = True
    set_default_rate(training, model, "classifier", head_only=texts.freeze_backbone)
    return texts, training, model


def check_texts(
    texts: ClassifierArguments, training: ClassifierConfig, model: HeadModelConfig
) -> list[Problem]:
    """Return the problems of the options that only classifiers have."""
    problems = not_one_of(
        ("--problem_type", texts.problem_type, PROBLEM_TYPES),
        ("--truncation", texts.truncation, TRUNCATIONS),
        ("--window_aggregation", texts.window_aggregation, AGGREGATIONS),
    )
    if texts.thresholds is not None:
        try:
            read_rule(texts.thresholds)
        except TaskHeadsError as error:
            problems += error.problems
        if texts.problem_type not in (None, MULTI):
            problem = f"found {texts.thresholds!r} with {texts.problem_type}"
            problems.append(
                Problem("--thresholds", problem, f"problem type {MULTI}", "drop it", code="option-conflict")
            )
    if texts.problem_type in DEV_METRICS:  # otherwise `choose_metric` checks it once the data are read
        problems += training.metric_problems(texts.problem_type)
    for name in ("class_weights", "pos_weight"):
        given = vars(texts)[name]
        if given is not None and given != ["balanced"] and not all(map(_is_number, given)):
            expected, fix = "balanced, or one positive number per label", f"give --{name} balanced"
            problems.append(Problem(f"--{name}", f"found {given}", expected, fix, code="option-value"))
    if not 0 <= texts.token_dropout < 1:
        problem, fix = f"found {texts.token_dropout}", "give --token_dropout 0.1"
        problems.append(Problem("--token_dropout", problem, "0 <= p < 1", fix, code="option-range"))
    if texts.truncation != "windows":
        for name in ("window_overlap", "window_aggregation"):
            if vars(texts)[name] is not None:
                problem = f"found {vars(texts)[name]!r} without windows"
                expected, fix = "--truncation windows with it", "add --truncation windows, or drop it"
                problems.append(Problem(f"--{name}", problem, expected, fix, code="option-missing"))
    return problems + _patience_problems(texts.early_stopping_patience, training)


def _patience_problems(patience: int | None, training: ClassifierConfig) -> list[Problem]:
    where, problems = "--early_stopping_patience", []
    if patience is None:
        return []
    if patience < 1:
        fix = f"give {where} 3, or drop it to train to the end"
        problems.append(Problem(where, f"found {patience}", "1 or more", fix, code="option-range"))
    if not training.load_best_model_at_end:
        problem, expected = "found it without --load_best_model_at_end", "--load_best_model_at_end true"
        problems.append(Problem(where, problem, expected, f"add {expected}", code="option-conflict"))
    return problems


def _is_number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
