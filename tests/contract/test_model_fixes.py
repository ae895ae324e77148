"""Fixes in errors of build, load, merge and save are applied, and work."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fixes import changes, refused
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, GPT2Config, Qwen2Config, pipeline

from qwen_task_heads import (
    LabelMap,
    LabelScorer,
    Scorer,
    adapter_config,
    bind_template,
    build,
    load,
    load_tokenizer,
    merge,
    save,
)
from qwen_task_heads.__main__ import main
from qwen_task_heads.generators import file_of, load_generator
from qwen_task_heads.head_rows import check_added
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig
from qwen_task_heads.hubcode.modeling_task_heads import PooledClassifier, TitleScorer
from qwen_task_heads.tokenization.templates import Template
from qwen_task_heads.training.added_labels import read_datasets_for
from qwen_task_heads.training.warm_start import load_head

LABELS = ("sport", "money", "health")
TASK: dict[str, Any] = {
    "task": "pooled_classifier",
    "labels": LABELS,
    "problem_type": "single_label_classification",
}
WEIGHTS, ADAPTER = "model.safetensors", "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def words(tokenizer: Any) -> Any:
    own = copy.deepcopy(tokenizer)
    bind_template(own, PooledClassifierConfig(text_config=Qwen2Config(hidden_size=8)))
    return own


@pytest.fixture(scope="module")
def saved(bases: dict[str, str], words: Any, shake: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return `saved(kind)`: the folder of a full classifier, an adapter or a scorer. Read-only."""
    root = tmp_path_factory.mktemp("saved")
    for kind in ("full", "adapter", "scorer"):
        model: Any = build(bases["qwen2"], **({} if kind == "scorer" else TASK))
        if kind == "adapter":
            model = get_peft_model(model, adapter_config(model, r=2))
        save(shake(model), tokenizer=words, folder=root / kind)
    return lambda kind: str(root / kind)


@pytest.fixture
def own(saved: Any, tmp_path: Path) -> Callable[[str], Path]:
    """Return `own(kind)`: a copy that may change, without a manifest."""

    def copied(kind: str, name: str = "own") -> Path:
        folder = Path(shutil.copytree(saved(kind), tmp_path / name))
        (folder / "manifest.json").unlink()
        return folder

    return copied


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value != "gone"}))


def change(path: Path, function: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    function(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# --- build ---


def test_a_task(bases: dict[str, str]) -> None:
    with refused("models.py::build::task") as found:
        build(bases["qwen2"], task="ranker")
    first = found[0].expected.split(", ")[0]
    assert build(bases["qwen2"], task=first)


def test_an_option_of_another_name(bases: dict[str, str]) -> None:
    with refused("models.py::build::f'--{unknown[0]}'") as found:
        build(bases["qwen2"], poolling="mean")
    assert "pooling" in found[0].expected.split(", ")
    assert build(bases["qwen2"], pooling="mean")


def test_a_hub(bases: dict[str, str]) -> None:
    with refused("hubs/__init__.py::hub_named::--hub") as found:
        build(bases["qwen2"], hub="hf")
    first = found[0].expected.split(", ")[0]
    assert build(bases["qwen2"], hub=first)


def test_a_folder_of_another_name(bases: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(bases["qwen2"]).parent)
    with refused("repo_checks.py::not_there::path") as found:
        build("./qwne2")
    first = re.findall(r"folders in '\.': ([\w-]+)", found[0].fix)[0]
    assert build(f"./{first}")


def test_a_model_of_another_task(saved: Any) -> None:
    with refused("models.py::_load_to_continue::path") as found:
        build(saved("scorer"), **TASK)
    [task] = re.findall(r"task='(\w+)'", found[0].fix)
    assert type(build(saved("scorer"), task=task)) is TitleScorer
    assert Path(__file__).parents[2].joinpath(*re.findall(r"(recipes)/(\w+\.py)", found[0].fix)[0]).is_file()


def test_a_package_that_is_not_installed(bases: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with refused("loading_errors.py::as_our_errors::model options") as found:
        build(bases["qwen2"], model_kwargs={"quantization_config": BitsAndBytesConfig(load_in_4bit=True)})
    assert "drop the option" in found[0].fix
    assert build(bases["qwen2"])


# --- configurations, in Python; as options of recipes they are in `test_option_fixes` ---


CONFIG = "hubcode/configuration_task_heads.py::"


def test_a_problem_type(bases: dict[str, str]) -> None:
    with refused("hubcode/configuration_task_heads.py::TaskHeadConfig._check::field") as found:
        build(bases["qwen2"], task="pooled_classifier", problem_type="x")
    first = found[0].expected.split(", ")[0]
    assert build(bases["qwen2"], task="pooled_classifier", problem_type=first)


def test_a_choice_of_a_classifier(bases: dict[str, str]) -> None:
    with refused("hubcode/configuration_task_heads.py::TaskHeadConfig._check::field") as found:
        build(bases["qwen2"], **TASK, window_aggregation="median")
    first = found[0].expected.split(", ")[0]
    assert build(bases["qwen2"], **TASK, window_aggregation=first)


def test_a_policy_without_a_length(bases: dict[str, str]) -> None:
    with refused(f"{CONFIG}PooledClassifierConfig._check::max_seq_length") as found:
        build(bases["qwen2"], **TASK, truncation="windows")
    [length] = re.findall(r"choose such as (\d+)", found[0].fix)
    assert build(bases["qwen2"], **TASK, truncation="windows", max_seq_length=int(length))


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 0.5, 1.5], [0.5, 0.5, "a"]])
def test_thresholds_that_do_not_fit(bases: dict[str, str], thresholds: list[Any]) -> None:
    site = "hubcode/configuration_task_heads.py::PooledClassifierConfig.__post_init__::label_thresholds"
    options = {**TASK, "problem_type": "multi_label_classification"}
    with refused(site) as found:
        build(bases["qwen2"], **options, label_thresholds=thresholds)
    [count] = re.findall(r"(\d+) probabilities", found[0].expected)
    kept = build(bases["qwen2"], **options, label_thresholds=[0.5] * int(count)).config
    assert kept.label_thresholds == [0.5] * len(LABELS)


def test_several_labels_of_a_scorer(bases: dict[str, str]) -> None:
    with refused("hubcode/configuration_task_heads.py::TitleScorerConfig.__post_init__::num_labels") as found:
        build(bases["qwen2"], num_labels=3)
    assert "PooledClassifier" in found[0].fix
    assert type(build(bases["qwen2"], task="pooled_classifier", num_labels=3)) is PooledClassifier


def test_two_labels_of_an_ordinal_head(bases: dict[str, str]) -> None:
    options = {**TASK, "labels": ("bad", "good")}
    with refused("hubcode/pooling_task_heads.py::build_head::num_labels") as found:
        build(bases["qwen2"], **{**options, "problem_type": "ordinal"})
    assert build(bases["qwen2"], **{**options, "problem_type": found[0].fix.removeprefix("use ")})


def test_a_backbone_of_another_kind() -> None:
    size = {"hidden_size": 8, "num_hidden_layers": 1}
    with refused(f"{CONFIG}TaskHeadConfig.__post_init__::text_config.model_type") as found:
        PooledClassifierConfig(text_config={"model_type": "qwne2", **size})
    assert "model_type" in found[0].fix
    assert PooledClassifierConfig(text_config={"model_type": "qwen2", **size})


# --- labels ---


def test_labels_of_a_saved_model(saved: Any) -> None:
    with refused("head_rows.py::check_added::where") as found:
        build(saved("full"), **{**TASK, "labels": LABELS[:2]})
    missing = found[0].problem.split(" labels without ")[1].strip("'")
    assert "add the missing ones" in found[0].fix
    assert "leave the label file out" in found[0].fix
    assert build(saved("full"), **{**TASK, "labels": [*LABELS[:2], missing, "new"]}).num_labels == 4
    assert build(saved("full"), **{**TASK, "labels": None}).num_labels == 3


def test_new_labels_of_an_ordinal_model(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"text {number}", "label": number % 4}) for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    own = {"labels": LabelMap(tuple("012")), "problem_type": "ordinal"}
    with refused("head_rows.py::check_added::where") as found:
        read_datasets_for(str(tmp_path / "rows.jsonl"), own)
    assert "leave them out, or train a new model" in found[0].fix
    assert len(read_datasets_for(str(tmp_path / "rows.jsonl"), {}, problem_type="ordinal").labels) == 4
    (tmp_path / "rows.jsonl").write_text("\n".join(row for row in rows if '"label": 3' not in row))
    assert len(read_datasets_for(str(tmp_path / "rows.jsonl"), own).labels) == 3


def test_labels_without_those_of_a_head(
    saved: Any, bases: dict[str, str], words: Any, tmp_path: Path
) -> None:
    model = build(bases["qwen2"], **{**TASK, "labels": ["sport", "money"]})
    with refused("head_rows.py::check_added::where") as found:
        load_head(model, saved("full"), tokenizer=words)
    assert "--labels" in found[0].fix
    (tmp_path / "labels.txt").write_text("\n".join([*LABELS, "new"]))  # all of them, and new ones after them
    names = LabelMap.read(tmp_path / "labels.txt").names
    assert load_head(build(bases["qwen2"], **{**TASK, "labels": names}), saved("full"), tokenizer=words)
    with refused("head_rows.py::check_added::where") as found:
        check_added(LabelMap(LABELS[::-1]), LabelMap(LABELS), problem_type=None, kept=False)
    assert "id2label in its config.json" in found[0].fix
    order = json.loads(Path(saved("full"), "config.json").read_text())["id2label"]
    check_added(LabelMap(tuple(order.values())), LabelMap(LABELS), problem_type=None, kept=False)


# --- the head of another run ---

TAKE = "training/warm_start.py::load_head::--init_head"


def test_a_head_of_another_kind(saved: Any, bases: dict[str, str], words: Any) -> None:
    with refused(f"{TAKE}") as found:
        load_head(build(bases["qwen2"]), saved("full"), tokenizer=words)
    assert "name a model of this kind" in found[0].fix
    assert load_head(build(bases["qwen2"]), saved("scorer"), tokenizer=words)


def test_a_head_of_another_template(saved: Any, bases: dict[str, str], words: Any, tokenizer: Any) -> None:
    model, other = build(bases["qwen2"], **TASK), copy.deepcopy(tokenizer)
    bind_template(other, model.config, template=Template(before="Of: "))
    with refused(f"{TAKE}#2") as found:
        load_head(model, saved("full"), tokenizer=other)
    assert "--instruction, --between and --boundary" in found[0].fix
    bind_template(other, model.config, template=Template())  # that of the saved head
    assert load_head(model, saved("full"), tokenizer=other)


def test_a_head_beside_one(saved: Any, bases: dict[str, str], words: Any) -> None:
    with refused(f"{TAKE}#3") as found:
        load_head(build(saved("full"), **TASK), saved("full"), tokenizer=words)
    assert "drop one of the two" in found[0].fix
    assert load_head(build(saved("full"), **TASK), None, tokenizer=words)
    assert load_head(build(bases["qwen2"], **TASK), saved("full"), tokenizer=words)


HEADS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    f"{TAKE}#4": (
        "name a model on this backbone",
        lambda path: change(path, lambda state: state.update({"score.weight": torch.zeros(3, 4)})),
    ),
    f"{TAKE}#5": (
        "train it again",
        lambda path: change(path, lambda state: state["score.weight"].fill_(torch.nan)),
    ),
    "training/warm_start.py::read_head::--init_head": ("the folder of a finished run", Path.unlink),
}


@pytest.mark.parametrize("site", HEADS)
def test_a_corrupted_head(own: Any, bases: dict[str, str], words: Any, saved: Any, site: str) -> None:
    folder = own("full")
    fix, damage = HEADS[site]
    damage(folder / WEIGHTS)
    with refused(site) as found:
        load_head(build(bases["qwen2"], **TASK), str(folder), tokenizer=words)
    assert fix in found[0].fix
    assert load_head(build(bases["qwen2"], **TASK), saved("full"), tokenizer=words)


def test_another_pooling_than_that_of_the_head(saved: Any, bases: dict[str, str], words: Any) -> None:
    with refused("training/warm_start.py::_differences::option") as found:
        load_head(build(bases["qwen2"], **TASK, pooling="max"), saved("full"), tokenizer=words)
    [value] = re.findall(r"'(\w+)'", found[0].expected)
    assert found[0].fix.startswith("give --pooling")
    assert load_head(build(bases["qwen2"], **TASK, pooling=value), saved("full"), tokenizer=words)


# --- load ---


def test_a_plain_backbone(bases: dict[str, str]) -> None:
    with refused("models.py::load::repo") as found:
        load(bases["qwen2"])
    assert "build()" in found[0].fix
    assert "LabelScorer" in found[0].fix
    assert build(bases["qwen2"])
    assert LabelScorer.from_pretrained(bases["qwen2"], labels=LabelMap(LABELS)).predict(["A text."])


MANIFEST = "files.py::check_manifest::"
CHANGED = f"{MANIFEST}f'{{repo}}/{{name}}'"
EDITED: list[tuple[str, Callable[[Path], Any]]] = [
    (CHANGED, lambda folder: edit(folder / "config.json", head_activation="tanh")),
    (CHANGED, lambda folder: (folder / "handler.py").unlink()),
    (f"{MANIFEST}where#2", lambda folder: (folder / "manifest.json").write_text("{")),
    (f"{MANIFEST}where", lambda folder: (folder / "manifest.json").write_text(" " * 10_000_001)),
]


@pytest.mark.parametrize("opener", [load, merge], ids=["load", "merge"])
@pytest.mark.parametrize(("site", "change"), EDITED)
def test_files_other_than_the_manifest_lists(
    saved: Any, words: Any, tmp_path: Path, opener: Any, site: str, change: Any
) -> None:
    """The user made the change: the model is loaded without the check and saved again."""
    kind = "adapter" if opener is merge else "full"
    folder = Path(shutil.copytree(saved(kind), tmp_path / "changed"))
    edit(folder / "manifest.json", draft="gone")
    change(folder)
    with refused(site) as found:
        opener(str(folder))
    assert "fetch it again" in found[0].fix
    assert "verify=False and save() the model to a new folder" in found[0].fix
    assert opener(saved(kind))
    activation = json.loads((folder / "config.json").read_text())["head_activation"]
    model = opener(str(folder), verify=False)
    again = load(str(save(model, tokenizer=words, folder=tmp_path / "new")))
    assert again.config.head_activation == activation


@pytest.mark.parametrize("opener", [load, merge], ids=["load", "merge"])
def test_a_base_that_changed(bases: dict[str, str], words: Any, tmp_path: Path, opener: Any) -> None:
    base = Path(shutil.copytree(bases["qwen2"], tmp_path / "base"))
    model = build(str(base), **TASK)
    folder = save(get_peft_model(model, adapter_config(model, r=2)), tokenizer=words, folder=tmp_path / "run")
    content = (base / WEIGHTS).read_bytes()
    change(base / WEIGHTS, lambda state: state["model.norm.weight"].add_(1))
    with refused("hubcode/hashes_task_heads.py::refused_base::f'base {folder}'") as found:
        opener(str(folder))
    assert "restore the base, or pass verify=False" in found[0].fix
    assert opener(str(folder), verify=False)
    (base / WEIGHTS).write_bytes(content)
    assert opener(str(folder))


LOADING = "hubcode/loading_task_heads.py::"


def test_an_adapter_next_to_full_weights(own: Any, saved: Any) -> None:
    folder = own("full")
    shutil.copytree(Path(saved("adapter"), "adapter"), folder / "adapter")
    with refused(f"{LOADING}StrictLoading.from_pretrained::repo") as found:
        load(str(folder))
    assert "keep one of them" in found[0].fix
    shutil.rmtree(folder / "adapter")
    assert load(str(folder))


def test_no_weights(own: Any, words: Any, saved: Any, tmp_path: Path) -> None:
    folder = own("full")
    (folder / WEIGHTS).unlink()
    with refused(f"{LOADING}StrictLoading.from_pretrained::repo#2") as found:
        load(str(folder))
    assert "save it again, or fetch all of it" in found[0].fix
    assert load(str(save(load(saved("full")), tokenizer=words, folder=tmp_path / "again")))
    shutil.copyfile(Path(saved("full"), WEIGHTS), folder / WEIGHTS)
    assert load(str(folder))


def test_an_adapter_that_names_no_base(own: Any, bases: dict[str, str]) -> None:
    folder = own("adapter")
    edit(folder / "config.json", backbone_name_or_path="gone")
    with refused(f"{LOADING}StrictLoading._from_adapter::f'{{repo}}/config.json'") as found:
        load(str(folder))
    assert "set the field" in found[0].fix
    assert "backbone_name_or_path" in found[0].problem
    edit(folder / "config.json", backbone_name_or_path=bases["qwen2"])
    assert load(str(folder))


def test_a_missing_base(own: Any, bases: dict[str, str], tmp_path: Path) -> None:
    folder = own("adapter")
    edit(folder / "config.json", backbone_name_or_path=str(tmp_path / "nowhere"))
    with refused(f"{LOADING}StrictLoading._from_adapter::f'{{repo}}/config.json'#2") as found:
        load(str(folder))
    assert "fetch the base, or set backbone_name_or_path to where it is" in found[0].fix
    shutil.copytree(bases["qwen2"], tmp_path / "nowhere")
    assert load(str(folder))
    edit(folder / "config.json", backbone_name_or_path=bases["qwen2"])
    assert load(str(folder))


@pytest.mark.parametrize(
    ("site", "fix"),
    [
        ("hubcode/probe_task_heads.py::probe_difference::where", "restore the saved config"),
        (
            f"{LOADING}StrictLoading.check_probe::f'{{where}} probe'",
            "or pass verify=False",
        ),
    ],
)
def test_a_probe_of_other_weights(own: Any, saved: Any, site: str, fix: str) -> None:
    folder = own("full")
    probe = json.loads((folder / "config.json").read_text())["probe"]
    rows = [row[:2] if "config" in fix else [value + 1 for value in row] for row in probe["logits"]]
    edit(folder / "config.json", probe=probe | {"logits": rows})
    with refused(site) as found:
        load(str(folder))
    assert fix in found[0].fix
    assert "config" in fix or load(str(folder), verify=False)
    shutil.copyfile(Path(saved("full"), "config.json"), folder / "config.json")
    assert load(str(folder))


def test_a_class_of_another_task(saved: Any) -> None:
    with refused(f"{LOADING}_inspect::f'{{repo}}/config.json'") as found:
        TitleScorer.from_pretrained(saved("full"))
    assert "use load(), or an Auto class" in found[0].fix
    from transformers import AutoModelForSequenceClassification

    for opener in (load, AutoModelForSequenceClassification.from_pretrained):
        assert type(opener(saved("full"))) is PooledClassifier


DAMAGED: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    f"{LOADING}_check_keys::where": ("full", lambda state: state.pop("score.weight"), "save or fetch"),
    f"{LOADING}_load_adapter::path": (
        "adapter",
        lambda state: [state.pop(name) for name in [*state] if "score" in name],
        "modules_to_save: score",
    ),
    f"{LOADING}_load_adapter::path#2": (
        "adapter",
        lambda state: [tensor.fill_(torch.nan) for tensor in state.values()],
        "fetch or train the adapter again",
    ),
}


@pytest.mark.parametrize("site", DAMAGED)
def test_tensors_that_are_not_those_of_the_model(own: Any, saved: Any, site: str) -> None:
    kind, function, fix = DAMAGED[site]
    folder, name = own(kind), WEIGHTS if kind == "full" else ADAPTER
    change(folder / name, function)
    with refused(site) as found:
        load(str(folder))
    assert fix in found[0].fix
    shutil.copyfile(Path(saved(kind), name), folder / name)
    assert load(str(folder))


def without_a_shard(folder: Path) -> None:
    """Keep only the first of two shards of weights."""
    names = [*load_file(folder / WEIGHTS)]
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00002-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


LOADED = "loading_errors.py::as_our_errors::"
UNREAD: dict[str, Callable[[Path], Any]] = {
    f"{LOADED}*.safetensors": lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 100),
    f"{LOADED}model files": without_a_shard,
}


@pytest.mark.parametrize("site", UNREAD)
def test_files_that_cannot_be_read(own: Any, saved: Any, site: str) -> None:
    folder = own("full")
    UNREAD[site](folder)
    with refused(site) as found:
        load(str(folder))
    assert "fetch or save it again" in found[0].fix
    shutil.rmtree(folder)
    shutil.copytree(saved("full"), folder)
    assert load(str(folder))


# --- merge and save ---


def test_a_full_model_is_not_merged(saved: Any) -> None:
    with refused("models.py::_load_adapter::named") as found:
        merge(saved("full"))
    assert "loaded by load()" in found[0].fix
    assert load(saved("full"))
    assert merge(saved("adapter"))


def test_a_model_without_an_adapter(saved: Any, words: Any, tmp_path: Path) -> None:
    with refused("models.py::merge::model") as found:
        merge(load(saved("full")))
    assert "save it as it is" in found[0].fix
    assert load(str(save(load(saved("full")), tokenizer=words, folder=tmp_path)))


def test_a_dtype(saved: Any) -> None:
    with refused("dtypes.py::store_in::dtype") as found:
        merge(saved("adapter"), dtype="int8")
    first = found[0].expected.split(", ")[0]
    assert merge(saved("adapter"), dtype=first)


def test_an_adapter_on_a_trained_model(saved: Any, bases: dict[str, str], words: Any, tmp_path: Path) -> None:
    model = get_peft_model(load(saved("full")), adapter_config(build(bases["qwen2"], **TASK), r=2))
    with refused("hubcode/saving_task_heads.py::StrictSaving.write_adapter::adapter") as found:
        save(model, tokenizer=words, folder=tmp_path)
    assert "qwen_task_heads.merge" in found[0].fix
    assert load(str(save(merge(model), tokenizer=words, folder=tmp_path)))


def test_several_adapters(saved: Any, bases: dict[str, str], words: Any, tmp_path: Path) -> None:
    base = build(bases["qwen2"], **TASK)
    config = adapter_config(base, r=2)
    model = get_peft_model(base, config)
    model.add_adapter("second", adapter_config(build(bases["qwen2"], **TASK), r=2))
    with refused("hubcode/saving_task_heads.py::StrictSaving.write_adapter::adapters") as found:
        save(model, tokenizer=words, folder=tmp_path)
    assert "delete the others" in found[0].fix
    model.delete_adapter("second")
    assert load(str(save(model, tokenizer=words, folder=tmp_path)))


@pytest.mark.parametrize(
    "site",
    [
        "hubcode/saving_task_heads.py::_clear_weights::str(folder)",
        "export/folders.py::_check::str(folder)",
    ],
)
def test_a_folder_of_another_form(own: Any, saved: Any, words: Any, tmp_path: Path, site: str) -> None:
    folder, model = own("adapter"), load(saved("full"))
    write = partial(save, model, tokenizer=words) if "export" in site else model.save_pretrained
    name = "folder" if "export" in site else "save_directory"
    with refused(site) as found:
        write(**{name: folder})
    assert "save to a new folder" in found[0].fix
    write(**{name: tmp_path / "new"})


def test_a_tokenizer_with_more_ids(saved: Any, tokenizer: Any, words: Any, tmp_path: Path) -> None:
    larger, model = copy.deepcopy(words), load(saved("full"))
    larger.add_tokens(["another"])
    with refused("export/folders.py::_check::tokenizer") as found:
        save(model, tokenizer=larger, folder=tmp_path / "a")
    assert "the tokenizer of this model" in found[0].fix
    assert "resize_token_embeddings" in found[0].fix
    assert load(str(save(model, tokenizer=load_tokenizer(saved("full")), folder=tmp_path / "b")))
    model.resize_token_embeddings(len(larger))
    assert load(str(save(model, tokenizer=larger, folder=tmp_path / "c")))


# --- generative classifiers ---


def test_a_head_does_not_generate_text(saved: Any) -> None:
    with refused("generators.py::_refuse_head::name") as found:
        load_generator(saved("full"))
    [name] = re.findall(r"Scorer\('(.+)'\)", found[0].fix)
    assert Scorer(name).predict(["A text."])


def test_a_stock_head_does_not_generate_text(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import GPT2ForSequenceClassification

    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=5026, pad_token_id=0)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with refused("generators.py::_refuse_head::name#2") as found:
        load_generator(str(tmp_path))
    [(task, name)] = re.findall(r"pipeline\('(.+)', '(.+)'\)", found[0].fix)
    assert pipeline(task, name, device="cpu")("A text.")


def test_a_name_of_no_model(bases: dict[str, str], tmp_path: Path) -> None:
    with refused("generators.py::load_generator::name") as found:
        load_generator(str(tmp_path))
    assert "check the name" in found[0].fix
    with refused("generators.py::file_of::name") as found:
        file_of(str(tmp_path / "nowhere"), "x.json")
    assert "check the name" in found[0].fix
    assert load_generator(bases["qwen2"])
    assert file_of(bases["qwen2"], "config.json")


# --- the command line of a model ---


def ask(*words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["qwen_task_heads", *words])
        main()


def test_an_option_that_a_scorer_does_not_support(saved: Any) -> None:
    words = [saved("scorer"), "One title", "Another", "--threshold", "0.5"]
    with refused("__main__.py::_check_supported::f'--{name}'") as found:
        ask(*words)
    [changed] = changes(found[0], words)
    ask(*changed)


def test_a_pair_without_its_second_text(bases: dict[str, str], tokenizer: Any, tmp_path: Path) -> None:
    model, words = build(bases["qwen2"], **TASK, max_seq_length=64), copy.deepcopy(tokenizer)
    bind_template(words, model.config, pairs=True)
    folder = str(save(model, tokenizer=words, folder=tmp_path))
    with refused("__main__.py::_check_supported::--text_pair") as found:
        ask(folder, "One text")
    ask(folder, "One text", *shlex.split(found[0].fix.removeprefix("give ")))
