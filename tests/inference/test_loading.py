"""Tests of loading trained models by name, and of predictions with generative classifiers."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from predicting import predict

from qwen_task_heads import LabelMap, LabelScorer, Scorer, TaskHeadsError, build, load_tokenizer, save
from qwen_task_heads import __main__ as command
from qwen_task_heads.errors import run_recipe
from qwen_task_heads.generators import load_generator
from qwen_task_heads.inference.loading import labels_to_choose, open_scorer
from qwen_task_heads.inference.shards import Shards
from qwen_task_heads.tokenization.label_prompts import LABEL_PROMPT, AnswerPrompts

LABELS = LabelMap(("sport", "trade", "the arts"), aliases=(("games",), (), ()))
ROWS: list[dict[str, Any]] = [
    {"text": "A late goal", "category": ["sport", "the arts"]},
    {"text": "A new tax", "category": "trade, games"},
    {"text": "An opera", "category": ""},
    {"text": "A ship"},
]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a full fine-tune by `recipes/sft_classify.py`: a transformers model and its labels."""
    folder = tmp_path_factory.mktemp("writer")
    tokenizer = load_tokenizer("embedded")
    load_generator("embedded", dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    AnswerPrompts(tokenizer, LABELS, model_type="qwen2").save(folder)
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build("embedded", task="pooled_classifier", labels=list(LABELS.names))
    return save(model, tokenizer=load_tokenizer("embedded"), folder=tmp_path_factory.mktemp("head"))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def problems_of(caught: pytest.ExceptionInfo[TaskHeadsError]) -> list[tuple[str, str]]:
    return [(problem.code, problem.where) for problem in caught.value.problems]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_scorer_depends_on_the_files_of_the_model(writer: Path, head: Path) -> None:
    assert isinstance(open_scorer(str(head)), Scorer)
    assert isinstance(open_scorer(str(writer), batch_tokens=512), LabelScorer)
    assert labels_to_choose(str(writer)) == labels_to_choose(open_scorer(str(writer))) == LABELS
    assert labels_to_choose(str(head)).names == labels_to_choose(open_scorer(str(head))).names == LABELS.names
    with pytest.raises(TaskHeadsError) as caught:
        open_scorer(str(writer), int8=True)
    assert problems_of(caught) == [("option-unsupported", "int8")]


@pytest.mark.parametrize("name", ["./runs/typo", "runs/a/b", "me/typo", "bad name"])
def test_an_unknown_name_is_reported_without_a_traceback(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    source = write(tmp_path / "in.jsonl", ROWS)
    for options in ({}, {"candidates": "category"}):
        with pytest.raises(TaskHeadsError, match=re.escape(name)):
            predict(name, source=source, output=tmp_path / "out.jsonl", **options)
    monkeypatch.setattr(sys, "argv", ["qwen_task_heads", name, "A title"])
    assert run_recipe(command.main) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("instruction", None),
        ("truncation", "middle"),
        ("max_length", 12.9),
        ("length_normalized", "false"),
        ("labels", {"names": []}),
        ("temperature", 0.5),
        ("base", "me/base"),
    ],
)
def test_a_model_with_an_invalid_label_prompt_is_refused(
    writer: Path, tmp_path: Path, field: str, value: object
) -> None:
    stated = json.loads((writer / LABEL_PROMPT).read_bytes()) | {field: value}
    (tmp_path / LABEL_PROMPT).write_text(json.dumps(stated), encoding="utf-8")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(writer / name)
    with pytest.raises(TaskHeadsError, match=field):
        open_scorer(str(tmp_path))


def test_the_answers_of_a_file_are_those_of_the_scorer(writer: Path, tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    report = predict(str(writer), source=source, output=output, block_rows=3, top_k=2)
    wanted = LabelScorer.from_pretrained(str(writer)).predict([row["text"] for row in ROWS], top_k=2)
    for row, found, answer in zip(ROWS, read(output), wanted, strict=True):
        expected = {f"predicted_{name}": value for name, value in answer.as_dict().items()}
        probabilities = expected.pop("predicted_probabilities")
        assert found.pop("predicted_probabilities") == pytest.approx(probabilities, abs=2e-6)
        expected["predicted_probability"] = pytest.approx(expected["predicted_probability"], abs=2e-6)
        assert found == row | expected
    assert report is not None
    assert (report.rows, report.errors) == (4, 0)


@pytest.mark.parametrize("kind", ["writer", "head"])
def test_predictions_are_among_the_candidates_of_a_row(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = str(request.getfixturevalue(kind))
    rows = [row | {"category": ["sport", "trade"]} if row["text"] == "A new tax" else row for row in ROWS]
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    report = predict(model, source=source, output=output, candidates="category")
    assert "note: 2 rows have no candidates in 'category'" in str(report)
    candidates = [{"sport", "the arts"}, {"sport", "trade"}, {*LABELS.names}, {*LABELS.names}]
    for row, names in zip(read(output), candidates, strict=True):
        possible = {name for name, share in row["predicted_probabilities"].items() if share > 0}
        assert possible == names
        assert row["predicted_label"] in names
        assert sum(row["predicted_probabilities"].values()) == pytest.approx(1, abs=1e-5)
    plain = predict(model, source=source, output=tmp_path / "plain.jsonl")
    assert ("the column 'category' was ignored" in str(plain)) == (kind == "writer")


def test_all_invalid_candidates_are_reported_before_the_model_is_loaded(writer: Path, tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "a", "category": ["weather", "sport"]}, {"text": "b", "category": 7}]
    rows += [{"text": "c", "category": ["sport", "sport"]}, {"text": "d", "category": "games, sport"}]
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    unloadable = tmp_path / "writer"
    unloadable.mkdir()
    (unloadable / LABEL_PROMPT).write_bytes((writer / LABEL_PROMPT).read_bytes())
    with pytest.raises(TaskHeadsError) as caught:
        predict(str(unloadable), source=source, output=output, candidates="category")
    assert [problem.where.rsplit(":", 1)[1] for problem in caught.value.problems] == ["5", "6", "7", "8"]
    codes = [problem.code for problem in caught.value.problems]
    assert [codes[0], codes[3]] == ["label-unknown", "label-conflict"]
    assert "'weather'" in caught.value.problems[0].problem
    assert "'games' and 'sport'" in caught.value.problems[3].problem
    report = predict(
        str(writer), source=source, output=output, candidates="category", bad_rows="skip", block_rows=2
    )
    assert report is not None
    assert (report.rows, report.errors) == (8, 4)
    assert ["error" in row for row in read(output)] == [False] * 4 + [True] * 4


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_an_empty_cell_means_all_labels_in_every_format(writer: Path, tmp_path: Path, suffix: str) -> None:
    import pandas

    cells: list[Any] = [["sport", "trade"], []] if suffix == ".parquet" else ["sport, trade", " ", "[]", ""]
    table = pandas.DataFrame({"text": [f"text {n}" for n in range(len(cells))], "category": cells})
    path, output = tmp_path / f"in{suffix}", tmp_path / "out.jsonl"
    kind = suffix.removeprefix(".")
    table.to_json(path, orient="records", lines=True) if kind == "jsonl" else getattr(table, f"to_{kind}")(
        path, index=False
    )
    predict(str(writer), source=str(path), output=output, candidates="category")
    counts = [sum(share > 0 for share in row["predicted_probabilities"].values()) for row in read(output)]
    assert counts == [2] + [3] * (len(cells) - 1)


def test_models_and_files_without_candidates_are_refused(writer: Path, tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    with pytest.raises(TaskHeadsError, match="'kategory'") as caught:
        predict(str(writer), source=source, output=output, candidates="kategory")
    assert problems_of(caught) == [("column-missing", "--candidates")]
    titles = save(build("embedded"), tokenizer=load_tokenizer("embedded"), folder=tmp_path / "titles")
    several = build(
        "embedded", task="pooled_classifier", num_labels=2, problem_type="multi_label_classification"
    )
    for model in (str(titles), "embedded", Scorer(several, tokenizer=load_tokenizer("embedded"))):
        with pytest.raises(TaskHeadsError) as caught:
            predict(model, source=source, output=output, candidates="category")
        assert problems_of(caught) == [("option-unsupported", "--candidates")]
    with pytest.raises(TaskHeadsError, match=r"0\.5") as caught:
        predict(str(writer), source=source, output=output, threshold=0.5)
    assert problems_of(caught) == [("option-unsupported", "threshold")]
    assert not output.exists()


def test_a_killed_run_is_resumed_only_with_the_same_weights(
    writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another training of the same base has the same config and labels, but other weights."""
    source, output = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    scorer = LabelScorer.from_pretrained(str(writer))

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "assemble", kill)
        with pytest.raises(KeyboardInterrupt):
            predict(scorer, source=source, output=output, block_rows=2)
    weight = scorer.model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    foreign = [("checkpoint-foreign", f"{output}.parts")]
    with torch.no_grad():
        weight.mul_(1.001)
    with pytest.raises(TaskHeadsError) as caught:
        predict(scorer, source=source, output=output, block_rows=2)
    assert problems_of(caught) == foreign
    with torch.no_grad():
        weight.copy_(before)
    scorer.prompts.truncation = "tail"
    with pytest.raises(TaskHeadsError) as caught:
        predict(scorer, source=source, output=output, block_rows=2)
    assert problems_of(caught) == foreign
    scorer.prompts.truncation = "head"
    report = predict(scorer, source=source, output=output, block_rows=2)
    assert "4 of them were computed by an earlier start" in str(report)
    assert len(read(output)) == 4


def test_a_run_whose_folder_was_removed_is_reported(
    head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command runs twice, and the first run removes the folder at its end."""
    source, output = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    write_shard = Shards.write

    def write_after_removal(self: Shards, index: int, rows: Any) -> None:
        shutil.rmtree(self.folder)
        write_shard(self, index, rows)

    monkeypatch.setattr(Shards, "write", write_after_removal)
    with pytest.raises(TaskHeadsError) as caught:
        predict(str(head), source=source, output=output)
    assert [problem.code for problem in caught.value.problems] == ["path-not-found"]


@pytest.mark.parametrize("kind", ["writer", "head"])
def test_the_command_line_takes_candidates(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    argv = ["qwen_task_heads", str(request.getfixturevalue(kind)), "A late goal", "--candidates"]
    monkeypatch.setattr(sys, "argv", [*argv, "the arts"])
    assert run_recipe(command.main) == 0
    assert capsys.readouterr().out.startswith("the arts  |  the arts 1.000  sport 0.000")
    monkeypatch.setattr(sys, "argv", [*argv, "The Arts, sport"])
    assert run_recipe(command.main) == 2
    message = capsys.readouterr().err
    assert "--candidates: found 'The Arts'" in message
    assert "Fix: write 'the arts'." in message


def test_top_k_above_the_number_of_labels_gives_all(writer: Path) -> None:
    [answer] = LabelScorer.from_pretrained(str(writer)).predict(["A late goal"], top_k=99)
    assert {name for name, _ in answer.ranked} == {*LABELS.names}


def test_the_command_line_predicts_with_a_generative_classifier(
    writer: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    argv = ["qwen_task_heads", str(writer), "A late goal", "A new tax", "--top_k", "1"]
    monkeypatch.setattr(sys, "argv", argv)
    assert run_recipe(command.main) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit("  |  ", 1)[1] for line in lines] == ["A late goal", "A new tax"]
    assert all(line.split("  |  ")[0] in LABELS.names for line in lines)
    monkeypatch.setattr(sys, "argv", [*argv, "--threshold", "0.5", "--text_pair", "b", "--prompt", "c"])
    assert run_recipe(command.main) == 2
    message = capsys.readouterr().err
    for name in ("--threshold", "--text_pair", "--prompt"):
        assert f"{name}: " in message
