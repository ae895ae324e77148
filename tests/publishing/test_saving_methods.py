"""Tests that every method of saving, pushing or uploading gives a repo that loads without the package.

Models are trained for two steps. Each method of pushing creates a repo on a loopback hub. A process that
cannot import the package loads all of them from an empty cache, through the client of the hub.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hf_server
import modelscope_server
import pytest
import torch
from clean_process import CleanProcess
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel, TrainingArguments

from qwen_task_heads import (
    ClassifierConfig,
    ClassifierTrainer,
    TaskHeadsError,
    Template,
    TitleTrainer,
    adapter_config,
    bind_template,
    build,
    compile_template,
    load,
    load_tokenizer,
    merge,
    save,
)
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.hubcode.hashes_task_heads import write_manifest
from qwen_task_heads.publishing.publish import publish
from qwen_task_heads.reports.card_facts import CardFacts
from qwen_task_heads.tokenization.collators import pair_dataset, text_dataset
from qwen_task_heads.training.backbone_defaults import rates_for
from qwen_task_heads.training.title_arguments import TitleConfig

pytest.importorskip("modelscope_hub", reason="modelscope is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
BASE = "base/tiny"
TEXTS = ["A plain title", "短い題", "One weird trick that cuts the cost of a long day in half"]
LABELS = ["world", "sport", "trade"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {},
    "dora": {"dora": True},
    "head": {"head_only": True},
}
# Both tasks with full weights and with an adapter, and each kind of adapter with one task. Two of these cover
# both tasks and kinds and always run; the others are slow tests.
DAILY = (("titles", "lora"), ("classifier", "full"))
KINDS = [*DAILY, ("titles", "full"), ("titles", "head"), ("classifier", "lora"), ("classifier", "dora")]
METHODS: dict[str, Callable[[Trained, str], None]] = {}
Method = Callable[["Trained", str], None]

CHILD = r"""
import json, os, sys
from contextlib import nullcontext
job = json.loads(sys.argv[1])
os.environ.update(job["environment"])
from huggingface_hub import constants
if job["hub"] == "huggingface":
    constants.ENDPOINT, constants.HF_HUB_CACHE = job["endpoint"], job["cache"]
    constants.HUGGINGFACE_CO_URL_TEMPLATE = job["endpoint"] + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE = True, False
    context = nullcontext
else:
    from modelscope.utils.hf_util.patcher import patch_context as context
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
wanted = torch.tensor(job["logits"])
found = {}
for repo in job["repos"]:
    with context():
        tokenizer = AutoTokenizer.from_pretrained(repo, trust_remote_code=False)
        for auto in (AutoModel, AutoModelForSequenceClassification):
            model = auto.from_pretrained(repo, trust_remote_code=True)
    with torch.no_grad():
        logits = model(**tokenizer(job["texts"], padding=True, return_tensors="pt")).logits
    found[repo] = {
        "class": type(model).__name__,
        "difference": float((logits - wanted).abs().max() / wanted.abs().max()),
        "labels": list(model.config.id2label.values()),
        "pads": [model.config.get_text_config().pad_token_id, tokenizer.pad_token_id],
    }
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Trained:
    """A trained model, its tokenizer, and its trainer."""

    trainer: Any
    tokenizer: Any
    folder: Path
    server: Any
    logits: list[list[float]]

    @property
    def model(self) -> Any:
        return self.trainer.model


def method(function: Method) -> Method:
    METHODS[function.__name__] = function
    return function


def upload(folder: Path, repo: str) -> None:
    api = HfApi()
    api.create_repo(repo, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=folder)


@method
def model_push_to_hub(it: Trained, repo: str) -> None:
    it.model.push_to_hub(repo)
    it.tokenizer.push_to_hub(repo)


@method
def tokenizer_first(it: Trained, repo: str) -> None:
    it.tokenizer.push_to_hub(repo, private=True)
    it.model.push_to_hub(repo.split("/")[1], private=True, commit_message="A model", tags=["mine"])


@method
def save_pretrained_and_upload(it: Trained, repo: str) -> None:
    it.model.save_pretrained(it.folder / "saved")
    it.tokenizer.save_pretrained(it.folder / "saved")
    upload(it.folder / "saved", repo)


@method
def save_pretrained_with_push(it: Trained, repo: str) -> None:
    if isinstance(it.model, PreTrainedModel):  # PEFT's has no such argument
        it.model.save_pretrained(it.folder / "pushed", push_to_hub=True, repo_id=repo)
    else:
        it.model.push_to_hub(repo)


@method
def save_and_upload(it: Trained, repo: str) -> None:
    upload(save(it.model, tokenizer=it.tokenizer, folder=it.folder / "ours"), repo)


@method
def save_model_and_upload(it: Trained, repo: str) -> None:
    it.trainer.save_model(str(it.folder / "by trainer"))
    upload(it.folder / "by trainer", repo)


@method
def save_model_moved_and_uploaded(it: Trained, repo: str) -> None:
    it.trainer.save_model(str(it.folder / "here"))
    shutil.copytree(it.folder / "here", it.folder / "there")
    shutil.rmtree(it.folder / "here")
    upload(it.folder / "there", repo)


@method
def create_model_card_and_upload(it: Trained, repo: str) -> None:
    folder = Path(it.trainer.args.output_dir)
    it.trainer.save_model()
    it.trainer.create_model_card(license="mit", language="en", tags="mine")
    (folder / "checkpoint-2").mkdir()
    for name in ("predictions.jsonl", "errors.md", "checkpoint-2/optimizer.pt"):  # as a run leaves them
        (folder / name).write_text("a text of the data")
    upload(folder, repo)


@method
def trainer_push_to_hub(it: Trained, repo: str) -> None:
    it.trainer.hub_model_id = repo
    it.trainer.push_to_hub(license="mit")


@method
def loaded_from_a_folder(it: Trained, repo: str) -> None:
    folder = save(it.model, tokenizer=it.tokenizer, folder=it.folder / "to load")
    load(str(folder)).push_to_hub(repo)


@method
def loaded_from_a_repo(it: Trained, repo: str) -> None:
    upload(save(it.model, tokenizer=it.tokenizer, folder=it.folder / "first"), f"{repo}-first")
    AutoModelForSequenceClassification.from_pretrained(f"{repo}-first").push_to_hub(repo)


@pytest.fixture(scope="module")
def place(request: Any, tmp_path_factory: pytest.TempPathFactory, bases: Any) -> Iterator[tuple[str, Any]]:
    """A hub with the tiny base, and the clients of this process configured for it."""
    module = {"huggingface": hf_server, "modelscope": modelscope_server}[request.param]
    with module.serve() as server, pytest.MonkeyPatch.context() as patch:
        module.point_client(server, patch, cache=tmp_path_factory.mktemp("hub") / "cache")
        server.put(BASE, {path.name: path.read_bytes() for path in Path(bases["qwen2"]).iterdir()})
        yield request.param, server


def train(
    place: tuple[str, Any], folder: Path, task: str, kind: str, *, head: str = "mlp", **changes: Any
) -> Trained:
    """Train a model for two steps, with an evaluation of its last weights."""
    torch.manual_seed(0)
    sizes = {"head": "mlp", "head_sizes": [8]} if head == "mlp" else {}
    tokenizer = load_tokenizer(BASE, hub=place[0])
    titles = task == "titles"
    labels = {} if titles else {"task": "pooled_classifier", "labels": LABELS}
    model = build(BASE, hub=place[0], **labels, **sizes)
    adapter = None if kind == "full" else adapter_config(model, r=2, **ADAPTERS[kind])
    known = {
        "output_dir": str(folder / "run"),
        "max_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "learning_rate": 0.02,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    if titles:
        compile_template(tokenizer, template=Template(), model_type="qwen2", max_length=32)
        rows = [PairExample(chosen=f"Good way {i}", rejected=f"A bad one {i}") for i in range(8)]
        data, _ = pair_dataset(rows, tokenizer=tokenizer, max_length=32)
        args: Any = TitleConfig(**{**known, "load_best_model_at_end": False, **changes})
        trainer: Any = TitleTrainer
    else:
        bind_template(tokenizer, model.config, template=Template(), pairs=False)
        texts = [TextExample(text=f"{LABELS[i % 3]} news {i}", target=i % 3) for i in range(9)]
        data, _ = text_dataset(texts, tokenizer=tokenizer, config=model.config, num_labels=3)
        args, trainer = TrainingArguments(**{**known, **changes}), ClassifierTrainer
    trainer = trainer(
        model,
        args=args,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    trainer.train()
    trained = trainer.model.eval()
    with torch.no_grad():
        logits = trained(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    return Trained(trainer, tokenizer, folder, place[1], logits.tolist())


def open_without_the_package(
    repos: list[str], it: Trained, hub: str, clean: CleanProcess, folder: Path
) -> dict[str, dict[str, Any]]:
    """Load repos from an empty cache in a process without the package, and describe the models."""
    folder.mkdir(parents=True, exist_ok=True)
    server, cache = it.server, str(folder / "empty")
    environment = {
        "HF_TOKEN": server.token,
        "MODELSCOPE_API_TOKEN": server.token,
        "MODELSCOPE_CACHE": cache,
        "MODELSCOPE_ENDPOINT": server.endpoint,
        "MODELSCOPE_HOME": str(folder / "home"),
    }
    job = {
        "hub": hub,
        "endpoint": server.endpoint,
        "cache": cache,
        "repos": repos,
        "texts": TEXTS,
        "logits": it.logits,
        "environment": environment,
    }
    return json.loads(clean.run(CHILD, json.dumps(job), folder=folder).splitlines()[-1])


def check(found: dict[str, Any], it: Trained, task: str) -> None:
    assert found["class"] == ("TitleScorer" if task == "titles" else "PooledClassifier")
    assert found["difference"] <= 1e-6
    assert found["labels"] == (["score"] if task == "titles" else LABELS)
    assert found["pads"] == [it.tokenizer.pad_token_id] * 2


def check_card(text: str, *, repo: str | None = None) -> None:
    """Check that a card has no text of the templates of transformers, trl or PEFT, and no other repo."""
    for placeholder in ("more information needed", "[optional]", "path/to", "none]"):
        assert placeholder not in text.lower()
    card = ModelCard(text)
    assert "qwen-task-heads" in card.data.tags
    assert card.data.base_model == BASE
    if repo is not None:
        assert f'from_pretrained("{repo}", trust_remote_code=True)' in text


@pytest.mark.usefixtures("quick_proof")
@pytest.mark.parametrize("place", ["huggingface"], indirect=True)
@pytest.mark.parametrize(
    ("task", "kind"),
    [pytest.param(*pair, marks=[] if pair in DAILY else pytest.mark.slow) for pair in KINDS],
)
def test_every_method_gives_a_repo_that_loads(
    place: tuple[str, Any], clean: CleanProcess, tmp_path: Path, task: str, kind: str
) -> None:
    it, methods = train(place, tmp_path, task, kind), list(METHODS)
    if (task, kind) in DAILY:  # each of the two takes half of the methods; the slow tests take all
        methods = methods[DAILY.index((task, kind)) :: 2]
    repos = {f"me/{task}-{kind}-{name.replace('_', '-')}": METHODS[name] for name in methods}
    for repo, push in repos.items():
        push(it, repo)
    opened = open_without_the_package(list(repos), it, place[0], clean, tmp_path / "reader")
    for repo in repos:
        check(opened[repo], it, task)
        there = it.server.files(repo)
        assert not [name for name in there if name.endswith((".bin", "training_args.bin"))]
        assert "adapter_config.json" not in there
        assert not [name for name in there if name.startswith(("predictions", "errors.md", "checkpoint"))]
        manifest = json.loads(there["manifest.json"])
        assert {name for name in there if name.endswith(".safetensors")} <= manifest["files"].keys()
        by_hand = repo.endswith(("upload", "uploaded"))
        card = there["README.md"].decode()
        check_card(card, repo=None if by_hand else repo)
        measured = "| accuracy |" if task == "titles" else "| loss |"
        assert measured in card or "loaded" in repo  # a loaded model was not evaluated in this process
        assert load(repo).config.model_type in ("title_scorer", "pooled_classifier")
    if "trainer_push_to_hub" in methods:
        pushed = it.server.files(f"me/{task}-{kind}-trainer-push-to-hub")
        assert json.loads(pushed["parity.json"])["rows"]  # compared with the trained model


# Every strategy with an adapter; with full weights those that push the least and the most.
STRATEGIES = ("checkpoint", "end", "every_save", "all_checkpoints")
PUSHED = [("titles", "lora", strategy) for strategy in STRATEGIES]
PUSHED += [("classifier", "full", strategy) for strategy in ("end", "all_checkpoints")]


@pytest.mark.usefixtures("quick_proof")
@pytest.mark.parametrize("place", ["huggingface"], indirect=True)
@pytest.mark.parametrize(
    ("task", "kind", "strategy"),
    [pytest.param(*it, marks=[] if it == PUSHED[0] else pytest.mark.slow) for it in PUSHED],
)
def test_training_arguments_that_push(
    place: tuple[str, Any], clean: CleanProcess, tmp_path: Path, task: str, kind: str, strategy: str
) -> None:
    repo = f"me/{task}-{strategy.replace('_', '-')}"
    it = train(
        place,
        tmp_path,
        task,
        kind,
        push_to_hub=True,
        hub_model_id=repo,
        hub_strategy=strategy,
        hub_always_push=True,
        save_strategy="steps",
        save_steps=1,
    )
    before = it.server.files(repo)
    assert ("config.json" in before) == (strategy != "end")
    if before:  # pushed during training: complete, with the metrics of that step
        assert "draft" not in json.loads(before["manifest.json"])
        assert ("| accuracy |" if task == "titles" else "| loss |") in before["README.md"].decode()
        check_card(before["README.md"].decode(), repo=repo)
    it.trainer.save_model()  # which pushes
    there = it.server.files(repo)
    assert not [name for name in there if "training_args" in name]
    folders = {name.split("/")[0] for name in there if "checkpoint" in name}
    assert (
        folders
        == {
            "end": set(),
            "every_save": set(),
            "checkpoint": {"last-checkpoint"},
            "all_checkpoints": {"checkpoint-1", "checkpoint-2"},
        }[strategy]
    )
    check(open_without_the_package([repo], it, place[0], clean, tmp_path / "reader")[repo], it, task)
    check_card(there["README.md"].decode(), repo=repo)
    for folder in folders:  # a checkpoint loads with its own class, or raises
        try:
            opened = AutoModelForSequenceClassification.from_pretrained(repo, subfolder=folder)
        except (OSError, ValueError):
            continue
        assert type(opened).__name__ in ("TitleScorer", "PooledClassifier")


@pytest.mark.parametrize("place", ["modelscope"], indirect=True)
@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("classifier", "lora"),
        pytest.param("classifier", "head", marks=pytest.mark.slow),
        pytest.param("titles", "full", marks=pytest.mark.slow),
        pytest.param("titles", "dora", marks=pytest.mark.slow),
    ],
)
def test_a_folder_uploaded_to_modelscope_loads(
    place: tuple[str, Any], clean: CleanProcess, tmp_path: Path, task: str, kind: str
) -> None:
    """By `upload_folder` of its client, and by `push_to_hub` of the model inside its context."""
    from modelscope.hub.api import HubApi
    from modelscope.utils.hf_util.patcher import patch_context

    it = train(place, tmp_path, task, kind)
    it.trainer.save_model(str(tmp_path / "saved"))
    repos = [f"me/{task}-{kind}-{name}" for name in ("by-hand", "pushed")]
    api = HubApi()
    api.create_model(repos[0], visibility=5)
    api.upload_folder(repo_id=repos[0], folder_path=str(tmp_path / "saved"))
    with patch_context():
        it.model.push_to_hub(repos[1])
    opened = open_without_the_package(repos, it, place[0], clean, tmp_path / "reader")
    for repo in repos:
        check(opened[repo], it, task)
        there = it.server.files(repo)
        assert not [name for name in there if "training_args" in name]
        check_card(there["README.md"].decode())


# Errors


@pytest.mark.usefixtures("quick_proof")
@pytest.mark.parametrize("place", ["huggingface"], indirect=True)
def test_push_to_hub_raises_the_errors_of_publish(
    place: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = place[1]
    titles, texts = (train(place, tmp_path / task, task, "lora") for task in ("titles", "classifier"))
    titles.model.push_to_hub("me/taken")
    before = server.files("me/taken")
    for repo in ("me/taken", "you/other"):
        for push in (
            texts.model.push_to_hub,
            load(str(save(texts.model, tokenizer=texts.tokenizer, folder=tmp_path / repo))).push_to_hub,
        ):
            with pytest.raises(TaskHeadsError) as caught:
                push(repo)
            assert caught.value.problems[0].where == repo
        texts.trainer.hub_model_id = repo
        with pytest.raises(TaskHeadsError):
            texts.trainer.push_to_hub()
    assert server.files("me/taken") == before
    assert "you/other" not in server.repos
    with pytest.raises(TaskHeadsError):  # before the first step
        train(place, tmp_path / "late", "classifier", "lora", push_to_hub=True, hub_model_id="me/taken")
    monkeypatch.delenv("HF_TOKEN")
    for push in (texts.model.push_to_hub, titles.trainer.push_to_hub):
        with pytest.raises(TaskHeadsError) as caught:
            push(*(["me/new"] if push == texts.model.push_to_hub else []))
        assert caught.value.problems[0].code == "hub-denied"
    assert "me/new" not in server.repos


def test_an_adapter_of_a_folder_of_this_machine_is_not_pushed(bases: dict[str, str], shake: Any) -> None:
    model = build(bases["qwen2"])
    adapted = shake(get_peft_model(model, adapter_config(model, r=2)))
    with pytest.raises(TaskHeadsError):
        adapted.push_to_hub("me/local")


# Folders


def test_a_model_with_a_plain_lora_config_is_saved_in_the_layout_of_this_library(
    bases: dict[str, str], shake: Any, tmp_path: Path
) -> None:
    """`get_peft_model` with a plain `LoraConfig`, as trl creates it from its options."""
    model = build(bases["qwen2"], head="mlp", head_sizes=[8])
    plain = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], modules_to_save=["score"])
    adapted = shake(get_peft_model(model, plain))
    adapted.save_pretrained(tmp_path / "saved")
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        wanted = adapted(input_ids=ids).logits
        for opened in (load(str(tmp_path / "saved")), AutoModel.from_pretrained(tmp_path / "saved")):
            assert (opened(input_ids=ids).logits - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@pytest.mark.slow
def test_peft_imported_after_the_model_is_built_wraps_it(bases: dict[str, str], tmp_path: Path) -> None:
    """Run in a subprocess, because this process has imported PEFT already."""
    code = (
        "import sys\n"
        "from qwen_task_heads import build, load\n"
        f"model = build({bases['qwen2']!r})\n"
        "assert 'peft' not in sys.modules\n"
        "from peft import LoraConfig, get_peft_model\n"
        "config = LoraConfig(task_type='SEQ_CLS', target_modules=['q_proj'], modules_to_save=['score'])\n"
        f"get_peft_model(model, config).save_pretrained({str(tmp_path / 'saved')!r})\n"
        f"load({str(tmp_path / 'saved')!r})\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    assert (tmp_path / "saved" / "adapter" / "adapter_config.json").is_file()


def test_an_adapter_on_a_trained_model_is_refused(bases: dict[str, str], shake: Any, tmp_path: Path) -> None:
    """The adapter config could name only the plain backbone, which has other weights."""
    shake(build(bases["qwen2"])).save_pretrained(tmp_path / "trained")
    plain = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], modules_to_save=["score"])
    adapted = get_peft_model(load(str(tmp_path / "trained")), plain)
    with pytest.raises(ValueError, match=r"^adapter: "):
        adapted.save_pretrained(tmp_path / "adapter")
    fresh = build(bases["qwen2"])
    fresh.save_pretrained(tmp_path / "fresh")
    get_peft_model(fresh, adapter_config(fresh, r=2)).save_pretrained(tmp_path / "adapter")


def test_weights_of_the_other_kind_are_refused_and_older_ones_replaced(
    bases: dict[str, str], shake: Any, tmp_path: Path
) -> None:
    model = shake(build(bases["qwen2"]))
    adapted = shake(get_peft_model(build(bases["qwen2"]), adapter_config(model, r=2)))
    model.save_pretrained(tmp_path / "full")
    adapted.save_pretrained(tmp_path / "adapter")
    for wrong, folder in ((adapted, "full"), (model, "adapter")):
        with pytest.raises(ValueError, match="save to a new folder"):
            wrong.save_pretrained(tmp_path / folder)
    model.save_pretrained(tmp_path / "full", max_shard_size="100KB")
    load(str(tmp_path / "full"))
    model.save_pretrained(tmp_path / "full")
    load(str(tmp_path / "full"))


def test_reference_outputs_are_not_copied(bases: dict[str, str], shake: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(shake(build(bases["qwen2"])), tokenizer=load_tokenizer("embedded"), folder=run)
    (run / "reference.json").write_text('"a text of the data"')
    (run / "LICENSE").write_text("terms")
    write_manifest(run, {"seed": 1})
    load(str(run)).save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy" / "reference.json").exists()
    assert (tmp_path / "copy" / "LICENSE").read_text() == "terms"
    assert "/reference.json" in (tmp_path / "copy" / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("place", ["huggingface"], indirect=True)
def test_a_card_has_only_metrics_of_its_own_weights(place: tuple[str, Any], tmp_path: Path) -> None:
    it = train(place, tmp_path, "titles", "lora", eval_strategy="no")
    card = Path(it.trainer.args.output_dir, "README.md")
    it.trainer.create_model_card(license="mit")  # before anything is saved
    assert "An adapter with its head" in card.read_text()
    it.trainer.save_model()
    assert "Not evaluated." in card.read_text()
    rows = [{"chosen": "A bad one 1", "rejected": "Good way 1"}] * 3
    it.trainer.evaluate(rows)  # of another set
    it.trainer.save_model()
    assert "Not evaluated." in card.read_text()
    it.trainer.evaluate()
    it.trainer.save_model()
    assert "| accuracy | 1.0000 |" in card.read_text()
    assert ModelCard(card.read_text()).data.license == "mit"
    with torch.no_grad():
        it.trainer.task_head.score.modules_to_save["default"][0].weight.mul_(1.5)
    it.trainer.save_model()
    assert "Not evaluated." in card.read_text()
    edited = card.read_text().replace("## Limitations", "## My words")
    card.write_text(edited)
    it.trainer.create_model_card(language="en")
    assert "## My words" in card.read_text()


def test_a_card_of_other_weights_is_replaced(bases: dict[str, str], shake: Any, tmp_path: Path) -> None:
    """Metrics are copied with the same weights, and left out after further training."""
    folder = tmp_path / "run"
    tokenizer = load_tokenizer("embedded")
    save(shake(build(bases["qwen2"])), tokenizer=tokenizer, folder=folder)
    (folder / "README.md").write_text("# A card\n\n## Evaluation\n\n.91\n")
    (folder / "metrics.json").write_text("{}")
    write_manifest(folder, {"seed": 1})
    same, changed = load(str(folder)), shake(load(str(folder)))
    same.save_pretrained(tmp_path / "same")
    changed.save_pretrained(tmp_path / "changed")
    assert ".91" in (tmp_path / "same" / "README.md").read_text()
    assert (tmp_path / "same" / "metrics.json").exists()
    assert "Not evaluated." in (tmp_path / "changed" / "README.md").read_text()
    assert not (tmp_path / "changed" / "metrics.json").exists()
    assert (tmp_path / "changed" / "tokenizer.json").exists()
    # in the same folder a file edited by hand is kept
    (folder / "metrics.json").write_text('{"edited": true}')
    changed.save_pretrained(folder)
    assert "Not evaluated." in (folder / "README.md").read_text()
    assert (folder / "metrics.json").exists()


def test_facts_are_stated_on_a_short_card_too(bases: dict[str, str], shake: Any, tmp_path: Path) -> None:
    folder = save(shake(build(bases["qwen2"])), tokenizer=load_tokenizer("embedded"), folder=tmp_path / "it")
    facts = CardFacts(license="mit", language="en", intended_use="Titles of *news*.", citation="@misc{a}")
    publish(folder, repo_id="me/t", facts=facts, verify=False, dry_run=tmp_path / "staged")
    text = (tmp_path / "staged" / "README.md").read_text()
    assert ModelCard(text).data.license == "mit"
    for line in ("Licence: mit.", "Titles of \\*news\\*.", "@misc{a}"):
        assert line in text
    assert "Its owner stated nothing else" not in text


def test_a_merged_model_keeps_the_tokenizer_of_its_adapter(
    bases: dict[str, str], shake: Any, tmp_path: Path
) -> None:
    adapted = shake(
        get_peft_model(
            build(bases["qwen2"]),
            LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], modules_to_save=["score"]),
        )
    )
    folder = save(adapted, tokenizer=load_tokenizer("embedded"), folder=tmp_path / "adapter")
    merge(folder).save_pretrained(tmp_path / "merged")
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    load(str(tmp_path / "merged"))


def test_a_config_without_a_learning_rate_uses_that_of_its_method(tmp_path: Path) -> None:
    model = build("embedded", task="pooled_classifier", labels=LABELS)
    rows = [{"text": f"{LABELS[i % 3]} news {i}", "label": LABELS[i % 3]} for i in range(6)]
    args = ClassifierConfig(
        str(tmp_path / "run"),
        max_steps=1,
        use_cpu=True,
        report_to="none",
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
        dataloader_pin_memory=False,
    )
    tokenizer = load_tokenizer("embedded")
    trainer = ClassifierTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.args.learning_rate == rates_for("classifier", "embedded")["full"]
