"""Trainers that are given texts: rows, data sets of `datasets` and examples give the ids of the recipes."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from qwen_task_heads import build, load_tokenizer
from qwen_task_heads.batching.collators import pair_dataset, text_dataset
from qwen_task_heads.batching.text import bind_template, compile_template
from qwen_task_heads.data.examples import GroupExample, PairExample, TextExample
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.training.classifier_arguments import ClassifierConfig
from qwen_task_heads.training.classifier_trainer import ClassifierTrainer
from qwen_task_heads.training.text_inputs import encode_texts, encode_titles
from qwen_task_heads.training.title_arguments import TitleConfig
from qwen_task_heads.training.trainers import TitleTrainer

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


def test_all_defective_rows_are_named_at_once(scorer, classifier):
    with pytest.raises(TaskHeadsError) as refused:
        titles([*PAIRS, {"chosen": "A", "rejected": "A"}, {"chosen": "", "rejected": "B"}], scorer)
    assert [problem.where for problem in refused.value.problems] == [
        "train_dataset:row 7", "train_dataset:row 8",
    ]  # fmt: skip
    with pytest.raises(TaskHeadsError) as refused:
        texts([*TEXTS, {"text": "x", "label": "maybe"}, {"text": "", "label": "no"}], classifier)
    assert {problem.where for problem in refused.value.problems} == {
        "train_dataset:row 9", "train_dataset:row 10",
    }  # fmt: skip


@pytest.mark.parametrize("rows", [[], [{"title": "A"}], [{"text": "A", "labl": "no"}]], ids=str)
def test_rows_without_the_columns_are_refused(rows, scorer, classifier):
    for call, model in ((titles, scorer), (texts, classifier)):
        with pytest.raises(TaskHeadsError) as refused:
            call(rows, model)
        assert refused.value.problems[0].where.startswith("train_dataset")


def test_groups_are_for_losses_over_lists(scorer):
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


def test_token_ids_are_left_as_they_are(scorer, classifier):
    encoded, _ = titles(PAIRS, scorer)
    assert titles(encoded, scorer)[0] is encoded
    assert titles(None, scorer) == (None, [])
    ids, _ = texts(TEXTS, classifier)
    assert texts(ids, classifier)[0] is ids


def test_a_second_set_keeps_the_template_for_pairs_of_texts():
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


def test_both_trainers_take_texts_and_name_rows(scorer, classifier, tmp_path):
    args = TitleConfig(str(tmp_path / "titles"), max_steps=1, max_length=32, eval_strategy="no",
                       load_best_model_at_end=False, save_strategy="no", **CPU)  # fmt: skip
    trainer = TitleTrainer(
        scorer, args=args, processing_class=load_tokenizer("embedded"), train_dataset=PAIRS,
        eval_dataset=PAIRS,
    )  # fmt: skip
    assert trainer.sources["train"][0] == "train_dataset:row 1"
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    args = ClassifierConfig(str(tmp_path / "texts"), max_steps=1, learning_rate=1e-3, eval_strategy="no",
                            load_best_model_at_end=False, save_strategy="no", **CPU)  # fmt: skip
    trainer = ClassifierTrainer(
        classifier, args=args, processing_class=load_tokenizer("embedded"), train_dataset=TEXTS,
        eval_dataset=TEXTS,
    )  # fmt: skip
    assert trainer.sources["eval"][1] == "eval_dataset:row 2"
    assert {"eval_accuracy", "eval_macro_f1"} <= trainer.evaluate().keys()
