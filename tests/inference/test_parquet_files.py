"""Parquet in, Parquet out, file by file, with Ray and without."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from problem_assertions import raises_problem

from qwen_task_heads import ScoreArguments, Scorer, build, load_tokenizer, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.inference.batch import BatchScorer
from qwen_task_heads.inference.parquet_files import foreign_files, pending_files, score_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Folder of a classifier."""
    torch.manual_seed(0)
    model = build("embedded", task="pooled_classifier", labels=["card", "cash", "transfer"])
    folder = tmp_path_factory.mktemp("classifier") / "saved"
    return str(save(model, tokenizer=load_tokenizer("embedded"), folder=folder))


def write(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), path)


def test_a_file_is_scored_in_batches(classifier, tmp_path):
    texts = [f"text {number}" for number in range(25)]
    texts[17] = ""
    write(tmp_path / "in.parquet", texts)
    counts = score_file(
        BatchScorer(classifier), tmp_path / "in.parquet", tmp_path / "out" / "in.parquet", batch_rows=10
    )
    answers = pq.read_table(tmp_path / "out" / "in.parquet")
    expected = Scorer(classifier).predict(texts, on_error="keep")
    assert counts == (25, 1)
    assert answers["id"].to_pylist() == list(range(25))
    assert answers["predicted_label"].to_pylist() == [row.label for row in expected]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in.parquet"]


def test_a_file_without_rows(classifier, tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in.parquet")
    assert score_file(BatchScorer(classifier), tmp_path / "in.parquet", tmp_path / "out.parquet") == (0, 0)
    answers = pq.read_table(tmp_path / "out.parquet")
    assert answers.num_rows == 0
    assert "predicted_label" in answers.column_names


def test_the_types_of_columns_do_not_depend_on_the_first_batch(classifier, tmp_path):
    schemas = []
    for name, texts in (("bad", ["", "", "good"]), ("good", ["good", "", ""])):
        write(tmp_path / f"{name}.parquet", texts)
        target = tmp_path / "out" / f"{name}.parquet"
        assert score_file(BatchScorer(classifier), tmp_path / f"{name}.parquet", target, batch_rows=2) == (
            3,
            2,
        )
        schemas.append(pq.read_schema(target))
    assert schemas[0] == schemas[1]
    assert schemas[0].field("predicted_probability").type == pa.float64()


def test_what_a_killed_process_left_is_removed(classifier, tmp_path):
    write(tmp_path / "in.parquet", ["text"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".in.parquet.1.incomplete").touch()
    score_file(BatchScorer(classifier), tmp_path / "in.parquet", tmp_path / "out" / "in.parquet")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in.parquet"]


def test_a_failed_file_leaves_nothing(tmp_path):
    write(tmp_path / "in.parquet", ["text"] * 20)
    calls = []

    def fails(table):
        calls.append(table)
        if len(calls) == 2:
            raise OSError("no space")
        return table

    with pytest.raises(OSError, match="no space"):  # not a defect of the file: the job ends
        score_file(fails, tmp_path / "in.parquet", tmp_path / "out" / "in.parquet", batch_rows=10)
    assert list((tmp_path / "out").iterdir()) == []


def truncated(path, texts):
    """Write a Parquet file without its second half."""
    write(path, texts)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged(path, texts):
    """Write a Parquet file whose pages are no pages: it opens, and its rows cannot be read."""
    write(path, texts)
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(bytes(content))


def other_columns(path, texts):
    """Write a Parquet file without the column of texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"body": texts}), path)


def taken_columns(path, texts):
    """Write a Parquet file with a column of answers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts, "predicted_label": texts}), path)


BAD = {
    truncated: "file-format",
    damaged: "file-format",
    other_columns: "column-missing",
    taken_columns: "column-ambiguous",
}


@pytest.mark.parametrize("make", BAD)
def test_a_bad_file_is_named_and_leaves_nothing(classifier, tmp_path, make):
    source = tmp_path / "in.parquet"
    make(source, [f"text {number}" for number in range(50)])
    with raises_problem(BAD[make], match=str(source)) as problems:
        score_file(BatchScorer(classifier), source, tmp_path / "out" / "in.parquet")
    assert problems[0].where.startswith(str(source))
    assert list((tmp_path / "out").iterdir()) == []


def test_outputs_of_another_model_are_refused_or_scored_again(classifier, tmp_path):
    score = BatchScorer(classifier)
    mine = score.identity["model_hash"]
    for name, texts in (("same", ["text", ""]), ("other", ["text"]), ("damaged", ["text"]), ("empty", [])):
        write(tmp_path / "in" / f"{name}.parquet", pa.array(texts, pa.string()))
        score_file(score, tmp_path / "in" / f"{name}.parquet", tmp_path / "out" / f"{name}.parquet")
    paths = tmp_path / "in", tmp_path / "out"
    assert foreign_files(*paths, model_hash=mine) == []
    score_file(lambda table: table, tmp_path / "in" / "same.parquet", tmp_path / "out" / "foreign.parquet")
    write(tmp_path / "in" / "foreign.parquet", ["text"])  # its output has no answers
    other = pq.read_table(tmp_path / "out" / "other.parquet")
    column = other.column_names.index("predicted_model_hash")
    pq.write_table(
        other.set_column(column, "predicted_model_hash", pa.array(["f" * 64])),
        tmp_path / "out" / "other.parquet",
    )
    truncated(tmp_path / "out" / "damaged.parquet", ["text"])
    names = ["damaged", "foreign", "other"]
    with raises_problem("checkpoint-foreign") as problems:
        foreign_files(*paths, model_hash=mine)
    assert [problem.where for problem in problems] == [str(paths[1] / f"{name}.parquet") for name in names]
    again = foreign_files(*paths, model_hash=mine, rescore=True)
    assert [source.stem for source, _ in again] == names
    for source, target in again:
        score_file(score, source, target)
    assert foreign_files(*paths, model_hash=mine) == []


@pytest.mark.parametrize("option", ["actors", "batch_rows", "cpus", "gpus"])
def test_numbers_out_of_range_are_refused(option):
    words = ["--model", "m", "--input", "in", "--output", "out", f"--{option}"]
    with raises_problem("option-range", f"--{option}"):
        ScoreArguments.from_command_line([*words, "-1" if option == "gpus" else "0"])
    assert ScoreArguments.from_command_line([*words, "1"])


def test_files_with_an_output_are_not_pending(tmp_path):
    for name in ("a", "b", "deep/c"):
        write(tmp_path / "in" / f"{name}.parquet", ["text"])
    write(tmp_path / "out" / "b.parquet", ["text"])
    pending = pending_files(tmp_path / "in", tmp_path / "out")
    assert [str(target.relative_to(tmp_path / "out")) for _, target in pending] == [
        "a.parquet",
        "deep/c.parquet",
    ]


@pytest.mark.parametrize(
    ("source", "target", "code"), [("in", "in/out", "path-exists"), ("none", "out", "path-not-found")]
)
def test_bad_paths_are_refused(tmp_path, source, target, code):
    write(tmp_path / "in" / "a.parquet", ["text"])
    with pytest.raises(TaskHeadsError) as error:
        pending_files(tmp_path / source, tmp_path / target)
    assert error.value.problems[0].code == code


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Ray has no wheel")
def test_ray_loses_nothing_when_an_actor_is_killed(classifier, tmp_path):
    pytest.importorskip("ray")
    texts = [[f"row {number} of file {file}" for number in range(400)] for file in range(12)]
    for file, rows in enumerate(texts):
        write(tmp_path / "in" / f"{file:02}.parquet", rows)
    words = [sys.executable, str(ROOT / "recipes" / "score_ray.py"), "--model", classifier, "--actors", "2"]
    words += ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--batch_rows", "64"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_DEDUP_LOGS": "0"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    killed = False
    while process.poll() is None:
        if not killed and any((tmp_path / "out").glob("*.parquet")):
            actors = [
                p
                for p in psutil.process_iter(["cmdline"])
                if "ray::Actor" in " ".join(p.info["cmdline"] or [])
            ]
            if actors:
                actors[0].send_signal(signal.SIGKILL)
                killed = True
        time.sleep(0.05)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert killed
    assert "4,800 rows of 12 files" in output
    for file, rows in enumerate(texts):
        answers = pq.read_table(tmp_path / "out" / f"{file:02}.parquet")
        assert answers["text"].to_pylist() == rows
        assert answers["predicted_error"].null_count == 400
    expected = [row.label for row in Scorer(classifier).predict(texts[3])]
    assert pq.read_table(tmp_path / "out" / "03.parquet")["predicted_label"].to_pylist() == expected


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Ray has no wheel")
def test_ray_finishes_the_other_files_and_mixes_no_models(classifier, tmp_path):
    pytest.importorskip("ray")
    other = build("embedded", task="pooled_classifier", labels=["card", "cash", "transfer"], pooling="max")
    save(other, tokenizer=load_tokenizer("embedded"), folder=tmp_path / "other")
    for name in ("a", "d"):
        write(tmp_path / "in" / f"{name}.parquet", ["one", "two"])
    truncated(tmp_path / "in" / "b.parquet", ["one", "two"])
    other_columns(tmp_path / "in" / "c.parquet", ["one", "two"])

    def run(model, *more):
        words = [sys.executable, str(ROOT / "recipes" / "score_ray.py"), "--model", str(model)]
        words += ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    code, output, errors = run(classifier)
    assert code == 2
    assert "4 rows of 2 files" in output
    assert str(tmp_path / "in" / "b.parquet") in errors
    assert str(tmp_path / "in" / "c.parquet") in errors
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.parquet", "d.parquet"]
    for name in ("b", "c"):
        (tmp_path / "in" / f"{name}.parquet").unlink()
    code, _, errors = run(tmp_path / "other")
    assert code == 2
    assert "--rescore true" in errors
    assert "Traceback" not in errors
    code, output, errors = run(tmp_path / "other", "--rescore", "true")
    assert code == 0, errors
    assert "4 rows of 2 files" in output
    hashes = {
        value
        for path in (tmp_path / "out").iterdir()
        for value in pq.read_table(path)["predicted_model_hash"].to_pylist()
    }
    assert hashes == {BatchScorer(str(tmp_path / "other")).identity["model_hash"]}
    code, _, errors = run(tmp_path / "nowhere")
    assert code == 2
    assert errors.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in errors
