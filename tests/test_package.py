"""Public names exist, and native models are not changed."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, Qwen2Config

import qwen_task_heads
from qwen_task_heads import PooledClassifier, PooledClassifierConfig, TitleScorer, TitleScorerConfig


@pytest.mark.parametrize("name", qwen_task_heads.__all__)
def test_public_names_exist(name: str) -> None:
    assert callable(getattr(qwen_task_heads, name))
    assert name in dir(qwen_task_heads)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'TitleScorrer'; it has: .*TitleScorer"):
        _ = qwen_task_heads.TitleScorrer


def test_the_version_is_that_of_the_distribution() -> None:
    assert qwen_task_heads.__version__ == version("qwen-task-heads")


@pytest.mark.parametrize("config_class", [TitleScorerConfig, PooledClassifierConfig])
def test_our_types_are_registered(config_class: type) -> None:
    tiny = Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    model_class = {TitleScorerConfig: TitleScorer, PooledClassifierConfig: PooledClassifier}[config_class]
    config = config_class(text_config=tiny)
    assert type(AutoConfig.for_model(config_class.model_type, text_config=tiny)) is config_class
    for auto in (AutoModel, AutoModelForSequenceClassification):
        assert type(auto.from_config(config)) is model_class


def test_native_qwen_models_are_not_changed() -> None:
    tiny = Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    assert type(AutoModel.from_config(tiny)).__name__ == "Qwen2Model"
    stock = AutoModelForSequenceClassification.from_config(tiny)
    assert type(stock).__name__ == "Qwen2ForSequenceClassification"
    assert type(stock).__module__ == "transformers.models.qwen2.modeling_qwen2"
    assert isinstance(stock.score, torch.nn.Linear)
