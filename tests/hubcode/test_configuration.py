"""A config from which no model can be built is an error with the name of its field."""

from __future__ import annotations

from typing import Any

import pytest
from problem_assertions import raises_problem
from transformers import AutoConfig, AutoModelForSequenceClassification, Qwen2ForSequenceClassification

from qwen_task_heads import (
    PooledClassifier,
    PooledClassifierConfig,
    TitleScorer,
    TitleScorerConfig,
    build,
)

REFUSED = [
    ("pooling", {"pooling": "avg"}, "option-value"),
    ("head", {"head": "linaer"}, "option-value"),
    ("head_activation", {"head_activation": "swish"}, "option-value"),
    ("problem_type", {"problem_type": "ranking"}, "option-value"),
    ("head_sizes", {"head": "mlp"}, "option-missing"),
    ("head_sizes", {"head": "mlp", "head_sizes": []}, "option-missing"),
    ("head_sizes", {"head": "mlp", "head_sizes": [8, 0]}, "option-range"),
    ("head_sizes", {"head": "mlp", "head_sizes": [-4]}, "option-range"),
    ("head_sizes", {"head_sizes": [8]}, "option-conflict"),
    ("head_dropout", {"head_dropout": 1.0}, "option-range"),
    ("head_dropout", {"head_dropout": -0.1}, "option-range"),
]


LENGTHS_REFUSED = [
    ("truncation", {"truncation": "middle", "max_seq_length": 64}, "option-value"),
    ("window_aggregation", {"window_aggregation": "sum", "max_seq_length": 64}, "option-value"),
    ("max_seq_length", {"truncation": "windows"}, "option-missing"),
    ("max_seq_length", {"truncation": "tail"}, "option-missing"),
    ("max_seq_length", {"max_seq_length": 15}, "option-range"),
    ("max_seq_length", {"max_seq_length": 0}, "option-range"),
    (
        "max_seq_length",
        {"max_seq_length": 20, "template": {"before": [1] * 19, "after": [2]}},
        "option-range",
    ),
    (
        "truncation",
        {
            "truncation": "windows",
            "max_seq_length": 64,
            "template": {"before": [], "between": [], "after": []},
        },
        "option-conflict",
    ),
    ("window_overlap", {"window_overlap": 4, "max_seq_length": 64}, "option-range"),
    (
        "window_overlap",
        {"window_overlap": 33, "truncation": "windows", "max_seq_length": 64},
        "option-range",
    ),
    (
        "window_overlap",
        {"window_overlap": -1, "truncation": "windows", "max_seq_length": 64},
        "option-range",
    ),
]


@pytest.mark.parametrize(("field", "options", "code"), LENGTHS_REFUSED)
def test_contradicting_lengths_are_errors(
    tiny_config: Any, bases: dict[str, str], field: str, options: dict[str, Any], code: str
) -> None:
    with raises_problem(code) as problems:
        PooledClassifierConfig(text_config=tiny_config(), **options)
    assert problems[0].where == field
    with raises_problem(code, f"--{field}"):
        build(bases["qwen2"], task="pooled_classifier", **options)


def test_a_title_scorer_has_no_truncation(bases: dict[str, str]) -> None:
    for options in ({"truncation": "tail"}, {"max_seq_length": 64}, {"window_overlap": 1}):
        with raises_problem("option-unknown", f"--{next(iter(options))}"):
            build(bases["qwen2"], **options)


def test_the_truncation_is_saved_and_loaded(tiny_config: Any, tmp_path: Any) -> None:
    options = {
        "max_seq_length": 64,
        "truncation": "windows",
        "window_overlap": 8,
        "window_aggregation": "max",
        "label_descriptions": ["x", ""],
        "label_examples": [["a"], []],
        "problem_type": "ordinal",
    }
    config = PooledClassifierConfig(text_config=tiny_config(), **options)
    config.set_template({"before": [1], "between": [2], "after": [3]})
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {field: again[field] for field in options} == options
    assert again["template"] == {"before": [1], "after": [3]}


@pytest.mark.parametrize(("field", "options", "code"), REFUSED)
@pytest.mark.parametrize("config_class", [TitleScorerConfig, PooledClassifierConfig])
def test_an_invalid_field_is_an_error(
    tiny_config: Any, config_class: Any, field: str, options: dict[str, Any], code: str
) -> None:
    with raises_problem(code, field):
        config_class(text_config=tiny_config(), **options)


@pytest.mark.parametrize(("field", "options", "code"), [row for row in REFUSED if row[0] != "problem_type"])
def test_build_names_an_invalid_field_as_an_option(
    bases: dict[str, str], field: str, options: dict[str, Any], code: str
) -> None:
    with raises_problem(code, match=rf"^--{field}: found .+\. Expected .+\. Fix: .+\.$"):
        build(bases["qwen2"], **options)


def test_an_unknown_field_is_an_error(bases: dict[str, str]) -> None:
    """A misspelt option must not become an attribute of the config that is never read."""
    with raises_problem("option-unknown", "--poolling"):
        build(bases["qwen2"], poolling="mean")


@pytest.mark.parametrize("problem_type", ["ranking", "multi-label"])
def test_an_unknown_problem_type_is_an_error(bases: dict[str, str], problem_type: str) -> None:
    with raises_problem("option-value", "--problem_type", match="ordinal"):
        build(bases["qwen2"], task="pooled_classifier", problem_type=problem_type)


def test_a_title_scorer_has_one_label(tiny_config: Any) -> None:
    config = TitleScorerConfig(text_config=tiny_config(), num_labels=1)  # what trl asks for
    assert config.num_labels == 1
    assert config.problem_type == "regression"
    with raises_problem("option-unsupported", "num_labels", match="PooledClassifier"):
        TitleScorerConfig(text_config=tiny_config(), num_labels=2)


def test_ordinal_needs_three_labels(tiny_config: Any) -> None:
    config = PooledClassifierConfig(text_config=tiny_config(), num_labels=2, problem_type="ordinal")
    with raises_problem("rows-too-few", "num_labels", match="3 or more"):
        PooledClassifier(config)


def test_a_config_without_a_backbone_is_an_error() -> None:
    """There is no default: `Qwen2Config()` would be a model of seven billion parameters."""
    with raises_problem("config-invalid", "text_config"):
        TitleScorer(TitleScorerConfig())


@pytest.mark.parametrize("model_type", [None, "qwen9"])
def test_an_unknown_backbone_type_is_named(tiny_config: Any, model_type: str | None) -> None:
    text_config = {**tiny_config().to_dict(), "model_type": model_type}
    with raises_problem("model-unsupported", "text_config.model_type", match=repr(model_type)):
        TitleScorerConfig(text_config=text_config)


@pytest.mark.parametrize("config_class", [TitleScorerConfig, PooledClassifierConfig])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_a_config_is_saved_and_loaded(
    tiny_config: Any, tmp_path: Any, config_class: Any, family: str
) -> None:
    options = {
        "pooling": "attention",
        "head": "mlp",
        "head_sizes": [16, 8],
        "head_activation": "silu",
        "head_dropout": 0.25,
        "bidirectional": True,
        "backbone_name_or_path": "Qwen/Qwen2.5-7B",
        "backbone_revision": "a" * 40,
    }
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
