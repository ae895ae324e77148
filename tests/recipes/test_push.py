"""Recipes with push_to_hub, on a loopback hub: checks before training, verification and publishing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hf_server
import launching
import pytest
from clean_process import CleanProcess
from huggingface_hub import HfApi

from qwen_task_heads import Scorer, load

RECIPES = launching.RECIPES
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with hf_server.serve() as server:
        hf_server.point_client(server, monkeypatch, cache=tmp_path / "cache")
        yield server


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [{"text": f"a {kind} text {n}", "label": kind} for n in range(20) for kind in ("good", "bad")]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_run_ends_in_a_private_repo_that_loads_by_its_id(
    hub: Any, texts: Path, bases: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = launching.short(
        texts,
        bases["qwen2"],
        tmp_path / "run",
        max_steps=2,
        push_to_hub="true",
        hub_model_id="me/reviews",
        license="apache-2.0",
        language="en",
    )
    assert launching.run(RECIPES / "classify.py", *words) == 0
    said = capfd.readouterr().out
    assert f"{hub.endpoint}/me/reviews" in said
    repo = hub.repos["me/reviews"]
    assert repo.private
    files = hub.files("me/reviews")
    assert {"config.json", "model.safetensors", "handler.py", "README.md", "parity.json"} <= files.keys()
    assert not {"training_args.bin", "predictions.jsonl", "errors.md", "reference.json"} & files.keys()
    card = files["README.md"].decode()
    assert "license: apache-2.0" in card
    assert 'from_pretrained("me/reviews"' in card
    assert "before the verification" not in card
    model = load("me/reviews")
    assert list(model.config.id2label.values()) == ["bad", "good"]
    local = Scorer(str(tmp_path / "run")).predict(["a good text"])[0].probabilities
    assert Scorer("me/reviews").predict(["a good text"])[0].probabilities == pytest.approx(local, abs=1e-6)


def test_unpublishable_options_are_refused_before_training(
    hub: Any,
    texts: Path,
    bases: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(**changes: object) -> str:
        words = launching.short(texts, bases["qwen2"], tmp_path / "run", **changes)
        return launching.refused(RECIPES / "classify.py", capfd, *words, "--push_to_hub", "true")

    assert "--hub_model_id" in refused()
    alone = launching.short(texts, bases["qwen2"], tmp_path / "run", hub_model_id="me/reviews")
    assert "without --push_to_hub" in launching.refused(RECIPES / "classify.py", capfd, *alone)
    assert "a folder of this machine" in refused(hub_model_id="me/reviews", use_peft="true")
    message = refused(license="apache2", language="english", dataset_url="nonsense")
    for word in (
        "--license: found 'apache2'",
        "give --license apache-2.0",
        "--language: found 'english'",
        "give --language en",
        "--dataset_url: found",
        "--hub_model_id",
    ):
        assert word in message
    assert "--hub_token: " in refused(hub_model_id="me/reviews", hub_token="hf_abc")
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refused(hub_model_id="me/reviews")
    assert not (tmp_path / "run").exists()
    assert "me/reviews" not in hub.repos


def test_an_unsuitable_repo_is_refused_before_training(
    hub: Any, texts: Path, bases: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.put("me/public", {"README.md": b"# Ours\n"})
    hub.create("me/tagged", private=True).tags["v1"] = "0" * 40
    words = launching.short(texts, bases["qwen2"], tmp_path / "run", push_to_hub="true")

    def refused(*more: str) -> str:
        return launching.refused(RECIPES / "classify.py", capfd, *words, *more)

    assert "me/public: " in refused("--hub_model_id", "me/public")
    assert "tag 'v1' of me/tagged" in refused("--hub_model_id", "me/tagged", "--hub_tag", "v1")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("pooling", "mean"),
        ("head", "mlp"),
        ("bidirectional", "true"),
        ("truncation", "head_tail"),
        ("problem_type", "ordinal"),
    ],
)
def test_a_model_without_a_stock_class_is_refused_before_training(
    hub: Any, texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    words = launching.short(
        texts,
        "embedded",
        tmp_path / "run",
        push_to_hub="true",
        hub_model_id="me/x",
        publish_form="stock",
        **{option: value},
    )
    message = launching.refused(RECIPES / "classify.py", capfd, *words)
    assert f"--{option}: found" in message
    assert "in a stock class" in message
    assert not hub.log  # the hub is not called, because nothing is uploaded


@pytest.mark.parametrize("recipe", ["sft_classify.py", "sweep_heads.py"])
def test_recipes_without_a_stock_model_refuse_the_option(
    hub: Any,
    texts: Path,
    bases: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recipe: str,
) -> None:
    words = [
        "--model_name_or_path",
        bases["qwen2"],
        "--dataset_name",
        texts,
        "--output_dir",
        tmp_path / "run",
    ]
    words += [
        *launching.MACHINE,
        "--push_to_hub",
        "true",
        "--hub_model_id",
        "me/x",
        "--publish_form",
        "stock",
    ]
    message = launching.refused(RECIPES / recipe, capfd, *words)
    assert ("--publish_form: " in message) == (recipe == "sft_classify.py")
    assert ("--poolings: found 'mean'" in message) == (recipe == "sweep_heads.py")


UPLOADED = r"""
import json, os, sys
job = json.loads(sys.argv[1])
os.environ["HF_TOKEN"] = job["token"]
from huggingface_hub import constants
constants.ENDPOINT, constants.HF_HUB_CACHE = job["endpoint"], job["cache"]
constants.HUGGINGFACE_CO_URL_TEMPLATE = job["endpoint"] + "/{repo_id}/resolve/{revision}/{filename}"
constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE = True, False
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
model = AutoModelForSequenceClassification.from_pretrained("me/by-hand", trust_remote_code=True)
assert type(model).__name__ == "PooledClassifier", type(model)
classify = pipeline("text-classification", model="me/by-hand", trust_remote_code=True)
print(json.dumps({row["label"]: row["score"] for row in classify("a good text", top_k=None)}))
"""


@pytest.mark.parametrize("method", ["lora", pytest.param("head", marks=pytest.mark.slow)])
def test_the_folder_of_a_run_loads_after_a_manual_upload(
    hub: Any, texts: Path, bases: dict[str, str], tmp_path: Path, clean: CleanProcess, method: str
) -> None:
    """Upload by the command line of the hub client, with an MLP head that no stock class supports."""
    hub.put("base/tiny", {path.name: path.read_bytes() for path in Path(bases["qwen2"]).iterdir()})
    options = {"use_peft": "true"} if method == "lora" else {"freeze_backbone": "true"}
    run = tmp_path / "run"
    words = launching.short(
        texts, "base/tiny", run, max_steps=2, head="mlp", head_sizes=8, save_strategy="steps", save_steps=1,
        eval_strategy="steps", eval_steps=1, **options,
    )  # fmt: skip
    assert launching.run(RECIPES / "classify.py", *words) == 0
    HfApi().create_repo("me/by-hand")
    HfApi().upload_folder(repo_id="me/by-hand", folder_path=run)
    there = hub.files("me/by-hand")
    assert {"config.json", "adapter/adapter_model.safetensors", "README.md", "metrics.json"} <= there.keys()
    assert not [name for name in there if "training_args" in name or name.startswith("checkpoint-")]
    assert not {"predictions.jsonl", "errors.md", "reference.json"} & there.keys()
    assert "path/to" not in there["README.md"].decode()
    local = Scorer(str(run)).predict(["a good text"])[0].probabilities
    job = {"token": hub.token, "endpoint": hub.endpoint, "cache": str(tmp_path / "empty")}
    found = json.loads(clean.run(UPLOADED, json.dumps(job), folder=tmp_path).splitlines()[-1])
    assert found == pytest.approx(local, abs=1e-6)
    assert load("me/by-hand").config.head == "mlp"


@pytest.mark.slow
@pytest.mark.usefixtures("quick_proof")
def test_a_finished_folder_is_published_and_a_changed_one_is_not(
    hub: Any, texts: Path, bases: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert (
        launching.run(RECIPES / "classify.py", *launching.short(texts, bases["qwen2"], run, max_steps=2)) == 0
    )
    words = ["--model", run, "--hub_model_id", "me/again"]
    assert launching.run(RECIPES / "publish.py", *words, "--dry_run", tmp_path / "staged") == 0
    assert "Staged and verified" in capfd.readouterr().out
    assert not hub.repos
    assert "compared with the trained model" in (tmp_path / "staged" / "README.md").read_text("utf-8")
    kept = (run / "reference.json").read_bytes()
    stated = ["--license", "MIT", "--language", "en", "zh", "--dataset_url", "https://example.org"]
    message = launching.refused(
        RECIPES / "publish.py", capfd, *words, "--license", "apache2", "--language", "zhh!"
    )
    assert "license: found 'apache2'" in message
    assert "language: found 'zhh!'" in message
    (run / "reference.json").unlink()
    assert launching.run(RECIPES / "publish.py", *words, "--dry_run", tmp_path / "itself", *stated) == 0
    assert "Licence: MIT." in (tmp_path / "itself" / "README.md").read_text("utf-8")
    assert "Licence: not stated." in (run / "README.md").read_text("utf-8")
    sentence = "compared with this folder at the time of publishing; no answers of the training run"
    assert sentence in capfd.readouterr().out
    for name in ("README.md", "parity.json"):
        message = (tmp_path / "itself" / name).read_text("utf-8")
        assert sentence in message
        assert "compared with the trained model" not in message
    (run / "reference.json").write_bytes(kept)
    (run / "confusion.png").unlink()
    config = json.loads((run / "config.json").read_text("utf-8"))
    config["id2label"] = {"0": "good", "1": "bad"}
    config["label2id"] = {"good": 0, "bad": 1}
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    message = launching.refused(RECIPES / "publish.py", capfd, *words)
    assert f"{run}/config.json: " in message
    assert f"{run}/confusion.png: " in message
    (run / "manifest.json").unlink()
    assert "manifest.json" in launching.refused(RECIPES / "publish.py", capfd, *words)
    assert not hub.repos
