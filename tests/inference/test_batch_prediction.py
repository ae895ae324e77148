"""Tests of batch prediction: order, counts, formats, several processes, and shards of other runs."""

from __future__ import annotations

import csv
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from predicting import predict, processes
from transformers import set_seed

from qwen_task_heads import Scorer, build, load_tokenizer, save
from qwen_task_heads import __main__ as command
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.inference.arguments import PredictArguments
from qwen_task_heads.inference.batch_prediction import scan_inputs
from qwen_task_heads.inference.shards import Shards
from qwen_task_heads.tokenization.templates import bind_template

LABELS = ["sport", "trade", "art"]
ROWS = [
    {"id": index, "text": f"{'a long text ' * (index % 5)}number {index}", "label": "sport"}
    for index in range(23)
]


@pytest.fixture(scope="module")
def scorers(bases: dict[str, str], tokenizer: Any, shake: Any) -> dict[str, Scorer]:
    """A scorer of every problem type, and one of titles."""
    set_seed(0)
    kinds = {"single": "single_label_classification", "multi": "multi_label_classification"}
    kinds |= {"regression": "regression", "ordinal": "ordinal"}
    models = {
        name: build(
            bases["qwen2"],
            task="pooled_classifier",
            problem_type=kind,
            labels=["score"] if name == "regression" else LABELS,
        )
        for name, kind in kinds.items()
    }
    models["titles"] = build(bases["qwen2"])
    return {name: Scorer(shake(model), tokenizer=tokenizer) for name, model in models.items()}


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return str(path)


def problems_of(caught: pytest.ExceptionInfo[TaskHeadsError]) -> list[tuple[str, str]]:
    return [(problem.code, problem.where) for problem in caught.value.problems]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_keep_their_order_and_their_columns(scorers: Any, source: str, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out.jsonl"
    report = predict(scorers["single"], source=source, output=output, block_rows=4)
    rows = read(output)
    assert [{name: row[name] for name in ROWS[0]} for row in rows] == ROWS
    alone = [scorers["single"].predict([row["text"]])[0] for row in ROWS]
    assert [row["predicted_label"] for row in rows] == [answer.label for answer in alone]
    for row, answer in zip(rows, alone, strict=True):
        assert row["predicted_probabilities"] == pytest.approx(answer.probabilities, abs=2e-6)
        assert next(iter(row["predicted_probabilities"])) == row["predicted_label"]
    assert (report.rows, report.errors, sum(report.labels.values())) == (23, 0, 23)
    assert "23 rows in = 23 with an answer + 0 with an error" in str(report)
    assert not output.with_name("out.jsonl.parts").exists()


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("multi", ["predicted_labels", "predicted_probabilities"]),
        pytest.param("regression", ["predicted_score"], marks=pytest.mark.slow),
        (
            "ordinal",
            [
                "predicted_label",
                "predicted_probability",
                "predicted_expected_rank",
                "predicted_probabilities",
            ],
        ),
        ("titles", ["predicted_score"]),
    ],
)
def test_every_kind_of_model_predicts(
    scorers: Any, source: str, tmp_path: Path, kind: str, columns: list[str]
) -> None:
    predict(scorers[kind], source=source, output=tmp_path / "out.jsonl")
    for row in read(tmp_path / "out.jsonl"):
        assert list(row) == ["id", "text", "label", *columns]
    predict(scorers[kind], source=source, output=tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert list(table[0]) == ["id", "text", "label", *columns]
    for row, wanted in zip(table, read(tmp_path / "out.jsonl"), strict=True):
        value = row[columns[-1]]
        assert (json.loads(value) if value[0] in "[{" else float(value)) == wanted[columns[-1]]


def test_titles_with_prompts_score_as_the_scorer_does(scorers: Any, tmp_path: Path) -> None:
    rows = [{"title": "Ten ways", "prompt": "Rest"}, {"title": "Tea"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict(scorers["titles"], source=str(tmp_path / "in.jsonl"), output=tmp_path / "out.jsonl", prefix="")
    scores = [row["score"] for row in read(tmp_path / "out.jsonl")]
    assert scores == pytest.approx(
        scorers["titles"].score(["Ten ways", "Tea"], prompts=["Rest", ""]), abs=2e-6
    )


def in_processes(count: int, scorer: Scorer, *, source: str, output: Path, **options: Any) -> None:
    """Run as `count` processes, simulated by threads with a barrier."""
    barrier, failed = threading.Barrier(count), []

    def run(index: int) -> None:
        try:
            state = processes(count, index=index, wait=lambda: barrier.wait(60))
            predict(scorer, source=source, output=output, state=state, **options)
        except TaskHeadsError as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("count", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 8))])
def test_any_number_of_processes_gives_the_same_bytes(
    scorers: Any, source: str, tmp_path: Path, count: int
) -> None:
    predict(scorers["single"], source=source, output=tmp_path / "one.jsonl", block_rows=4)
    in_processes(count, scorers["single"], source=source, output=tmp_path / "several.jsonl", block_rows=4)
    assert (tmp_path / "several.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


class Killed(Exception):
    """Simulates SIGKILL, which the test of the recipe uses."""


def stop_after(monkeypatch: pytest.MonkeyPatch, blocks: int) -> list[int]:
    """Let `Shards.write` fail after a number of shards; return the list of the written shards."""
    written: list[int] = []
    write = Shards.write

    def stopping(self: Shards, block: int, rows: Any) -> None:
        if len(written) == blocks:
            raise Killed
        written.append(block)
        write(self, block, rows)

    monkeypatch.setattr(Shards, "write", stopping)
    return written


@pytest.mark.parametrize("stop", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 5))])
def test_a_run_is_resumed_by_another_number_of_processes(
    scorers: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    output, common = tmp_path / "out.jsonl", {"source": source, "block_rows": 4}
    predict(scorers["single"], output=tmp_path / "whole.jsonl", **common)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(Killed):
            predict(scorers["single"], output=output, **common)
    assert not output.exists()
    with monkeypatch.context() as patch:
        written = stop_after(patch, 99)
        in_processes(2, scorers["single"], output=output, **common)
    assert sorted(written) == list(range(stop, 6))
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_shards_of_another_run_are_refused_with_the_difference(
    scorers: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Killed):
            predict(scorers["single"], source=source, output=output, block_rows=4, top_k=2)
    before = sorted(path.name for path in (tmp_path / "out.jsonl.parts").iterdir())
    common = {"source": source, "output": output, "block_rows": 4}
    for options, named in (
        ({**common, "top_k": 3}, "top_k was 2 and is 3"),
        ({**common, "top_k": 2, "block_rows": 8}, "block_rows was 4 and is 8"),
    ):
        with pytest.raises(TaskHeadsError, match=named) as caught:
            predict(scorers["single"], **options)
        assert problems_of(caught) == [("checkpoint-foreign", f"{output}.parts")]
    with pytest.raises(TaskHeadsError, match="model was"):
        predict(scorers["ordinal"], **common, top_k=2)
    Path(source).write_text(Path(source).read_text().replace("number 7", "number 8"))
    with pytest.raises(TaskHeadsError, match="input was"):
        predict(scorers["single"], **common, top_k=2)
    assert sorted(path.name for path in (tmp_path / "out.jsonl.parts").iterdir()) == before


def test_a_corrupted_shard_is_reported_and_an_output_is_never_replaced(
    scorers: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Killed):
            predict(scorers["single"], source=source, output=output, block_rows=4)
    shard = tmp_path / "out.jsonl.parts" / "00000001.jsonl"
    for content in (shard.read_text().split("\n", 1)[1], shard.read_text()[:-9]):
        shard.write_text(content)
        with pytest.raises(TaskHeadsError) as caught:
            predict(scorers["single"], source=source, output=output, block_rows=4)
        assert problems_of(caught) == [("checkpoint-incomplete", str(shard))]
    shard.unlink()
    predict(scorers["single"], source=source, output=output, block_rows=4)
    before = output.read_bytes()
    with pytest.raises(TaskHeadsError) as caught:
        predict(scorers["single"], source=source, output=output)
    assert problems_of(caught) == [("path-exists", str(output))]
    assert output.read_bytes() == before


def corrupt(source: str) -> None:
    lines = Path(source).read_text().splitlines()
    lines[3], lines[9] = '{"id": 3, "text": ', '{"id": 9, "text": "  "}'
    Path(source).write_text("\n".join(lines) + "\n")


def test_all_invalid_rows_are_reported_before_a_model_is_loaded(source: str, tmp_path: Path) -> None:
    corrupt(source)
    with pytest.raises(TaskHeadsError) as caught:
        predict("no/model", source=source, output=tmp_path / "out.jsonl")
    assert [problem.where for problem in caught.value.problems] == [f"{source}:4", f"{source}:10"]


@pytest.mark.parametrize("suffix", [".jsonl", ".tsv"])
def test_skipped_rows_keep_their_line(scorers: Any, source: str, tmp_path: Path, suffix: str) -> None:
    corrupt(source)
    output = tmp_path / f"out{suffix}"
    report = predict(scorers["single"], source=source, output=output, bad_rows="skip", block_rows=4)
    assert (report.rows, report.errors, sum(report.labels.values())) == (23, 2, 21)
    if suffix == ".jsonl":
        rows = read(output)
    else:
        with output.open(encoding="utf-8", newline="") as stream:
            rows = [
                {name: value for name, value in row.items() if value}
                for row in csv.DictReader(stream, delimiter="\t")
            ]
    assert len(rows) == 23
    for index, row in enumerate(rows):
        if index != 3:
            assert int(row["id"]) == index
        if index in (3, 9):  # line 4 cannot be parsed
            assert {**row, "error": ""} == ({"id": row["id"], "text": "  "} if index == 9 else {}) | {
                "error": ""
            }
            assert row["error"].startswith(f"{source}:{index + 1}: ")
        else:
            assert row["predicted_label"] in LABELS


def test_a_corrupted_file_is_not_skipped(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(TaskHeadsError, match=r"in\.parquet"):
        scan_inputs(
            PredictArguments(model="", output="", input=str(tmp_path / "in.parquet"), bad_rows="skip")
        )


@pytest.mark.parametrize(
    ("options", "code", "where", "value"),
    [
        ({"output": "out.txt"}, "option-value", "out.txt", "'.txt'"),
        ({"threshold": 0.5}, "option-unsupported", "threshold", "0.5"),
        ({"top_k": 0}, "option-range", "top_k", "0"),
        ({"bad_rows": "drop"}, "option-value", "bad_rows", "'drop'"),
        ({"block_rows": 0}, "option-range", "block_rows", "0"),
        ({"prefix": ""}, "option-conflict", "--prefix", "'label'"),
    ],
)
def test_invalid_options_are_refused(
    scorers: Any, source: str, tmp_path: Path, options: dict[str, Any], code: str, where: str, value: str
) -> None:
    output = tmp_path / options.pop("output", "out.jsonl")
    with pytest.raises(TaskHeadsError) as caught:
        predict(scorers["single"], source=source, output=output, **options)
    [problem] = caught.value.problems
    assert (problem.code, Path(problem.where).name) == (code, where)
    assert value in problem.problem
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_top_k_above_the_number_of_labels_gives_all(scorers: Any, source: str, tmp_path: Path) -> None:
    found = []
    for top_k in (None, 99):
        output = tmp_path / f"{top_k}.jsonl"
        predict(scorers["single"], source=source, output=output, top_k=top_k)
        found.append(output.read_text(encoding="utf-8"))
    assert found[0] == found[1]


def test_pairs_of_texts_reach_the_model_as_pairs(scorers: Any, tmp_path: Path) -> None:
    rows = [{"text_a": "one", "text_b": "two"}, {"text_a": "three", "text_b": "four five"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict(scorers["regression"], source=str(tmp_path / "in.jsonl"), output=tmp_path / "out.jsonl")
    logits = scorers["regression"].logits(["one", "three"], text_pairs=["two", "four five"])
    found = torch.tensor([row["predicted_score"] for row in read(tmp_path / "out.jsonl")])
    assert torch.allclose(found, logits[:, 0], atol=2e-6)
    with pytest.raises(TaskHeadsError) as caught:
        predict(scorers["titles"], source=str(tmp_path / "in.jsonl"), output=tmp_path / "t.jsonl")
    assert problems_of(caught) == [("dataset-mismatch", str(tmp_path / "in.jsonl"))]


def test_pairs_and_single_texts_are_refused_by_a_model_of_the_other_kind(
    bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text_a": "one", "text_b": "two"}\n')
    tokenizer = load_tokenizer(bases["qwen2"])
    model = build(bases["qwen2"], task="pooled_classifier", labels=LABELS)
    bind_template(tokenizer, model.config)
    scorer = Scorer(model, tokenizer=tokenizer)
    with pytest.raises(TaskHeadsError) as caught:
        scorer.predict(["one"], text_pairs=["two"])
    assert problems_of(caught) == [("option-unsupported", "text_pairs")]
    with pytest.raises(TaskHeadsError) as caught:
        predict(scorer, source=str(tmp_path / "in.jsonl"), output=tmp_path / "out.jsonl")
    assert problems_of(caught) == [("dataset-mismatch", str(tmp_path / "in.jsonl"))]
    assert len(scorer.predict(["one"], text_pairs=[""])) == 1
    bind_template(tokenizer, model.config, pairs=True)
    assert len(scorer.predict(["one"], text_pairs=["two"])) == 1
    assert len(scorer.predict(["one"], text_pairs=[""])) == 1  # an explicit empty second text
    assert scorer.predict([]) == []
    with pytest.raises(TaskHeadsError) as caught:
        scorer.predict(["one"])
    assert problems_of(caught) == [("option-missing", "text_pairs")]
    assert "text_pairs=" in caught.value.problems[0].fix
    (tmp_path / "single.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(TaskHeadsError, match="text_a and text_b") as caught:
        predict(scorer, source=str(tmp_path / "single.jsonl"), output=tmp_path / "single.csv")
    assert problems_of(caught) == [("dataset-mismatch", str(tmp_path / "single.jsonl"))]
    predict(scorer, source=str(tmp_path / "in.jsonl"), output=tmp_path / "pairs.jsonl")
    folder = save(model, tokenizer=tokenizer, folder=tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["qwen_task_heads", str(folder), "one"])
    with pytest.raises(TaskHeadsError) as caught:
        command.main()
    assert caught.value.problems[0].where == "--text_pair"
    monkeypatch.setattr(sys, "argv", ["qwen_task_heads", str(folder), "one", "--text_pair", "two"])
    command.main()
    with pytest.raises(TaskHeadsError) as caught:
        Scorer(model, tokenizer=tokenizer, batch_tokens=0)
    assert problems_of(caught) == [("option-range", "batch_tokens")]


def test_a_full_disk_is_reported_and_earlier_shards_are_kept(
    scorers: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, calls = tmp_path / "out.jsonl", []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:  # the manifest, shard 0, shard 1
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("qwen_task_heads.inference.shards.os.fsync", full)
        with pytest.raises(TaskHeadsError, match="No space left") as caught:
            predict(scorers["single"], source=source, output=output, block_rows=4)
    assert problems_of(caught) == [("disk-full", str(tmp_path / "out.jsonl.parts" / "00000001.jsonl"))]
    assert (tmp_path / "out.jsonl.parts" / "00000000.jsonl").exists()
    assert not (tmp_path / "out.jsonl.parts" / "00000001.jsonl").exists()
    predict(scorers["single"], source=source, output=output, block_rows=4)
    assert len(read(output)) == 23
