"""Tests of trackers with their libraries, if installed: the logged values, and no secrets in them."""

from __future__ import annotations

import json
import sqlite3
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.models import build
from qwen_task_heads.tracking.callbacks import TRACKERS, SwanLab, Wandb
from qwen_task_heads.tracking.libraries import failures_of
from qwen_task_heads.tracking.open_trackers import finish_trackers, name_for_texts, track
from qwen_task_heads.tracking.payload import MAX_TEXT, Cleaner, example_lines, final_metrics
from qwen_task_heads.training.arguments import DataArguments

VARIABLES = (
    "SWANLAB_MODE", "SWANLAB_LOG_DIR", "SWANLAB_PROJECT", "SWANLAB_RUN_ID", "TRACKIO_SPACE_ID",
    "TRACKIO_SERVER_URL", "TENSORBOARD_LOGGING_DIR", "WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "NETRC",
    "WANDB_PROJECT", "WANDB_LOG_MODEL", "WANDB_WATCH", "WANDB_BASE_URL",
)  # fmt: skip
ROWS = [
    {"text": "a match in spring", "true": "sport", "label": "sport", "probability": 0.75, "correct": True},
    {"text": "shares fell", "true": "trade", "label": None, "probability": 0.4, "correct": False},
]
METRICS = {
    "seed": 0,
    "dev": {
        "this model": {"accuracy": {"value": 0.75, "low": 0.5, "high": 0.9}, "per_class": [{"f1": 1.0}]},
        "TF-IDF, linear": {"accuracy": {"value": 0.5, "low": None, "high": None}},
        "the most frequent label": {"macro_f1": {"value": None, "low": None, "high": None}},
    },
}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without logins, and an environment without variables of trackers."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-somebody"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "home-of-somebody").mkdir()
    return tmp_path / "home-of-somebody"


def arguments(folder: Path, *names: str, **changes: Any) -> TrainingArguments:
    return TrainingArguments(str(folder), report_to=list(names) or "none", use_cpu=True, **changes)


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_only_secrets_and_folders_are_removed_from_settings(own_home: Path) -> None:
    clean = Cleaner({"$T": "abcdefgh"})
    settings = {
        "lr": np.float32(0.5),
        "steps": 3,
        "packing": True,
        "none": None,
        "words": "none of it",
        "key abcdefgh": ["abcdefgh", ("hf_" + "a" * 34,)],
        "base": f"{own_home}/models/qwen",
        "cache": "~/.cache/models",
        "repo": "Qwen/Qwen2.5-0.5B",
        "note": f"read from {own_home}/data.jsonl",
    }
    assert clean.value(settings) == {
        "lr": 0.5,
        "steps": 3,
        "packing": True,
        "none": None,
        "words": "none of it",
        "key ***": ["***", ["***"]],
        "base": "qwen",
        "cache": "models",
        "repo": "Qwen/Qwen2.5-0.5B",
        "note": "read from ~/data.jsonl",
    }


@pytest.mark.parametrize(
    "text",
    [
        "/no_think",
        "/no_think\nWhich of sport/trade is it?",
        "/no_think以下文本是体育/财经？",
        "/label:{text}/n",
        "/classify sport/trade",
        "read /data/of-somebody/x.jsonl",
        "~5 items/hour",
        "/" + "long/" * 2000 + " x",
    ],
)
def test_a_text_that_starts_like_a_path_is_kept(text: str) -> None:
    assert Cleaner({}).value(text) == text


def test_a_setting_that_is_a_path_is_reduced_to_its_name(tmp_path: Path) -> None:
    there = tmp_path / "with blanks, and more"
    there.mkdir()
    clean = Cleaner({})
    assert clean.value([str(there), "/data/models/qwen", "~/qwen"]) == [there.name, "qwen", "qwen"]


def test_known_paths_inside_texts_are_reduced_to_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = tmp_path / "private" / "train.jsonl", tmp_path / "runs" / "news"
    data.parent.mkdir()
    data.touch()
    monkeypatch.chdir(tmp_path)
    clean = Cleaner({}, places=["private/train.jsonl", None, 2, [str(run)], "Qwen/Qwen2.5-0.5B", "embedded"])
    cleaned = clean.value(f"read {data} and {data.parent}/labels.yaml; saved in '{run}/plots'")
    assert cleaned == "read train.jsonl and private/labels.yaml; saved in 'news/plots'"
    assert clean.text(f"see https://a.org{data}") == f"see https://a.org{data}"
    assert Cleaner({}, places=["/data"]).text("in /data") == "in /data"  # not private


def test_examples_have_text_truth_answer_and_probability(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        {
            "text": "t",
            "text_b": "u",
            "true": ["a", "b"],
            "labels": ["a"],
            "probabilities": {"a": 0.9, "b": 0},
        },
        {"text": "t", "true": 2.5, "score": 2.25, "error": -0.25},
        {"prompt": "p", "chosen": "x", "rejected": "y", "p_preferred": 0.25, "correct": False},
    ]
    lines = example_lines(write_rows(tmp_path, rows), Cleaner({}))
    assert lines == [
        "1. a match in spring | true: sport | answer: sport | probability: 0.75",
        "2. shares fell | true: trade | answer: null | probability: 0.4",
        '3. t // u | true: ["a", "b"] | answer: ["a"] | probability: {"a": 0.9}',
        "4. t | true: 2.5 | answer: 2.25",
        "5. p // x // y | true: chosen | answer: rejected | probability: 0.75",
    ]


def test_secrets_are_removed_from_ten_examples_before_truncation(tmp_path: Path) -> None:
    secret = "abcdefgh" * 8
    row = {**ROWS[0], "text": "x" * (MAX_TEXT - 20) + " " + secret + "y" * 50}
    lines = example_lines(write_rows(tmp_path, [row] * 12), Cleaner({"$T": secret}))
    assert len(lines) == 10
    assert "abcdefgh" not in lines[0]
    assert len(lines[0].split(" | ")[0]) == MAX_TEXT + len("1. ")


def test_final_metrics_of_the_model_and_the_baselines() -> None:
    assert final_metrics(METRICS) == {
        "final/dev/this_model/accuracy": 0.75,
        "final/dev/TF-IDF_linear/accuracy": 0.5,
    }


def test_unknown_and_missing_trackers_are_refused_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SwanLab, "module", "no_such_swanlab")
    monkeypatch.setattr(Wandb, "module", "no_such_wandb")
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    with pytest.raises(TaskHeadsError) as caught:
        track(arguments(tmp_path, "mlflow", "swanlab", "wandb"), task=DataArguments())
    unknown, missing, uploads = caught.value.problems
    assert (unknown.code, unknown.where) == ("option-value", "--report_to")
    assert "'mlflow'" in unknown.problem
    assert "trackio" in unknown.expected
    assert (missing.code, missing.where) == ("package-missing", "--report_to")
    assert "swanlab, wandb" in missing.problem
    assert 'pip install "qwen-task-heads[track]"' in missing.fix
    assert (uploads.code, uploads.where) == ("option-unsupported", "WANDB_LOG_MODEL")
    assert not list(tmp_path.glob("r*"))


@pytest.mark.parametrize(
    ("name", "asked", "mode", "named"),
    [
        ("tensorboard", None, "", True),
        ("tensorboard", False, "", False),
        ("wandb", None, "offline", True),
        ("wandb", None, "online", False),
        ("wandb", True, "online", True),
    ],
)
def test_trackers_that_may_have_texts_are_named_where_trl_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, asked: bool | None, mode: str, named: bool
) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", mode)
    args = arguments(tmp_path, name)
    trackers = track(args, task=DataArguments(log_predictions=asked))
    assert args.report_to == []
    assert name_for_texts(args, trackers) == [name] * (not named)
    assert args.report_to == [name] * named


def test_without_trackers_the_list_is_empty(tmp_path: Path) -> None:
    assert track(arguments(tmp_path), task=DataArguments()) == []


@pytest.mark.parametrize(
    ("name", "variables", "space", "local"),
    [
        ("tensorboard", {}, None, True),
        ("swanlab", {}, None, True),
        ("swanlab", {"SWANLAB_MODE": "local"}, None, True),
        ("swanlab", {"SWANLAB_MODE": "cloud"}, None, False),
        ("trackio", {}, None, True),
        ("trackio", {}, "me/space", False),
        ("trackio", {"TRACKIO_SERVER_URL": "https://tracks"}, None, False),
        ("wandb", {}, None, True),
        ("wandb", {"WANDB_API_KEY": "k" * 40}, None, False),
        ("wandb", {"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}, None, True),
        ("wandb", {"WANDB_MODE": "online"}, None, False),
    ],
)
def test_the_mode_of_a_tracker_is_local_by_default(
    name: str, variables: dict[str, str], space: str | None, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert TRACKERS[name].is_local(SimpleNamespace(trackio_space_id=space)) is local


def test_a_login_of_wandb_is_found_in_the_netrc_file(own_home: Path) -> None:
    (own_home / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password 1234567890\n")
    assert Wandb.is_local(SimpleNamespace()) is False


@pytest.fixture
def open_swanlab(tmp_path: Path) -> Any:
    """A run started by other code of the process."""
    swanlab = pytest.importorskip("swanlab")
    probe = swanlab.Settings.Probe(runtime=False, git=False, requirements=False, swanlab=False)
    settings = swanlab.Settings(
        interactive=False, probe=probe, terminal=swanlab.Settings.Terminal(proxy_type="none")
    )
    yield swanlab.init(mode="offline", log_dir=str(tmp_path / "theirs"), project="p", settings=settings)
    if swanlab.has_run():
        swanlab.finish()


def test_the_mode_of_an_open_run_precedes_the_environment(
    tmp_path: Path, open_swanlab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWANLAB_MODE", "online")
    (tracker,) = track(arguments(tmp_path / "run", "swanlab"), task=DataArguments())
    assert tracker.predictions
    assert str(tmp_path / "theirs") in tracker.location()
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    # The mode of an online run is simulated, because starting one needs a server.
    monkeypatch.setitem(vars(open_swanlab), "mode", "online")
    assert not tracker.predictions
    assert tracker.location() == "swanlab, online"


@pytest.mark.parametrize(("mode", "local"), [("online", False), ("shared", False), ("offline", True)])
def test_the_mode_of_an_open_wandb_run_precedes_the_environment(
    mode: str, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = ModuleType("wandb")  # an online run needs a server
    library.run = SimpleNamespace(settings=SimpleNamespace(mode=mode))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.setenv("WANDB_MODE", "offline" if not local else "online")
    assert Wandb.is_local(SimpleNamespace()) is local


def test_a_failed_tracker_is_reported_and_the_others_are_ended(
    own_home: Path, open_swanlab: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own_home / "run"
    write_rows(folder, ROWS)
    (folder / "runs").write_text("a file where a folder must be")
    trackers = track(arguments(folder, "tensorboard", "swanlab"), task=DataArguments())
    finish_trackers(trackers, folder=folder, metrics=METRICS, settings={}, reported="dev")
    failed, tracked = [line for line in capsys.readouterr().out.splitlines() if "racked: " in line]
    assert failed.startswith("Not tracked: tensorboard failed at the end (FileExistsError: ")
    assert str(own_home) not in failed
    assert tracked.startswith("Tracked: swanlab sync ")
    assert not sys.modules["swanlab"].has_run()


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_failures_of_trackers_include_disks_and_exclude_bugs(name: str) -> None:
    if name == "wandb" and find_spec(name) is None:
        pytest.skip("wandb is not installed: pip install wandb")
    known = failures_of(name)
    assert issubclass(OSError, known)
    assert not issubclass(TypeError, known)
    assert issubclass(sqlite3.OperationalError, known) == (name == "trackio")


def held(folder: Path) -> bytes:
    """All bytes that a tracker has written."""
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("name", sorted(TRACKERS))
@pytest.mark.parametrize("with_trainer", [True, False], ids=["trained", "swept"])
def test_a_run_is_written_locally_without_secrets(
    name: str,
    with_trainer: bool,
    own_home: Path,
    bases: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if find_spec(TRACKERS[name].module) is None:
        pytest.skip(f"{name} is not installed: pip install {name}")
    secrets = {origin: "hf_" + origin * 3 + "Z9" * 15 for origin in ("environ", "argument", "config", "data")}
    monkeypatch.setenv("HF_TOKEN", secrets["environ"])
    folder = own_home / "run"
    write_rows(folder, [{**row, "text": f"{row['text']} {secrets['data']}"} for row in ROWS])
    draw_plot(folder / "training.png")
    args = arguments(folder, name, hub_token=secrets["argument"], run_name=f"a {secrets['argument']}")
    where = folder if name != "trackio" else trackio_folder(monkeypatch, own_home)
    model = build(bases["qwen2"])
    model.config._name_or_path = str(own_home / "bases" / "qwen")
    model.config.update({"label_descriptions": {"a": secrets["config"]}})

    (tracker,) = track(args, task=DataArguments())
    assert args.report_to == []
    assert not (folder / "runs").exists()  # nothing is begun before the data are read
    state, control = TrainerState(global_step=1), TrainerControl()
    if with_trainer:
        tracker.on_train_begin(args, state, control, model=model)
        tracker.on_log(args, state, control, logs={"loss": 0.5, "eval_accuracy": 0.25})
        tracker.on_train_end(args, state, control)
    settings = {"dataset_name": f"{own_home}/rows.jsonl", "key": secrets["environ"], "loss": "focal"}
    finish_trackers([tracker], folder=folder, metrics=METRICS, settings=settings, reported="dev")

    assert "Tracked: " in capsys.readouterr().out
    READERS[name](where, with_trainer)
    for path in folder.glob("*.*"):
        path.unlink()  # the run's own files
    content = held(where)
    assert [origin for origin, secret in secrets.items() if secret.encode() in content] == []
    mine = where if name not in ("swanlab", "wandb") else where / name
    files = [path for path in mine.rglob("*") if path.is_file() and path.suffix not in (".log", ".swanlab")]
    assert files
    assert [path.name for path in files if b"home-of-somebody" in path.read_bytes()] == []


def draw_plot(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    figure.savefig(path)


def trackio_folder(monkeypatch: pytest.MonkeyPatch, home: Path) -> Path:
    """Import trackio again, because it reads its variable once at import."""
    for module in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setenv("TRACKIO_DIR", str(home / "trackio"))
    return home / "trackio"


def read_tensorboard(folder: Path, trained: bool) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs"))
    events.Reload()
    scalars = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    during = {"train/loss": 0.5, "eval/accuracy": 0.25} if trained else {}
    assert scalars == {**final_metrics(METRICS), **during}
    texts = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
    assert texts["predictions/dev"].splitlines() == [
        "1. a match in spring *** | true: sport | answer: sport | probability: 0.75",
        "2. shares fell *** | true: trade | answer: null | probability: 0.4",
    ]
    assert json.loads(texts["args"])["run_name"] == "a ***"
    assert json.loads(texts["args"])["output_dir"] == "run"
    assert '"dataset_name": "rows.jsonl"' in texts["settings"]
    assert ("***" in texts["model_config"]) if trained else ("model_config" not in texts)
    assert events.Tags()["images"] == ["plots/training"]


def read_swanlab(folder: Path, trained: bool) -> None:
    (run,) = (folder / "swanlab").glob("run-*")
    (record,) = run.glob("run-*.swanlab")
    content = record.read_bytes()
    during = ["train/loss", "eval/accuracy"] if trained else []
    for name in [*final_metrics(METRICS), *during]:
        assert name.encode() in content
    texts = [path.read_text() for path in (run / "media" / "text").iterdir()]
    assert any("1. a match in spring *** | true: sport" in text for text in texts)
    assert any('"dataset_name": "rows.jsonl"' in text for text in texts)
    assert len(list((run / "media" / "image").iterdir())) == 1
    assert not (run / "files" / "requirements.txt").exists()
    assert "learning_rate" in (run / "files" / "config.yaml").read_text()


def read_trackio(folder: Path, trained: bool) -> None:
    (path,) = folder.glob("huggingface.db")
    with sqlite3.connect(path) as base:
        logged = " ".join(str(row) for row in base.execute("select * from metrics"))
        configs = " ".join(str(row) for row in base.execute("select * from configs"))
    during = ["train/loss", "eval/accuracy"] if trained else []
    for name in [*final_metrics(METRICS), *during]:
        assert name in logged
    assert "1. a match in spring *** | true: sport" in logged
    assert "learning_rate" in configs


def read_wandb(folder: Path, trained: bool) -> None:
    import wandb

    wandb.teardown()  # its service writes the last of a run when it ends, as at the end of a process
    (run,) = (folder / "wandb").glob("offline-run-*")
    (record,) = run.glob("run-*.wandb")
    content = record.read_bytes()
    during = ["train/loss", "eval/accuracy"] if trained else []
    for name in [*final_metrics(METRICS), *during]:
        assert name.encode() in content
    texts = [path.read_text() for path in (run / "files" / "media" / "html").rglob("*.html")]
    assert any("1. a match in spring *** | true: sport" in text for text in texts)
    assert b"learning_rate" in content


READERS = {
    "tensorboard": read_tensorboard,
    "swanlab": read_swanlab,
    "trackio": read_trackio,
    "wandb": read_wandb,
}


def test_predictions_are_logged_online_only_with_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TRACKERS["tensorboard"], "is_local", classmethod(lambda cls, args: False))
    for option, logged in ((None, False), (True, True), (False, False)):
        args = arguments(tmp_path, "tensorboard")
        (tracker,) = track(args, task=DataArguments(log_predictions=option))
        assert tracker.predictions is logged
