"""Tests that following the fix of a publishing error leads to a publish or an export.

Hubs are loopback servers for the real clients. `tests/verification/test_parity.py` tests the verification.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hf_server
import modelscope_server
import pytest
from fixes import changes, made, refused
from launching import run as run_recipe
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CodeGenConfig, PreTrainedTokenizerFast, TrainingArguments

from qwen_task_heads import (
    PooledClassifier,
    PooledClassifierConfig,
    adapter_config,
    bind_template,
    build,
    export_stock,
    load,
    load_tokenizer,
    merge,
    save,
)
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.export.reward_model import export_reward_model
from qwen_task_heads.export.servers import serve_command
from qwen_task_heads.inference.engine_options import EngineSpec, PromptOptions
from qwen_task_heads.publishing.formats import read_run, refuse_local_base
from qwen_task_heads.publishing.publish import publish
from qwen_task_heads.publishing.pushing import check_push
from qwen_task_heads.publishing.staging import stage
from qwen_task_heads.publishing.target import PublishTarget, publish_target_of
from qwen_task_heads.reports.card_facts import CardFacts
from qwen_task_heads.reports.comparison_pages import claim_folder
from qwen_task_heads.reports.comparison_runs import run_comparison
from qwen_task_heads.tokenization.templates import Template
from qwen_task_heads.tracking.callbacks import TRACKERS
from qwen_task_heads.tracking.open_trackers import track
from qwen_task_heads.training.arguments import DataArguments
from qwen_task_heads.training.classifier_arguments import parse_classifier_arguments
from qwen_task_heads.training.sft_arguments import parse_sft_arguments
from qwen_task_heads.training.sweep_arguments import parse_sweep_arguments
from qwen_task_heads.verification.reference import read_reference, take_reference, write_reference

REPO, TASK = "me/news", {"task": "pooled_classifier", "labels": ("sport", "money", "health")}
CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
# Of the client's http library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PUSH = ["--push_to_hub", "true", "--hub_model_id", REPO]
SLEEP = time.sleep


@pytest.fixture(scope="module")
def made_runs(
    bases: dict[str, str], tokenizer: Any, shake: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Folders of `save`: a full classifier, an adapter on a local base, and a generative classifier."""
    root, words = tmp_path_factory.mktemp("runs"), copy.deepcopy(tokenizer)
    for kind in ("full", "adapter"):
        model: Any = build(bases["qwen2"], **TASK)
        bind_template(words, model.config)
        model = get_peft_model(model, adapter_config(model, r=2)) if kind == "adapter" else model
        save(shake(model), tokenizer=words, folder=root / kind)
    shutil.copytree(bases["qwen2"], root / "writes")
    (root / "writes" / "label_prompt.json").write_text("{}")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def run(made_runs: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Give `run(kind)`: a copy to change."""
    return lambda kind="full": Path(shutil.copytree(made_runs[kind], tmp_path / f"run-{kind}"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Hugging Face Hub with a login; retries do not wait."""
    monkeypatch.setattr(time, "sleep", lambda seconds: SLEEP(min(seconds, 0.001)))
    with hf_server.serve() as server:
        hf_server.point_client(server, monkeypatch, cache=tmp_path / "cache")
        yield server


@pytest.fixture
def full(made_runs: dict[str, Path]) -> Path:
    """The folder of a full classifier, not to be changed."""
    return made_runs["full"]


def first(found: list[Any]) -> str:
    """Return the first value in `expected` of a problem."""
    return re.split("[, ]", found[0].expected)[0]


def send(folder: Path, **options: Any) -> Any:
    return publish(folder, **{"repo_id": REPO, "verify": False, **options})


# --- publishing ---


def test_a_form(full: Path, hub: Any) -> None:
    with refused("publishing/publish.py::publish::--form") as found:
        send(full, form="onnx")
    assert send(full, form=first(found))


def test_a_hub_of_another_name(full: Path, hub: Any) -> None:
    with refused("hubs/__init__.py::hub_named::--hub") as found:
        send(full, hub="hf")
    assert send(full, hub=first(found))


def test_a_graph_of_a_generative_classifier(run: Any, tmp_path: Path) -> None:
    folder = run("writes")
    with refused("publishing/publish.py::publish::--onnx") as found:
        send(folder, onnx=True, dry_run=tmp_path / "staged")
    assert found[0].fix == "drop it"
    assert send(folder, dry_run=tmp_path / "staged")


def test_a_stock_class_of_a_generative_classifier(run: Any, tmp_path: Path) -> None:
    with refused("publishing/formats.py::GenerativeRun.make::--form") as found:
        read_run(run("writes")).in_form("stock", tmp_path / "made")
    assert read_run(tmp_path / "run-writes").in_form(first(found), tmp_path / "made")


def test_a_folder_without_a_run(run: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused("publishing/formats.py::HeadRun.__init__::str(folder)") as found:
        send(tmp_path / "empty", dry_run=tmp_path / "staged")
    assert "finished run" in found[0].expected
    assert send(run(), dry_run=tmp_path / "staged")


def test_an_adapter_on_a_folder_of_this_machine(run: Any, hub: Any, tmp_path: Path) -> None:
    """In a command, before training, and in Python."""
    folder = run("adapter")
    with refused("publishing/formats.py::refuse_local_base::where") as found:
        send(folder)
    for words in ("--form merged", "--publish_form merged", "merge(folder).push_to_hub(repo)"):
        assert words in found[0].fix
    assert send(folder, form="merged")
    argv = ["--use_peft", *PUSH, "--output_dir", str(tmp_path), *CPU]
    with refused("publishing/formats.py::refuse_local_base::where") as found:
        publish_target_of(*parse_classifier_arguments(argv))
    assert publish_target_of(*parse_classifier_arguments([*argv, "--publish_form", "merged"]))
    assert merge(str(folder)).push_to_hub("me/other")
    refuse_local_base("--push_to_hub", "owner/base")


def test_an_adapter_on_a_trained_model(run: Any, hub: Any, bases: dict[str, str]) -> None:
    model = load(str(run()))
    adapted = get_peft_model(model, adapter_config(build(bases["qwen2"], **TASK), r=2))
    with refused("publishing/pushing.py::check_push::push_to_hub") as found:
        check_push(adapted, repo_id=REPO, token=None, private=None)
    assert "train in full" in found[0].fix
    assert check_push(load(str(run("adapter"))), repo_id=REPO, token=None, private=None)


# --- the options, before training ---

STOCK = "publishing/target.py::_stock_problems::"
OPTIONS = [
    (f"{STOCK}--publish_form", parse_sft_arguments, ""),
    *[
        (f"{STOCK}f'--{{name}}'", parse_classifier_arguments, words)
        for words in (
            "--pooling mean",
            "--head mlp",
            "--bidirectional true",
            "--truncation windows",
            "--problem_type ordinal",
        )
    ],
    (f"{STOCK}--head_layers", parse_classifier_arguments, "--head_layers 1 2"),
    (f"{STOCK}f'--{{name}}'", parse_sweep_arguments, "--save_as full --poolings mean --heads linear"),
    (f"{STOCK}f'--{{name}}'", parse_sweep_arguments, "--save_as full --poolings last --heads mlp:8"),
]


@pytest.mark.parametrize(
    ("site", "parse", "words"), OPTIONS, ids=[words or "writes" for *_, words in OPTIONS]
)
def test_options_that_a_stock_class_does_not_support(
    hub: Any, tmp_path: Path, site: str, parse: Any, words: str
) -> None:
    argv = ["--output_dir", str(tmp_path), *CPU, *PUSH]
    usual = ["--pooling", "last"] if parse is parse_classifier_arguments else []  # the embedded one has mean
    argv += ["--publish_form", "stock", *usual, *words.split()]
    with refused(site) as found:
        publish_target_of(*parse(argv))
    for changed in changes(found[0], argv):
        assert publish_target_of(*parse(changed))


def test_options_that_llama_cpp_does_not_support(hub: Any, tmp_path: Path) -> None:
    argv = ["--output_dir", str(tmp_path), *CPU, *PUSH, "--publish_form", "gguf", "--pooling", "mean"]
    with refused(f"{STOCK}f'--{{name}}'") as found:
        publish_target_of(*parse_classifier_arguments(argv))
    for changed in changes(found[0], argv):
        assert publish_target_of(*parse_classifier_arguments(changed))


def test_a_model_that_llama_cpp_does_not_compute(bases: dict[str, str]) -> None:
    target = PublishTarget(repo_id="me/it", form="gguf")
    model = build(bases["qwen2"], task="pooled_classifier", labels=["no", "yes"], pooling="last")
    with refused("export/shared.py::unmet::field") as found:
        target.check_model(model)
    assert [(problem.where, problem.fix) for problem in found] == [
        ("text_config", "give --publish_form saved")
    ]
    replace(target, form="saved").check_model(model)
    target.check_model(build(bases["qwen3"], task="pooled_classifier", labels=["no", "yes"], pooling="last"))


# --- the run's folder ---

CHECK_RUN = "publishing/staging.py::check_run::"
CHANGED: dict[str, Callable[[Path], Any]] = {
    f"{CHECK_RUN}str(folder / name)": lambda folder: (folder / "metrics.json").write_text("{}"),
    f"{CHECK_RUN}str(folder / MANIFEST)": lambda folder: (folder / "manifest.json").write_text("{"),
    f"{CHECK_RUN}str(folder / name)#2": lambda folder: (folder / "requirements.txt").write_text("torch"),
}


@pytest.mark.parametrize("site", CHANGED)
def test_a_folder_that_changed_after_the_run(run: Any, tmp_path: Path, site: str) -> None:
    folder = run()
    manifest = json.loads((folder / "manifest.json").read_text())
    if site.endswith("#2"):
        (folder / "manifest.json").write_text(json.dumps({"files": manifest["files"]}))
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    CHANGED[site](folder)
    send_it = partial(send, dry_run=tmp_path / "staged")
    with refused(site) as found:
        send_it(folder)
    assert "put back what the run wrote" in found[0].fix
    assert "save(load(folder, verify=False), ...) to a new folder" in found[0].fix
    tokenizer = load_tokenizer(str(folder))
    new = save(load(str(folder), verify=False), tokenizer=tokenizer, folder=tmp_path / "new")
    assert send(new, dry_run=tmp_path / "other")
    for path in [*folder.iterdir()]:
        if path.is_file():
            path.write_bytes(before[path.name]) if path.name in before else path.unlink()
    assert send_it(folder)


def test_a_link_in_place_of_a_file(run: Any, tmp_path: Path) -> None:
    folder = run()
    shutil.move(folder / "README.md", tmp_path / "card.md")
    (folder / "README.md").symlink_to(tmp_path / "card.md")
    with refused("publishing/staging.py::stage::str(folder / name)") as found:
        stage(folder, tmp_path / "staged", hub="huggingface")
    assert "copy of the file" in found[0].fix
    (folder / "README.md").unlink()
    shutil.copyfile(tmp_path / "card.md", folder / "README.md")
    assert stage(folder, tmp_path / "staged", hub="huggingface")


def test_a_folder_without_a_model(run: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused("publishing/staging.py::stage::str(folder)") as found:
        stage(tmp_path / "empty", tmp_path / "staged", hub="huggingface")
    assert "output folder of a finished run" in found[0].fix
    assert stage(run(), tmp_path / "staged", hub="huggingface")


def test_a_destination_with_files(run: Any, tmp_path: Path) -> None:
    with refused("publishing/staging.py::stage::str(destination)") as found:
        stage(run(), run("writes"), hub="huggingface")
    assert found[0].fix == "name another one"
    assert stage(tmp_path / "run-full", tmp_path / "staged", hub="huggingface")


def test_a_secret(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a card, which can be edited, and a value of the environment that is in the card by chance."""
    folder, card = run(), tmp_path / "run-full" / "README.md"
    plain = card.read_text()
    for text, way in (("hf_" + "a1" * 17, "take it out"), ("my-5ecret-value", "unset DB_PASSWORD")):
        monkeypatch.setenv("DB_PASSWORD", "my-5ecret-value")
        card.write_text(f"{plain}\n{text}\n")
        with refused("redaction.py::_problem::where") as found:
            send(folder, dry_run=tmp_path / way)
        assert f"{way} and publish again" in found[0].fix
        shutil.rmtree(tmp_path / way)
        if way == "take it out":
            card.write_text(plain)
        else:
            monkeypatch.delenv("DB_PASSWORD")
        assert send(folder, dry_run=tmp_path / way)


def test_facts_without_a_card(run: Any, tmp_path: Path) -> None:
    folder, facts = run(), CardFacts(license="mit")
    (folder / "README.md").unlink()
    with refused("publishing/staging.py::check_run::str(folder / CARD)") as found:
        send(folder, facts=facts, dry_run=tmp_path / "a")
    assert "write one, with the facts in it, and do not state them" in found[0].fix
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# News\n")
    assert send(folder, dry_run=tmp_path / "b")


def test_a_card_that_cannot_be_read(run: Any, tmp_path: Path) -> None:
    folder = run()
    card = folder / "README.md"
    with refused("hubcode/card_task_heads.py::read_card::where") as found:
        card.write_text("---\nlicense: [mit\n---\n# Mine\n")
        send(folder, dry_run=tmp_path / "a")
    assert "correct it, or remove both lines" in found[0].fix
    card.write_text("---\nlicense: mit\n---\n# Mine\n")
    assert send(folder, dry_run=tmp_path / "b")
    with refused("publishing/staging.py::_check_card::str(path)") as found:
        card.write_bytes("# Größe\n".encode("latin-1"))
        send(folder, dry_run=tmp_path / "c")
    assert "save it in UTF-8" in found[0].fix
    card.write_text("# Größe\n", encoding="utf-8")
    assert send(folder, dry_run=tmp_path / "d")


def test_a_missing_reference(run: Any) -> None:
    folder = run()
    with refused("verification/reference.py::read_reference::str(path)") as found:
        read_reference(folder)
    assert "take_reference(load(folder), ...) and write_reference()" in found[0].fix
    write_reference(folder, take_reference(load(str(folder)), tokenizer=load_tokenizer(str(folder))))
    assert read_reference(folder)


# --- the hub ---


def test_no_login(full: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with refused("hubs/base.py::Hub.not_logged_in::self.title") as found:
        send(full)
    [variable] = re.findall(r"set (\w+)", found[0].fix)
    monkeypatch.setenv(variable, hub.token)
    assert send(full)


def test_no_write_permission(full: Path, hub: Any) -> None:
    with refused("hubs/base.py::Hub.no_right::repo_id") as found:
        send(full, repo_id="other/news")
    [owner] = re.findall(r"may write for (\w+)", found[0].problem)
    assert "name another owner" in found[0].fix
    assert send(full, repo_id=f"{owner}/news")
    hub.role = "read"
    with refused("hubs/base.py::Hub.no_right::repo_id") as found:
        send(full)
    assert "log in with a token that may write" in found[0].fix
    hub.role = "write"
    assert send(full)


@pytest.mark.parametrize("name", ["news", "me/my news!", "me//news", "-/a/b"])
def test_an_invalid_repo_id(full: Path, hub: Any, name: str) -> None:
    with refused("hubs/base.py::Hub.bad_name::--hub_model_id") as found:
        send(full, repo_id=name)
    [changed] = changes(found[0], ["--hub_model_id", name])
    hub.me = changed[1].split("/")[0]
    assert send(full, repo_id=changed[1])


def test_a_public_repo(full: Path, hub: Any) -> None:
    repo = hub.create(REPO, private=False)
    with refused("publishing/upload.py::_check_state::repo_id") as found:
        send(full, private=True)
    for way in ("--public", "--hub_private_repo false", "make the repo private", "name another"):
        assert way in found[0].fix
    argv = ["--hub_private_repo", "false", *PUSH, "--output_dir", "x", *CPU]
    assert publish_target_of(*parse_classifier_arguments(argv))
    assert send(full, private=False)
    assert send(full, private=True, repo_id="me/other")
    repo.private = True
    assert send(full, private=True)


def test_an_existing_tag(full: Path, hub: Any) -> None:
    send(full, tag="v1")
    hub.put(REPO, {"NOTES.md": b"by hand"})
    hub.files(REPO)
    with refused("publishing/upload.py::_check_state::f'tag {tag!r} of {repo_id}'") as found:
        send(full, tag="v1", facts=CardFacts(license="mit"))
    assert "choose another, or delete that one" in found[0].fix
    assert send(full, tag="v2", facts=CardFacts(license="mit"))
    del hub.repos[REPO].tags["v1"]
    assert send(full, tag="v1", facts=CardFacts(license="isc"))


def test_a_repo_of_another_model(full: Path, hub: Any) -> None:
    hub.create(REPO, private=True)
    hub.put(REPO, {"config.json": b'{"model_type": "title_scorer"}'})
    with refused("publishing/upload.py::_check_task::repo_id") as found:
        send(full)
    assert "name another repo" in found[0].fix
    assert "--replace" in found[0].fix
    assert send(full, repo_id="me/other")
    assert send(full, replace=True)


@pytest.mark.parametrize("how", ["429", "500"])
def test_a_hub_that_fails(full: Path, hub: Any, how: str) -> None:
    hub.fail(at=1, how=how, lasting=True)
    with refused("publishing/upload.py::_problems_of::repo_id") as found:
        send(full)
    assert "publish again" in found[0].fix
    hub.calm()
    assert send(full)


@pytest.mark.slow
def test_a_publish_after_training_that_fails(full: Path, hub: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """The command of the message publishes the model after verification in a subprocess."""
    hub.fail(at=1, how="500", lasting=True)
    with refused("publishing/target.py::PublishTarget.push::str(folder)") as found:
        PublishTarget(repo_id=REPO, private=False, tag="v1").push(full)
    hub.calm()
    _, recipe, *words = shlex.split(found[-1].fix.split("type: ", 1)[1])
    assert run_recipe(Path(__file__).parents[2] / recipe, *words) == 0
    assert not hub.repos[REPO].private
    assert "v1" in hub.repos[REPO].tags


def test_branches_and_pull_requests_on_modelscope(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("modelscope_hub", reason="modelscope is not installed")
    with modelscope_server.serve() as server:
        modelscope_server.point_client(server, monkeypatch, cache=tmp_path / "cache")
        scope = partial(send, full, hub="modelscope")
        assert scope()
        with refused("publishing/upload.py::_check_state::repo_id#2") as found:
            scope(revision="side")
        [branch] = re.findall(r"publish to (\w+) with a tag", found[0].fix)
        assert scope(revision=branch, tag="v1")
        repo = server.repos[REPO]
        repo.branches["side"] = repo.branches[branch]  # made on the repo's page
        assert scope(revision="side")
        with refused("publishing/upload.py::upload::create_pr") as found:
            scope(create_pr=True, facts=CardFacts(license="mit"))
        assert found[0].fix == "drop it"
        assert scope(facts=CardFacts(license="mit"))


# --- exports ---


@pytest.fixture
def classifier(bases: dict[str, str], tokenizer: Any, shake: Any) -> Callable[..., Any]:
    """Give `classifier(**options)`: a model and its tokenizer."""

    def make(**options: Any) -> Any:
        model = shake(build(bases["qwen2"], **{**TASK, "max_seq_length": 32, **options}))
        words = copy.deepcopy(tokenizer)
        bind_template(words, model.config)
        return model, words

    return make


def test_settings_that_no_stock_class_supports(classifier: Any, tmp_path: Path) -> None:
    model, words = classifier(pooling="mean")
    with refused("export/shared.py::unmet::field") as found:
        export_stock(model, tokenizer=words, folder=tmp_path / "out")
    assert "with save(), or publish.py --form saved" in found[0].fix
    folder = save(model, tokenizer=words, folder=tmp_path / "own")
    assert send(folder, form="saved", dry_run=tmp_path / "staged")


def test_a_head_of_two_layers(classifier: Any, tmp_path: Path) -> None:
    model, words = classifier(head="mlp", head_sizes=[32], labels=["score"], problem_type="regression")
    with refused("export/stock.py::_unsupported::head") as found:
        export_stock(model, tokenizer=words, folder=tmp_path / "out")
    assert "export_reward_model()" in found[0].fix
    assert "save()" in found[0].fix
    assert export_reward_model(model, tokenizer=words, folder=tmp_path / "reward")
    assert save(model, tokenizer=words, folder=tmp_path / "own")
    model, words = classifier()
    with refused("export/shared.py::unmet::field") as found:
        export_reward_model(model, tokenizer=words, folder=tmp_path / "other")
    assert "save()" in found[0].fix
    assert save(model, tokenizer=words, folder=tmp_path / "linear")


def test_a_family_without_a_stock_class(tokenizer: Any, tmp_path: Path) -> None:
    size = {"vocab_size": 5026, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4}
    backbone = CodeGenConfig(**size, bos_token_id=0, eos_token_id=0)
    model = PooledClassifier(PooledClassifierConfig(text_config=backbone, num_labels=2))
    with refused("export/stock.py::_unsupported::text_config") as found:
        export_stock(model, tokenizer=copy.deepcopy(tokenizer), folder=tmp_path / "out")
    assert "save()" in found[0].fix
    assert load(str(save(model, tokenizer=copy.deepcopy(tokenizer), folder=tmp_path / "own")))


def test_a_tokenizer_whose_pad_token_ends_every_text(bases: dict[str, str], tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    model, another = build(bases["llama"], **TASK), copy.deepcopy(words)
    bind_template(words, model.config)
    with refused("export/stock.py::choose_pad::tokenizer") as found:
        export_stock(model, tokenizer=words, folder=tmp_path / "out")
    assert "train with another --boundary, or add a pad token" in found[0].fix
    padded = copy.deepcopy(another)
    bind_template(another, model.config, template=Template(after="a"))
    assert export_stock(model, tokenizer=another, folder=tmp_path / "boundary")
    padded.add_special_tokens({"pad_token": "<pad>"})
    bind_template(padded, model.config)
    assert export_stock(model, tokenizer=padded, folder=tmp_path / "pad")


def test_an_export_without_a_tokenizer(classifier: Any, tmp_path: Path) -> None:
    model, words = classifier()
    with refused("export/shared.py::load_merged::tokenizer") as found:
        export_stock(model, folder=tmp_path / "out")
    assert found[0].fix == "pass tokenizer="
    assert export_stock(model, tokenizer=words, folder=tmp_path / "out")


def test_a_folder_that_is_not_empty(full: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with refused("export/shared.py::folder_problems::str(folder)") as found:
        export_stock(str(full), folder=tmp_path / "taken")
    assert found[0].fix == "name another, or empty it"
    assert export_stock(str(full), folder=tmp_path / "another")
    (tmp_path / "taken" / "file").unlink()
    assert export_stock(str(full), folder=tmp_path / "taken")


def test_a_server_command_of_a_folder_without_an_export(full: Path, tmp_path: Path) -> None:
    with refused("export/servers.py::_read::str(folder)") as found:
        serve_command(tmp_path)
    assert found[0].fix == "export the model first"
    assert serve_command(export_stock(str(full), folder=tmp_path / "out"))


def test_a_server_command_of_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["PooledClassifier"]}', encoding="utf-8")
    with refused("export/servers.py::_in_vllm::str(folder)") as found:
        serve_command(tmp_path)
    assert found[0].fix == "publish it by qth publish --form merged or --form stock"  # as in test_publish


def test_a_server_command_of_a_model_that_attends_to_both_sides(classifier: Any, tmp_path: Path) -> None:
    model, words = classifier(bidirectional=True)
    save(model, tokenizer=words, folder=tmp_path / "own")
    with refused("export/servers.py::_in_vllm::str(folder)#2") as found:
        serve_command(tmp_path / "own")
    assert found[0].fix == "serve it by qth serve"  # tests/serving/test_server.py does


def test_settings_that_no_graph_supports(classifier: Any, tmp_path: Path) -> None:
    onnx = pytest.importorskip("qwen_task_heads.export.onnx")
    model, words = classifier(truncation="windows")
    with refused("export/shared.py::unmet::field") as found:
        onnx.export_onnx(model, tokenizer=words, folder=tmp_path / "out")
    assert "publish the model with save()" in found[0].fix
    assert save(model, tokenizer=words, folder=tmp_path / "own")
    with refused("export/onnx.py::agreement::texts") as found:
        onnx.agreement(tmp_path / "model.onnx", model=model, tokenizer=words, texts=[])
    assert found[0].fix == "pass held-out texts"  # tests/export/test_onnx.py gives them


# --- around a run ---


def test_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(name: str) -> Any:
        return track(TrainingArguments(str(tmp_path), report_to=[name], use_cpu=True), task=DataArguments())

    with refused("tracking/open_trackers.py::track::where") as found:
        asked("mlflow")
    assert asked(first(found)) == []  # none
    for variable, required in TRACKERS["wandb"].required_env.items():
        monkeypatch.setenv(variable, f"not-{required}")
        with refused("tracking/open_trackers.py::track::variable") as found:
            asked("wandb")
        assert [problem.fix[:8] for problem in found if problem.where == variable] == ["unset it"]
        monkeypatch.delenv(variable)
        with suppress(TaskHeadsError), made() as sites:  # its package may not be installed here
            assert asked("wandb")
        assert "tracking/open_trackers.py::track::variable" not in sites


COMPARISON = "reports/comparison_pages.py::claim_folder::--output_dir"


def test_a_folder_of_a_comparison(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").touch()
    with refused(COMPARISON) as found:
        claim_folder(tmp_path)
    assert found[0].fix == "choose another, or move it away"
    claim_folder(tmp_path / "another")
    (tmp_path / "comparison.json").rename(tmp_path / "moved.json")
    claim_folder(tmp_path)
    with refused(f"{COMPARISON}#2") as found:
        claim_folder(tmp_path / "moved.json" / "below")
    assert found[0].fix == "choose another"
    claim_folder(tmp_path / "below")


def test_a_task_that_the_columns_do_not_imply(tmp_path: Path) -> None:
    """The named task reports its missing columns, and with these the comparison runs."""
    site = "reports/comparison_runs.py::_task_of_data::--dataset_name"
    data = tmp_path / "train.csv"
    data.write_text("a,b\n" + "".join(f"{n},{n}\n" for n in range(40)), encoding="utf-8")
    options: dict[str, Any] = {
        "dataset_name": str(data), "dev_dataset": None, "test_dataset": None, "test_fraction": None,
        "labels": None, "hub": "huggingface", "max_rows": 4, "seed": 0, "latency_rows": 1,
        "figure": "accuracy", "output_dir": str(tmp_path / "out"), "task": None,
    }  # fmt: skip
    specs, asking = [EngineSpec("zero_shot", "embedded")], PromptOptions(device="cpu")
    with refused(site) as found:
        run_comparison(specs, asking=asking, options=options)
    for argv in changes(found[0], []):
        options["task"] = argv[1]
        with made() as sites, pytest.raises(TaskHeadsError) as caught:
            run_comparison(specs, asking=asking, options=options)
        assert site not in sites
        wanted = {"texts": "text", "titles": "chosen"}[argv[1]]
        assert any(wanted in str(problem) for problem in caught.value.problems)
    data.write_text("chosen,rejected\n" + "".join(f"a{n},b{n}\n" for n in range(40)), encoding="utf-8")
    content = run_comparison(specs, asking=asking, options=options)
    assert content is not None
    assert content["task"] == "titles"
