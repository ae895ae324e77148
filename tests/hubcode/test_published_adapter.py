"""An adapter as it lies on a hub: in a cache of snapshots, under the id of its repo, without a network.

On a hub the Auto classes open what `adapter_config.json` names as base, so the layout of a local
folder would give a bare backbone there; only a cache laid out like the hub client's shows it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from clean_process import CleanProcess
from equality import assert_same_model
from huggingface_hub import constants
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from qwen_task_heads import TitleScorer, adapter_config, build, load, merge, save

REPO = "me/ad"
# Without a network PEFT cannot ask the hub whether the vocabulary grew, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")
COMMITS = ("1" * 40, "2" * 40)
IDS = torch.randint(1, 5000, (3, 9), generator=torch.Generator().manual_seed(0))

CHILD = r"""
import sys
import torch
from huggingface_hub import constants
constants.HF_HUB_CACHE = sys.argv[1]
from equality import assert_same_logits
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

batch = load_file("batch.safetensors")
ids, logits = batch["ids"], batch["logits"]
for auto in (AutoModel, AutoModelForSequenceClassification):
    model = auto.from_pretrained("me/ad", trust_remote_code=True)
    assert type(model).__name__ == "TitleScorer", type(model)
    with torch.no_grad():
        assert_same_logits(model(input_ids=ids).logits, logits, auto)
# The recipe of PEFT, on the true base: the code is the adapter's, and the base has none.
config = AutoConfig.from_pretrained("me/ad", trust_remote_code=True)
base = AutoModelForSequenceClassification.from_pretrained(
    config.backbone_name_or_path, config=config, trust_remote_code=True
)
with torch.no_grad():
    found = PeftModel.from_pretrained(base, "me/ad").eval()(input_ids=ids).logits
assert_same_logits(found, logits)
# What is saved from here names the code beside it, not the repo that it came from.
model.save_pretrained("again")
again = AutoModel.from_pretrained("again", trust_remote_code=True)
with torch.no_grad():
    assert_same_logits(again(input_ids=ids).logits, logits)
"""


def _publish(cache: Path, repo: str, commit: str, folder: Path) -> None:
    """Lay a folder out as the hub client does after a download."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    shutil.copytree(folder, root / "snapshots" / commit)


@pytest.fixture(scope="module")
def published(
    bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """Give the cache with a base and an adapter of it, and the model with that adapter."""
    root = tmp_path_factory.mktemp("published")
    cache = root / "hub"
    _publish(cache, "base/qwen2", COMMITS[0], Path(bases["qwen2"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        model = build("base/qwen2")
    adapted = shake(get_peft_model(model, adapter_config(model, r=2)))
    with torch.no_grad():
        logits = adapted(input_ids=IDS).logits
    _publish(cache, REPO, COMMITS[1], save(adapted, tokenizer=tokenizer, folder=root / "ad", repo_id=REPO))
    save_file({"ids": IDS, "logits": logits}, root / "batch.safetensors")
    return cache, adapted


@pytest.fixture
def _in_cache(published: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(published[0]))


def test_the_adapter_names_its_own_repo_and_the_config_the_true_base(
    published: tuple[Path, Any],
) -> None:
    folder = published[0] / "models--me--ad" / "snapshots" / COMMITS[1]
    adapter = json.loads((folder / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (REPO, None)
    config = json.loads((folder / "config.json").read_text())
    assert (config["backbone_name_or_path"], config["backbone_revision"]) == ("base/qwen2", COMMITS[0])


@torch.no_grad()
@pytest.mark.usefixtures("_in_cache")
def test_both_auto_classes_open_the_scorer_and_not_the_backbone(published: tuple[Path, Any]) -> None:
    for opened in (
        AutoModel.from_pretrained(REPO),
        AutoModelForSequenceClassification.from_pretrained(REPO),
        AutoModel.from_pretrained(REPO, revision=COMMITS[1]),
        load(REPO),
        PeftModel.from_pretrained(build("base/qwen2"), REPO).eval(),
    ):
        inner = opened.get_base_model() if isinstance(opened, PeftModel) else opened
        assert type(inner) is TitleScorer
        assert_same_model(opened, published[1], input_ids=IDS)
    wanted = published[1](input_ids=IDS).logits
    assert (merge(REPO)(input_ids=IDS).logits - wanted).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.usefixtures("_in_cache")
def test_saved_again_to_a_folder_it_names_the_true_base(
    published: tuple[Path, Any], tokenizer: Any, tmp_path: Path
) -> None:
    load(REPO).save_pretrained(tmp_path / "stock")
    save(load(REPO), tokenizer=tokenizer, folder=tmp_path / "ours")
    for name in ("stock", "ours"):
        adapter = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("base/qwen2", COMMITS[0])
        assert_same_model(load(str(tmp_path / name)), published[1], input_ids=IDS)
    save(load(REPO), tokenizer=tokenizer, folder=tmp_path / "other", repo_id="me/other")
    adapter = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("me/other", None)


def test_a_process_without_the_package_opens_it_too(published: tuple[Path, Any], clean: CleanProcess) -> None:
    printed = clean.run(CHILD, published[0], folder=published[0].parent)
    assert "LOAD REPORT" not in printed + clean.logs[1].read_text()
