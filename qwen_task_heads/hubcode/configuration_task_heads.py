"""Configurations of the task heads. This file is copied into every published model.

Each task has a config class with its own `model_type`; a nested `text_config` holds the config of the
backbone. The name `text_config` is needed: `get_text_config()` finds it, and trl writes the pad and eos ids
there. Native Qwen configs are neither subclassed nor registered again, so plain Qwen models load in the same
process as before.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .early_exit_task_heads import check_head_layers, cut_layers
from .errors_task_heads import refuse, refuse_choice, refuse_pairs
from .questions_task_heads import QUESTIONS, as_request, question_fields

POOLINGS = ("last", "mean", "max", "attention")
HEADS = ("linear", "mlp")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
PROBLEM_TYPES = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
    "ordinal",
    QUESTIONS,
)
TRUNCATIONS = ("head", "tail", "head_tail", "windows")
AGGREGATIONS = ("mean", "max")
MIN_SEQ_LENGTH = 16  # the stored probe has rows of 12 tokens, which no truncation may cut

MODEL_TYPES = ("pooled_classifier", "title_scorer")


class TaskHeadConfig(PreTrainedConfig):
    """Config of a task head: the backbone's config, the pooling, the head and the labels.

    Args:
        text_config: config of the backbone (any decoder of transformers), as object or dict.
        pooling: `last` (last real token), `mean`, `max` or `attention` (a learned query), by mask.
        head: `linear` (one matrix without bias, what stock serving stacks run) or `mlp`.
        head_sizes: widths of the hidden layers of an `mlp` head, e.g. `[1024, 512]`.
        head_activation: `relu`, `gelu`, `silu` or `tanh`, between the layers of an `mlp` head.
        head_dropout: dropout before a `linear` head and between the layers of an `mlp` head, in [0, 1).
        bidirectional: attend to both sides (a 4D mask instead of the causal one); sdpa or eager only.
        problem_type: `single_label_classification`, `multi_label_classification`, `regression`, `ordinal`
            (labels 0..K-1 in their natural order) or `questions` (of `PooledClassifierConfig`).
        backbone_layers: number of layers of the backbone that are kept, from the first (early exit). The head
            reads the last of them after the backbone's final norm. None: all layers.
        head_layers: layers whose pooled states the head reads, concatenated in this order, each after the
            backbone's final norm; numbers from 1, ascending. The last of them is the last layer that is
            kept, so `backbone_layers` follows. None: only the last layer.
        backbone_name_or_path: the base that an adapter repo loads before its adapter.
        backbone_revision: commit of the base on its hub, or None for a local folder.
        backbone_hub: hub of the commit, such as `modelscope`; None for the Hugging Face Hub.
        backbone_files: SHA-256 by name of the files of a base that is a folder or was fetched from
            ModelScope. An adapter loads only on these files. None for a base that is pinned by its commit.
        probe: token ids and their logits, which are verified after every load. Written on save.
        calibration: record of the temperature that is folded into the head, of thresholds and of the risk at
            each coverage, as measured by the run that fitted them. None without such a run.

    Raises:
        ValueError: an unknown pooling, head, activation or problem type, or sizes that contradict each other.

    Example:
        >>> from transformers import Qwen2Config
        >>> from qwen_task_heads.hubcode.configuration_task_heads import TitleScorerConfig
        >>> TitleScorerConfig(text_config=Qwen2Config(hidden_size=64), pooling="mean").num_labels
        1
    """

    model_type = "task_head"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}
    # A config needs a backbone: the default Qwen2Config() would be a model of 7B parameters.
    has_no_defaults_at_init = True
    _choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "pooling": POOLINGS,
        "head": HEADS,
        "head_activation": ACTIVATIONS,
        "problem_type": PROBLEM_TYPES,
    }

    text_config: dict | PreTrainedConfig | None = None
    pooling: str = "last"
    head: str = "linear"
    head_sizes: list[int] | tuple[int, ...] | None = None
    head_activation: str = "relu"
    head_dropout: float | int = 0.0
    bidirectional: bool = False
    problem_type: (
        Literal[
            "regression", "single_label_classification", "multi_label_classification", "ordinal", "questions"
        ]
        | None
    ) = None
    backbone_layers: int | None = None
    head_layers: list[int] | tuple[int, ...] | None = None
    backbone_name_or_path: str | None = None
    backbone_revision: str | None = None
    backbone_hub: str | None = None
    backbone_files: dict | None = None
    probe: dict | None = None
    calibration: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            text_config = dict(self.text_config)
            model_type = text_config.pop("model_type", None)
            if model_type not in CONFIG_MAPPING:
                raise refuse(
                    "text_config.model_type",
                    model_type,
                    "a decoder that this version of transformers knows",
                    "upgrade transformers, or name the backbone's own model_type",
                    code="model-unsupported",
                )
            self.text_config = CONFIG_MAPPING[model_type](**text_config)
        self.head_sizes = list(self.head_sizes or [])
        layers: Any = self.head_layers
        if layers is not None:
            self.head_layers = list(layers) if isinstance(layers, (list, tuple)) else [layers]
        self._check()
        if self.head_layers:
            self.backbone_layers = self.head_layers[-1]
        if self.backbone_layers is not None and self.text_config is not None:
            self.text_config = cut_layers(self.text_config, keep=self.backbone_layers)
        super().__post_init__(**kwargs)

    @property
    def lower_layers(self) -> list[int]:
        """Return the layers below the last one that the head reads, by their numbers from 1."""
        return list(self.head_layers or [])[:-1]

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `config.json` and add the repo of the code to the names in `auto_map`.

        If the config is then passed with a plain base, as in PEFT's recipe, the base has no code of its own.
        """
        fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        repo = str(pretrained_model_name_or_path)
        if "--" not in repo:
            fields["auto_map"] = {
                auto: name if "--" in name else f"{repo}--{name}"
                for auto, name in fields.get("auto_map", {}).items()
            }
        return fields, kwargs

    def _check(self) -> None:
        """Raise for values from which no model can be built, with the name of the field."""
        for field, choices in self._choices.items():
            value = self.__dict__[field]
            if value not in choices and not (field == "problem_type" and value is None):
                raise refuse_choice(field, value, choices)
        if any(not isinstance(size, int) or size < 1 for size in self.head_sizes or []):
            raise refuse(
                "head_sizes",
                self.head_sizes,
                "positive whole numbers",
                "choose such as 1024 512",
                code="option-range",
            )
        if self.head == "mlp" and not self.head_sizes:
            raise refuse(
                "head_sizes",
                self.head_sizes,
                "at least one width for head 'mlp'",
                "choose such as 1024 512",
                code="option-missing",
            )
        if self.head == "linear" and self.head_sizes:
            raise refuse(
                "head_sizes",
                self.head_sizes,
                "no widths for head 'linear'",
                "drop it, or set head: mlp",
                code="option-conflict",
            )
        if not 0 <= self.head_dropout < 1:
            raise refuse(
                "head_dropout",
                self.head_dropout,
                "a probability p with 0 <= p < 1",
                "choose such as 0.1",
                code="option-range",
            )
        if self.head_layers is not None and self.text_config is not None:
            check_head_layers(list(self.head_layers), self.text_config, keep=self.backbone_layers)


class PooledClassifierConfig(TaskHeadConfig):
    """Config of `PooledClassifier`: a text classifier, regressor or ordinal model.

    Args:
        max_seq_length: longest row in tokens, template included. `forward` cuts longer rows, so that every
            caller gets the ids of training. None: nothing is cut.
        truncation: `head`, `tail`, `head_tail` (half from either end) or `windows` (the whole text in
            windows, whose logits are aggregated).
        window_overlap: tokens that neighbouring windows share, at most half of a window. 0 by default:
            a label rarely depends on the words at one cut, and an overlap of a quarter costs a third more.
        window_aggregation: `mean` or `max` of the logits of a text's windows. For `ordinal` the
            log-probabilities are aggregated and normalised again.
        template: ids that the saved tokenizer adds to a text, `{"before": [...], "after": [...]}`; with
            `"between"` for a model of pairs, whose texts only the tokenizer can cut.
        label_descriptions: one text per label; the prompt of the template may list them.
        label_examples: a list of texts per label.
        label_aliases: a list of other spellings per label, which data may use.
        label_parents: the name of a coarser label per label, "" without one.
        label_thresholds: of a multi-label model, the P(label) from which each label is predicted unless a
            caller passes a threshold. None: 0.5 for all.
        questions: of a model with several heads, in the order of their outputs, see `questions_task_heads`.
            The problem type is then `questions`, and each output is a label.

    Raises:
        ValueError: an unknown truncation, or lengths that contradict each other.
    """

    model_type = "pooled_classifier"
    _choices: ClassVar[dict[str, tuple[str, ...]]] = {
        **TaskHeadConfig._choices,
        "truncation": TRUNCATIONS,
        "window_aggregation": AGGREGATIONS,
    }

    max_seq_length: int | None = None
    truncation: str = "head"
    window_overlap: int = 0
    window_aggregation: str = "mean"
    template: dict | None = None
    label_descriptions: list[str] | tuple[str, ...] | None = None
    label_examples: list | tuple | None = None
    label_aliases: list | tuple | None = None
    label_parents: list[str] | tuple[str, ...] | None = None
    label_thresholds: list | tuple | None = None
    questions: list | tuple | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.questions is not None or self.problem_type == QUESTIONS:
            labels, kind = self.__dict__["id2label"], self.problem_type
            for name, value in question_fields(self.questions, labels=labels, problem_type=kind).items():
                setattr(self, name, value)
        super().__post_init__(**{"auto_map": _auto_map("PooledClassifier"), **kwargs})
        if self.label_thresholds is not None and not self._fits(self.label_thresholds):
            raise refuse(
                "label_thresholds",
                self.label_thresholds,
                f"{self.num_labels} probabilities, one per label of a multi-label model",
                "correct or drop them",
                code="option-value",
            )

    def as_request(self) -> dict[str, Any]:
        """Return the questions of the model in the form of a request, see `questions_task_heads`."""
        return as_request(self.questions or ())

    def _fits(self, thresholds: list | tuple) -> bool:
        """Return whether the thresholds are one probability per label of a multi-label model."""
        numbers = all(isinstance(one, (int, float)) and 0 <= one <= 1 for one in thresholds)
        several = self.problem_type == "multi_label_classification"
        return several and numbers and len(thresholds) == self.num_labels

    def set_template(self, ids: dict[str, list[int]], *, pairs: bool = False) -> None:
        """Set the template to that of the tokenizer, `{"before": ids, "between": ids, "after": ids}`.

        Args:
            ids: as `tokenization.templates.compile_template` returns them.
            pairs: whether the model reads pairs of texts.

        Raises:
            ValueError: a template that leaves no room for a text, or pairs with a truncation for single
                texts.
        """
        self.template = {part: list(ids[part]) for part in ("before", "between", "after")}
        if not pairs:
            del self.template["between"]
        self._check()

    def _check(self) -> None:
        super()._check()
        limit, truncation = self.max_seq_length, self.truncation
        if limit is None and truncation != "head":
            raise refuse(
                "max_seq_length",
                None,
                f"a length for truncation {truncation!r}",
                "choose such as 512",
                code="option-missing",
            )
        if limit is not None and limit < MIN_SEQ_LENGTH:
            raise refuse(
                "max_seq_length", limit, f"{MIN_SEQ_LENGTH} or more", "raise it", code="option-range"
            )
        if "between" in (self.template or {}) and truncation in ("head_tail", "windows"):
            raise refuse_pairs(truncation)
        fixed = sum(len((self.template or {}).get(part, [])) for part in ("before", "after"))
        room = (limit or 0) - fixed
        if limit is not None and room < 1:
            raise refuse(
                "max_seq_length",
                limit,
                f"{fixed + 1} or more",
                f"raise it: the template has {fixed} tokens and a text needs at least one",
                code="option-range",
            )
        largest = room // 2 if truncation == "windows" else 0
        if not 0 <= self.window_overlap <= largest:
            raise refuse(
                "window_overlap",
                self.window_overlap,
                f"0 to {largest}, half of the text in a window, and 0 without windows",
                # Half of the largest value, because a template that is compiled later needs room too.
                f"choose such as {largest // 2}",
                code="option-range",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, with `auto_map` to the code that is saved next to the config."""
        return {**super().to_dict(), "auto_map": _auto_map("PooledClassifier")}


class TitleScorerConfig(TaskHeadConfig):
    """Config of `TitleScorer`: one score per text, trained on pairs or groups.

    `problem_type` is `regression`, so that stock pipelines print the score itself and not its sigmoid.

    Args:
        reward_mean: mean score of the dev titles; a reward is normalised by it and by `reward_std`. None for
            a model that was not measured by a run.
        reward_std: standard deviation of these scores.
        reward_length_mean: mean length of these titles, in characters.
        reward_length_slope: slope of the regression line of the scores over the lengths, in score per
            character.
    """

    model_type = "title_scorer"

    reward_mean: float | None = None
    reward_std: float | None = None
    reward_length_mean: float | None = None
    reward_length_slope: float | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("custom_pipelines", None)
        # With this field, transformers runs the pipeline code of the folder. In the installed package, which
        # has registered its own pipeline, the code of a folder must not run.
        if __name__.startswith("transformers_modules."):
            self.custom_pipelines = _custom_pipelines()
        self.problem_type = self.problem_type or "regression"
        # trl passes num_labels=1 on every load; any other number has no meaning for a scorer.
        num_labels = kwargs.pop("num_labels", None)
        if num_labels not in (1, None):
            raise refuse(
                "num_labels",
                num_labels,
                "1",
                "use PooledClassifier for several labels",
                code="option-unsupported",
            )
        if self.__dict__["id2label"] is None:
            self.id2label, self.label2id = {0: "score"}, {"score": 0}
        super().__post_init__(**{"auto_map": _auto_map("TitleScorer"), **kwargs})

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, with the code of the model and of `pipeline("title-ranking")`."""
        code = {"auto_map": _auto_map("TitleScorer"), "custom_pipelines": _custom_pipelines()}
        return {**super().to_dict(), **code}


def _custom_pipelines() -> dict[str, Any]:
    """Return a new dictionary that names the pipeline's code; transformers writes classes into it."""
    return {
        "title-ranking": {
            "impl": "pipeline_task_heads.TitleRankingPipeline",
            "pt": ["AutoModelForSequenceClassification"],
            "tf": [],
            "type": "text",
        }
    }


def _auto_map(model: str) -> dict[str, str]:
    """Return the names by which the Auto classes find the code if the package is not installed."""
    return {
        "AutoConfig": f"configuration_task_heads.{model}Config",
        "AutoModel": f"modeling_task_heads.{model}",
        "AutoModelForSequenceClassification": f"modeling_task_heads.{model}",
        **({"AutoModelForDecision": f"modeling_task_heads.{model}"} if model == "PooledClassifier" else {}),
    }
