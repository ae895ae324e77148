"""Columns in, columns out: equal to the scorer, in every container, and after pickling."""

import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from problem_assertions import raises_problem

from qwen_task_heads import Scorer, build, load_tokenizer, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.inference.batch import BatchScorer
from qwen_task_heads.inference.predictions import answer_columns, arrow_type

TEXTS = ["Why was my transfer declined?", "", "A card that is lost", "cash " * 50]


def saved(folder, **options):
    torch.manual_seed(0)
    return str(save(build("embedded", **options), tokenizer=load_tokenizer("embedded"), folder=folder))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Folder of a classifier."""
    folder = tmp_path_factory.mktemp("classifier") / "saved"
    return saved(folder, task="pooled_classifier", labels=["card", "cash", "transfer"])


@pytest.fixture(scope="module")
def ranker(tmp_path_factory):
    """Folder of a title scorer."""
    return saved(tmp_path_factory.mktemp("ranker") / "saved")


CONTAINERS = {
    "lists": lambda columns: columns,
    "arrays": lambda columns: {name: np.array(values, dtype=object) for name, values in columns.items()},
    "pandas": pd.DataFrame,
    "arrow": pa.table,
}


def column(batch, name):
    """Return a column of any container as a list; null values are None."""
    values = batch[name]
    values = values.to_pylist() if isinstance(values, pa.ChunkedArray) else list(values)
    return [None if isinstance(value, float) and value != value else value for value in values]


@pytest.mark.parametrize("container", CONTAINERS)
def test_predictions_equal_the_scorer_in_every_container(classifier, container):
    batch = CONTAINERS[container]({"id": [3, 1, 2, 0], "text": TEXTS})
    answers = BatchScorer(classifier, probabilities=True)(batch)
    expected = Scorer(classifier).predict(TEXTS, on_error="keep")
    assert type(answers) is type(batch)
    assert column(answers, "id") == [3, 1, 2, 0]
    labels, errors = column(answers, "predicted_label"), column(answers, "predicted_error")
    for index, prediction in enumerate(expected):
        assert labels[index] == prediction.label
        assert errors[index] == prediction.error
        if prediction.error is None:
            probabilities = column(answers, "predicted_probabilities")[index]
            assert list(probabilities) == pytest.approx(list(prediction.probabilities.values()), abs=1e-6)
    assert [error is not None for error in errors] == [False, True, False, False]
    assert len(set(column(answers, "predicted_model_hash"))) == 1


def test_scores_of_titles_equal_the_scorer(ranker):
    titles, prompts = ["A plain title", "One Weird Title", "Third"], ["About titles", None, ""]
    answers = BatchScorer(ranker, prompt="article")({"title": titles, "article": prompts})
    expected = Scorer(ranker).score(titles, prompts=["About titles", "", ""])
    assert answers["predicted_score"] == pytest.approx(expected, abs=1e-5)


def test_lists_of_titles_share_their_prompt(ranker):
    rows = [["A plain title", "One Weird Title"], [], ["One", "Two", "Three"], ["good", " "]]
    batch = {"titles": rows, "article": ["About titles", "x", "y", "z"]}
    answers = BatchScorer(ranker, titles="titles", prompt="article")(batch)
    scorer = Scorer(ranker)
    for index in (0, 2):
        ranked = scorer.rank(rows[index], prompt=batch["article"][index])
        assert answers["predicted_best"][index] == ranked[0].title
        assert max(answers["predicted_scores"][index]) == pytest.approx(ranked[0].score, abs=1e-5)
        assert sum(answers["predicted_probabilities"][index]) == pytest.approx(1)
    assert [error is None for error in answers["predicted_error"]] == [True, False, True, False]
    assert answers["predicted_best"][1] is None
    assert answers["predicted_best"][3] is None


def test_bad_values_of_a_row_are_errors_of_that_row(ranker):
    batch = {"titles": [["One", "Two"], "a text", ["Three", ""]], "article": ["x", "y", pd.NA]}
    answers = BatchScorer(ranker, titles="titles", prompt="article")(batch)
    first, second, third = answers["predicted_error"]
    assert first is None
    assert "list" in second
    assert third.startswith("titles[1]: ")
    assert answers["predicted_best"][0] in ("One", "Two")


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression", "ordinal"])
def test_columns_of_other_problem_types(tmp_path, kind):
    labels = ["one"] if kind == "regression" else ["low", "middle", "high"]
    folder = saved(tmp_path / "saved", task="pooled_classifier", labels=labels, problem_type=kind)
    answers = BatchScorer(folder)({"text": TEXTS[:1]})
    expected = Scorer(folder).predict(TEXTS[:1])[0]
    if kind == "regression":
        assert answers["predicted_score"] == pytest.approx([expected.score])
    elif kind == "ordinal":
        assert answers["predicted_label"] == [expected.label]
        assert answers["predicted_expected_rank"] == pytest.approx([expected.expected_rank])
    else:
        assert answers["predicted_labels"] == [list(expected.labels)]


@pytest.mark.parametrize(
    "kind", ["single_label_classification", "multi_label_classification", "regression", "ordinal"]
)
def test_columns_are_those_of_predictions_and_typed_without_an_answer(tmp_path, kind):
    labels = ["label", "best", "price"]  # outputs named like other columns
    folder = saved(tmp_path / "saved", task="pooled_classifier", labels=labels, problem_type=kind)
    score = BatchScorer(folder, probabilities=True, prefix="")
    tables = [score(pa.table({"text": pa.array(texts, pa.string())})) for texts in (TEXTS, ["", " "])]
    assert tables[0].schema == tables[1].schema
    scorer = Scorer(folder)
    keys = answer_columns(scorer.config)
    names = labels if kind == "regression" else keys
    assert tables[0].column_names == ["text", *names, "error", "model_revision", "model_hash"]
    for name, key in zip(names, ["score"] * 3 if kind == "regression" else keys, strict=True):
        assert tables[0].schema.field(name).type == arrow_type(key)
    expected = scorer.predict(TEXTS, on_error="keep")
    for index in (0, 2, 3):
        row, stated = tables[0].slice(index, 1).to_pylist()[0], expected[index].as_dict(digits=None)
        values = stated.get("scores") or stated
        if "probabilities" in values:
            values["probabilities"] = list(expected[index].probabilities.values())
        for name, value in values.items():
            exact = isinstance(value, str) or name == "labels"
            assert row[name] == (value if exact else pytest.approx(value, abs=1e-6))


def test_an_output_named_like_the_column_of_errors_is_refused(tmp_path):
    options = {"task": "pooled_classifier", "labels": ["error", "price"], "problem_type": "regression"}
    with raises_problem("column-ambiguous", "column 'predicted_error'"):
        BatchScorer(saved(tmp_path / "saved", **options))({"text": ["x"]})


def test_a_pickled_scorer_answers_the_same(classifier):
    scorer = BatchScorer(classifier)
    before = scorer({"text": TEXTS[:1]})
    content = pickle.dumps(scorer)
    assert len(content) < 5_000  # the weights stay at home
    after = pickle.loads(content)({"text": TEXTS[:1]})
    assert after["predicted_probability"] == pytest.approx(before["predicted_probability"], abs=1e-6)
    assert after["predicted_model_hash"] == before["predicted_model_hash"]


def test_frames_of_spark(classifier):
    frames = [pd.DataFrame({"text": TEXTS[:1]}), pd.DataFrame({"text": TEXTS[2:]})]
    assert [len(frame) for frame in BatchScorer(classifier).frames(frames)] == [1, 2]


@pytest.mark.parametrize(
    ("batch", "code", "where"),
    [
        ({"title": ["x"]}, "column-missing", "column 'text'"),
        ({"text": ["x"], "predicted_label": ["y"]}, "column-ambiguous", "column 'predicted_label'"),
        (["x"], "argument-type", "batch"),
    ],
)
def test_bad_batches_are_refused(classifier, batch, code, where):
    with pytest.raises(TaskHeadsError) as error:
        BatchScorer(classifier)(batch)
    assert [(problem.code, problem.where) for problem in error.value.problems] == [(code, where)]
