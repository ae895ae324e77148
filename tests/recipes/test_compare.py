"""The comparison recipe: four engines on the same rows, labels by name, its files and its errors."""

from __future__ import annotations

import importlib.util
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import launching
import pytest
from transformers import AutoModelForCausalLM, set_seed

from qwen_task_heads import LabelMap, LabelScorer, Scorer, build, load_tokenizer, save
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts
from qwen_task_heads.tokenization.templates import Template, bind_template, compile_template

RECIPE = launching.RECIPES / "compare.py"
refused = partial(launching.refused, RECIPE)
NAMES = ("health", "money", "sport")
TURNED = ("sport", "health", "money")  # the same names in the order of another run
WORDS = ("doctor sleep", "bank price", "goal match")


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / name).write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "data"
    for split, count in (("train", 60), ("dev", 9), ("test", 18)):
        rows = [
            {"text": f"{split} {WORDS[k % 3]} {k}", "label": NAMES[k % 3], "group": f"{split}{k // 2}"}
            for k in range(count)
        ]
        write(folder, f"{split}.jsonl", rows)
    return folder


def head(folder: Path, base: str, shake: Any, **config: Any) -> Path:
    set_seed(0)
    common = {
        "task": "pooled_classifier",
        "problem_type": "single_label_classification",
        "max_seq_length": 48,
    }
    model, tokenizer = build(base, **common | config), load_tokenizer(base)
    bind_template(tokenizer, model.config)
    return save(shake(model), tokenizer=tokenizer, folder=folder)


@pytest.fixture(scope="module")
def models(
    bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    found = {"head": head(root / "head", bases["qwen2"], shake, labels=TURNED), "sft": root / "sft"}
    AutoModelForCausalLM.from_pretrained(bases["qwen2"]).save_pretrained(found["sft"])
    tokenizer.save_pretrained(found["sft"])
    AnswerPrompts(tokenizer, LabelMap(TURNED), model_type="qwen2", max_length=96).save(found["sft"])
    metrics = {
        "train": {"seconds": 12.3, "device": "CPU (1 thread)", "processes": 1, "resumed": False},
        "data": {"train": {"rows": 60, "sha256": "0"}},
        "labels": list(NAMES),
    }
    (found["sft"] / "metrics.json").write_text(json.dumps(metrics))
    return found


@pytest.fixture(scope="module")
def compared(
    data: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Four engines on the same rows, on the command line."""
    folder = tmp_path_factory.mktemp("out") / "which"
    engines = [f"head={models['head']}", f"sft={models['sft']}", "zero_shot=embedded", "few_shot=embedded"]
    words = ["--dataset_name", data, "--output_dir", folder, "--latency_rows", 4, "--device", "cpu"]
    words += ["--shots", 4, "--shots_by", "similarity", "--engines", *engines]
    return folder, launching.finished(RECIPE, words, folder.parent / "log")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_engine_has_metrics_latency_and_cost(compared: tuple[Path, str]) -> None:
    folder, printed = compared
    content = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    engines = {one["name"]: one for one in content["engines"]}
    baselines = ["TF-IDF, linear", "the most frequent label", "majority of the nearest"]
    assert list(engines)[:3] == baselines
    assert [engines[name]["kind"] for name in list(engines)[3:]] == ["head", "sft", "zero_shot", "few_shot"]
    for name, one in engines.items():
        assert one["seconds_alone"]["n"] == (18 if name in baselines else 4)
        assert one["seconds_alone"]["median"] > 0
        assert one["texts_per_second"] > 0
        assert ("log_loss" in one["figures"]) == (name not in baselines)
        assert one["figures"]["accuracy"]["n"] == 18
        assert one["figures"]["accuracy"]["n_groups"] == 9
        assert name in printed
    assert len(content["pairs"]) == 21
    assert all(pair["mcnemar"] is None for pair in content["pairs"])  # rows share groups
    assert engines["majority of the nearest"]["figures"]["accuracy"]["value"] > 0.9
    costs = [one["training"] for one in content["engines"][3:]]
    assert [costs[0], costs[2], costs[3]] == [{}, None, None]
    assert costs[1] == {
        "seconds": 12.3,
        "device": "CPU (1 thread)",
        "rows": 60,
        "processes": 1,
        "resumed": False,
    }
    assert "12 s on CPU (1 thread)" in printed
    assert "not trained" in printed
    assert "was trained on other rows (60) than the given ones" in printed
    for line in content["advice"]:
        assert line in printed
    assert (folder / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    page = (folder / "comparison.md").read_text(encoding="utf-8")
    assert "| TF-IDF, linear |" in page
    assert "few-shot: the 4 nearest of train" in page


def test_predictions_equal_those_of_the_models_by_name(
    compared: tuple[Path, str], models: dict[str, Path]
) -> None:
    rows = rows_of(compared[0])
    texts = [row["text"] for row in rows]
    assert [row["true"] for row in rows] == [NAMES[k % 3] for k in range(18)]
    assert rows[0]["source"] == "test.jsonl:1"
    for kind, scorer in (
        ("head", Scorer(str(models["head"]))),
        ("sft", LabelScorer.from_pretrained(str(models["sft"]))),
    ):
        for row, wanted in zip(rows, scorer.predict(texts), strict=True):
            found = row["answers"][f"{kind}={models[kind]}"]
            assert found["label"] == wanted.label
            assert found["probability"] == pytest.approx(max(wanted.probabilities.values()), abs=2e-5)
    assert "probability" not in rows[0]["answers"]["TF-IDF, linear"]


def test_an_engine_that_fails_does_not_stop_the_others(
    data: Path, models: dict[str, Path], tmp_path: Path, capfd: Any
) -> None:
    torn = shutil.copytree(models["head"], tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"torn")
    cut = shutil.copytree(models["sft"], tmp_path / "cut")  # no manifest holds this one's files
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-9])
    words = ["--dataset_name", data, "--output_dir", tmp_path / "out", "--device", "cpu", "--latency_rows", 1]
    engines = [f"head={torn}", f"sft={cut}", f"sft={models['sft']}"]
    assert launching.run(RECIPE, *words, "--engines", *engines) == 2
    printed = capfd.readouterr()
    assert printed.err.count(f"error: head={torn} was not measured: ") == 1
    assert "Traceback" in printed.err  # of an unexpected error
    assert "error: --engines: " in printed.err
    assert f"Not measured, and so not in this advice: head={torn}, sft={cut}." in printed.out
    content = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert [one["kind"] for one in content["engines"]] == ["baseline", "baseline", "sft"]
    assert any(note.startswith(f"head={torn} was not measured: ") for note in content["notes"])

    refused(capfd, *words, "--output_dir", tmp_path / "none", "--engines", f"head={torn}")
    assert not (tmp_path / "none" / "comparison.json").exists()


def test_an_output_folder_is_refused_before_anything_is_measured(
    data: Path, models: dict[str, Path], compared: tuple[Path, str], tmp_path: Path, capfd: Any
) -> None:
    (tmp_path / "file").write_text("")
    words = ["--dataset_name", data, "--engines", f"head={models['head']}", "--output_dir"]
    assert str(tmp_path / "file") in refused(capfd, *words, tmp_path / "file")
    before = (compared[0] / "comparison.json").read_bytes()
    assert str(compared[0]) in refused(capfd, *words, compared[0])
    assert (compared[0] / "comparison.json").read_bytes() == before


def test_models_of_other_labels_or_kinds_are_refused_before_any_model_runs(
    data: Path, models: dict[str, Path], bases: dict[str, str], shake: Any, tmp_path: Path, capfd: Any
) -> None:
    other = head(tmp_path / "other", bases["qwen2"], shake, labels=("health", "money", "Sport", "war"))
    several = head(tmp_path / "several", bases["qwen2"], shake, labels=NAMES, problem_type="regression")
    engines = [f"head={other}", f"head={several}", f"head={models['sft']}", "sft=embedded"]
    engines += [f"zero_shot={models['sft']}"]
    words = ["--dataset_name", data, "--output_dir", tmp_path / "out", "--engines", *engines]
    message = refused(capfd, *words)
    for engine in (*engines, "sft=embedded"):
        assert f"{engine}: " in message
    assert "'Sport', 'war'" in message
    assert not (tmp_path / "out").exists()


def test_bad_entries_are_refused_in_one_error(data: Path, tmp_path: Path, capfd: Any) -> None:
    engines = ["heads=a", "sft=", "zero_shot=b", "zero_shot=b"]
    message = refused(capfd, "--dataset_name", data, "--output_dir", tmp_path / "out", "--engines", *engines)
    assert message.count("--engines: ") == 3
    assert "'zero_shot=b'" in message


def test_bad_options_are_refused_before_anything_is_read(tmp_path: Path, capfd: Any) -> None:
    words = ["--dataset_name", tmp_path / "none", "--output_dir", tmp_path / "out", "--engines", "few_shot=a"]
    words += ["--latency_rows", 0, "--max_rows", -3, "--batch_tokens", 0, "--max_length", 0, "--shots", 0]
    words += ["--calibrate", "--shots_by", "similarity", "--instruction", "One of {labels}:"]
    message = refused(capfd, *words)
    assert "7 problems" in message
    for name in ("latency_rows", "max_rows", "batch_tokens", "max_length", "shots"):
        assert f"--{name}: " in message


def test_descriptions_candidates_and_max_rows(tmp_path: Path, models: dict[str, Path], capfd: Any) -> None:
    candidates = [["health", "money"], ["money", "sport"], ["sport", "health"]]
    for split, count in (("train", 30), ("test", 12)):
        rows = [
            {"text": f"{WORDS[k % 3]} {split} {k}", "category": candidates[k % 3], "output": NAMES[k % 3]}
            for k in range(count)
        ]
        write(tmp_path / "data", f"{split}.jsonl", rows)
    (tmp_path / "labels.yaml").write_text("".join(f"- {{name: {name}, description: x}}\n" for name in NAMES))
    words = ["--dataset_name", tmp_path / "data", "--labels", tmp_path / "labels.yaml", "--max_rows", 7]
    words += [
        "--output_dir",
        tmp_path / "out",
        "--device",
        "cpu",
        "--latency_rows",
        2,
        "--figure",
        "macro_f1",
    ]
    words += ["--engines", f"head={models['head']}", "zero_shot=embedded", "few_shot=embedded", "--calibrate"]
    capfd.readouterr()
    assert launching.run(RECIPE, *words) == 0
    printed = capfd.readouterr().out
    assert "measured on 7 of 12 rows of test" in printed
    assert "few-shot: 8 examples from train" in printed
    assert "7 of 7 rows of test have candidate labels (2 of 3 on average)" in printed
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 7
    for row in rows:
        assert len(row["answers"]) == 5
        for answer in row["answers"].values():  # of baselines too
            assert answer["label"] in candidates[NAMES.index(row["true"])]


@pytest.fixture(scope="module")
def titles(bases: dict[str, str], shake: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved title scorer, and pairs whose test set is a random part of their experiments."""
    root = tmp_path_factory.mktemp("titles")
    model, tokenizer = build(bases["qwen2"], pooling="mean"), load_tokenizer(bases["qwen2"])
    compile_template(tokenizer, template=Template(), model_type="qwen2", max_length=48)
    folder = save(shake(model), tokenizer=tokenizer, folder=root / "scorer")
    rows = [
        {
            "chosen": f"Good {n // 3} title",
            "rejected": f"{['Poor', 'Bad', 'Dull'][n % 3]} {n // 3}",
            "test_id": f"t{n // 3}",
        }
        for n in range(120)
    ]
    for split, part in (("train", rows[0::2]), ("test", rows[1::2])):
        write(root / "pairs", f"{split}.jsonl", part)
    return {"scorer": folder, "pairs": root / "pairs"}


def test_title_engines_on_pairs_with_a_verdict_and_the_leak_first(
    titles: dict[str, Path], tmp_path: Path, capfd: Any
) -> None:
    words = ["--dataset_name", titles["pairs"], "--output_dir", tmp_path / "out", "--device", "cpu"]
    words += ["--latency_rows", 2, "--engines", f"scorer={titles['scorer']}", "zero_shot=embedded"]
    capfd.readouterr()
    assert launching.run(RECIPE, *words) == 0
    printed = capfd.readouterr().out
    assert printed.startswith("LEAK: ")
    content = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert content["task"] == "titles"
    engines = {one["name"]: one for one in content["engines"]}
    names = ["the longer title wins", "TF-IDF Bradley-Terry", "lookup of train rows"]
    assert list(engines) == [*names, f"scorer={titles['scorer']}", "zero_shot=embedded"]
    assert engines["lookup of train rows"]["figures"]["accuracy"]["value"] > 0.9
    pairs = [json.loads(line) for line in (titles["pairs"] / "test.jsonl").read_text().splitlines()]
    own = Scorer(str(titles["scorer"]))
    wins = [own.prefer(pair["chosen"], pair["rejected"]) for pair in pairs]
    value = engines[f"scorer={titles['scorer']}"]["figures"]["accuracy"]["value"]
    assert value == pytest.approx(sum(win > 0.5 for win in wins) / len(wins), abs=0.02)
    rows = rows_of(tmp_path / "out")
    for row, win in zip(rows, wins, strict=True):
        found = row["answers"][f"scorer={titles['scorer']}"]
        assert found["p_preferred"] == pytest.approx(win, abs=2e-5)
    [verdict] = content["verdicts"]
    assert verdict["engine"] == f"scorer={titles['scorer']}"
    assert verdict["word"] == "below"
    assert "The best baseline on test is" in printed


def test_the_task_is_inferred_from_engines_and_columns_or_given(
    titles: dict[str, Path], data: Path, models: dict[str, Path], tmp_path: Path, capfd: Any
) -> None:
    words = ["--output_dir", tmp_path / "out", "--device", "cpu", "--latency_rows", 1, "--max_rows", 6]
    asked = ["--engines", "zero_shot=embedded"]
    assert launching.run(RECIPE, *words, "--dataset_name", titles["pairs"], *asked) == 0
    content = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert content["task"] == "titles"
    assert content["verdicts"] == []  # nothing was trained
    message = refused(
        capfd, *words, "--dataset_name", titles["pairs"], "--labels", "l.yaml", "--figure", "macro_f1",
        "--engines", f"scorer={titles['scorer']}", f"head={models['head']}",
    )  # fmt: skip
    for where in (f"head={models['head']}", "--labels", "--figure"):
        assert f"{where}: " in message
    message = refused(capfd, *words, "--task", "texts", "--dataset_name", data, "--engines", "scorer=x")
    assert "scorer=x: " in message
    write(tmp_path / "neither", "train.jsonl", [{"a": 1}, {"a": 2}])
    message = refused(capfd, *words, "--dataset_name", tmp_path / "neither", *asked)
    assert "--task" in message


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is not None, reason="sentence-transformers is there"
)
def test_embeddings_without_their_package_are_refused_before_anything_runs(
    titles: dict[str, Path], data: Path, tmp_path: Path, capfd: Any
) -> None:
    for name in (titles["pairs"], data):
        words = ["--dataset_name", name, "--output_dir", tmp_path / "out", "--engines", "embeddings=embedded"]
        assert 'pip install "qwen-task-heads[embeddings]"' in refused(capfd, *words)
    assert not (tmp_path / "out").exists()
