"""Commands with many problems succeed after the fix of every message is typed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import launching
import pytest

from qwen_task_heads import build, load_tokenizer, save

BEGIN = "The council met again on Monday and spoke about the new bridge over the river. "
MAX_REFUSALS = 5
Usage = namedtuple("Usage", "total used free")


def write(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    for name, rows in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def titles(count: int) -> list[dict[str, Any]]:
    """Return pairs that differ only after a long prefix."""
    return [{"chosen": f"{BEGIN}Red {n}", "rejected": f"{BEGIN}Blue {n}"} for n in range(count)]


def texts(count: int) -> list[dict[str, Any]]:
    """Return texts that differ only in their last word, which determines the label."""
    return [
        {"text": f"{BEGIN}{('sun', 'rain', 'snow')[n % 3]} {n}", "label": ("a", "b", "c")[n % 3]}
        for n in range(count)
    ]


def title_scorer(bases: Any, folder: Path) -> Path:
    """Build and save a title scorer that rewards a title generator."""
    model = build(bases["qwen2"], pooling="mean")
    names = ("reward_mean", "reward_std", "reward_length_mean", "reward_length_slope")
    model.config.update(dict.fromkeys(names, 1.0))
    return save(model, tokenizer=load_tokenizer(bases["qwen2"]), folder=folder / "scorer")


MESSAGE = re.compile(r"(?:error: )?(.+?): .*\. Expected (.*?)\. Fix: (.*)\.")


def typed(words: list[str], message: str) -> list[str]:
    """Apply the fix of each problem of a message to the words of a refused run."""
    problems = [match for match in map(MESSAGE.fullmatch, message.splitlines()) if match]
    assert problems, message
    for problem in problems:
        where, expected, fix = problem.groups()
        options = re.search(r"(?:give|add) (--.*?)(?:, which|, or|$)", fix)
        if options:
            words = [*words, *shlex.split(options[1])]
        elif "drop it" in fix and "choose" not in fix:
            place = words.index(where)
            words = words[:place] + words[place + 2 :]
        else:
            assert fix.startswith("choose one of them"), problem[0]
            words = [*words, where, expected.split(",")[0]]
    return words


def walk(recipe: str, words: list[object], folder: Path) -> list[str]:
    """Run a recipe until it succeeds, and return its error messages."""
    messages: list[str] = []
    now = [*map(str, words)]
    for attempt in range(MAX_REFUSALS + 1):
        log = folder / f"log{attempt}"
        process = launching.start(launching.RECIPES / f"{recipe}.py", now, log)
        process.join()
        printed = log.read_text(encoding="utf-8")
        if process.exitcode == 0:
            return messages
        assert process.exitcode == 2, printed[-3000:]
        assert "Traceback" not in printed
        assert "'loss':" not in printed, "a step was taken"
        messages.append(printed[printed.index("error: ") :])
        now = typed(now, messages[-1])
    raise AssertionError("\n\n".join(messages))


BEST = {"save_strategy": "best"}
WRONG = {
    "metric_for_best_model": "f1",
    "optim": "adamw_8bit",
    "lr_scheduler_type": "cosine_with_min_lr",
    "eval_strategy": "steps",
    "eval_steps": 500,
    "save_steps": 500,
    "save_total_limit": 0,
    "max_steps": 4,
}


@pytest.mark.parametrize("recipe", ["reward_titles", "classify", "sft_classify"])
def test_following_every_fix_of_a_command_with_many_problems_succeeds(
    recipe: str, bases: Any, tmp_path: Path
) -> None:
    rows = titles if recipe == "reward_titles" else texts
    data = write(tmp_path / "data", train=rows(24), dev=rows(12), test=rows(6))
    limit = {
        "reward_titles": {"max_length": 20},
        "classify": {"max_seq_length": 20},
        "sft_classify": {"max_length": 30},
    }
    base = "embedded" if recipe == "sft_classify" else bases["qwen2"]
    words = launching.short(data, base, tmp_path / "run", **WRONG, **limit[recipe])
    messages = walk(recipe, words, tmp_path)
    first = messages[0]
    wanted = ["--optim: ", "--lr_scheduler_kwargs: ", "--save_total_limit: "]
    if recipe != "classify":  # its metrics depend on the data
        wanted.append("--metric_for_best_model: ")
    assert all(option in first for option in wanted), first
    assert "pip install -U bitsandbytes" in first
    if recipe == "classify":
        assert "--metric_for_best_model: found 'f1'. Expected accuracy, macro_f1" in messages[1]
    [equal] = [one for one in messages if "train.jsonl:1, train.jsonl:2" in one]
    for split, count in (("train", 24), ("dev", 12), ("test", 6)):
        assert f"{count} of {count} " in equal
        assert f"{split}.jsonl:1, {split}.jsonl:2" in equal
    assert "--eval_steps: found 500" in messages[-1]
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_a_sweep_refuses_a_metric_and_names_equal_texts(bases: Any, tmp_path: Path) -> None:
    data = write(tmp_path / "data", train=texts(24), dev=texts(12))
    words: list[object] = [
        *launching.MACHINE, "--model_name_or_path", bases["qwen2"], "--dataset_name", data, "--output_dir",
        tmp_path / "run", "--max_seq_length", 20, "--heads", "linear", "--seeds", 0, "--num_train_epochs", 1,
        "--metric_for_best_model", "f1", "--poolings", "last", "--layers", 2,
    ]  # fmt: skip
    said = walk("sweep_heads", words, tmp_path)
    assert "--metric_for_best_model" in said[0]
    assert "24 of 24 texts are equal to a text of another label" in said[1]


def test_a_title_generator_refuses_options_of_an_evaluation(bases: Any, tmp_path: Path) -> None:
    scorer = title_scorer(bases, tmp_path)
    rows = [{"text": f"Article {number} on rest."} for number in range(8)]
    data = write(tmp_path / "data", train=rows) / "train.jsonl"
    options = {
        "model_name_or_path": "embedded", "reward_model": scorer, "dataset_name": data,
        "output_dir": tmp_path / "run", "max_steps": 1, "num_generations": 4,
        "per_device_train_batch_size": 4, "max_completion_length": 4, "learning_rate": 1e-3,
        "eval_strategy": "epoch", "metric_for_best_model": "reward", "optim": "schedule_free_adamw",
        "lr_scheduler_type": "warmup_stable_decay", "report_to": "mlflow",
    }  # fmt: skip
    words: list[object] = ["--use_cpu", "true", "--disable_tqdm", "true"]
    for name, value in options.items():
        words += [f"--{name}", value]
    options_said, tracker_said = walk("grpo_titles", words, tmp_path)
    for option in ("eval_strategy", "metric_for_best_model", "optim", "lr_scheduler_kwargs"):
        assert f"--{option}: " in options_said, options_said
    assert "--report_to: " in tracker_said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "changes", "named"),
    [
        ("classify", {"eval_delay": 99}, "--eval_delay"),
        ("classify", {"lr_scheduler_type": "reduce_lr_on_plateau"}, "mode 'min' with eval_accuracy"),
        ("reward_titles", {"lr_scheduler_type": "greedy"}, "mode 'min' with eval_accuracy"),
        ("reward_titles", {"eval_steps": 2, "save_steps": 400}, "--save_steps"),
        ("reward_titles", {"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        ("reward_titles", {"lr_scheduler_kwargs": '{"num_cycles": 2}'}, "num_cycles"),
        ("classify", {"optim": "sgd", "optim_args": "momentum=0.9,beta=3"}, "beta"),
        ("classify", {"optim_target_modules": "q_proj"}, "--optim_target_modules"),
        ("classify", {"fp16": "true"}, "--fp16"),
        ("classify", {**BEST, "eval_strategy": "no", "load_best_model_at_end": "false"}, "best"),
    ],
    ids=str,
)
def test_following_the_fix_of_a_single_problem_succeeds(
    recipe: str, changes: dict[str, Any], named: str, bases: Any, tmp_path: Path
) -> None:
    rows = titles if recipe == "reward_titles" else texts
    data = write(tmp_path / "data", train=rows(24), dev=rows(12))
    words = launching.short(data, bases["qwen2"], tmp_path / "run", **changes)
    [said] = walk(recipe, words, tmp_path)
    assert named in said


@pytest.mark.parametrize("recipe", ["reward_titles", "classify", "sft_classify", "grpo_titles"])
def test_a_full_disk_is_reported_before_the_first_step(
    recipe: str,
    bases: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rows = {"reward_titles": titles, "grpo_titles": titles}.get(recipe, texts)
    data = write(tmp_path / "data", train=rows(24), dev=rows(12))
    options: dict[str, Any] = {"max_length": 64}
    if recipe == "classify":
        options = {}
    if recipe == "grpo_titles":
        options = {
            "dataset_name": data / "train.jsonl",
            "text_column": "chosen",
            "num_generations": 4,
            "eval_strategy": "no",
            "reward_model": title_scorer(bases, tmp_path),
        }
    words = launching.short(data, "embedded", tmp_path / "run", **options)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 1_000))
    message = launching.refused(launching.RECIPES / f"{recipe}.py", capfd, *words)
    assert f"{tmp_path / 'run'}: " in message
    assert "1,000 bytes" in message
    assert not list((tmp_path / "run").glob("checkpoint-*"))
