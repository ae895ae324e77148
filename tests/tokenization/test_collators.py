"""Labelled texts become rows and batches without losses, and the report counts cuts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwen_task_heads import PooledClassifier, PooledClassifierConfig, TaskHeadsError, load_tokenizer
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.tokenization.collators import TextCollator, TextCutReport, text_dataset
from qwen_task_heads.tokenization.templates import Template, bind_template

LENGTHS = (1, 12, 13, 14, 30, 200)
ROOM = 13  # of the 16 tokens of a row, with the template below


@pytest.fixture
def prepared(tiny_config: Any) -> Any:
    """Return a function of options of the config to `(tokenizer, config)`."""

    def make(*, pairs: bool = False, **options: Any) -> tuple[Any, PooledClassifierConfig]:
        tokenizer = load_tokenizer("embedded")
        config = PooledClassifierConfig(text_config=tiny_config(), **{"max_seq_length": 16, **options})
        bind_template(tokenizer, config, template=Template(before="<|im_start|>:", between=":"), pairs=pairs)
        return tokenizer, config

    return make


def texts(*targets: Any, **fields: Any) -> list[TextExample]:
    return [TextExample(text=" the" * n, target=t, **fields) for n, t in zip(LENGTHS, targets, strict=False)]


TARGETS = {
    "single_label_classification": ((0, 2, 1), [0, 2, 1], torch.int64),
    "ordinal": ((0, 2, 1), [0, 2, 1], torch.int64),
    "multi_label_classification": (((), (0, 2), (1,)), [[0, 0, 0], [1, 0, 1], [0, 1, 0]], torch.float32),
    "regression": (((1.5, 0, -2.0),) * 3, [[1.5, 0, -2]] * 3, torch.float32),
}


@pytest.mark.parametrize("problem_type", TARGETS)
def test_labels_by_problem_type(prepared: Any, problem_type: str) -> None:
    targets, wanted, dtype = TARGETS[problem_type]
    tokenizer, config = prepared(problem_type=problem_type)
    rows, _ = text_dataset(texts(*targets), tokenizer=tokenizer, config=config, num_labels=3)
    assert rows.column_names == ["input_ids", "labels", "row"]
    batch = TextCollator(tokenizer.pad_token_id, problem_type)([*rows])
    assert next(iter(batch)) == "row"
    assert batch["row"].tolist() == [0, 1, 2]
    assert batch["labels"].dtype == dtype
    assert batch["labels"].tolist() == wanted
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 16)
    model = PooledClassifier(PooledClassifierConfig(**{**config.to_dict(), "num_labels": 3}))
    batch.pop("row")
    assert model(**batch).loss.isfinite()


def test_weights_and_soft_labels_are_columns_if_any_row_needs_them(prepared: Any) -> None:
    tokenizer, config = prepared(problem_type="single_label_classification")
    options = {"tokenizer": tokenizer, "config": config, "num_labels": 3}
    soft = TextExample(text="a", target=1, soft=(0.2, 0.7, 0.1), weight=0.5)
    rows, _ = text_dataset([soft, TextExample(text="b", target=2)], **options)
    batch = TextCollator(tokenizer.pad_token_id)([*rows])
    assert batch["soft"].dtype == batch["weight"].dtype == torch.float32
    assert torch.allclose(batch["soft"], torch.tensor([[0.2, 0.7, 0.1], [0, 0, 1]]))
    assert batch["weight"].tolist() == [0.5, 1.0]
    rows, _ = text_dataset([TextExample(text="b", target=2)], **options)
    assert not {"soft", "weight"} & set(rows.column_names)


def test_rows_to_predict_have_no_labels() -> None:
    batch = TextCollator(0)([{"input_ids": [1, 2], "row": 0}, {"input_ids": [3], "row": 1}])
    assert {name: value.tolist() for name, value in batch.items()} == {
        "row": [0, 1],
        "input_ids": [[1, 2], [3, 0]],
        "attention_mask": [[1, 1], [1, 0]],
    }


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail", "windows"])
def test_the_report_counts_what_was_cut(prepared: Any, truncation: str) -> None:
    tokenizer, config = prepared(truncation=truncation)
    rows, report = text_dataset(texts(*[0] * 6), tokenizer=tokenizer, config=config, num_labels=2)
    assert len(rows) == 6
    lost = sum(max(n - ROOM, 0) for n in LENGTHS)
    if truncation == "windows":
        windows = 2 + 3 + 16  # of 14, 30 and 200 tokens
        assert report == TextCutReport(6, 3, 0, sum(LENGTHS), windows, 16, "windows")
        assert [len(ids) - 3 for ids in rows["input_ids"]] == list(LENGTHS)
        assert report.line() == ("of 6 texts, 3 are longer than 16 tokens and are read whole, in 21 windows")
    else:
        assert report == TextCutReport(6, 3, lost, sum(LENGTHS), 0, 16, truncation)
        assert max(map(len, rows["input_ids"])) == 16
        kept = truncation.replace("_", " and ")
        assert f"of 6 texts, 3 were cut to 16 tokens (kept: {kept}); {lost} tokens were lost" in report.line()
        assert f"{100 * lost / sum(LENGTHS):.1f}% of all" in report.line()


def test_the_report_covers_texts_without_a_cut(prepared: Any) -> None:
    tokenizer, config = prepared()
    _, report = text_dataset(texts(0), tokenizer=tokenizer, config=config, num_labels=2)
    assert report.line() == "all 1 texts fit into 16 tokens"
    tokenizer, config = prepared(max_seq_length=None)
    rows, report = text_dataset(texts(*[0] * 6), tokenizer=tokenizer, config=config, num_labels=2)
    assert report.line() == "6 texts, none cut (no --max_seq_length)"
    assert len(rows[5]["input_ids"]) == 203


def test_pairs_share_the_limit(prepared: Any) -> None:
    tokenizer, config = prepared(pairs=True)
    examples = [*texts(0, 1, 0, 1, text_b=" the" * 9), TextExample(text="alone", target=0)]
    rows, report = text_dataset(examples, tokenizer=tokenizer, config=config, num_labels=2)
    first = tokenizer(examples[2].text, examples[2].text_b, truncation=True)["input_ids"]
    assert rows[2]["input_ids"] == first
    assert rows[4]["input_ids"] == tokenizer("alone")["input_ids"]
    assert report.cut == 3
    assert config.template["between"]


@pytest.mark.parametrize(
    ("problem_type", "target"),
    [
        ("single_label_classification", 3),
        ("single_label_classification", -100),
        ("single_label_classification", True),
        ("single_label_classification", (1,)),
        ("ordinal", 1.0),
        ("multi_label_classification", (0, 3)),
        ("multi_label_classification", 1),
        ("regression", (1.0,)),
        ("regression", (1.0, 2.0, float("nan"))),
        ("regression", 1.0),
    ],
)
def test_invalid_targets_are_named_by_their_line(prepared: Any, problem_type: str, target: Any) -> None:
    tokenizer, config = prepared(problem_type=problem_type)
    good = TARGETS[problem_type][0][0]
    examples = [
        TextExample(text="a", target=good, source="train.jsonl:1"),
        TextExample(text="b", target=target, source="train.jsonl:2"),
        TextExample(text="c", target=target),
    ]
    with pytest.raises(TaskHeadsError) as caught:
        text_dataset(examples, tokenizer=tokenizer, config=config, num_labels=3)
    assert [problem.where for problem in caught.value.problems] == ["train.jsonl:2", "examples[2]"]
    assert {problem.code for problem in caught.value.problems} == {"value-type"}


def test_a_tokenizer_of_another_model_is_refused(prepared: Any) -> None:
    _, config = prepared()
    with pytest.raises(TaskHeadsError, match="pairs=False") as other:
        text_dataset(texts(0), tokenizer=load_tokenizer("embedded"), config=config, num_labels=2)
    tokenizer, config = prepared()
    with pytest.raises(TaskHeadsError, match="pairs=True") as single:
        text_dataset(texts(0, text_b="b"), tokenizer=tokenizer, config=config, num_labels=2)
    for caught in (other, single):
        [problem] = caught.value.problems
        assert (problem.where, problem.code) == ("tokenizer", "tokenizer-invalid")
    tokenizer, config = prepared(max_seq_length=None)
    tokenizer_of_pairs, _ = prepared(pairs=True)
    text_dataset(texts(0, text_b="b"), tokenizer=tokenizer_of_pairs, config=config, num_labels=2)  # none cut
