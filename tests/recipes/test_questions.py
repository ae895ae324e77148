"""A repo with several questions: trained by the recipe, published, reloaded without the package."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import hf_server
import launching
import pyarrow as pa
import pytest
from clean_process import CleanProcess
from problem_assertions import raises_problem
from records import ASKED, QUESTIONS, record, write_records

from qwen_task_heads import BatchScorer, Scorer
from qwen_task_heads.export.servers import Served
from qwen_task_heads.export.stock import export_stock
from qwen_task_heads.publishing.publish import publish

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
ROOT = Path(__file__).parents[2]
RECIPE, PREDICT = ROOT / "recipes" / "classify.py", ROOT / "recipes" / "predict.py"
short = partial(launching.short, max_seq_length=48)
TEXTS = ["my card was declined, right now, today", "no cash, no hurry", "I want my money back"]
MODEL = "this model"

# Answers by transformers alone, over HTTP
CHILD = r"""
import json, os, sys
job = json.loads(sys.argv[1])
from huggingface_hub import constants
constants.ENDPOINT, constants.HF_HUB_CACHE = job["endpoint"], job["cache"]
constants.HUGGINGFACE_CO_URL_TEMPLATE = job["endpoint"] + "/{repo_id}/resolve/{revision}/{filename}"
constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE = True, False
os.environ["HF_TOKEN"] = job["token"]
from transformers import pipeline
decide = pipeline("decision", model=job["repo"], trust_remote_code=True)
questions = decide.model.config.as_request()
found = [decide({"state": text, "questions": questions}) for text in job["texts"]]
print("ANSWERS", json.dumps([questions, *found]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on records, long enough to learn, and what it printed."""
    root = tmp_path_factory.mktemp("desk")
    rows = [record(number) for number in range(200)]
    for number, row in enumerate(rows):
        if number % 5 == 0:
            row["answers"].pop("refund")
        if number % 7 == 0:
            row["soft_labels"] = {"intent": {row["answers"]["intent"]: 1.0}}
    write_records(root / "train.jsonl", rows)
    write_records(root / "test.jsonl", [record(number) for number in range(1000, 1060)])
    options = {"max_steps": 40, "eval_steps": 20, "save_steps": 20, "learning_rate": 3e-3, "pooling": "mean"}
    words = short(root, "embedded", root / "run", **options)
    return root / "run", launching.finished(RECIPE, words, root / "log")


def test_a_run_on_records_reports_each_question(run: tuple[Path, str]) -> None:
    folder, printed = run
    metrics = json.loads((folder / "metrics.json").read_text())
    ours, others = metrics["test"][MODEL], [own for name, own in metrics["test"].items() if name != MODEL]
    assert len(others) == 2  # TF-IDF, the most frequent answers
    assert ours["mean_accuracy"]["value"] > others[1]["mean_accuracy"]["value"] + 0.2
    assert (metrics["problem_type"], metrics["questions"]) == ("questions", QUESTIONS)
    for name in ("intent.macro_f1", "urgency.quadratic_kappa", "refund.accuracy"):
        assert ours[name]["n_groups"] == 30  # of `meta.group`
        assert {name in own for own in others} == {True}
    assert ours["refund.accuracy"]["n"] == 60
    assert set(metrics["calibration"]["questions"]) == set(ASKED)
    card = (folder / "README.md").read_text()
    for shown in (printed, card):
        assert f"{ours['mean_accuracy']['value']:.3f}" in shown
        assert f"{ours['urgency.quadratic_kappa']['value']:.3f}" in shown
    for name, question in ASKED.items():
        assert f"| {name} | {question['type']} |" in card
    assert 'pipeline("decision"' in card
    path, body, _ = Served.read(folder).request("desk")
    assert (path, body["questions"]) == ("/v1/systemone", ASKED)
    assert f"curl http://localhost:8000{path}" in card
    first = json.loads((folder / "predictions.jsonl").read_text().splitlines()[0])
    assert {*first["true"]} == {*first["correct"]} == {*first["answers"]} == {*ASKED}
    assert "question urgency" in (folder / "errors.md").read_text()


def test_temperatures_are_folded_into_the_head(run: tuple[Path, str]) -> None:
    """The metrics are those of the saved model, so the record and the weights agree."""
    folder, _ = run
    config, metrics = (json.loads((folder / name).read_text()) for name in ("config.json", "metrics.json"))
    assert config["calibration"] == metrics["calibration"]
    fitted = {name: own["temperature"] for name, own in config["calibration"]["questions"].items()}
    for name, temperature in fitted.items():
        sides = config["calibration"]["metrics"]["test"][f"{name}.ece"]
        assert sides["after"]["value"] == pytest.approx(metrics["test"][MODEL][f"{name}.ece"]["value"])
        assert (sides["before"] == sides["after"]) is (temperature == 1)


def test_a_published_repo_answers_without_the_package(
    run: tuple[Path, str], clean: CleanProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = run
    with hf_server.serve() as server:
        hf_server.point_client(server, monkeypatch, cache=tmp_path / "hub")
        publish(folder, repo_id="me/desk", verify=False)
        assert b"## Questions" in server.files("me/desk")["README.md"]
        job = {
            "endpoint": server.endpoint,
            "cache": str(tmp_path / "empty"),
            "token": server.token,
            "repo": "me/desk",
            "texts": TEXTS,
        }
        printed = clean.run(CHILD, json.dumps(job), folder=tmp_path)
    [questions, *found] = json.loads(printed.split("ANSWERS", 1)[1])
    assert questions == ASKED
    for answers, expected in zip(found, Scorer(str(folder)).predict(TEXTS), strict=True):
        known = expected.answers
        assert answers["intent"]["probabilities"] == pytest.approx(known["intent"].probabilities, abs=1e-6)
        assert answers["urgency"]["score"] == pytest.approx(known["urgency"].expected_rank, abs=1e-6)
        assert answers["refund"]["noul"] == pytest.approx(known["refund"].probabilities["true"], abs=1e-6)


@pytest.mark.slow
def test_a_published_repo_was_verified(
    run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hf_server.serve() as server:
        hf_server.point_client(server, monkeypatch, cache=tmp_path / "hub")
        publish(run[0], repo_id="me/desk", onnx=True)
        rows = json.loads(server.files("me/desk")["parity.json"])["rows"]
    assert {row["artefact"] for row in rows} == {"full", "onnx"}
    assert all(row["agreement"] == 1.0 for row in rows)


def test_files_and_batches_have_an_answer_per_question(run: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = run
    source = write_records(tmp_path / "in.jsonl", [{"state": text} for text in TEXTS])
    output = tmp_path / "out.jsonl"
    assert launching.run(PREDICT, "--model", folder, "--input", source, "--output", output) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    scorer = BatchScorer(str(folder), probabilities=True)
    batch = scorer({"text": [*TEXTS, ""]})
    tables = [scorer(pa.table({"text": texts})) for texts in ([*TEXTS, ""], [""])]
    assert tables[0].schema == tables[1].schema  # also without any answer
    assert tables[0]["predicted_answers"].to_pylist() == batch["predicted_answers"]
    for number, expected in enumerate(Scorer(str(folder)).predict(TEXTS)):
        [column] = [value for name, value in rows[number].items() if name.endswith("answers")]
        assert column == expected.as_dict()["answers"]
        for found, (name, answer) in zip(
            batch["predicted_answers"][number], expected.answers.items(), strict=True
        ):
            assert found["question"] == name
            assert (found["label"], found["expected_rank"]) == (answer.label, answer.expected_rank)
            assert found["probabilities"] == pytest.approx([*answer.probabilities.values()])
    assert batch["predicted_answers"][3] is None
    assert batch["predicted_error"][3]


def test_training_continues_with_the_questions_of_the_model(run: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = run
    root = tmp_path / "more"
    root.mkdir()
    write_records(root / "train.jsonl", [record(number) for number in range(300, 340)])
    words = short(root, folder, tmp_path / "again", max_steps=2)
    launching.finished(RECIPE, words, tmp_path / "log")
    assert Scorer(str(tmp_path / "again")).config.questions == QUESTIONS


def test_a_stock_class_cannot_hold_several_questions(run: tuple[Path, str], tmp_path: Path) -> None:
    with raises_problem("model-unsupported", match="questions"):
        export_stock(str(run[0]), folder=tmp_path / "stock")
