"""Configurations of the task heads. This file travels with every published model.

One config class per task, each with its own `model_type` and a nested `text_config` that holds the
backbone's own config. The name `text_config` matters: `get_text_config()` finds it, which is where
trl writes the pad and eos ids. Native Qwen configs are never subclassed or re-registered, so that
loading plain Qwen models in the same process stays as it was.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

POOLINGS = ("last", "mean", "max", "attention")
HEADS = ("linear", "mlp")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression", "ordinal")
TRUNCATIONS = ("head", "tail", "head_tail", "windows")
AGGREGATIONS = ("mean", "max")
MIN_SEQ_LENGTH = 16  # the stored probe has rows of 12, which no policy may cut

# Decoders whose first k layers, then `norm`, are a decoder again: no layer reads another but the one below.
CAN_EXIT = ("qwen2", "qwen3", "llama", "mistral", "qwen2_moe", "qwen3_moe", "gemma", "olmo2", "phi3")

MODEL_TYPES = ("pooled_classifier", "title_scorer")


class TaskHeadError(ValueError):
    """Bad input, found by code that is copied into repos: `where: found; accepted; remedy`.

    A type of its own, so that the package can tell it from a defect and print it without a traceback.
    """

    def __init__(self, where: str, found: object, accepted: object, remedy: str) -> None:
        self.where, self.problem = where, f"found {found!r}"
        self.expected, self.fix = f"{accepted}", remedy
        super().__init__(f"{where}: {self.problem}. Expected {self.expected}. Fix: {remedy}.")


def refuse(where: str, found: object, accepted: object, remedy: str) -> TaskHeadError:
    """One message format for code that is copied into repos: `where: found; accepted; remedy`."""
    return TaskHeadError(where, found, accepted, remedy)


class TaskHeadConfig(PreTrainedConfig):
    """What a task head is: the backbone's config, the pooling, the head and the labels.

    Args:
        text_config: config of the backbone (any decoder of transformers), as object or dict.
        pooling: `last` (last real token), `mean`, `max` or `attention` (a learned query), by mask.
        head: `linear` (one matrix without bias, what stock serving stacks run) or `mlp`.
        head_sizes: widths of the hidden layers of an `mlp` head, e.g. `[1024, 512]`.
        head_activation: `relu`, `gelu`, `silu` or `tanh`, between the layers of an `mlp` head.
        head_dropout: dropout before a `linear` head and between the layers of an `mlp` head, in [0, 1).
        bidirectional: attend to both sides (a 4D mask instead of the causal one); sdpa or eager only.
        problem_type: `single_label_classification`, `multi_label_classification`, `regression` or
            `ordinal` (labels 0..K-1 in their natural order).
        backbone_layers: how many layers of the backbone are kept, from the first: an early exit, whose head
            reads layer k after the backbone's final norm. None: all of them.
        head_layers: layers whose pooled states the head reads, concatenated in this order, each after the
            backbone's final norm; numbers from 1, ascending. The last of them is the last layer that is
            kept, so `backbone_layers` follows. None: the last layer alone.
        backbone_name_or_path: the true base, which an adapter repo loads before its adapter.
        backbone_revision: commit of the base on its hub, or None for a local folder.
        backbone_hub: `modelscope` where that commit is one of ModelScope, which no other hub knows; None for
            the Hugging Face Hub.
        backbone_files: SHA-256 by name of the files of a base that is a folder, or was fetched from
            ModelScope; an adapter is put on no other. None for a base that its commit pins.
        probe: token ids and the logits they must give; checked after every load. Written on save.
        calibration: record of the temperature that is folded into the head, of thresholds and of the risk at
            each coverage, as measured by the run that fitted them. None without such a run.

    Raises:
        ValueError: an unknown pooling, head, activation or problem type, or sizes that do not fit.

    Example:
        >>> from transformers import Qwen2Config
        >>> from qwen_task_heads.hubcode.configuration_task_heads import TitleScorerConfig
        >>> TitleScorerConfig(text_config=Qwen2Config(hidden_size=64), pooling="mean").num_labels
        1
    """

    model_type = "task_head"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}
    # Without a backbone there is no config: defaulting to Qwen2Config() would be a 7B model.
    has_no_defaults_at_init = True

    text_config: dict | PreTrainedConfig | None = None
    pooling: str = "last"
    head: str = "linear"
    head_sizes: list[int] | tuple[int, ...] | None = None
    head_activation: str = "relu"
    head_dropout: float | int = 0.0
    bidirectional: bool = False
    problem_type: (
        Literal["regression", "single_label_classification", "multi_label_classification", "ordinal"] | None
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
                    "a decoder that this transformers knows",
                    "upgrade transformers, or name the backbone's own model_type",
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
        """Layers below the last one that the head reads too, by their numbers from 1."""
        return list(self.head_layers or [])[:-1]

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `config.json`, and say of which repo its code is.

        Where the config is handed on with a plain base, as PEFT's recipe does, the base has no code.
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
        """Refuse what no model could be built from, with the name of the field."""
        for field, accepted in (("pooling", POOLINGS), ("head", HEADS), ("head_activation", ACTIVATIONS)):
            value = self.__dict__[field]
            if value not in accepted:
                raise refuse(field, value, ", ".join(accepted), "choose one of them")
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise refuse("problem_type", self.problem_type, ", ".join(PROBLEM_TYPES), "choose one of them")
        if any(not isinstance(size, int) or size < 1 for size in self.head_sizes or []):
            raise refuse("head_sizes", self.head_sizes, "positive whole numbers", "choose such as 1024 512")
        if self.head == "mlp" and not self.head_sizes:
            raise refuse(
                "head_sizes", self.head_sizes, "at least one width for head 'mlp'", "choose such as 1024 512"
            )
        if self.head == "linear" and self.head_sizes:
            raise refuse("head_sizes", self.head_sizes, "none for head 'linear'", "drop it, or set head: mlp")
        if not 0 <= self.head_dropout < 1:
            raise refuse("head_dropout", self.head_dropout, "0 <= p < 1", "choose such as 0.1")
        if self.head_layers is not None and self.text_config is not None:
            self._check_head_layers(list(self.head_layers), self.text_config)

    def _check_head_layers(self, layers: list[int], text_config: Any) -> None:
        """Refuse layers that a backbone does not have, or does not give."""
        depth, keep = text_config.num_hidden_layers, self.backbone_layers
        known = sorted({n for n in layers if isinstance(n, int) and n is not True and 1 <= n <= depth})
        if layers != known or not layers:
            accepted = f"numbers of layers from 1 to {depth}, each one once, in ascending order"
            example = " ".join(map(str, known or [depth]))
            raise refuse("head_layers", layers, accepted, f"choose such as {example}")
        if keep is not None and keep != layers[-1]:
            accepted = f"layers up to {keep}, the last of which is backbone_layers"
            raise refuse(
                "head_layers",
                layers,
                accepted,
                "drop one of the two: backbone_layers follows from head_layers",
            )
        if layers != [depth] and text_config.model_type not in CAN_EXIT:
            accepted = f"the last layer, {depth}, or a backbone of {', '.join(CAN_EXIT)}"
            raise refuse("head_layers", f"{layers} of a {text_config.model_type}", accepted, "drop it")


def cut_layers(text_config: PreTrainedConfig, *, keep: int) -> PreTrainedConfig:
    """Give a copy of a backbone's config with its first `keep` layers; of one that has so many, itself.

    Raises:
        ValueError: fewer layers than that, or a family whose layers are not alike.

    Example:
        >>> from transformers import Qwen2Config
        >>> from qwen_task_heads.hubcode.configuration_task_heads import cut_layers
        >>> cut = cut_layers(Qwen2Config(hidden_size=64, num_hidden_layers=6), keep=2)
        >>> cut.num_hidden_layers, len(cut.layer_types)
        (2, 2)
    """
    depth = text_config.num_hidden_layers
    if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= depth:
        raise refuse(
            "backbone_layers",
            keep,
            f"1 to {depth}, the layers of the backbone",
            f"choose such as {max(1, depth // 2)}",
        )
    if keep == depth:
        return text_config
    if text_config.model_type not in CAN_EXIT:
        accepted = f"all {depth} layers, or a backbone of {', '.join(CAN_EXIT)}"
        raise refuse("backbone_layers", f"{keep} of a {text_config.model_type}", accepted, "drop it")
    cut = copy.deepcopy(text_config)
    cut.num_hidden_layers = keep
    if text_config.to_dict().get("layer_types") is not None:
        cut.layer_types = text_config.layer_types[:keep]
    return cut


class PooledClassifierConfig(TaskHeadConfig):
    """Config of `PooledClassifier`: a text classifier, regressor or ordinal model.

    Args:
        max_seq_length: longest row in tokens, template included; longer ones are cut in `forward`, so that
            every caller gets the ids of training. None: nothing is cut.
        truncation: `head`, `tail`, `head_tail` (half from either end) or `windows` (all of a text, piece
            by piece; the logits are aggregated).
        window_overlap: tokens that neighbouring windows share, at most half of a window. 0 by default:
            a label rarely hangs on the words at one cut, and an overlap of a quarter costs a third more.
        window_aggregation: `mean` or `max` of the logits of a text's windows. For `ordinal` the
            log-probabilities are aggregated and normalised again.
        template: ids that the saved tokenizer puts around a text, `{"before": [...], "after": [...]}`;
            with `"between"` for a model of pairs, whose texts only the tokenizer can cut.
        label_descriptions: one text per label; the prompt of the template may list them.
        label_examples: a list of texts per label.
        label_aliases: a list of other spellings per label, which data may use.
        label_parents: the name of a coarser label per label, "" without one.
        label_thresholds: of a multi-label model, P(label) from which each label is predicted if a caller
            names no threshold. None: 0.5 for all.

    Raises:
        ValueError: an unknown policy, or lengths that do not fit each other.
    """

    model_type = "pooled_classifier"

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

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**{"auto_map": _auto_map("PooledClassifier"), **kwargs})
        if self.label_thresholds is not None and not self._fits(self.label_thresholds):
            accepted = f"{self.num_labels} probabilities, one per label of a multi-label model"
            raise refuse("label_thresholds", self.label_thresholds, accepted, "correct them, or drop them")

    def _fits(self, thresholds: list | tuple) -> bool:
        """Tell whether thresholds are one probability per label of a multi-label model."""
        numbers = all(isinstance(one, (int, float)) and 0 <= one <= 1 for one in thresholds)
        several = self.problem_type == "multi_label_classification"
        return several and numbers and len(thresholds) == self.num_labels

    def set_template(self, ids: dict[str, list[int]], *, pairs: bool = False) -> None:
        """Take over the template of the tokenizer, `{"before": ids, "between": ids, "after": ids}`.

        Args:
            ids: as `tokenization.templates.compile_template` returns them.
            pairs: whether the model reads pairs of texts.

        Raises:
            ValueError: it leaves no room for a text, or pairs with a policy for single texts.
        """
        self.template = {part: list(ids[part]) for part in ("before", "between", "after")}
        if not pairs:
            del self.template["between"]
        self._check()

    def _check(self) -> None:
        super()._check()
        for field, choices in (("truncation", TRUNCATIONS), ("window_aggregation", AGGREGATIONS)):
            value = self.__dict__[field]
            if value not in choices:
                raise refuse(field, value, ", ".join(choices), "choose one of them")
        limit, policy = self.max_seq_length, self.truncation
        if limit is None and policy != "head":
            raise refuse("max_seq_length", None, f"a length for truncation {policy!r}", "choose such as 512")
        if limit is not None and limit < MIN_SEQ_LENGTH:
            raise refuse("max_seq_length", limit, f"{MIN_SEQ_LENGTH} or more", "raise it")
        if "between" in (self.template or {}) and policy in ("head_tail", "windows"):
            raise refuse("truncation", policy, "head or tail for pairs of texts", "choose one of them")
        room = (limit or 0) - sum(len((self.template or {}).get(part, [])) for part in ("before", "after"))
        long = "the template has so many tokens, and a text needs one"
        if limit is not None and room < 1:
            raise refuse("max_seq_length", limit, f"{limit - room + 1} or more", f"raise it: {long}")
        largest = room // 2 if policy == "windows" else 0
        if not 0 <= self.window_overlap <= largest:
            accepted = f"0 to {largest}, half of the text in a window, and 0 without windows"
            # Half of it: the template, which may be compiled later, takes of the room too.
            remedy = f"choose such as {largest // 2}"
            raise refuse("window_overlap", self.window_overlap, accepted, remedy)

    def to_dict(self) -> dict[str, Any]:
        """Give all fields; what is saved names the code that is saved beside it."""
        return {**super().to_dict(), "auto_map": _auto_map("PooledClassifier")}


class TitleScorerConfig(TaskHeadConfig):
    """Config of `TitleScorer`: one score per text, trained on pairs or groups.

    `problem_type` is `regression`, so that stock pipelines print the score itself and no sigmoid of it.

    Args:
        reward_mean: of the scores of the dev titles; with the next, what a reward is normalised by. None
            for a model that no run has measured.
        reward_std: their standard deviation.
        reward_length_mean: mean length of these titles, in characters.
        reward_length_slope: score per character, of the straight line through scores over lengths.
    """

    model_type = "title_scorer"

    reward_mean: float | None = None
    reward_std: float | None = None
    reward_length_mean: float | None = None
    reward_length_slope: float | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("custom_pipelines", None)
        # With it, transformers runs the pipeline code of the folder. Where this file is the installed one,
        # the package has registered its own pipeline, and code in a folder must not be run.
        if __name__.startswith("transformers_modules."):
            self.custom_pipelines = _custom_pipelines()
        self.problem_type = self.problem_type or "regression"
        # trl asks for num_labels=1 on every load; any other number has no meaning for a scorer.
        num_labels = kwargs.pop("num_labels", None)
        if num_labels not in (1, None):
            raise refuse("num_labels", num_labels, "1", "use PooledClassifier for several labels")
        if self.__dict__["id2label"] is None:
            self.id2label, self.label2id = {0: "score"}, {"score": 0}
        super().__post_init__(**{"auto_map": _auto_map("TitleScorer"), **kwargs})

    def to_dict(self) -> dict[str, Any]:
        """Give all fields, and where a process without the package finds `pipeline("title-ranking")`."""
        travels = {"auto_map": _auto_map("TitleScorer"), "custom_pipelines": _custom_pipelines()}
        return {**super().to_dict(), **travels}


def _custom_pipelines() -> dict[str, Any]:
    """Where `pipeline()` finds the code; a fresh dictionary, because transformers writes classes into it."""
    return {
        "title-ranking": {
            "impl": "pipeline_task_heads.TitleRankingPipeline",
            "pt": ["AutoModelForSequenceClassification"],
            "tf": [],
            "type": "text",
        }
    }


def _auto_map(model: str) -> dict[str, str]:
    """Where the Auto classes find the code when the package is not installed."""
    return {
        "AutoConfig": f"configuration_task_heads.{model}Config",
        "AutoModel": f"modeling_task_heads.{model}",
        "AutoModelForSequenceClassification": f"modeling_task_heads.{model}",
    }
