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
