"""What runs and callers of public bug reports met is right, or refused before the first step.

A test is called by the number of its folder in `tests/cases/`, 19 and 20 by that of a snippet.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from equality import assert_same_logits
from reported import case, refused, rows_of

from qwen_task_heads import (
    PooledClassifier,
    PooledClassifierConfig,
    Scorer,
    bind_template,
    build,
    load_tokenizer,
    save,
)
from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.data.title_datasets import read_title_sets
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.models import saved_task
from qwen_task_heads.tokenization.collators import pair_dataset
from qwen_task_heads.tokenization.equal_rows import check_equal
from qwen_task_heads.tokenization.templates import compile_template
from qwen_task_heads.training.added_labels import read_datasets_for
from qwen_task_heads.training.classifier_arguments import parse_classifier_arguments
from qwen_task_heads.training.sft_arguments import parse_sft_arguments
from qwen_task_heads.training.title_arguments import parse_title_arguments
from qwen_task_heads.training.warm_start import load_head

WORDS = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none"]


# 7, 12 and 16: before the first step of a run


def test_07_pairs_equal_after_truncation_are_refused() -> None:
    """Conversations differ, because their prompt is truncated first; plain titles are equal."""
    read = read_title_sets(case(7))
    tokenizer = load_tokenizer("embedded")
    compile_template(tokenizer, template=None, model_type="qwen2", max_length=128)

    def equal(plain: bool, limit: int) -> dict[str, Any]:
        found = {}
        for split, pairs in (("train", read.train), ("dev", read.dev)):
            if plain:
                pairs = [
                    replace(
                        pair,
                        chosen=f"{pair.prompt} {pair.chosen}",
                        rejected=f"{pair.prompt} {pair.rejected}",
                        prompt="",
                    )
                    for pair in pairs
                ]
            found[split] = pair_dataset(pairs, tokenizer=tokenizer, max_length=limit)[1].equal
        return found

    assert [len(report.places) for report in equal(False, 128).values()] == [0, 0]
    cut = equal(True, 128)
    assert [(len(report.places), report.rows) for report in cut.values()] == [(8, 8), (4, 4)]
    first, second = refused(lambda: check_equal(cut, option="--max_length "))
    assert first.startswith("train.jsonl:1, train.jsonl:2, ")
    assert second == "dev.jsonl:1, dev.jsonl:2, dev.jsonl:3, dev.jsonl:4"
    check_equal(equal(True, 512), option="--max_length ")


@pytest.mark.parametrize("parse", [parse_classifier_arguments, parse_title_arguments, parse_sft_arguments])
def test_12_a_metric_called_f1_is_refused_before_the_first_step(parse: Any, tmp_path: Path) -> None:
    words = [*WORDS, "--output_dir", str(tmp_path), "--metric_for_best_model"]

    def settle(metric: str) -> None:
        arguments = parse([*words, metric])[1]
        if parse is parse_classifier_arguments:  # which knows its metrics when the data is read
            arguments.choose_metric("single_label_classification")

    with pytest.raises(TaskHeadsError) as caught:
        settle("f1")
    [problem] = caught.value.problems
    assert problem.where == "--metric_for_best_model"
    known = problem.expected.removeprefix("").split(" (")[0].split(", ")
    assert "accuracy" in known
    assert ("macro_f1" in known) == (parse is parse_classifier_arguments)
    for metric in known[:2]:
        settle(metric)


@pytest.fixture(scope="module")
def trained(bases: dict[str, str], shake: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Train a model with the four labels of the first file."""
    sets = read_text_sets(case(16, "first.jsonl"))
    torch.manual_seed(0)
    model = build(
        bases["qwen2"], task="pooled_classifier", labels=sets.labels.names, problem_type=sets.problem_type
    )
    tokenizer = load_tokenizer("embedded")
    bind_template(tokenizer, model.config)
    return str(save(shake(model), tokenizer=tokenizer, folder=tmp_path_factory.mktemp("run") / "first"))


@pytest.mark.parametrize("way", ["rows", "labels", "init_head"])
def test_16_labels_added_later_keep_the_old_rows(way: str, trained: str, bases: dict[str, str]) -> None:
    known = saved_task(trained)
    own = known["labels"].names
    later = case(16, "later.jsonl")
    options = {"labels": case(16, "labels_later.yaml")} if way == "labels" else {}
    sets = read_datasets_for(later, {} if way == "init_head" else known, **options)
    assert set(sets.labels.names) == {row["label"] for row in rows_of(later)}
    assert len(sets.labels) == 6
    place = bases["qwen2"] if way == "init_head" else trained
    model = build(place, task="pooled_classifier", labels=sets.labels.names, problem_type=sets.problem_type)
    before = build(trained, task="pooled_classifier", labels=own, problem_type=sets.problem_type)
    if way == "init_head":
        tokenizer = load_tokenizer("embedded")
        bind_template(tokenizer, model.config)
        load_head(model, trained, tokenizer=tokenizer)
    old, new = before.score.weight, model.score.weight
    assert new.shape[0] == 6
    for row, name in enumerate(own):
        assert torch.equal(new[sets.labels.names.index(name)], old[row])


# 19 and 20: in Python


@torch.no_grad()
def test_19_no_mask_gives_the_logits_of_the_mask(tiny_config: Any, tokenizer: Any) -> None:
    texts = ["lost card", "how old must i be to open an account with you please"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    torch.manual_seed(0)
    config = PooledClassifierConfig(
        text_config=tiny_config(pad_token_id=tokenizer.pad_token_id), num_labels=3
    )
    model = PooledClassifier(config).eval()
    assert not batch["attention_mask"].all()
    assert_same_logits(model(input_ids=batch["input_ids"]).logits, model(**batch).logits)


@pytest.mark.parametrize("kind", [pd.Series, np.array], ids=["series", "array"])
def test_20_a_series_and_an_array_are_texts(kind: Any) -> None:
    torch.manual_seed(0)
    model = build("embedded", task="pooled_classifier", labels=["a", "b", "c"])
    scorer = Scorer(model, tokenizer=load_tokenizer("embedded"))
    texts = ["lost card", "age?"]
    found, wanted = scorer.predict(kind(texts)), scorer.predict(texts)
    assert [answer.text for answer in found] == texts
    assert [answer.label for answer in found] == [answer.label for answer in wanted]
