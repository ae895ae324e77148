"""What a recipe trained is opened by its name; files and the command line ask label writers too."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_task_heads import LabelMap, LabelScorer, Scorer, TaskHeadsError, build, load_tokenizer, save
from qwen_task_heads import __main__ as command
from qwen_task_heads.errors import run_recipe
from qwen_task_heads.generators import load_generator
from qwen_task_heads.inference.batch_prediction import predict_file
from qwen_task_heads.inference.loading import labels_to_choose, open_scorer
from qwen_task_heads.inference.shards import Parts
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
    """What `recipes/sft_classify.py` leaves of a full fine-tune: a stock model, and its labels beside it."""
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


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_name_is_opened_by_what_lies_there(writer: Path, head: Path) -> None:
    assert isinstance(open_scorer(str(head)), Scorer)
    assert isinstance(open_scorer(str(writer), batch_tokens=512), LabelScorer)
    assert labels_to_choose(str(writer)) == labels_to_choose(open_scorer(str(writer))) == LABELS
    assert labels_to_choose(str(head)).names == labels_to_choose(open_scorer(str(head))).names == LABELS.names
    with pytest.raises(TaskHeadsError, match="int8: found true with a model that writes its labels"):
        open_scorer(str(writer), int8=True)


@pytest.mark.parametrize("name", ["./runs/typo", "runs/a/b", "me/typo", "bad name"])
def test_a_name_that_nothing_has_is_told_without_a_traceback(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    source = write(tmp_path / "in.jsonl", ROWS)
    for options in ({}, {"candidates": "category"}):
        with pytest.raises(TaskHeadsError, match=re.escape(name)):
            predict_file(name, source=source, output=tmp_path / "out.jsonl", **options)
    monkeypatch.setattr(sys, "argv", ["qwen_task_heads", name, "A title"])
    assert run_recipe(command.main) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("instruction", None), ("truncation", "middle"), ("max_length", 12.9), ("length_normalized", "false"),
        ("labels", {"names": []}), ("temperature", 0.5), ("base", "me/base"),
    ],
)  # fmt: skip
def test_a_damaged_statement_is_never_taken_for_a_head(
    writer: Path, tmp_path: Path, field: str, value: object
) -> None:
    stated = json.loads((writer / LABEL_PROMPT).read_bytes()) | {field: value}
    (tmp_path / LABEL_PROMPT).write_text(json.dumps(stated), encoding="utf-8")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(writer / name)
    said = "labels: no label" if field == "labels" else rf"cannot be read \(ValueError: in {field}\)"
    with pytest.raises(TaskHeadsError, match=said):
        open_scorer(str(tmp_path))


def test_a_file_is_answered_as_the_scorer_answers(writer: Path, tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    report = predict_file(str(writer), source=source, output=output, block_rows=3, top_k=2)
    wanted = LabelScorer.from_pretrained(str(writer)).predict([row["text"] for row in ROWS], top_k=2)
    for row, found, answer in zip(ROWS, read(output), wanted, strict=True):
        told = {f"predicted_{name}": value for name, value in answer.as_dict().items()}
        probabilities = told.pop("predicted_probabilities")
        assert found.pop("predicted_probabilities") == pytest.approx(probabilities, abs=2e-6)
        told["predicted_probability"] = pytest.approx(told["predicted_probability"], abs=2e-6)
        assert found == row | told
    assert report is not None
    assert (report.rows, report.errors) == (4, 0)


@pytest.mark.parametrize("kind", ["writer", "head"])
def test_a_row_chooses_from_what_it_offers(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = str(request.getfixturevalue(kind))
    rows = [row | {"category": ["sport", "trade"]} if row["text"] == "A new tax" else row for row in ROWS]
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    report = predict_file(model, source=source, output=output, candidates="category")
    assert "note: 2 rows offer no labels in 'category': they were asked for all" in str(report)
    offered = [{"sport", "the arts"}, {"sport", "trade"}, {*LABELS.names}, {*LABELS.names}]
    for row, names in zip(read(output), offered, strict=True):
        held = {name for name, share in row["predicted_probabilities"].items() if share > 0}
        assert held == names
        assert row["predicted_label"] in names
        assert sum(row["predicted_probabilities"].values()) == pytest.approx(1, abs=1e-5)
    plain = predict_file(model, source=source, output=tmp_path / "plain.jsonl")
    assert ("the column 'category' was not looked at" in str(plain)) == (kind == "writer")


def test_all_bad_offers_are_named_before_the_model_is_loaded(writer: Path, tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "a", "category": ["weather", "sport"]}, {"text": "b", "category": 7}]
    rows += [{"text": "c", "category": ["sport", "sport"]}, {"text": "d", "category": "games, sport"}]
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    unloadable = tmp_path / "writer"
    unloadable.mkdir()
    (unloadable / LABEL_PROMPT).write_bytes((writer / LABEL_PROMPT).read_bytes())
    with pytest.raises(TaskHeadsError) as caught:
        predict_file(str(unloadable), source=source, output=output, candidates="category")
    assert [problem.where.rsplit(":", 1)[1] for problem in caught.value.problems] == ["5", "6", "7", "8"]
    assert "'weather' in 'category'" in str(caught.value)
    assert "'games' and 'sport', both 'sport', in 'category'" in str(caught.value)
    report = predict_file(
        str(writer), source=source, output=output, candidates="category", bad_rows="skip", block_rows=2
    )
    assert report is not None
    assert (report.rows, report.errors) == (8, 4)
    assert ["error" in row for row in read(output)] == [False] * 4 + [True] * 4


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_an_empty_offer_is_of_all_labels_in_every_format(writer: Path, tmp_path: Path, suffix: str) -> None:
    import pandas

    offers: list[Any] = [["sport", "trade"], []] if suffix == ".parquet" else ["sport, trade", " ", "[]", ""]
    table = pandas.DataFrame({"text": [f"text {n}" for n in range(len(offers))], "category": offers})
    path, output = tmp_path / f"in{suffix}", tmp_path / "out.jsonl"
    kind = suffix.removeprefix(".")
    table.to_json(path, orient="records", lines=True) if kind == "jsonl" else getattr(table, f"to_{kind}")(
        path, index=False
    )
    predict_file(str(writer), source=str(path), output=output, candidates="category")
    held = [sum(share > 0 for share in row["predicted_probabilities"].values()) for row in read(output)]
    assert held == [2] + [3] * (len(offers) - 1)


def test_what_offers_nothing_is_refused(writer: Path, tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    with pytest.raises(TaskHeadsError, match=r"--candidates: found 'kategory', which no row of .* has"):
        predict_file(str(writer), source=source, output=output, candidates="kategory")
    titles = save(build("embedded"), tokenizer=load_tokenizer("embedded"), folder=tmp_path / "titles")
    several = build(
        "embedded", task="pooled_classifier", num_labels=2, problem_type="multi_label_classification"
    )
    for model in (str(titles), "embedded", Scorer(several, tokenizer=load_tokenizer("embedded"))):
        with pytest.raises(TaskHeadsError, match=r"--candidates: found with .* accepted: with single_label"):
            predict_file(model, source=source, output=output, candidates="category")
    with pytest.raises(TaskHeadsError, match=r"threshold: found 0\.5 with a single_label"):
        predict_file(str(writer), source=source, output=output, threshold=0.5)
    assert not output.exists()


def test_a_killed_run_goes_on_with_its_own_weights_alone(
    writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another training of the same base has the same config and labels; its parts are not these."""
    source, output = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    scorer = LabelScorer.from_pretrained(str(writer))

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "assemble", kill)
        with pytest.raises(KeyboardInterrupt):
            predict_file(scorer, source=source, output=output, block_rows=2)
    weight = scorer.model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.001)
    with pytest.raises(TaskHeadsError, match="another run"):
        predict_file(scorer, source=source, output=output, block_rows=2)
    with torch.no_grad():
        weight.copy_(before)
    scorer.prompts.truncation = "tail"
    with pytest.raises(TaskHeadsError, match="another run"):
        predict_file(scorer, source=source, output=output, block_rows=2)
    scorer.prompts.truncation = "head"
    report = predict_file(scorer, source=source, output=output, block_rows=2)
    assert "4 of them were there from an earlier start" in str(report)
    assert len(read(output)) == 4


def test_another_run_that_ends_first_is_told_as_such(
    head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command twice at a time: the second finds no folder any more."""
    source, output = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    write_part = Parts.write

    def late(self: Parts, block: int, rows: Any) -> None:
        shutil.rmtree(self.folder)
        write_part(self, block, rows)

    monkeypatch.setattr(Parts, "write", late)
    with pytest.raises(TaskHeadsError, match="its folder is gone; accepted: one run of a command at a time"):
        predict_file(str(head), source=source, output=output)


@pytest.mark.parametrize("kind", ["writer", "head"])
def test_the_command_line_offers_labels(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    argv = ["qwen_task_heads", str(request.getfixturevalue(kind)), "A late goal", "--candidates"]
    monkeypatch.setattr(sys, "argv", [*argv, "the arts"])
    assert run_recipe(command.main) == 0
    assert capsys.readouterr().out.startswith("the arts  |  the arts 1.000  sport 0.000")
    monkeypatch.setattr(sys, "argv", [*argv, "The Arts, sport"])
    assert run_recipe(command.main) == 2
    assert "--candidates: found 'The Arts'" in (told := capsys.readouterr().err)
    assert "did you mean 'the arts'?" in told


def test_top_k_above_the_number_of_labels_gives_all(writer: Path) -> None:
    [answer] = LabelScorer.from_pretrained(str(writer)).predict(["A late goal"], top_k=99)
    assert {name for name, _ in answer.ranked} == {*LABELS.names}


def test_the_command_line_asks_it(writer: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    argv = ["qwen_task_heads", str(writer), "A late goal", "A new tax", "--top_k", "1"]
    monkeypatch.setattr(sys, "argv", argv)
    assert run_recipe(command.main) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit("  |  ", 1)[1] for line in lines] == ["A late goal", "A new tax"]
    assert all(line.split("  |  ")[0] in LABELS.names for line in lines)
    monkeypatch.setattr(sys, "argv", [*argv, "--threshold", "0.5", "--text_pair", "b", "--prompt", "c"])
    assert run_recipe(command.main) == 2
    told = capsys.readouterr().err
    for name in ("--threshold", "--text_pair", "--prompt"):
        assert f"{name}: found with a model that writes its labels" in told
