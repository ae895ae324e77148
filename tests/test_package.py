"""Public names exist, and native models are not changed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, Qwen2Config

import qwen_task_heads
from qwen_task_heads import PooledClassifier, PooledClassifierConfig, TitleScorer, TitleScorerConfig

GOLDEN = Path(__file__).parent / "golden" / "0.1"


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
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model_class = {TitleScorerConfig: TitleScorer, PooledClassifierConfig: PooledClassifier}[config_class]
    config = config_class(text_config=tiny)
    assert type(AutoConfig.for_model(config_class.model_type, text_config=tiny)) is config_class
    for auto in (AutoModel, AutoModelForSequenceClassification):
        assert type(auto.from_config(config)) is model_class


def test_native_qwen_models_are_not_changed() -> None:
    tiny = Qwen2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    assert type(AutoModel.from_config(tiny)).__name__ == "Qwen2Model"
    stock = AutoModelForSequenceClassification.from_config(tiny)
    assert type(stock).__name__ == "Qwen2ForSequenceClassification"
    assert type(stock).__module__ == "transformers.models.qwen2.modeling_qwen2"
    assert isinstance(stock.score, torch.nn.Linear)


@pytest.mark.parametrize(
    "before",
    [
        "",
        pytest.param(
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            marks=pytest.mark.slow,
        ),
        "import peft",
        pytest.param("from qwen_task_heads import Scorer", marks=pytest.mark.slow),
        pytest.param("import qwen_task_heads.hubcode.modeling_task_heads", marks=pytest.mark.slow),
        pytest.param("from transformers import pipeline", marks=pytest.mark.slow),
    ],
)
def test_registration_does_not_depend_on_the_order_of_imports(before: str) -> None:
    code = f"""{before}
import qwen_task_heads
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY
model = AutoModelForSequenceClassification.from_pretrained({str(GOLDEN / "full")!r})
assert type(model) is qwen_task_heads.PooledClassifier, type(model)
assert type(model.config) is qwen_task_heads.PooledClassifierConfig
assert "title-ranking" in PIPELINE_REGISTRY.get_supported_tasks()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_type_checkers_see_every_public_name() -> None:
    """Only a name that the stub imports as itself is public to a type checker."""
    stub = Path(str(qwen_task_heads.__file__)).with_suffix(".pyi")
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    names = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert [alias.asname for alias in names] == [alias.name for alias in names]
    assert sorted(alias.name for alias in names) == qwen_task_heads.__all__


def test_a_wheel_has_every_package() -> None:
    """An editable install finds a package that the list leaves out; a wheel does not have it."""
    root = Path(__file__).resolve().parents[1]
    text = (root / "pyproject.toml").read_text(encoding="utf-8").split("packages = [")[1].split("]")[0]
    folders = {path.parent.relative_to(root) for path in (root / "qwen_task_heads").rglob("__init__.py")}
    found = {".".join(folder.parts) for folder in folders}
    outside = {"qwen_task_heads.model_cards", "qwen_task_heads.recipes"}
    assert set(re.findall(r'"(.+)"', text)) == found | outside
