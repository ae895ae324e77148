"""The console script: names are checked before torch is imported, and recipes run as installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_task_heads import cli, option_catalog
from qwen_task_heads.errors import TaskHeadsError

RECIPES = Path(__file__).parents[1] / "recipes"


def test_the_catalog_of_options_is_that_of_the_dataclasses() -> None:
    """If this fails: python -m qwen_task_heads.option_catalog"""
    assert json.loads(json.dumps(option_catalog.build())) == option_catalog.read()


def test_every_recipe_has_a_command() -> None:
    scripts = {path.stem for path in RECIPES.glob("*.py")} - {"__init__"}
    assert {command.recipe for command in cli.COMMANDS.values()} - {""} == scripts


@pytest.mark.parametrize(
    ("words", "where", "typed"),
    [
        (["clasify"], "qth clasify", "qth classify"),
        (["classify", "--learning-rat", "1e-4"], "--learning_rat", "--learning_rate"),
        (["titles", "--config", "quik_start"], "--config", "--config quick_start"),
        (["compare", "--engines", "a", "--dataset_name", "b"], "--output_dir", "comparison.md"),
        (["predict", "--input=a", "--output=b", "--model=c", "--dtype=fp16"], "--dtype", "float16"),
        (["data", "a", "--task", "title"], "--task", "titles"),
        (["titles", "--accelerate_config=multi"], "--accelerate_config", "--accelerate_config multi_gpu"),
    ],
)
def test_a_misspelt_or_missing_word_is_refused_with_what_to_type(words, where, typed) -> None:
    with pytest.raises(TaskHeadsError) as error:
        cli.run(words[0], words[1:])
    [problem] = error.value.problems
    assert problem.where == where
    assert typed in f"{problem.expected} {problem.fix}"


def test_bad_input_ends_with_its_message_and_code_2(capsys) -> None:
    assert cli.main(["clasify"]) == 2
    assert capsys.readouterr().err.startswith("error: qth clasify:")


def test_help_lists_own_options_first_and_all_on_demand(capsys) -> None:
    assert cli.main(["classify", "--help"]) == 0
    short = capsys.readouterr().out
    assert cli.main(["classify", "--help_all"]) == 0
    long = capsys.readouterr().out
    for option in ("--dataset_name", "--pooling", "--learning_rate", "--use_peft", "--push_to_hub"):
        assert f"  {option} " in short
    assert "  --adam_beta1 " not in short
    assert "  --adam_beta1 " in long
    assert short.index("--dataset_name") < short.index("--learning_rate")


@pytest.mark.parametrize("name", [*option_catalog.read(), "env"])
def test_every_command_has_help_without_running(name: str, capsys) -> None:
    assert cli.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: qth {name}")


def test_names_are_checked_before_torch_is_imported() -> None:
    code = (
        "import sys; from qth import main; "
        "codes = [main([name, '--help']) for name in ('classify', 'data', 'predict', 'compare')]; "
        "assert codes == [0] * 4, codes; "
        "codes = [main([name, '--top_kk', '1']) for name in ('classify', 'data', 'predict', 'compare')]; "
        "assert codes == [2] * 4, codes; "
        "assert not {'torch', 'transformers'} & sys.modules.keys(), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_preset_runs_under_the_command_that_it_names(capsys) -> None:
    path = cli.presets()["quick_start"]
    assert cli._command_for("titles", path) == cli._command_for("sweep", path) == "sweep"
    with pytest.raises(TaskHeadsError) as error:
        cli._command_for("classify", path)
    assert error.value.problems[0].fix == "type qth sweep --config quick_start"


def test_every_preset_names_a_command() -> None:
    for path in cli.presets().values():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# qth "), path.name
        assert first.split()[2].rstrip(":") in cli.COMMANDS


def test_versions_and_hardware_are_printed(capsys) -> None:
    assert cli.main(["env"]) == 0
    printed = capsys.readouterr().out
    assert "- torch: " in printed
    assert "- python: " in printed


def test_predict_reads_the_options_of_a_file_from_a_config(tmp_path, capsys) -> None:
    config, source = tmp_path / "p.yaml", tmp_path / "none.jsonl"
    config.write_text(f"model: embedded\ninput: {source}\noutput: {tmp_path / 'out.jsonl'}\n")
    assert cli.main(["predict", f"--config={config}"]) == 2
    assert f"error: {source}: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_command_trains_and_predicts_outside_the_clone(tmp_path) -> None:
    def qth(*words: str) -> str:
        command = [sys.executable, "-m", "qth", *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    options = ["--max_steps", "2", "--use_cpu", "true", "--output_dir", "run"]
    assert "run" in qth("classify", "--accelerate_config", "single", *options)
    assert qth("predict", "--model", "run", "Why was my transfer declined?").strip()


def test_a_closed_pipe_ends_the_command_without_a_traceback() -> None:
    command = [sys.executable, "-m", "qth", "titles", "--help_all"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=RECIPES.parent
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
