"""The recipe of generative classifiers: the published preset on a tiny model, and its errors."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import launching
import pytest

from qwen_task_heads import LabelMap, LabelScorer, load_tokenizer
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts
from qwen_task_heads.training.sft_trainer import IGNORED, answer_dataset

RECIPE = launching.RECIPES / "sft_classify.py"
PRESET = launching.RECIPES / "configs" / "fudan_news_sft.yaml"
run, finished, refused = (partial(f, RECIPE) for f in (launching.run, launching.finished, launching.refused))
NAMES = ("sport", "trade", "the arts")


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write rows of text, candidates and answer as in the published system; one text is too long."""
    folder = tmp_path_factory.mktemp("news")
    for split, count in (("train", 48), ("dev", 12), ("test", 12)):
        rows = [
            {
                "text": f"{NAMES[n % 3]} in {split}, part {n}. " + "word " * (900 if n == 0 else n),
                "category": [*NAMES[n % 3 :], *NAMES[: n % 3]],
                "output": NAMES[n % 3],
            }
            for n in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def words(news: Path, folder: Path, **changes: Any) -> list[object]:
    short = {
        "config": PRESET,
        "model_name_or_path": "embedded",
        "dtype": "float32",
        "dataset_name": news,
        "output_dir": folder,
        "max_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-3,
    } | changes
    given = [word for name, value in short.items() for word in (f"--{name}", str(value))]
    return ["--use_cpu", "true", "--disable_tqdm", "true", *given]


@pytest.mark.slow
def test_the_published_preset_ends_in_an_accuracy_and_a_local_tracker_run(news: Path, tmp_path: Path) -> None:
    pytest.importorskip("swanlab", reason="swanlab is not installed")
    folder = tmp_path / "run"
    said = finished(words(news, folder, report_to="swanlab"), tmp_path / "log")
    assert "1 were truncated to fit into 384 tokens" in said
    assert "no answer was" in said
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert 0 <= metrics["test"]["this model"]["accuracy"]["value"] <= 1
    assert "TF-IDF, linear" in metrics["test"]
    assert any((folder / "swanlab").rglob("*"))
    adapter = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert (adapter["r"], adapter["lora_alpha"], len(adapter["target_modules"])) == (8, 32, 7)
    answer = LabelScorer.from_pretrained(str(folder)).predict(["trade in part 3"])[0]
    assert answer.label in NAMES


def test_truncation_keeps_answers_and_prompts() -> None:
    labels = LabelMap(NAMES)
    prompts = AnswerPrompts(load_tokenizer("embedded"), labels, model_type="qwen2", max_length=96)
    rows = [TextExample(text="word " * (10 * n + 1), target=n % 3) for n in range(60)]
    table, line = answer_dataset(rows, prompts=prompts)
    assert "were truncated" in line
    for n, row in enumerate(table):
        learned = [token for token in row["labels"] if token != IGNORED]
        assert learned == [*prompts.answers[n % 3], prompts.end]
        assert row["input_ids"][-len(learned) :] == learned
        assert len(row["input_ids"]) <= 96
        assert row["input_ids"][: len(prompts.prefix)] == prompts.prefix


def test_unsupported_data_and_options_are_refused(
    news: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    several = tmp_path / "several.jsonl"
    several.write_text("".join(json.dumps({"text": f"t {n}", "labels": ["a"]}) + "\n" for n in range(9)))
    folder = tmp_path / "run"
    assert "one label per text" in refused(capfd, *words(several, folder))
    outside = tmp_path / "outside.jsonl"
    rows = [{"text": f"t {n}", "category": ["a", "b"], "output": "c" if n == 4 else "a"} for n in range(9)]
    outside.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "outside.jsonl:5" in refused(capfd, *words(outside, folder))
    assert "max_length" in refused(capfd, *words(news, folder, max_length=20))
    assert "--lora_task_type" in refused(capfd, *words(news, folder, lora_task_type="SEQ_CLS"))
    unused = {
        "chat_template_path": "other.jinja",
        "freeze_embeddings": "true",
        "completion_only_loss": "false",
    }
    message = refused(capfd, *words(news, folder, **unused))
    assert all(f"--{name}: found" in message for name in unused)
    assert not folder.exists()  # errors leave no folder
