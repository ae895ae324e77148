"""An adapter from a hub: in a cache of snapshots, under the id of its repo, without a network.

On a hub the Auto classes load the base that an `adapter_config.json` at the root names, which only a cache in
the layout of the hub client shows. Adapters have it in a subfolder, those of version 0.1 at the root.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from clean_process import CleanProcess
from equality import assert_same_model
from huggingface_hub import constants
from peft import AutoPeftModelForSequenceClassification, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from qwen_task_heads import TitleScorer, adapter_config, build, load, merge, save
from qwen_task_heads.hubcode.saving_task_heads import SEE_CONFIG

REPO = "me/ad"
# Without a network PEFT warns that it cannot compare the vocabulary with the base.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")
COMMITS = ("1" * 40, "2" * 40)
IDS = torch.randint(1, 5000, (3, 9), generator=torch.Generator().manual_seed(0))

CHILD = r"""
import sys
import torch
from huggingface_hub import constants, snapshot_download
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
# The recipe of PEFT on the base: only the adapter repo has code.
config = AutoConfig.from_pretrained("me/ad", trust_remote_code=True)
base = AutoModelForSequenceClassification.from_pretrained(
    config.backbone_name_or_path, config=config, trust_remote_code=True
)
with torch.no_grad():
    # As a folder: offline, peft 0.21 appends the subfolder of a repo twice.
    adapter = snapshot_download("me/ad", cache_dir=sys.argv[1]) + "/" + sys.argv[2]
    found = PeftModel.from_pretrained(base, adapter).eval()(input_ids=ids).logits
assert_same_logits(found, logits)
# A config saved from here names the code next to it, not its source repo.
model.save_pretrained("again")
again = AutoModel.from_pretrained("again", trust_remote_code=True)
with torch.no_grad():
    assert_same_logits(again(input_ids=ids).logits, logits)
"""


def _publish(cache: Path, repo: str, commit: str, folder: Path) -> None:
    """Write a folder in the layout of the hub client's cache."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    shutil.copytree(folder, root / "snapshots" / commit)


@dataclass(frozen=True)
class Published:
    """A cache with a base and an adapter of it, the adapter's subfolder, and the saved model."""

    cache: Path
    subfolder: str
    model: Any

    @property
    def folder(self) -> Path:
        return self.cache / "models--me--ad" / "snapshots" / COMMITS[1]


def _as_version_0_1(folder: Path) -> Path:
    """Move the adapter to the root, with its own repo as base."""
    for file in (folder / "adapter").iterdir():
        file.rename(folder / file.name)
    (folder / "adapter").rmdir()
    (folder / "manifest.json").unlink()
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": REPO}))
    return folder


@pytest.fixture(scope="module", params=["adapter", ""], ids=["today", "version 0.1"])
def published(
    request: Any, bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path_factory: pytest.TempPathFactory
) -> Published:
    root = tmp_path_factory.mktemp("published")
    cache = root / "hub"
    _publish(cache, "base/qwen2", COMMITS[0], Path(bases["qwen2"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        model = build("base/qwen2")
    adapted = shake(get_peft_model(model, adapter_config(model, r=2)))
    with torch.no_grad():
        logits = adapted(input_ids=IDS).logits
    folder = save(adapted, tokenizer=tokenizer, folder=root / "ad")
    _publish(cache, REPO, COMMITS[1], folder if request.param else _as_version_0_1(folder))
    save_file({"ids": IDS, "logits": logits}, root / "batch.safetensors")
    return Published(cache, request.param, adapted)


@pytest.fixture
def _in_cache(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(published.cache))


def test_only_the_config_names_the_base(published: Published) -> None:
    folder = published.folder
    adapter = json.loads((folder / published.subfolder / "adapter_config.json").read_text())
    named = SEE_CONFIG if published.subfolder else REPO
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (named, None)
    config = json.loads((folder / "config.json").read_text())
    assert (config["backbone_name_or_path"], config["backbone_revision"]) == ("base/qwen2", COMMITS[0])


@torch.no_grad()
@pytest.mark.usefixtures("_in_cache")
def test_both_auto_classes_load_the_scorer_and_not_the_backbone(published: Published) -> None:
    for loaded in (
        AutoModel.from_pretrained(REPO),
        AutoModelForSequenceClassification.from_pretrained(REPO),
        AutoModel.from_pretrained(REPO, revision=COMMITS[1]),
        load(REPO),
        PeftModel.from_pretrained(build("base/qwen2"), published.folder / published.subfolder).eval(),
    ):
        inner = loaded.get_base_model() if isinstance(loaded, PeftModel) else loaded
        assert type(inner) is TitleScorer
        assert_same_model(loaded, published.model, input_ids=IDS)
    wanted = published.model(input_ids=IDS).logits
    assert (merge(REPO)(input_ids=IDS).logits - wanted).abs().max() <= 1e-5


@pytest.mark.usefixtures("_in_cache")
def test_the_subfolder_alone_does_not_load(published: Published) -> None:
    """Neither as a stock class with a random head, nor as the backbone."""
    folder = published.folder / "adapter"
    if not published.subfolder:
        return
    for auto in (AutoModel, AutoModelForSequenceClassification, AutoPeftModelForSequenceClassification):
        with pytest.raises((OSError, ValueError), match=r"config\.json"):
            auto.from_pretrained(folder)
        with pytest.raises((OSError, ValueError)):
            auto.from_pretrained(REPO, subfolder="adapter")


@torch.no_grad()
@pytest.mark.usefixtures("_in_cache")
def test_saved_again_it_has_the_current_layout(published: Published, tokenizer: Any, tmp_path: Path) -> None:
    load(REPO).save_pretrained(tmp_path / "stock")
    save(load(REPO), tokenizer=tokenizer, folder=tmp_path / "ours")
    for name in ("stock", "ours"):
        assert not (tmp_path / name / "adapter_config.json").exists()
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert (config["backbone_name_or_path"], config["backbone_revision"]) == ("base/qwen2", COMMITS[0])
        assert_same_model(load(str(tmp_path / name)), published.model, input_ids=IDS)


def test_a_process_without_the_package_loads_it_too(published: Published, clean: CleanProcess) -> None:
    printed = clean.run(CHILD, published.cache, published.subfolder, folder=published.cache.parent)
    assert "LOAD REPORT" not in printed + clean.logs[1].read_text()
