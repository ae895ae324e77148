"""The fixes of problems of commands, and of data that a run cannot use, are typed and accepted."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from fixes import Words, refused

from qwen_task_heads import build, cli, load_tokenizer, option_catalog, save
from qwen_task_heads.runs.generative import GenerativeRun
from qwen_task_heads.runs.texts import ClassifierRun
from qwen_task_heads.runs.title_generator import TitleGeneratorRun, check_named
from qwen_task_heads.runs.titles import TitleRun

COMMANDS = {
    "clasify": ("cli.py::run::f'qth {name}'", "classify"),
    "no-such-command": ("cli.py::run::f'qth {name}'", "titles"),  # choose one of them
    "classify --learning_rat 1": ("cli.py::option_problems::f'--{name}'", "classify --learning_rate 1"),
    "classify --no_near_name": ("cli.py::option_problems::f'--{name}'", "classify"),  # drop it
    "predict --bad_rows drop": ("cli.py::option_problems::f'--{name}'#2", "predict --bad_rows skip"),
    "classify --config quick_start": ("cli.py::_command_for::--config", "sweep --config quick_start"),
    "titles --config quik_start": ("cli.py::_named::option", "titles --config quick_start"),
    "titles --accelerate_config=no-name": ("cli.py::_named::option", "titles --accelerate_config single"),
}


@pytest.mark.parametrize("line", COMMANDS)
def test_the_fix_of_a_command_is_accepted(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    site, typed = COMMANDS[line]
    command, *words = shlex.split(line)
    with refused(site) as problems:
        cli.run(command, words)
    named = f"{problems[0].expected} {problems[0].fix}"
    new = [word for word in shlex.split(typed) if word not in re.split("[ =]", line)]
    assert all(word in named for word in new), named
    command, *words = shlex.split(typed)
    assert cli.run(command, [*words, "--help"]) == 0
    assert "usage: qth" in capsys.readouterr().out


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def words(dataset: str, tmp_path: Path, *more: str) -> Words:
    given = ["--dataset_name", dataset, "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    return [*given, "--bf16", "false", "--report_to", "none", *more]


def test_texts_with_several_labels_train_a_head(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "labels": ["a", "b"][: 1 + n % 2]} for n in range(40)]
    argv = words(written(tmp_path / "rows.jsonl", rows), tmp_path)
    with refused("runs/generative.py::GenerativeRun.read_datasets::--dataset_name") as problems:
        GenerativeRun.from_command_line(argv).read_datasets()
    assert problems[0].fix == "train a head: recipes/classify.py"
    assert ClassifierRun.from_command_line(argv).read_datasets().problem_type == "multi_label_classification"


def test_a_loss_over_groups_needs_arms_of_experiments(tmp_path: Path) -> None:
    pairs = written(tmp_path / "pairs.jsonl", [{"chosen": f"A {n}", "rejected": f"B {n}"} for n in range(40)])
    site = "runs/titles.py::TitleRun.read_datasets::--loss"
    with refused(site) as problems:
        TitleRun.from_command_line(words(pairs, tmp_path, "--loss", "plackett_luce")).read_datasets()
    assert problems[0].fix == "give such a file, or choose a loss over pairs"
    arms = [
        {"headline": f"{word} {n}", "clicks": clicks, "impressions": 90, "test_id": n}
        for n in range(40)
        for word, clicks in (("A", 20), ("B", 5), ("C", 9))
    ]
    for dataset, loss in (
        (written(tmp_path / "arms.jsonl", arms), "plackett_luce"),
        (pairs, "bradley_terry"),
    ):
        run = TitleRun.from_command_line(words(dataset, tmp_path / loss, "--loss", loss))
        assert run.read_datasets().train


def test_a_missing_option_is_named() -> None:
    words = ["--model", "runs/news"]
    with refused("cli.py::missing_options::f\"--{one['name']}\"") as problems:
        cli.run("publish", words)
    assert (problems[0].where, problems[0].fix) == ("--hub_model_id", "name it")
    assert cli.missing_options([*words, "--hub_model_id", "me/news"], option_catalog.read()["publish"]) == []


GENERATOR = {
    "--model_name_or_path": "embedded",
    "--reward_model": "runs/titles",
    "--dataset_name": "articles.jsonl",
    "--output_dir": "runs/generator",
}


def test_the_options_that_a_title_generator_needs(tmp_path: Path) -> None:
    with refused("runs/title_generator.py::check_named::option") as problems:
        check_named(["--learning_rate", "1e-5"])
    assert {problem.where for problem in problems} == set(GENERATOR)
    check_named([word for option in GENERATOR.items() for word in option])
    config = tmp_path / "run.yaml"
    with refused("runs/title_generator.py::check_named::--config") as problems:
        check_named(["--config", str(config)])
    assert problems[0].fix == "check the name"
    config.write_text("".join(f"{name[2:]}: {value}\n" for name, value in GENERATOR.items()))
    check_named(["--config", str(config)])


def test_texts_for_a_title_generator(tmp_path: Path) -> None:
    model = build("embedded")
    names = ("mean", "std", "length_mean", "length_slope")
    model.config.update({f"reward_{name}": 1.0 for name in names})
    scorer = save(model, tokenizer=load_tokenizer("embedded"), folder=tmp_path / "scorer")
    folders = {"--reward_model": str(scorer), "--output_dir": str(tmp_path / "run")}

    def run(path: str, *more: str) -> TitleGeneratorRun:
        options = {**GENERATOR, **folders, "--dataset_name": path}
        given = [word for option in options.items() for word in option]
        return TitleGeneratorRun.from_command_line([*given, "--use_cpu", "true", "--bf16", "false", *more])

    rows = written(tmp_path / "rows.jsonl", [{"body": "An article"}])
    with refused("runs/title_generator.py::TitleGeneratorRun.read_texts::where") as problems:
        run(rows).read_texts()
    assert problems[0].fix == "name it by --text_column"
    assert len(run(rows, "--text_column", "body").read_texts()[0]) == 1
