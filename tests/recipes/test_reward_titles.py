"""The title recipe: its files, its errors, and two processes compared with one."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
import yaml
from equality import assert_same_model
from launching import MACHINE, free_port

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "reward_titles.py"
CONFIGS = ROOT / "recipes" / "configs"
SAMPLE = ROOT / "qwen_task_heads" / "assets" / "upworthy"
run, finished, refused = (partial(f, RECIPE) for f in (launching.run, launching.finished, launching.refused))
short = partial(launching.short, max_length=48)


def head(file: Path, count: int) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()[:count]


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory) -> Path:
    """Write a folder of splits from the sample of real pairs."""
    folder = tmp_path_factory.mktemp("clicks")
    for name, count in (("train", 192), ("dev", 25), ("test_public", 30)):
        target = "test" if name == "test_public" else name
        (folder / f"{target}.jsonl").write_text("\n".join(head(SAMPLE / f"{name}.jsonl", count)) + "\n")
    return folder


# --- what a run leaves behind ---


@pytest.fixture(scope="session")
def full_run(pairs_folder, bases, tmp_path_factory) -> tuple[Path, str]:
    """Run a full fine-tuning, and return its folder and output."""
    folder = tmp_path_factory.mktemp("runs") / "full_run_1"
    log = folder.parent / "log"
    words = short(pairs_folder, bases["qwen2"], folder, pooling="mean", instruction="Rate this title: ")
    return folder, finished(words, log)


@pytest.fixture(scope="session")
def published_run(pairs_folder, bases, tmp_path_factory) -> Path:
    """Run the published ad-title setting on a tiny base of the same architecture."""
    folder = tmp_path_factory.mktemp("runs") / "ad_titles"
    config = CONFIGS / "ad_titles_7b.yaml"
    words = ["--config", config, *short(pairs_folder, bases["qwen2"], folder, dtype="float32", max_length=64)]
    drop = words.index("--per_device_train_batch_size")
    words = words[:drop] + words[drop + 2 :]
    drop = words.index("--learning_rate")
    words = words[:drop] + words[drop + 2 :]
    assert run(*words, "--save_total_limit", 1) == 0
    return folder


FILES = {
    "README.md",
    "config.json",
    "metrics.json",
    "manifest.json",
    "predictions.jsonl",
    "training.png",
    "gap_against_accuracy.png",
    "tokenizer.json",
    "tokenizer_config.json",
    *(file.name for file in (ROOT / "qwen_task_heads" / "hubcode").glob("*_task_heads.py")),
}
MODEL = "this model"


def test_a_full_run_writes_every_file(full_run):
    folder, _ = full_run
    assert FILES | {"model.safetensors"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "adapter/adapter_config.json").exists()


def test_metrics_card_output_and_predictions_agree(full_run, pairs_folder):
    folder, printed = full_run
    metrics = json.loads((folder / "metrics.json").read_text())
    card = (folder / "README.md").read_text()
    assert metrics["train"]["pairs"] == 192
    launching.estimated(metrics["train"], printed)
    for scorer, entry in metrics["test"].items():
        accuracy = entry["pair_accuracy"]
        shown = [f"{accuracy[key]:.3f}" for key in ("value", "low", "high")]
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {scorer} |")]
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        counts = [str(accuracy["n"]), str(accuracy["n_groups"])]
        assert cells == [scorer, shown[0], f"{shown[1]} to {shown[2]}", *counts]
        assert any(
            scorer in line and f"{shown[0]}  ({shown[1]} to {shown[2]})" in line
            for line in printed.splitlines()
        )
    front = yaml.safe_load(card.split("---")[1])
    (result,) = front["model-index"][0]["results"]
    ours = metrics["test"][MODEL]["pair_accuracy"]
    assert result["metrics"][0]["value"] == round(ours["value"], 4)
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == ours["n"] == 30
    credit = [0.5 if row["chosen_score"] == row["rejected_score"] else float(row["correct"]) for row in rows]
    assert sum(credit) / len(credit) == pytest.approx(ours["value"], abs=1e-12)
    test_rows = [json.loads(line) for line in head(pairs_folder / "test.jsonl", 30)]
    assert [row["chosen"] for row in rows] == [row["chosen"] for row in test_rows]
    assert rows[0]["source"] == "test.jsonl:1"
    # the longer title's share can be counted by hand
    longer = [
        0.5 + 0.5 * ((len(r["chosen"]) > len(r["rejected"])) - (len(r["chosen"]) < len(r["rejected"])))
        for r in test_rows
    ]
    assert metrics["test"]["the longer title wins"]["pair_accuracy"]["value"] == pytest.approx(
        sum(longer) / 30
    )


def test_card_and_manifest_name_no_folder_of_the_machine(full_run, published_run, pairs_folder, bases):
    for folder in (full_run[0], published_run):
        for name in ("README.md", "manifest.json", "metrics.json", "predictions.jsonl"):
            text = (folder / name).read_text()
            for place in (
                str(folder.parent),
                str(pairs_folder),
                str(Path(bases["qwen2"]).parent),
                str(ROOT),
                "/home",
            ):
                assert place not in text, (name, place)


def test_the_snippets_of_the_card_name_the_model(full_run):
    card = (full_run[0] / "README.md").read_text()
    assert 'from_pretrained(".", trust_remote_code=True)' in card
    assert 'pipeline("title-ranking", model="."' in card


def test_manifest_records_settings_data_and_code(full_run):
    manifest = json.loads((full_run[0] / "manifest.json").read_text())
    assert manifest["settings"]["pooling"] == "mean"
    assert manifest["settings"]["loss"] == "bradley_terry"
    assert manifest["settings"]["seed"] == manifest["seed"] == 0
    assert {name: entry["pairs"] for name, entry in manifest["data"].items()} == {
        "train": 192,
        "dev": 25,
        "test": 30,
    }
    assert all(len(entry["sha256"]) == 64 for entry in manifest["data"].values())
    assert set(manifest["code"]) == {name for name in FILES if name.endswith(".py")} | {"handler.py"}
    assert {"torch", "transformers", "trl", "qwen-task-heads"} <= set(manifest["versions"])


def test_full_and_adapter_runs_reload(full_run, published_run):
    from transformers import AutoModelForSequenceClassification

    from qwen_task_heads import Scorer

    for folder in (full_run[0], published_run):
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        again = Scorer(str(folder)).score([row["chosen"] for row in rows])
        bound = 1e-5 if (folder / "adapter/adapter_config.json").exists() else 1e-6  # merged, and as saved
        assert again == pytest.approx([row["chosen_score"] for row in rows], abs=bound)
        with_trust = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
        assert with_trust.config.model_type == "title_scorer"


def test_the_instruction_is_in_the_saved_tokenizer(full_run):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(full_run[0])
    assert tokenizer.decode(tokenizer("A title")["input_ids"]) == "Rate this title: A title<|im_end|>"
    assert tokenizer.model_max_length == 48


# --- the published ad-title setting ---


def test_the_published_setting_has_the_published_values():
    config = yaml.safe_load((CONFIGS / "ad_titles_7b.yaml").read_text())
    assert config["model_name_or_path"] == "Qwen/Qwen2.5-7B-Instruct"
    wanted = {
        "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "pooling": "mean", "head": "mlp",
        "head_sizes": [1024, 512], "head_dropout": 0.1, "loss": "margin_ranking", "loss_margin": 0.0,
        "per_device_train_batch_size": 20, "num_train_epochs": 5, "learning_rate": 5e-5, "seed": 42,
    }  # fmt: skip
    assert {name: config[name] for name in wanted} == wanted


def test_the_published_setting_trains_q_and_v_and_the_whole_head(published_run):
    from safetensors.torch import load_file

    tensors = load_file(published_run / "adapter/adapter_model.safetensors")
    adapted = {name.split(".")[-3] for name in tensors if ".lora_" in name}
    assert adapted == {"q_proj", "v_proj"}
    shapes = {tuple(tensor.shape) for name, tensor in tensors.items() if ".score." in name}
    assert {(1024, 32), (512, 1024), (1, 512)} <= shapes


def test_the_published_settings_mean_ignores_padding(published_run):
    """Other rows of a batch do not change a score: the mean excludes padding, unlike the original."""
    from qwen_task_heads import Scorer

    scorer = Scorer(str(published_run))
    # In fp64, because other products for other company round a trained backbone by 2e-6 on some processors.
    scorer.model.model.double()
    alone = scorer.score(["Ten ways to rest"])[0]
    beside = scorer.score(["Ten ways to rest", "A very much longer title " * 6])[0]
    assert beside == pytest.approx(alone, abs=1e-6)
    ids = torch.tensor([scorer.tokenizer("Ten ways to rest")["input_ids"]])
    padded = torch.nn.functional.pad(ids, (0, 40), value=scorer.tokenizer.pad_token_id)
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 40))
    with torch.inference_mode():
        assert scorer.model(input_ids=padded, attention_mask=mask).logits.item() == pytest.approx(
            alone, abs=1e-6
        )
        unmasked = scorer.model(input_ids=padded, attention_mask=torch.ones_like(mask)).logits.item()
    assert abs(unmasked - alone) > 1e-4  # the test can see the defect


# --- two processes ---


def history(folder: Path) -> list[dict[str, Any]]:
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return json.loads((newest / "trainer_state.json").read_text())["log_history"]


def same_run(one: Path, two: Path) -> None:
    single, double = history(one), history(two)
    for key in ("loss", "grad_norm", "eval_loss"):
        a, b = ([entry[key] for entry in entries if key in entry] for entries in (single, double))
        assert len(a) >= (10 if key != "eval_loss" else 2)
        assert b == pytest.approx(a, abs=1e-5), key
    accuracies = [
        [e["eval_accuracy"] for e in entries if "eval_accuracy" in e] for entries in (single, double)
    ]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=1e-12)
    counted = [round(value * 50) for value in accuracies[0]]  # 25 dev pairs on two processes: none twice
    assert accuracies[0] == pytest.approx([count / 50 for count in counted], abs=1e-9)
    figures = [json.loads((folder / "metrics.json").read_text())["test"][MODEL] for folder in (one, two)]
    assert figures[0]["pair_accuracy"]["value"] == figures[1]["pair_accuracy"]["value"]


@pytest.fixture(scope="session")
def one_process(pairs_folder, bases, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    words = short(pairs_folder, bases["qwen2"], folder, max_steps=10, eval_steps=5, save_steps=5)
    assert run(*words, "--per_device_train_batch_size", 16, "--per_device_eval_batch_size", 4) == 0
    return folder


def test_two_processes_give_the_losses_of_one(one_process, pairs_folder, bases, tmp_path):
    folder = tmp_path / "two"
    words = short(pairs_folder, bases["qwen2"], folder, max_steps=10, eval_steps=5, save_steps=5)
    words += ["--num_processes", 2, "--per_device_eval_batch_size", 2]
    for rank, process in enumerate(launching.fork_two(launching.run, RECIPE, *words, log=tmp_path / "log")):
        launching.join(process, tmp_path / f"log{rank}")
    same_run(one_process, folder)
    assert "Everything is in" in (tmp_path / "log0").read_text()
    assert "Everything is in" not in (tmp_path / "log1").read_text()


@pytest.mark.slow
def test_torchrun_gives_the_losses_of_one_process(one_process, pairs_folder, bases, tmp_path):
    words = short(pairs_folder, bases["qwen2"], tmp_path / "two", max_steps=10, eval_steps=5, save_steps=5)
    launcher = ["--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port", free_port()]
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, str(RECIPE), *map(str, words)]
    done = subprocess.run([*command, "--num_processes", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    same_run(one_process, tmp_path / "two")


@pytest.mark.slow
def test_a_launcher_that_starts_one_of_two_processes_is_refused(pairs_folder, bases, tmp_path):
    launcher = ["accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    words = short(pairs_folder, bases["qwen2"], tmp_path / "run")
    command = [sys.executable, "-m", *launcher, str(RECIPE), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "accelerate launch was given several processes and started one" in done.stderr
    assert "torchrun --nproc_per_node 2" in done.stderr
    assert not (tmp_path / "run").exists()


def test_another_number_of_processes_is_refused(pairs_folder, bases, tmp_path, capfd):
    assert run(*short(pairs_folder, bases["qwen2"], tmp_path / "run"), "--num_processes", 2) == 2
    assert "error: processes: 1 running" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


# --- bad input ---


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


GOOD = {"chosen": "A good title", "rejected": "A bad title"}


def test_bad_data_is_named_with_a_fix(bases, tmp_path, capfd):
    rows = [{"chosen": f"Good {i}", "rejected": f"Bad {i}", "group_id": f"g{i}"} for i in range(20)]
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "wrong.parquet").write_text("this is no parquet file")
    (tmp_path / "notes.docx").write_text("a document")
    (tmp_path / "folder").mkdir()
    cases = {
        write(tmp_path / "missing.jsonl", {"chosen": "A title"}): "rejected",
        write(tmp_path / "misspelt.jsonl", {"choosen": "A", "rejected": "B"}): "choosen",
        tmp_path / "empty.jsonl": "empty",
        tmp_path / "wrong.parquet": "wrong.parquet",
        tmp_path / "notes.docx": "docx",
        tmp_path / "nowhere.jsonl": "nowhere.jsonl",
        tmp_path / "folder": "folder",
        write(tmp_path / "one.jsonl", GOOD): "split",  # nothing is left for a dev set
    }
    for file, named in cases.items():
        message = refused(capfd, *short(file, bases["qwen2"], tmp_path / "run"))
        assert named in message, message
        assert "Expected " in message, message
        assert "Fix: " in message, message
    good = write(tmp_path / "good.jsonl", *rows)
    for option in ("dev_dataset", "test_dataset"):
        words = short(good, bases["qwen2"], tmp_path / "run", **{option: tmp_path / "empty.jsonl"})
        assert "empty.jsonl" in refused(capfd, *words)
    # all the defects of all the files in one run
    words = short(
        tmp_path / "missing.jsonl",
        bases["qwen2"],
        tmp_path / "run",
        dev_dataset=tmp_path / "misspelt.jsonl",
        test_dataset=tmp_path / "nowhere.jsonl",
    )
    message = refused(capfd, *words)
    assert all(name in message for name in ("missing.jsonl", "misspelt.jsonl", "nowhere.jsonl"))
    assert left_behind(tmp_path / "run") == []


def left_behind(folder: Path) -> list[str]:
    return (
        [path.name for path in folder.iterdir() if path.name != ".task_heads_run"] if folder.exists() else []
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_name_or_path": "no/such-base"}, ["no/such-base", "embedded"]),
        ({"model_name_or_path": "no-such-folder/"}, ["no-such-folder"]),
        ({"pooling": "nope"}, ["--pooling", "nope", "last, mean, max, attention"]),
        ({"head": "nope"}, ["--head", "nope", "linear, mlp"]),
        ({"loss": "nope"}, ["--loss", "nope", "bradley_terry"]),
        ({"head_activation": "nope"}, ["head_activation", "relu"]),
        ({"head": "mlp"}, ["head_sizes"]),
        ({"head_sizes": ["64"]}, ["head_sizes", "mlp"]),
        ({"head_dropout": 1.5}, ["head_dropout"]),
        ({"use_peft": "true", "lora_task_type": "CAUSAL_LM"}, ["--lora_task_type", "SEQ_CLS"]),
        ({"use_peft": "true", "lora_modules_to_save": ["lm_head"]}, ["--lora_modules_to_save", "score"]),
        (
            {"use_peft": "true", "lora_target_modules": ["qproj"]},
            ["--lora_target_modules", "qproj", "q_proj"],
        ),
        ({"loss": "bradley_terry_margin"}, ["--loss", "margin"]),
        ({"loss": "plackett_luce"}, ["--loss", "arms"]),
        ({"loss_margin": 0.5}, ["--loss_margin", "bradley_terry"]),
        ({"max_length": 1}, ["max_length"]),
        ({"learning_rate": "fast"}, ["learning_rate", "fast"]),
        ({"save_strategy": "epoch"}, ["save"]),  # the best checkpoint needs both at the same steps
    ],
    ids=str,
)
def test_bad_options_are_named(pairs_folder, bases, tmp_path, capfd, changes, named):
    base = changes.pop("model_name_or_path", bases["qwen2"])
    message = refused(capfd, *short(pairs_folder, base, tmp_path / "run", **changes))
    assert all(word in message for word in named), message
    assert left_behind(tmp_path / "run") == []


def test_unknown_options_and_keys_are_in_one_error(pairs_folder, bases, tmp_path, capfd):
    words = short(pairs_folder, bases["qwen2"], tmp_path / "run")
    config = tmp_path / "run.yaml"
    config.write_text("poling: mean\nlearning_rat: 1.0e-3\nseed: 1\n")
    message = refused(capfd, "--config", config, *words, "--dataset_nam", "x")
    assert all(
        word in message for word in ("poling", "pooling", "learning_rat", "--dataset_nam", "dataset_name")
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "there.yaml"), ("- a list\n", "a list"), ("a: [1\n", "run.yaml"), ("", "None")],
)
def test_a_config_that_cannot_be_read_is_named(pairs_folder, bases, tmp_path, capfd, content, named):
    (tmp_path / "there.yaml").write_text("seed: 1\n")
    config = tmp_path / "run.yaml"
    if content is not None:
        config.write_text(content)
    message = refused(capfd, "--config", config, *short(pairs_folder, bases["qwen2"], tmp_path / "run"))
    assert str(config) in message
    assert named in message


@pytest.mark.parametrize("resume", [(), ("--resume_from_checkpoint", "true")])
def test_an_output_folder_with_other_files_is_not_changed(pairs_folder, bases, tmp_path, capfd, resume):
    work = tmp_path / "run"
    (work / "sub").mkdir(parents=True)
    (work / "thesis.txt").write_text("years of work")
    (work / "model.safetensors").write_bytes(b"other weights")
    message = refused(capfd, *short(pairs_folder, bases["qwen2"], work), *resume)
    assert str(work) in message
    assert "thesis.txt" in message
    assert sorted(path.name for path in work.iterdir()) == ["model.safetensors", "sub", "thesis.txt"]
    assert (work / "thesis.txt").read_text() == "years of work"


def test_the_folder_of_a_finished_run_is_not_overwritten(full_run, pairs_folder, bases, tmp_path, capfd):
    work = tmp_path / "again"
    shutil.copytree(full_run[0], work)
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    message = refused(capfd, *short(pairs_folder, bases["qwen2"], work))
    assert "--resume_from_checkpoint" in message
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before


def refused_words(folder: Path) -> list[str]:
    return ["--output_dir", str(folder / "run"), "--pooling", "nope", *MACHINE]


def test_a_refused_run_prints_only_its_message(tmp_path):
    """The exit code of the child process is 2."""
    process = launching.start(RECIPE, refused_words(tmp_path), tmp_path / "log")
    process.join()
    assert process.exitcode == 2
    (line,) = (tmp_path / "log").read_text().strip().splitlines()
    assert line.startswith("error: --pooling: found 'nope'")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_exit_code_reaches_the_shell(tmp_path):
    """The same with a new process, on standard error."""
    command = [sys.executable, str(RECIPE), *refused_words(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: --pooling: found 'nope'")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# --- continuing from a saved model ---


def test_training_continues_from_a_saved_model(full_run, pairs_folder, tmp_path, capfd):
    """Head, template and limit of the saved model are kept without options that repeat them."""
    from transformers import AutoTokenizer

    assert run(*short(pairs_folder, str(full_run[0]), tmp_path / "more", max_steps=2)) == 0
    first, more = (
        json.loads((folder / "config.json").read_text()) for folder in (full_run[0], tmp_path / "more")
    )
    assert more["pooling"] == first["pooling"] == "mean"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "more")
    assert tokenizer.decode(tokenizer("A title")["input_ids"]) == "Rate this title: A title<|im_end|>"
    manifest = json.loads((tmp_path / "more/manifest.json").read_text())
    assert manifest["settings"]["pooling"] == "mean"
    # the first figures of the second run are those of the first run's weights
    message = refused(capfd, *short(pairs_folder, str(full_run[0]), tmp_path / "other", pooling="last"))
    assert "--pooling" in message
    assert "'mean'" in message


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_an_adapter_on_a_saved_model_is_refused(kind, full_run, published_run, pairs_folder, tmp_path, capfd):
    """The adapter would name the plain base instead of the weights that it was trained on."""
    first = full_run[0] if kind == "full" else published_run
    words = short(pairs_folder, str(first), tmp_path / "run", use_peft="true")
    assert "--use_peft" in refused(capfd, *words)
    assert run(*short(pairs_folder, str(first), tmp_path / "run", max_steps=2)) == 0
    assert (tmp_path / "run/model.safetensors").exists()


# --- other people's scripts ---


def stock_reward(*words: str) -> None:
    """Run the script of trl, which does not import this package, in the fork server."""
    sys.argv = ["reward", *words]
    runpy.run_module("trl.scripts.reward", run_name="__main__")


TRLS_OWN = """
import runpy, sys
sys.argv = ["reward", *sys.argv[1:]]
runpy.run_module("trl.scripts.reward", run_name="__main__")
"""


def trl_words(model: Path, data: Path, output: Path) -> list[str]:
    options = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": output,
        "trust_remote_code": "true",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "use_cpu": "true",
        "bf16": "false",
        "eval_strategy": "no",
        "gradient_checkpointing": "false",
        "report_to": "none",
        "save_strategy": "no",
        "learning_rate": "1e-3",
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def check_trained_on(before: Path, after: Path) -> None:
    from qwen_task_heads import load, load_tokenizer

    old, new = load(str(before)), load(str(after))
    assert not torch.equal(old.score.weight, new.score.weight)
    assert new.config.pooling == old.config.pooling == "mean"
    tokenizer = load_tokenizer(str(after))
    assert tokenizer("A title")["input_ids"] == load_tokenizer(str(before))("A title")["input_ids"]


def stock_data(folder: Path) -> Path:
    rows = [json.loads(line) for line in head(SAMPLE / "train.jsonl", 12)]
    folder.mkdir()
    write(folder / "train.jsonl", *[{key: row[key] for key in ("chosen", "rejected")} for row in rows])
    return folder


def test_the_reward_script_of_trl_continues_from_a_saved_model(full_run, tmp_path):
    log = tmp_path / "log"
    words = trl_words(full_run[0], stock_data(tmp_path / "data"), tmp_path / "out")
    launching.join(launching.fork(stock_reward, *words, log=log), log)
    check_trained_on(full_run[0], tmp_path / "out")


@pytest.mark.slow
def test_the_reward_script_of_trl_runs_without_this_package(full_run, tmp_path, clean):
    words = trl_words(full_run[0], stock_data(tmp_path / "data"), tmp_path / "out")
    clean.run(TRLS_OWN, *words, folder=tmp_path)
    check_trained_on(full_run[0], tmp_path / "out")


# --- the head is trained and saved, whatever the flags ---

FLAGS = [
    {"pooling": pooling, **head, **adapter}
    for pooling, head in (
        ("last", {}),
        ("mean", {"head": "mlp", "head_sizes": ["8", "4"]}),
        ("max", {}),
        ("attention", {}),
    )
    for adapter in (
        {},
        {"freeze_backbone": "true"},
        {"use_peft": "true"},
        {"use_peft": "true", "use_dora": "true", "lora_target_modules": ["attention"]},
        {"use_peft": "true", "use_rslora": "true", "lora_target_modules": ["all-linear"]},
        {
            "use_peft": "true",
            "lora_target_modules": ["q_proj", "down_proj"],
            "lora_modules_to_save": ["score"],
        },
        {"use_peft": "true", "use_dora": "true", "lora_target_modules": ["all-linear"]},
        {"use_peft": "true", "lora_target_modules": ["o_proj"]},
    )
]


@pytest.mark.slow
def test_the_head_is_trainable_and_saved_under_every_combination_of_flags(bases, tmp_path):
    """Uses the arguments and the calls of the recipe without its training loop."""
    from peft import get_peft_model
    from safetensors.torch import load_file

    from qwen_task_heads import adapter_config, build, load, load_tokenizer, save
    from qwen_task_heads.training.title_arguments import parse_title_arguments

    tokenizer = load_tokenizer(bases["qwen2"])
    assert len(FLAGS) >= 24
    for number, flags in enumerate(FLAGS):
        lora = {"lora_r": 2} if "use_peft" in flags else {}
        words = short(Path("x"), bases["qwen2"], tmp_path / "unused", **lora, **flags)
        titles, _, model_args = parse_title_arguments([str(word) for word in words])
        model: Any = build(bases["qwen2"], **model_args.load_options(), **titles.head_options())
        if model_args.use_peft or titles.freeze_backbone:
            options = model_args.adapter_options()
            model = get_peft_model(model, adapter_config(model, head_only=titles.freeze_backbone, **options))
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        scores = [name for name in trainable if "score." in name]
        assert len(scores) == sum(
            1 for name, _ in model.named_parameters() if "score.modules_to_save" in name
        ) or (not model_args.use_peft and not titles.freeze_backbone), flags
        assert scores, flags
        backbone = [name for name in trainable if "score." not in name]
        assert bool(backbone) == (not titles.freeze_backbone), flags
        with torch.no_grad():
            for name in scores:
                trainable[name].add_(0.25)
        folder = save(model.eval(), tokenizer=tokenizer, folder=tmp_path / str(number))
        adapted = (folder / "adapter/adapter_model.safetensors").exists()
        saved = load_file(folder / ("adapter/adapter_model.safetensors" if adapted else "model.safetensors"))
        assert sum("score." in name for name in saved) == len(scores), flags
        ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
        assert_same_model(load(str(folder)), model, input_ids=ids)
        shutil.rmtree(folder)
