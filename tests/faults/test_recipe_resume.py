"""The title recipe after SIGKILL: the same command with resume ends with the same bytes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import launching
import pytest

RECIPE = launching.RECIPES / "reward_titles.py"
SAMPLE = launching.RECIPES.parent / "qwen_task_heads" / "assets" / "upworthy"
start, finished, killed = (
    partial(run, RECIPE) for run in (launching.start, launching.finished, launching.killed)
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clicks")
    for name, count in (("train", 60), ("dev", 10)):
        lines = (SAMPLE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def command(data: Path, base: str, output: Path, *more: str) -> list[str]:
    options = {
        "model_name_or_path": base, "dataset_name": data, "output_dir": output, "max_steps": 12,
        "save_steps": 3, "save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 3,
        "learning_rate": 1e-3, "seed": 3,
        "per_device_train_batch_size": 4, "max_length": 48, "pooling": "attention", "head_dropout": 0.1,
        "disable_dropout": "false", "use_cpu": "true", "report_to": "none", "disable_tqdm": "true",
        "resume_from_checkpoint": "true",
    }  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", str(value))] + list(more)


LORA = ("--use_peft", "true", "--lora_r", "2")


def weights(folder: Path) -> dict[str, bytes]:
    places = (folder, folder / "adapter")
    found = {path.name: path.read_bytes() for place in places for path in place.glob("*model.safetensors")}
    assert len(found) == 1
    return found


@pytest.fixture(scope="module")
def uninterrupted(data, bases, tmp_path_factory):
    """Return the bytes of the weights of an uninterrupted run, by its further options (full or LoRA)."""
    done: dict[tuple[str, ...], dict[str, bytes]] = {}

    def of(more: tuple[str, ...]) -> dict[str, bytes]:
        if more not in done:
            folder = tmp_path_factory.mktemp("whole")
            finished(command(data, bases["qwen2"], folder / "run", *more), folder / "log")
            done[more] = weights(folder / "run")
        return done[more]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "moment", "resumes"),
    [
        ((), "checkpoint-6/seal.json", "checkpoint-6"),
        ((), "checkpoint-9/model.safetensors", "checkpoint-6"),
        (LORA, "checkpoint-12/optimizer.pt", "checkpoint-9"),
        # after training, during the report
        ((), "metrics.json", "checkpoint-12"),
    ],
)
def test_a_killed_recipe_resumes_to_the_same_bytes(
    data, bases, tmp_path, uninterrupted, more, moment, resumes
):
    output, log = tmp_path / "run", tmp_path / "log"
    words = command(data, bases["qwen2"], output, *more)
    killed(words, log, path=output / moment)
    assert not (output / "manifest.json").exists()
    printed = finished(words, tmp_path / "again")
    assert weights(output) == uninterrupted(more)
    assert (output / "README.md").exists()
    # the steps before the kill are not in the log of the second start
    steps = 12 - int(resumes.split("-")[1])
    evaluated = printed.count("'eval_loss'")
    assert evaluated <= steps // 3 + (1 if steps else 0), printed


def test_another_setting_does_not_resume_a_killed_run(data, bases, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    words = command(data, bases["qwen2"], output)
    killed(words, log, path=output / "checkpoint-3/seal.json")
    before = (output / "checkpoint-3/model.safetensors").read_bytes()
    again = start([*words, "--learning_rate", "5e-4"], tmp_path / "again")
    again.join()
    assert again.exitcode == 2
    printed = (tmp_path / "again").read_text()
    assert "learning_rate" in printed
    assert "repeat that command" in printed
    assert (output / "checkpoint-3/model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_resumed_finished_run_is_not_changed(data, bases, tmp_path, uninterrupted):
    words = command(data, bases["qwen2"], tmp_path / "run")
    for log in ("first", "second"):
        finished(words, tmp_path / log)
        assert weights(tmp_path / "run") == uninterrupted(())
