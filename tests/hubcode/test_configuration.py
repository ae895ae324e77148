"""A config that no model could be built from is refused, in one format, by the name of its field."""

from __future__ import annotations

import re
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification, Qwen2ForSequenceClassification

from qwen_task_heads import (
    PooledClassifier,
    PooledClassifierConfig,
    TaskHeadsError,
    TitleScorer,
    TitleScorerConfig,
    build,
)

REFUSED = [
    ("pooling", {"pooling": "avg"}, "last, mean, max, attention"),
    ("head", {"head": "linaer"}, "linear, mlp"),
    ("head_activation", {"head_activation": "swish"}, "relu, gelu, silu, tanh"),
    ("problem_type", {"problem_type": "ranking"}, ""),
    ("head_sizes", {"head": "mlp"}, "at least one width"),
    ("head_sizes", {"head": "mlp", "head_sizes": []}, "at least one width"),
    ("head_sizes", {"head": "mlp", "head_sizes": [8, 0]}, "positive whole numbers"),
    ("head_sizes", {"head": "mlp", "head_sizes": [-4]}, "positive whole numbers"),
    ("head_sizes", {"head_sizes": [8]}, "none for head 'linear'"),
    ("head_dropout", {"head_dropout": 1.0}, "0 <= p < 1"),
    ("head_dropout", {"head_dropout": -0.1}, "0 <= p < 1"),
]


LENGTHS_REFUSED = [
    ("truncation", {"truncation": "middle", "max_seq_length": 64}, "head, tail, head_tail, windows"),
    ("window_aggregation", {"window_aggregation": "sum", "max_seq_length": 64}, "mean, max"),
    ("max_seq_length", {"truncation": "windows"}, "a length for truncation 'windows'"),
    ("max_seq_length", {"truncation": "tail"}, "a length for truncation 'tail'"),
    ("max_seq_length", {"max_seq_length": 15}, "16 or more"),
    ("max_seq_length", {"max_seq_length": 0}, "16 or more"),
    ("max_seq_length", {"max_seq_length": 20, "template": {"before": [1] * 19, "after": [2]}}, "21 or more"),
    (
        "truncation",
        {
            "truncation": "windows",
            "max_seq_length": 64,
            "template": {"before": [], "between": [], "after": []},
        },
        "head or tail for pairs",
    ),
    ("window_overlap", {"window_overlap": 4, "max_seq_length": 64}, "0 without windows"),
    (
        "window_overlap",
        {"window_overlap": 33, "truncation": "windows", "max_seq_length": 64},
        "0 to 32, half of the text in a window",
    ),
    (
        "window_overlap",
        {"window_overlap": -1, "truncation": "windows", "max_seq_length": 64},
        "0 to 32, half of the text in a window",
    ),
]


@pytest.mark.parametrize(("field", "options", "accepted"), LENGTHS_REFUSED)
def test_lengths_that_do_not_fit_are_refused_by_name(
    tiny_config: Any, bases: dict[str, str], field: str, options: dict[str, Any], accepted: str
) -> None:
    with pytest.raises(ValueError, match=f"^{field}: found") as caught:
        PooledClassifierConfig(text_config=tiny_config(), **options)
    assert accepted in str(caught.value)
    with pytest.raises(TaskHeadsError, match=f"^--{field}: found"):
        build(bases["qwen2"], task="pooled_classifier", **options)


def test_a_title_scorer_has_no_policy(bases: dict[str, str]) -> None:
    for options in ({"truncation": "tail"}, {"max_seq_length": 64}, {"window_overlap": 1}):
        with pytest.raises(TaskHeadsError, match="an option that no head has"):
            build(bases["qwen2"], **options)


def test_the_policy_survives_its_file(tiny_config: Any, tmp_path: Any) -> None:
    options = {
        "max_seq_length": 64, "truncation": "windows", "window_overlap": 8, "window_aggregation": "max",
        "label_descriptions": ["x", ""], "label_examples": [["a"], []], "problem_type": "ordinal",
    }  # fmt: skip
    config = PooledClassifierConfig(text_config=tiny_config(), **options)
    config.set_template({"before": [1], "between": [2], "after": [3]})
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {field: again[field] for field in options} == options
    assert again["template"] == {"before": [1], "after": [3]}


@pytest.mark.parametrize(("field", "options", "accepted"), REFUSED)
@pytest.mark.parametrize("config_class", [TitleScorerConfig, PooledClassifierConfig])
def test_a_bad_field_is_refused_by_name(
    tiny_config: Any, config_class: Any, field: str, options: dict[str, Any], accepted: str
) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        config_class(text_config=tiny_config(), **options)
    assert accepted in str(caught.value)


@pytest.mark.parametrize(
    ("field", "options", "accepted"), [row for row in REFUSED if row[0] != "problem_type"]
)
def test_build_gives_it_as_an_option_in_the_house_format(
    bases: dict[str, str], field: str, options: dict[str, Any], accepted: str
) -> None:
    with pytest.raises(TaskHeadsError) as caught:
        build(bases["qwen2"], **options)
    where, found, wanted, remedy = re.fullmatch(
        r"(--\w+): (found [^;]+); (accepted: [^;]+); ([^;]+)", str(caught.value)
    ).groups()
    assert where == f"--{field}"
    assert accepted in wanted
    assert found
    assert remedy


def test_build_refuses_a_field_that_does_not_exist(bases: dict[str, str]) -> None:
    """A misspelt option must not become an attribute that nothing reads."""
    with pytest.raises(TaskHeadsError, match="poolling"):
        build(bases["qwen2"], poolling="mean")


@pytest.mark.parametrize("problem_type", ["ranking", "multi-label"])
def test_build_refuses_an_unknown_problem_type(bases: dict[str, str], problem_type: str) -> None:
    with pytest.raises(TaskHeadsError, match=r"--problem_type.*ordinal"):
        build(bases["qwen2"], task="pooled_classifier", problem_type=problem_type)


def test_a_title_scorer_has_one_label(tiny_config: Any) -> None:
    config = TitleScorerConfig(text_config=tiny_config(), num_labels=1)  # what trl asks for
    assert config.num_labels == 1
    assert config.problem_type == "regression"
    with pytest.raises(ValueError, match="num_labels: found 2; accepted: 1; use PooledClassifier"):
        TitleScorerConfig(text_config=tiny_config(), num_labels=2)


def test_ordinal_needs_three_labels(tiny_config: Any) -> None:
    config = PooledClassifierConfig(text_config=tiny_config(), num_labels=2, problem_type="ordinal")
    with pytest.raises(ValueError, match="num_labels: found 2; accepted: 3 or more"):
        PooledClassifier(config)


def test_a_config_without_a_backbone_makes_no_model() -> None:
    """Rather than a silent default: `Qwen2Config()` would be a model of seven billion parameters."""
    with pytest.raises(ValueError, match="text_config: found None"):
        TitleScorer(TitleScorerConfig())


@pytest.mark.parametrize("model_type", [None, "qwen9"])
def test_an_unknown_backbone_type_is_named(tiny_config: Any, model_type: str | None) -> None:
    text_config = {**tiny_config().to_dict(), "model_type": model_type}
    with pytest.raises(ValueError, match=r"text_config\.model_type.*upgrade transformers"):
        TitleScorerConfig(text_config=text_config)


@pytest.mark.parametrize("config_class", [TitleScorerConfig, PooledClassifierConfig])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_a_config_survives_its_file(tiny_config: Any, tmp_path: Any, config_class: Any, family: str) -> None:
    options = {
        "pooling": "attention", "head": "mlp", "head_sizes": [16, 8], "head_activation": "silu",
        "head_dropout": 0.25, "bidirectional": True, "backbone_name_or_path": "Qwen/Qwen2.5-7B",
        "backbone_revision": "a" * 40,
    }  # fmt: skip
    config = config_class(text_config=tiny_config(family), **options)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is config_class
    assert {field: again.to_dict()[field] for field in options} == options
    assert again.text_config.to_dict() == config.text_config.to_dict()
    assert again.get_text_config() is again.text_config  # where trl writes the pad and eos ids


def test_native_models_keep_their_own_classes(tiny_config: Any, bases: dict[str, str]) -> None:
    assert (
        type(AutoModelForSequenceClassification.from_config(tiny_config())) is Qwen2ForSequenceClassification
    )
    assert AutoConfig.from_pretrained(bases["qwen2"]).model_type == "qwen2"
