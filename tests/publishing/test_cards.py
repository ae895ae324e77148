"""Cards of published repos: rendered from the record of a run, or kept if they were edited."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from qwen_task_heads import LabelMap, bind_template, build, load, load_tokenizer
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.text_datasets import TextSets
from qwen_task_heads.publishing.publish import publish
from qwen_task_heads.reports.card_facts import CardFacts
from qwen_task_heads.reports.finishing import FinishedTraining
from qwen_task_heads.reports.records import RunRecord
from qwen_task_heads.reports.text_report import finish_texts

LABELS = LabelMap(("sport", "trade"))


@pytest.fixture(scope="module")
def run(bases: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    model: Any = build(bases["qwen2"], task="pooled_classifier", labels=LABELS.names)
    tokenizer = load_tokenizer(bases["qwen2"])
    bind_template(tokenizer, model.config)
    rows = {
        split: [TextExample(text=f"{split} {n}", target=n % 2, source="a.jsonl:1") for n in range(12)]
        for split in ("train", "dev", "test")
    }
    lines = ["train: 12 rows", "train:   a.jsonl:3: found 'My secret'; left out"]
    kind = {"problem_type": "single_label_classification", "labels": LABELS, "dev_was_cut": False}
    finished = FinishedTraining(
        sets=TextSets(**rows, lines=lines, **kind),
        settings={"dataset_name": "a.jsonl", "language": ["en"]},
        log_history=[{"loss": 0.7, "step": 1}],
        seconds=1.0,
        seed=3,
        backbone=bases["qwen2"],
    )
    finish_texts(model, tokenizer=tokenizer, folder=folder, run=finished)
    return folder


def card_of(folder: Path) -> tuple[str, dict[str, Any]]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    return text, ModelCard(text).data.to_dict()


def test_the_card_is_rendered_for_the_repo(run: Path, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    options: dict[str, Any] = {"verify": False, "facts": CardFacts(license="mit")}
    publish(run, repo_id="me/t", revision="v9", dry_run=staged, **options)
    text, data = card_of(staged)
    assert (data["license"], data["language"], data["model-index"][0]["name"]) == ("mit", ["en"], "me/t")
    assert 'from_pretrained("me/t", revision="v9", trust_remote_code=True)' in text
    assert "# me/t\n" in text
    assert "Licence: mit." in text
    assert "qth serve --model me/t --revision v9\n" in text
    assert "vllm serve me/t " in text
    assert "errors.md" not in text
    assert "![Confusion](confusion.png)" in text
    manifest = json.loads((staged / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["license"] == "mit"
    assert "My secret" not in json.dumps(manifest) + text
    # The staged folder has the record, so that it can be published under another name.
    publish(staged, repo_id="you/u", verify=False, dry_run=tmp_path / "again")
    again, _ = card_of(tmp_path / "again")
    named = text.replace("me/t", "you/u").replace(', revision="v9"', "").replace(" --revision v9", "")
    assert again == named


def test_an_edited_card_is_published_with_its_text(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    text, _ = card_of(folder)
    (folder / "README.md").write_text(text + "\nMy own words.\n", encoding="utf-8")
    facts = CardFacts(license="mit", citation="@misc{mine}")
    done = publish(folder, repo_id="me/t", facts=facts, verify=False, dry_run=tmp_path / "staged")
    found, data = card_of(tmp_path / "staged")
    assert "README.md was edited after the run" in " ".join(done.notes)
    assert (data["license"], data["model-index"][0]["name"]) == ("mit", "me/t")
    for part in ("My own words.", "@misc{mine}", "Licence: mit.", 'from_pretrained("me/t"'):
        assert part in found
    assert RunRecord.read(tmp_path / "staged") is None
    assert "run" not in json.loads((tmp_path / "staged" / "manifest.json").read_text(encoding="utf-8"))


def test_a_copy_of_the_weights_keeps_the_record(run: Path, tmp_path: Path) -> None:
    load(str(run)).save_pretrained(tmp_path / "copy")
    assert RunRecord.read(tmp_path / "copy") == RunRecord.read(run)
    other = load(str(run))
    with torch.no_grad():
        next(other.score.parameters()).mul_(2)
    other.save_pretrained(tmp_path / "other")
    assert RunRecord.read(tmp_path / "other") is None
    assert "Not evaluated." in card_of(tmp_path / "other")[0]


def test_a_folder_without_a_card_is_published_without_one(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    load(str(run)).save_pretrained(folder)
    (folder / "README.md").unlink()
    for name in ("manifest.json", "metrics.json"):
        (folder / name).unlink()
    publish(folder, repo_id="me/t", verify=False, dry_run=tmp_path / "staged")
    assert not (tmp_path / "staged" / "README.md").exists()
