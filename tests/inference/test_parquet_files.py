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

from qwen_task_heads import Scorer, build, load_tokenizer, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.inference.batch import BatchScorer
from qwen_task_heads.inference.parquet_files import pending_files, score_file

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

    with pytest.raises(OSError, match="no space"):
        score_file(fails, tmp_path / "in.parquet", tmp_path / "out" / "in.parquet", batch_rows=10)
    assert list((tmp_path / "out").iterdir()) == []


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
