"""Tests of engines: validation before any model is loaded, and messages on long texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwen_task_heads import LabelMap, TaskHeadsError, build, load_tokenizer, save
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.text_datasets import TextSets
from qwen_task_heads.inference.engine_checks import check_engines, check_prompts
from qwen_task_heads.inference.engine_options import EngineSpec, PromptOptions, parse_engines
from qwen_task_heads.inference.engines import open_engine
from qwen_task_heads.pretrained import locate
from qwen_task_heads.tokenization.templates import bind_template

LABELS = LabelMap(tuple(f"a name of several words, number {k}" for k in range(30)))
TEXT = "some words of a text"


def texts(*lengths: int, num_candidates: int = 0) -> list[TextExample]:
    candidates = LABELS.names[:num_candidates]
    return [TextExample(text=TEXT * length, target=0, candidates=candidates) for length in lengths]


def test_invalid_options_are_refused_together() -> None:
    engines = ["few_shot=a", "zero_shot=b", "oracle=c"]
    counts = {"--max_rows": -3, "--latency_rows": 0, "--batch_tokens": 1, "--shots": None}
    asking = PromptOptions(instruction="One of {labels}:", calibrate=True, shared=False)
    with pytest.raises(TaskHeadsError) as caught:
        parse_engines(engines, asking=asking, counts=counts)
    found = [(problem.code, problem.where) for problem in caught.value.problems]
    assert found == [
        ("option-value", "--engines"),
        ("option-conflict", "--instruction"),
        ("option-conflict", "--calibrate"),
        ("option-range", "--max_rows"),
        ("option-range", "--latency_rows"),
    ]


@pytest.mark.parametrize(
    ("engine", "asking", "value"),
    [
        ("zero_shot=b", PromptOptions(instruction="{labels} {examples}"), "{examples}"),
        ("few_shot=b", PromptOptions(instruction=""), "{examples}"),
        ("few_shot=b", PromptOptions(instruction="{labels} {examples}", calibrate=True), None),
        ("zero_shot=b", PromptOptions(instruction="{labels}", calibrate=True, shared=False), None),
        ("head=b", PromptOptions(instruction="{labels}"), None),
    ],
)
def test_an_instruction_that_does_not_fit_an_engine_is_refused(
    engine: str, asking: PromptOptions, value: str | None
) -> None:
    if value is None:
        assert [spec.name for spec in parse_engines([engine], asking=asking)] == [engine]
        return
    with pytest.raises(TaskHeadsError) as caught:
        parse_engines([engine], asking=asking)
    [problem] = caught.value.problems
    assert (problem.code, problem.where) == ("option-conflict", "--instruction")
    assert value in problem.problem


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_pairs_of_texts_in_any_split_are_refused_for_a_language_model(split: str) -> None:
    rows = {name: texts(1) for name in ("train", "dev", "test")}
    rows[split] = [*texts(1), TextExample(text="a", text_b="b", target=0)]
    options: dict[str, Any] = {"problem_type": "single_label_classification", "labels": LABELS, "lines": []}
    sets = TextSets(**rows, **options, dev_was_cut=False)
    with pytest.raises(TaskHeadsError) as caught:
        check_engines([EngineSpec("zero_shot", "embedded")], sets)
    assert [(one.code, one.where) for one in caught.value.problems] == [
        ("option-unsupported", "--dataset_name")
    ]


def test_a_trained_generator_without_its_labels_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"problem_type": "single_label_classification", "labels": LABELS, "lines": []}
    sets = TextSets(train=texts(1), dev=texts(1), test=[], **options, dev_was_cut=False)
    (tmp_path / "label_prompt.json").write_text(json.dumps({"labels": ["a"]}))
    specs = [EngineSpec("sft", "embedded"), EngineSpec("sft", str(tmp_path))]
    with pytest.raises(TaskHeadsError) as caught:
        check_engines(specs, sets)
    missing, corrupted = caught.value.problems
    assert (missing.code, missing.where) == ("model-type", "sft=embedded")
    assert "label_prompt.json" in missing.problem
    assert "'list' object has no attribute 'items'" in corrupted.problem


def test_prompts_are_validated_before_any_model_is_loaded(tmp_path: Path) -> None:
    """The folder has only a tokenizer."""
    for file in Path(locate("embedded")).iterdir():
        if "token" in file.name or "chat" in file.name:
            shutil.copy(file, tmp_path)
    specs = [EngineSpec("zero_shot", str(tmp_path)), EngineSpec("few_shot", str(tmp_path))]
    shots = {example.text: (("an example " * 30, LABELS.names[0]),) for example in texts(1)}
    check_prompts(specs, LABELS, texts(1), asking=PromptOptions(shots=shots))
    for shared in (True, False):
        asking = PromptOptions(shots=shots, shared=shared, max_length=60)
        with pytest.raises(TaskHeadsError) as caught:
            check_prompts(specs, LABELS, texts(1), asking=asking)
        first, second = caught.value.problems
        assert first.where == f"zero_shot={tmp_path}, --max_length"
        assert second.where.startswith(f"few_shot={tmp_path}, ")
    asking = PromptOptions(shots=shots, instruction="{lables} {examples}")
    with pytest.raises(TaskHeadsError, match="lables") as caught:
        check_prompts(specs[1:], LABELS, texts(1), asking=asking)
    assert caught.value.problems[0].where == f"few_shot={tmp_path}, --instruction"
    with pytest.raises(TaskHeadsError) as caught:
        open_engine(specs[0], LABELS)
    assert str(tmp_path) in caught.value.problems[0].where


def test_truncated_texts_are_counted_in_the_scored_prompts() -> None:
    """Thirty labels leave no room for these texts; two candidates leave enough."""
    engine = open_engine(EngineSpec("zero_shot", "embedded"), LABELS, asking=PromptOptions(max_length=400))
    assert engine.notes(texts(1, 9, num_candidates=2)) == []
    assert engine.notes(texts(1, 9, 9)) == ["2 of 3 texts were cut, for prompts of 400 tokens"]


@pytest.mark.parametrize("truncation", ["head", "windows"])
def test_long_texts_of_a_head_are_counted(truncation: str, tmp_path: Path) -> None:
    config = {"problem_type": "single_label_classification", "max_seq_length": 32, "truncation": truncation}
    model = build("embedded", task="pooled_classifier", labels=LABELS.names, **config)
    tokenizer = load_tokenizer("embedded")
    bind_template(tokenizer, model.config)
    folder = save(model, tokenizer=tokenizer, folder=tmp_path / "head")
    engine = open_engine(EngineSpec("head", str(folder)), LABELS)
    assert engine.notes(texts(1)) == []
    what = "were cut, for rows" if truncation == "head" else "were read in windows"
    assert engine.notes(texts(1, 9, 9)) == [f"2 of 3 texts {what} of 32 tokens"]
