"""The words that start a recipe: those of `qth` for its own processes, else those of a clone."""

from __future__ import annotations

import pytest

from qwen_task_heads import cli
from qwen_task_heads.commands import COMMANDS, recipes, words_of

RUN = [(name, command.recipe) for name, command in COMMANDS.items() if command.recipe]


@pytest.mark.parametrize(("name", "recipe"), RUN)
def test_words_follow_the_start_of_the_process(
    name: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (recipes() / f"{recipe}.py").is_file()
    monkeypatch.setattr("sys.argv", ["recipes/classify.py", "--seed", "1"])
    assert words_of(recipe) == ["accelerate", "launch", f"recipes/{recipe}.py"]
    monkeypatch.setattr("sys.argv", [str(recipes() / "classify.py"), "--seed", "1"])
    assert words_of(recipe) == ["qth", name]


def test_qth_runs_recipes_by_the_path_that_is_recognized(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(path: str, run_name: str) -> None:
        print(*words_of("predict"))

    monkeypatch.setattr(cli.runpy, "run_path", script)
    assert cli.main(["titles", "--seed", "1"]) == 0
    assert capsys.readouterr().out.split() == ["qth", "predict"]
