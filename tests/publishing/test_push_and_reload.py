"""Tests that a published model loads from an empty cache without the package, from both hubs.

The models are pushed by `publish` and loaded over HTTP by the clients of the hubs, in a process that cannot
import the package. The base of the adapters is on the same hub.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hf_server
import modelscope_server
import pytest
import torch
from clean_process import CleanProcess
from equality import assert_same_logits
from peft import get_peft_model
from transformers import AutoTokenizer

from qwen_task_heads import Template, adapter_config, build, load, load_tokenizer, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.publishing.publish import publish
from qwen_task_heads.tokenization.templates import compile_template
from qwen_task_heads.verification.reference import take_reference, write_reference

pytest.importorskip("modelscope_hub", reason="modelscope is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    # PEFT asks the hub whether the vocabulary grew, if no folder has the name of the base
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
]
BASE = "base/tiny"
TEXTS = ["A plain title", "短い題", "One weird trick that cuts the cost of a long day in half"]
LABELS = ["world", "sport", "trade"]
BOTH = ("huggingface", "modelscope")
KINDS = [
    (hub, head, form) for hub in BOTH for head in ("title", "classifier") for form in ("adapter", "full")
]
# Two of the eight cover every value; the others are slow tests.
DAILY = (("huggingface", "title", "adapter"), ("modelscope", "classifier", "full"))
CARD = '---\nlicense: mit\n---\n# A\n\n## How to load it\n\n```python\nload(".")\n```\n'

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
from equality import assert_same_logits
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

@torch.no_grad()
def check(name, **where):
    with context():
        model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True, **where)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where)
    logits = model(**tokenizer(job["texts"], padding=True, return_tensors="pt")).logits
    assert_same_logits(logits, job["logits"], (name, where))
    assert type(model).__name__ == job["class"], type(model)
    assert model.config.id2label == {int(k): v for k, v in job["id2label"].items()}, model.config.id2label
    assert model.config.get_text_config().pad_token_id == job["pad"] == tokenizer.pad_token_id

check(job["repo"])
if job["hub"] == "huggingface":
    check(job["repo"], revision=job["commit"])
    check(job["repo"], revision="v1")
check(job["copy"])
with context():
    classify = pipeline("text-classification", model=job["repo"], trust_remote_code=True)
    for text, wanted in zip(job["texts"], job["answers"]):
        found = classify(text, top_k=None)
        assert [row["label"] for row in found] == sorted(wanted, key=wanted.get, reverse=True), found
        # rows are scored one at a time here, and were scored in one batch in training
        assert max(abs(row["score"] - wanted[row["label"]]) for row in found) <= 5e-6, (found, wanted)
    place = job["repo"]
    if job["hub"] == "modelscope":  # its context does not apply to the code of a pipeline
        from modelscope import snapshot_download
        place = snapshot_download(job["repo"])
    if job["ranking"]:
        found = pipeline("title-ranking", model=place, trust_remote_code=True)(job["texts"])
        assert [row["title"] for row in found] == job["ranking"], found
if job["hub"] == "huggingface":
    constants.HF_HUB_OFFLINE, constants.ENDPOINT = True, "http://127.0.0.1:9"
else:
    os.environ["MODELSCOPE_ENDPOINT"] = "http://127.0.0.1:9"
    job["copy"] = job["repo"]
check(job["repo"])
if job["hub"] == "huggingface":
    check(job["repo"], revision=job["commit"])
"""


@dataclass(frozen=True)
class Trained:
    """A run folder and the logits of its model."""

    folder: Path
    logits: list[list[float]]
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def place(request: Any, tmp_path_factory: pytest.TempPathFactory, bases: Any) -> Iterator[tuple[str, Any]]:
    """A hub with the tiny base, and the clients of this process configured for it."""
    module = {"huggingface": hf_server, "modelscope": modelscope_server}[request.param]
    with module.serve() as server, pytest.MonkeyPatch.context() as patch:
        module.point_client(server, patch, cache=tmp_path_factory.mktemp("hub") / "cache")
        server.put(BASE, {path.name: path.read_bytes() for path in Path(bases["qwen2"]).iterdir()})
        yield request.param, server


@torch.no_grad()
def train(
    place: tuple[str, Any], folder: Path, head: str, form: str, shake: Any, *, width: float = 0.05
) -> Trained:
    """Save a model as a run does: with changed trainable tensors, a compiled template and a card."""
    task = {"title": "title_scorer", "classifier": "pooled_classifier"}[head]
    labels = {"labels": LABELS} if head == "classifier" else {}
    model = build(BASE, hub=place[0], task=task, **labels)
    tokenizer = load_tokenizer(BASE, hub=place[0])
    compile_template(tokenizer, template=Template(), model_type="qwen2", max_length=48)
    torch.manual_seed(0)
    adapted = get_peft_model(model, adapter_config(model, r=2)) if form == "adapter" else model
    trained = shake(adapted, width=width)
    save(trained, tokenizer=tokenizer, folder=folder)
    (folder / "README.md").write_text(CARD)
    (folder / "training_args.bin").write_bytes(b"hf_token")
    (folder / "predictions.jsonl").write_text("{}\n")
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    logits = trained(**batch).logits
    found = logits.softmax(-1) if head == "classifier" else logits
    names = {index: label for index, label in sorted(model.config.id2label.items())}
    facts = {
        "class": type(model).__name__,
        "id2label": names,
        "pad": tokenizer.pad_token_id,
        "answers": [{names[i]: v for i, v in enumerate(row)} for row in found.tolist()],
        "ranking": [TEXTS[i] for i in logits[:, 0].argsort(descending=True)] if head == "title" else [],
    }
    return Trained(folder, logits.tolist(), facts)


@pytest.mark.parametrize(
    ("place", "head", "form"),
    [pytest.param(*kind, marks=[] if kind in DAILY else pytest.mark.slow) for kind in KINDS],
    indirect=["place"],
)
def test_a_published_model_loads_in_one_line(
    place: tuple[str, Any], clean: CleanProcess, shake: Any, tmp_path: Path, head: str, form: str
) -> None:
    hub, server = place
    repo, copy = f"me/{head}-{form}", f"you/{head}-{form}-copy"
    trained = train(place, tmp_path / "run", head, form, shake)
    published = publish(trained.folder, repo_id=repo, hub=hub, tag="v1", verify=False)
    there = server.files(repo)
    assert not {"training_args.bin", "predictions.jsonl", "reference.json"} & there.keys()
    assert repo in there["README.md"].decode()
    assert server.repos[repo].private
    server.duplicate(repo, copy)
    endpoint, cache = server.endpoint, str(tmp_path / "empty")
    environment = {
        "HF_TOKEN": server.token,
        "MODELSCOPE_API_TOKEN": server.token,
        "MODELSCOPE_ENDPOINT": endpoint,
        "MODELSCOPE_CACHE": cache,
        "MODELSCOPE_HOME": str(tmp_path / "home"),
    }
    job = {
        **trained.facts,
        "hub": hub,
        "endpoint": endpoint,
        "cache": cache,
        "repo": repo,
        "copy": copy,
        "commit": published.commit,
        "texts": TEXTS,
        "logits": trained.logits,
        "environment": environment,
    }
    clean.run(CHILD, json.dumps(job), folder=tmp_path)
    with torch.no_grad():
        model = load(repo, hub=hub)
        batch = load_tokenizer(repo, hub=hub)(TEXTS, padding=True, return_tensors="pt")
        assert_same_logits(model(**batch).logits, trained.logits)


@pytest.mark.slow
@pytest.mark.parametrize("place", BOTH, indirect=True)
@pytest.mark.parametrize("form", ["saved", "merged", "stock"])
def test_a_published_model_was_verified(
    request: pytest.FixtureRequest, place: tuple[str, Any], shake: Any, tmp_path: Path, form: str
) -> None:
    hub, server = place
    if (hub, form) != ("modelscope", "saved"):  # this case uses a subprocess
        request.getfixturevalue("quick_proof")
    trained = train(place, tmp_path / "run", "classifier", "adapter", shake, width=0.01)
    onnx = form == "merged"
    repo = f"me/proven-{form}"
    publish(trained.folder, repo_id=repo, hub=hub, form=form, onnx=onnx)
    there = server.files(repo)
    artefacts = {row["artefact"] for row in json.loads(there["parity.json"])["rows"]}
    assert artefacts == {{"saved": "adapter"}.get(form, form), *(["onnx"] if onnx else [])}
    assert b"## Parity" in there["README.md"]
    manifest = json.loads(there["manifest.json"])
    for name, digest in manifest["files"].items():
        assert hashlib.sha256(there[name]).hexdigest() == digest, name
    if form == "stock":
        assert not [name for name in there if name.endswith(".py")]
    # a second publish of the same run has the same bytes
    assert publish(trained.folder, repo_id=repo, hub=hub, form=form, onnx=onnx).unchanged


@pytest.mark.slow
@pytest.mark.usefixtures("quick_proof")
@pytest.mark.parametrize("place", BOTH, indirect=True)
def test_a_model_that_changed_after_the_run_is_not_pushed(
    place: tuple[str, Any], shake: Any, tmp_path: Path
) -> None:
    hub, server = place
    trained = train(place, tmp_path / "run", "classifier", "full", shake)
    reference = take_reference(load(str(trained.folder)), tokenizer=load_tokenizer(str(trained.folder)))
    write_reference(trained.folder, reference)
    config = json.loads((trained.folder / "config.json").read_text())
    config["id2label"] = {"0": "sport", "1": "world", "2": "trade"}
    (trained.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TaskHeadsError) as caught:
        publish(trained.folder, repo_id="me/changed", hub=hub)
    assert ("verification-failed", "config.json labels") in [
        (problem.code, problem.where) for problem in caught.value.problems
    ]
    assert "me/changed" not in server.repos


@pytest.mark.slow
@pytest.mark.parametrize("form", ["adapter", "full"])
@pytest.mark.parametrize("place", ["huggingface"], indirect=True)  # ModelScope's client creates no branch
def test_the_code_on_the_card_of_a_branch_loads_it_if_the_main_branch_is_empty(
    place: tuple[str, Any], clean: CleanProcess, shake: Any, tmp_path: Path, form: str
) -> None:
    hub, server = place
    trained, repo = train(place, tmp_path / "run", "classifier", form, shake), f"me/branch-{form}"
    line = 'AutoModelForSequenceClassification.from_pretrained(".", trust_remote_code=True)'
    (trained.folder / "README.md").write_text(CARD.replace('load(".")', line))
    publish(trained.folder, repo_id=repo, hub=hub, revision="v9", verify=False)
    assert not server.files(repo)
    card = server.files(repo, "v9")["README.md"].decode()
    line = card.split("```python\n")[1].split("\n```")[0]
    assert 'revision="v9"' in line
    begin = CHILD[: CHILD.index("@torch.no_grad()")]
    end = "logits = model(**tokenizer(job['texts'], padding=True, return_tensors='pt')).logits\n"
    end += "assert_same_logits(logits, job['logits'])\n"
    tokenizer = (
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}", revision="v9", trust_remote_code=False)\n'
    )
    job = {
        "environment": {"HF_TOKEN": server.token},
        "hub": hub,
        "endpoint": server.endpoint,
        "texts": TEXTS,
        "cache": str(tmp_path / "empty"),
        "logits": trained.logits,
    }
    clean.run(f"{begin}\nmodel = {line}\n{tokenizer}{end}", json.dumps(job), folder=tmp_path)
