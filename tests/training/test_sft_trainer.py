"""Tests of the trainer of generative classifiers, with long rows in trl's collator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from qwen_task_heads import LabelMap, LabelScorer, TaskHeadsError, load_tokenizer
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.tokenization.equal_rows import EqualRows, check_equal
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts
from qwen_task_heads.training.sft_arguments import SftClassifyConfig
from qwen_task_heads.training.sft_trainer import IGNORED, AnswerTrainer, answer_dataset, equal_answers

LABELS = LabelMap(("sport", "foreign trade", *(f"label number {n}" for n in range(40))))
LIMIT = 64


def make(tokenizer: Any, **options: Any) -> AnswerPrompts:
    return AnswerPrompts(tokenizer, LABELS, model_type="qwen2", max_length=LIMIT, **options)


def test_truncated_rows_keep_their_answer_in_a_batch(bases: dict[str, str], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bases["qwen2"])
    prompts = make(tokenizer, instruction="Which is it?\n")
    texts = [TextExample(text="word " * (1 + 30 * n), target=n % 2) for n in range(8)]
    rows, message = answer_dataset(texts, prompts=prompts)
    assert "6 were truncated" in message
    model = AutoModelForCausalLM.from_pretrained(bases["qwen2"])
    args = SftClassifyConfig(
        str(tmp_path),
        max_length=LIMIT,
        per_device_train_batch_size=8,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    trainer = AnswerTrainer(
        model,
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        scorer=LabelScorer(model, prompts=prompts),
        dev=texts,
    )
    [batch] = trainer.get_train_dataloader()
    learned = sorted([token for token in row.tolist() if token != IGNORED] for row in batch["labels"])
    answers = [[*prompts.answers[text.target], prompts.end] for text in texts]  # type: ignore[index]
    assert learned == sorted(answers)
    given = trainer.evaluate()
    assert {f"eval_{name}" for name in SftClassifyConfig.METRICS or ()} <= given.keys()


def test_one_error_names_all_rows_with_too_many_candidates(bases: dict[str, str]) -> None:
    prompts = make(load_tokenizer(bases["qwen2"]))
    names = LABELS.names
    candidates = (names[:2], names[:20], names[:2], names[:30], names[:20])
    texts = [
        TextExample(text="A match", target=0, candidates=row_candidates, source=f"train.jsonl:{line}")
        for line, row_candidates in enumerate(candidates, start=1)
    ]
    with pytest.raises(TaskHeadsError) as caught:
        answer_dataset(texts, prompts=prompts)
    assert [problem.where for problem in caught.value.problems] == [
        "train.jsonl:2: max_length",
        "train.jsonl:4: max_length",
    ]
    rows, _ = answer_dataset(texts[:1] + texts[2:3], prompts=prompts)
    assert rows[0] == rows[1]


def test_prompts_that_are_equal_after_truncation_are_found_with_a_sufficient_limit(
    bases: dict[str, str],
) -> None:
    tokenizer, prefix = load_tokenizer(bases["qwen2"]), "The council spoke about the new bridge. " * 5
    words = ("red", "blue", "green", "red again")
    rows = [
        TextExample(text=prefix + word, target=index % 2, source=f"train.jsonl:{index + 1}")
        for index, word in enumerate(words)
    ]
    rows.append(TextExample(text=prefix + "x", target=1, candidates=LABELS.names[:2], source="train.jsonl:5"))
    for truncation in ("head", "tail"):
        texts = rows if truncation == "head" else [replace(row, text=row.text + prefix) for row in rows]
        options = {"instruction": "One of {labels}?\n", "truncation": truncation}
        labels = LabelMap(LABELS.names[:4])

        def found(limit: int, texts=texts, options=options, labels=labels) -> EqualRows:
            prompts = AnswerPrompts(tokenizer, labels, model_type="qwen2", max_length=limit, **options)
            return equal_answers(texts, prompts=prompts)

        equal = found(LIMIT)
        assert equal.places == (0, 1, 2, 3)  # the fifth has other candidates
        assert equal.needed is not None
        assert found(equal.needed).places == ()
        if truncation == "head":
            assert found(equal.needed - 1).places != ()
    with pytest.raises(TaskHeadsError, match="--max_length"):
        check_equal({"train": equal_answers(rows[:2], prompts=make(tokenizer))}, option="--max_length ")
