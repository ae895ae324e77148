"""Folders that a release saved load with equal logits in later releases, with and without the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from equality import assert_same_logits

from qwen_task_heads import LabelScorer, Scorer, load, load_tokenizer

GOLDEN = Path(__file__).parent / "golden"
RELEASES = [path for path in sorted(GOLDEN.iterdir()) if (path / "logits.json").is_file()]

WITHOUT = """
import json, sys
from equality import assert_same_logits
import torch
folder, wanted = sys.argv[1], json.load(open(sys.argv[2]))
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
rows = tokenizer(wanted["texts"], padding=True, return_tensors="pt")
with torch.no_grad():
    assert_same_logits(model(**rows).logits, wanted["full"])
"""


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest) -> Any:
    """The folders of a release, and their expected logits."""
    return request.param, json.loads((request.param / "logits.json").read_text(encoding="utf-8"))


def test_an_adapter_gives_the_scores_of_its_release(release) -> None:
    folder, wanted = release
    scores = Scorer(folder / "adapter", progress=False).score(wanted["texts"])
    assert_same_logits([[score] for score in scores], wanted["adapter"])


def test_a_full_model_gives_the_logits_of_its_release(release) -> None:
    folder, wanted = release
    assert_same_logits(Scorer(folder / "full", progress=False).logits(wanted["texts"]), wanted["full"])


def test_a_generative_classifier_gives_the_log_scores_of_its_release(release) -> None:
    folder, wanted = release
    scorer = LabelScorer.from_pretrained(folder / "generative")
    assert_same_logits(scorer.log_scores(wanted["texts"]), wanted["generative"])


def test_a_full_model_loads_without_the_package(release, clean) -> None:
    folder, _ = release
    code = "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n" + WITHOUT
    clean.run(code, folder / "full", folder / "logits.json", folder=folder)


@pytest.mark.parametrize("open_it", [load, load_tokenizer])
def test_a_folder_is_named_by_a_path_or_a_text(open_it, release) -> None:
    folder, _ = release
    assert type(open_it(folder / "full")) is type(open_it(str(folder / "full")))


def test_releases_are_found() -> None:
    assert RELEASES
