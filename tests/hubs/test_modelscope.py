"""ModelScope as a source: models, adapters and data sets from a server on loopback."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from equality import assert_same_logits, assert_same_model, assert_same_weights
from gguf_files import write_gguf
from loopback import no_waiting
from modelscope_server import Hub, serve
from peft import LoraConfig, get_peft_model
from problem_assertions import raises_problem
from transformers import AutoModelForSequenceClassification

from qwen_task_heads import LabelMap, LabelScorer, adapter_config, build, load, load_tokenizer, merge, save
from qwen_task_heads.data.text_readers import read_inputs
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.export.stock import export_stock
from qwen_task_heads.generators import base_of, load_generator
from qwen_task_heads.hubcode.saving_task_heads import SEE_CONFIG
from qwen_task_heads.hubs import resolve
from qwen_task_heads.sources.formats import _fetched_folder
from qwen_task_heads.tokenization.label_prompts import AnswerPrompts

modelscope_hub = pytest.importorskip("modelscope_hub", reason="modelscope is not installed")
# Without a network PEFT warns that it cannot compare the vocabulary with the base on the Hugging Face Hub.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")
BASE, ADAPTER = "Qwen/tiny", "me/adapter"
IDS = torch.randint(1, 5000, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bases: dict[str, str]) -> Iterator[Hub]:
    """A server with one backbone, with a separate cache and home."""
    _fetched_folder.cache_clear()
    with serve() as running:
        running.folders["models", BASE] = Path(bases["qwen2"])
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.endpoint)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
        yield running


def _downloads(hub: Hub) -> list[str]:
    return [line for line in hub.log if "FilePath=" in line]


@torch.no_grad()
def test_a_backbone_is_fetched_once_and_recorded_by_its_id_and_commit(hub: Hub, bases: Any) -> None:
    model = build(BASE, hub="modelscope", pooling="mean")
    assert model.config.backbone_name_or_path == BASE
    assert model.config.backbone_revision == hub.commit("models", BASE)
    assert model.config.backbone_hub == "modelscope"
    local = build(bases["qwen2"], pooling="mean")
    assert_same_weights(model.model, local.model)
    count = len(_downloads(hub))
    pinned = load_tokenizer(BASE, revision=model.config.backbone_revision, hub="modelscope")
    assert pinned("a text")["input_ids"] == load_tokenizer(bases["qwen2"])("a text")["input_ids"]
    assert len(_downloads(hub)) == count


@pytest.fixture
def adapter(hub: Hub, shake: Any, tokenizer: Any, tmp_path: Path) -> tuple[Path, Any]:
    """A folder with an adapter of the backbone on the server, and the saved model."""
    model = build(BASE, hub="modelscope", task="pooled_classifier", labels=["a", "b", "c"])
    adapted = shake(get_peft_model(model, adapter_config(model, r=2)))
    return save(adapted, tokenizer=tokenizer, folder=tmp_path / "adapter"), adapted


@torch.no_grad()
def test_the_base_of_an_adapter_is_fetched_from_there(
    hub: Hub, adapter: Any, tokenizer: Any, tmp_path: Path
) -> None:
    folder, adapted = adapter
    logits = adapted(input_ids=IDS).logits
    config = json.loads((folder / "config.json").read_text())
    assert (config["backbone_name_or_path"], config["backbone_hub"]) == (BASE, "modelscope")
    peft = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert (peft["base_model_name_or_path"], peft["revision"]) == (SEE_CONFIG, None)
    assert peft["target_modules"] == sorted(peft["target_modules"])
    assert str(tmp_path) not in (folder / "config.json").read_text() + json.dumps(peft)

    model = load(str(folder), hub="modelscope")
    assert_same_model(model, adapted, input_ids=IDS)
    again = save(model, tokenizer=tokenizer, folder=tmp_path / "again")
    name = "adapter/adapter_config.json"
    assert (again / name).read_text() == (folder / name).read_text()
    rewritten = json.loads((again / "config.json").read_text())
    assert_same_logits(rewritten["probe"].pop("logits"), config["probe"].pop("logits"))
    assert rewritten == config
    merged = merge(str(folder), hub="modelscope")
    assert (merged(input_ids=IDS).logits - logits).abs().max() <= 1e-5
    assert merged.config.backbone_name_or_path == BASE
    exported = export_stock(str(folder), hub="modelscope", folder=tmp_path / "stock")
    stock = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    assert (stock(input_ids=IDS).logits - logits).abs().max() <= 1e-5

    # Published there, it loads by its id, and its training can continue.
    hub.folders["models", ADAPTER] = save(model, tokenizer=tokenizer, folder=tmp_path / "up", repo_id=ADAPTER)
    assert_same_model(load(ADAPTER, hub="modelscope"), adapted, input_ids=IDS)
    continued = build(ADAPTER, hub="modelscope", task="pooled_classifier")
    assert (continued(input_ids=IDS).logits - logits).abs().max() <= 1e-5


def test_a_generative_classifier_has_its_labels_and_base(hub: Hub, shake: Any, tmp_path: Path) -> None:
    base, folder = base_of(BASE, hub="modelscope"), tmp_path / "writer"
    adapter = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"])
    model = shake(get_peft_model(load_generator(BASE, hub="modelscope"), adapter))
    tokenizer = load_tokenizer(BASE, hub="modelscope")
    labels = LabelMap(("sport", "foreign trade"))
    prompts = AnswerPrompts(tokenizer, labels, model_type="qwen2", max_length=90)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prompts.save(folder, base=base.as_dict(), length_normalized=True)
    wanted = LabelScorer(model.merge_and_unload(), prompts=prompts, length_normalized=True)
    hub.folders["models", "me/writer"] = folder
    found = LabelScorer.from_pretrained("me/writer", hub="modelscope")
    assert (found.prompts.labels.names, found.prompts.max_length) == (labels.names, 90)
    assert found.length_normalized
    texts = ["A match", "A ship"]
    assert torch.allclose(found.log_scores(texts), wanted.log_scores(texts), atol=1e-6, rtol=0)


def test_without_the_option_the_message_names_the_hub_of_the_base(adapter: Any) -> None:
    with raises_problem("base-changed", f"{adapter[0]}/config.json", match=r"'Qwen/tiny'.*hub='modelscope'"):
        load(str(adapter[0]))


def test_another_commit_of_the_base_is_an_error(hub: Hub, adapter: Any, bases: Any) -> None:
    pinned = hub.commit("models", BASE)
    hub.folders["models", BASE] = Path(bases["qwen3"])  # the server does not keep old commits
    with raises_problem("model-not-found", BASE, match="no such revision"):
        load(str(adapter[0]), hub="modelscope")
    assert any(pinned in line for line in hub.log)


@pytest.mark.parametrize(
    ("name", "revision", "named"),
    [("me/none", None, "no such repo"), (BASE, "v9", "no such revision")],
)
def test_a_missing_repo_or_revision_is_named(hub: Hub, name: str, revision: str | None, named: str) -> None:
    for call in (build, load, load_tokenizer, merge):
        with raises_problem("model-not-found", name, match=named):
            call(name, revision=revision, hub="modelscope")


def test_a_private_repo_uses_the_token_of_the_environment(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private.add(BASE)
    with raises_problem("hub-denied", BASE, match="access denied.*MODELSCOPE_API_TOKEN"):
        build(BASE, hub="modelscope")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", hub.token)
    assert build(BASE, hub="modelscope").config.backbone_name_or_path == BASE


def test_folders_and_the_embedded_backbone_need_no_request(hub: Hub, bases: Any) -> None:
    for name in (bases["qwen2"], "embedded"):
        model = build(name, hub="modelscope")
        assert (model.config.backbone_revision, model.config.backbone_hub) == (None, None)
    assert hub.log == []


def test_an_unknown_hub_and_a_missing_package_are_errors(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises_problem("option-value", "--hub", match="'gitee'.*huggingface, modelscope"):
        build(BASE, hub="gitee")
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with raises_problem("package-missing", match=r"pip install 'qwen-task-heads\[modelscope\]'"):
        build(BASE, hub="modelscope")


def test_the_cache_is_used_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = resolve(BASE, hub="modelscope")
    with serve() as gone:
        pass
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", gone.endpoint)
    no_waiting(monkeypatch)
    assert resolve(BASE, hub="modelscope") == fetched
    with raises_problem("hub-unreachable", "me/none"):
        resolve("me/none", hub="modelscope")


def test_a_gguf_file_is_fetched_by_the_client(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_TASK_HEADS_CACHE", str(tmp_path / "dequantized"))
    (tmp_path / "gguf").mkdir()
    file = write_gguf(tmp_path / "gguf" / "tiny.Q8_0.gguf")
    hub.folders["models", "me/gguf"] = file.parent
    model = build("me/gguf", gguf_file=file.name, hub="modelscope")
    assert_same_weights(model.model, build(str(file)).model)  # heads are random
    with raises_problem("model-not-found", "--gguf_file", match="other.gguf"):
        build("me/gguf", gguf_file="other.gguf", hub="modelscope")


def test_a_data_set_is_read_from_its_files(hub: Hub, tmp_path: Path) -> None:
    rows = {"train": ["one", "two"], "test": ["three"]}
    for name, top in (("me/flat", tmp_path / "flat"), ("me/deep", tmp_path / "deep")):
        data = top / "data" if name == "me/deep" else top
        data.mkdir(parents=True)
        for split, texts in rows.items():
            lines = [json.dumps({"text": text, "label": "a"}) for text in texts]
            (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        (top / "dataset_infos.json").write_text("{}")
        (top / "README.md").write_text("# a set")
        hub.folders["datasets", name] = top
        for split, texts in rows.items():
            for source, where in ((name, "modelscope"), (f"modelscope:{name}", "huggingface")):
                found = [item.text for _, item in read_inputs(source, split=split, hub=where)]
                assert found == texts
    assert len(_downloads(hub)) == 4  # each file once, and no other
    with pytest.raises(TaskHeadsError, match="several splits"):
        list(read_inputs("me/flat", hub="modelscope"))
    with raises_problem("path-not-found", "me/none"):
        list(read_inputs("me/none", hub="modelscope"))
