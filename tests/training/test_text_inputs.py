"""Trainers that are given texts: rows, data sets of `datasets` and examples give the ids of the recipes."""

from __future__ import annotations

import re

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from qwen_task_heads import build, load_tokenizer
from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.tokenization.collators import pair_dataset, text_dataset
from qwen_task_heads.tokenization.templates import bind_template, compile_template
from qwen_task_heads.training.classifier_arguments import ClassifierConfig
from qwen_task_heads.training.classifier_trainer import ClassifierTrainer
from qwen_task_heads.training.text_inputs import encode_texts, encode_titles
from qwen_task_heads.training.title_arguments import TitleConfig
from qwen_task_heads.training.title_trainer import TitleTrainer

PAIRS = [{"chosen": f"<title>{n} ways to rest</title>", "rejected": f"On rest {n}"} for n in range(6)]
TEXTS = [
    {"text": f"{'good' if n % 2 else 'bad'} food {n}", "label": "yes" if n % 2 else "no"} for n in range(8)
]
CPU = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}


@pytest.fixture
def scorer():
    return build("embedded", pooling="mean")


@pytest.fixture
def classifier():
    return build("embedded", task="pooled_classifier", labels=["no", "yes"], max_seq_length=32)


def titles(data, model, **options):
    options = {"name": "train_dataset", "max_length": 32} | options
    return encode_titles(data, model=model, tokenizer=load_tokenizer("embedded"), **options)


def texts(data, model):
    return encode_texts(data, name="train_dataset", config=model.config, tokenizer=load_tokenizer("embedded"))


@pytest.mark.parametrize("form", ["rows", "dataset", "examples"])
def test_titles_get_the_ids_of_the_recipe(form, scorer):
    tokenizer = load_tokenizer("embedded")
    compile_template(tokenizer, template=None, model_type="qwen2", max_length=32)
    plain = [PairExample(chosen=f"{n} ways to rest", rejected=f"On rest {n}") for n in range(6)]
    wanted, _ = pair_dataset(plain, tokenizer=tokenizer, max_length=32)
    data = {"rows": PAIRS, "dataset": Dataset.from_list(PAIRS), "examples": plain}[form]
    encoded, sources = titles(data, scorer)
    assert encoded.to_dict() == wanted.to_dict()
    assert sources[2] == ("" if form == "examples" else "train_dataset:row 3")


@pytest.mark.parametrize("form", ["rows", "dataset", "examples"])
def test_texts_get_the_ids_of_the_recipe(form, classifier):
    tokenizer = load_tokenizer("embedded")
    bind_template(tokenizer, classifier.config)
    plain = [TextExample(text=row["text"], target=int(row["label"] == "yes")) for row in TEXTS]
    wanted, _ = text_dataset(plain, tokenizer=tokenizer, config=classifier.config, num_labels=2)
    data = {"rows": TEXTS, "dataset": Dataset.from_list(TEXTS), "examples": plain}[form]
    encoded, _ = texts(data, classifier)
    assert encoded.to_dict() == wanted.to_dict()


def test_class_names_of_another_order_are_refused(classifier):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    data = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    with pytest.raises(TaskHeadsError) as refused:
        texts(data, classifier)
    assert refused.value.problems[0].where == "train_dataset"
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    data = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    assert texts(data, classifier)[0]["labels"] == [0, 1]


def test_all_defective_rows_are_in_one_error(scorer, classifier):
    with pytest.raises(TaskHeadsError) as refused:
        titles([*PAIRS, {"chosen": "A", "rejected": "A"}, {"chosen": "", "rejected": "B"}], scorer)
    assert [problem.where for problem in refused.value.problems] == [
        "train_dataset:row 7",
        "train_dataset:row 8",
    ]
    with pytest.raises(TaskHeadsError) as refused:
        texts([*TEXTS, {"text": "x", "label": "maybe"}, {"text": "", "label": "no"}], classifier)
    assert {problem.where for problem in refused.value.problems} == {
        "train_dataset:row 9",
        "train_dataset:row 10",
    }


@pytest.mark.parametrize("rows", [[], [{"title": "A"}], [{"text": "A", "labl": "no"}]], ids=str)
def test_rows_without_the_columns_are_refused(rows, scorer, classifier):
    for call, model in ((titles, scorer), (texts, classifier)):
        with pytest.raises(TaskHeadsError) as refused:
            call(rows, model)
        assert refused.value.problems[0].where.startswith("train_dataset")


def test_groups_require_losses_over_lists(scorer):
    arms = [
        {"headline": f"{word} {test}", "clicks": clicks, "impressions": 100, "test_id": test}
        for test in ("a", "b")
        for word, clicks in (("One", 3), ("Two", 5), ("Six", 9))
    ]
    grouped, _ = titles(arms, scorer, grouped=True)
    assert [len(row) for row in grouped["title_ids"]] == [3, 3]
    pairs, _ = titles(arms, scorer)
    assert len(pairs["chosen_ids"]) == 6
    group = GroupExample(titles=("A", "B"), clicks=(1, 2), impressions=(9, 9))
    assert titles([group], scorer, grouped=True)[1] == [""]


def test_token_ids_are_not_changed(scorer, classifier):
    encoded, _ = titles(PAIRS, scorer)
    assert titles(encoded, scorer)[0] is encoded
    assert titles(None, scorer) == (None, [])
    ids, _ = texts(TEXTS, classifier)
    assert texts(ids, classifier)[0] is ids


def test_a_second_dataset_keeps_the_template_for_pairs_of_texts():
    model = build("embedded", task="pooled_classifier", labels=["no", "yes"], max_seq_length=32)
    tokenizer, options = load_tokenizer("embedded"), {"name": "x", "config": model.config}
    rows = [{"text_a": f"a {n}", "text_b": f"b {n}", "label": n % 2} for n in range(4)]
    encode_texts(rows, tokenizer=tokenizer, **options)
    assert "between" in model.config.template
    encode_texts(rows[:1], tokenizer=tokenizer, **options)
    assert "between" in model.config.template


def test_several_dev_sets_keep_their_names(classifier):
    encoded, sources = texts({"one": TEXTS, "two": Dataset.from_list(TEXTS[:3])}, classifier)
    assert {name: len(rows) for name, rows in encoded.items()} == {"one": 8, "two": 3}
    assert sources == []


def test_both_trainers_accept_texts_and_name_rows(scorer, classifier, tmp_path):
    args = TitleConfig(
        str(tmp_path / "titles"),
        max_steps=1,
        max_length=32,
        eval_strategy="no",
        load_best_model_at_end=False,
        save_strategy="no",
        **CPU,
    )
    trainer = TitleTrainer(
        scorer,
        args=args,
        processing_class=load_tokenizer("embedded"),
        train_dataset=PAIRS,
        eval_dataset=PAIRS,
    )
    assert trainer.sources["train"][0] == "train_dataset:row 1"
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert {f"eval_{name}" for name in TitleConfig.METRICS} <= metrics.keys()
    args = ClassifierConfig(
        str(tmp_path / "texts"),
        max_steps=1,
        learning_rate=1e-3,
        eval_strategy="no",
        load_best_model_at_end=False,
        save_strategy="no",
        **CPU,
    )
    trainer = ClassifierTrainer(
        classifier,
        args=args,
        processing_class=load_tokenizer("embedded"),
        train_dataset=TEXTS,
        eval_dataset=TEXTS,
    )
    assert trainer.sources["eval"][1] == "eval_dataset:row 2"
    assert {"eval_accuracy", "eval_macro_f1"} <= trainer.evaluate().keys()


# --- what the cut to max_length has made equal ---

BEGIN = "The council met again on Monday and spoke about the new bridge over the river. "


def title_trainer(model, folder, *, train, dev, **options):
    options = {"max_length": 16, **options, **CPU}
    args = TitleConfig(
        str(folder),
        max_steps=2,
        eval_strategy="no",
        load_best_model_at_end=False,
        save_strategy="no",
        learning_rate=1e-3,
        **options,
    )
    tokenizer = load_tokenizer("embedded")
    return TitleTrainer(model, args=args, processing_class=tokenizer, train_dataset=train, eval_dataset=dev)


def test_equal_pairs_are_left_out_of_training_and_are_ties_of_dev(scorer, tmp_path):
    lost = [{"chosen": f"{BEGIN}red {n}", "rejected": f"{BEGIN}blue {n}"} for n in range(3)]
    trainer = title_trainer(scorer, tmp_path / "a", train=[*lost, *PAIRS], dev=lost + PAIRS[:1])
    assert trainer.train_dataset["row"] == [3, 4, 5, 6, 7, 8]
    assert trainer.sources["train"][trainer.train_dataset["row"][0]] == "train_dataset:row 4"
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] in (1.5 / 4, 2.5 / 4)
    trainer.train()


def test_pairs_that_are_all_equal_name_a_limit_that_helps(scorer, tmp_path):
    lost = [{"chosen": f"{BEGIN}red {n}", "rejected": f"{BEGIN}blue {n}"} for n in range(3)]
    with pytest.raises(TaskHeadsError, match="3 of 3") as refused:
        title_trainer(scorer, tmp_path / "a", train=lost, dev=PAIRS)
    limit = int(re.search(r"max_length=(\d+)", refused.value.problems[0].fix)[1])
    trainer = title_trainer(scorer, tmp_path / "b", train=lost, dev=lost, max_length=limit)
    assert trainer.train_dataset["row"] == [0, 1, 2]


def test_equal_titles_of_dev_are_ties_with_and_without_packing(scorer, tmp_path):
    lost = [PairExample(chosen=f"{BEGIN}red {n}", rejected=f"{BEGIN}blue {n}") for n in range(9)]
    for packing in (True, False):
        trainer = title_trainer(scorer, tmp_path / str(packing), train=PAIRS, dev=PAIRS, packing=packing)
        trainer.eval_dataset = pair_dataset(lost, tokenizer=trainer.processing_class, max_length=16)[0]
        metrics = trainer.evaluate()
        assert (metrics["eval_accuracy"], metrics["eval_margin"]) == (0.5, 0.0)


def test_texts_of_all_labels_that_are_equal_after_truncation_are_refused():
    model = build("embedded", task="pooled_classifier", labels=["no", "yes"], max_seq_length=16)
    rows = [{"text": f"{BEGIN}{n}", "label": ("no", "yes")[n % 2]} for n in range(4)]
    with pytest.raises(TaskHeadsError, match="4 of 4") as refused:
        texts(rows, model)
    limit = int(re.search(r"max_seq_length=(\d+)", refused.value.problems[0].fix)[1])
    model = build("embedded", task="pooled_classifier", labels=["no", "yes"], max_seq_length=limit)
    assert len(texts(rows, model)[0]) == 4
