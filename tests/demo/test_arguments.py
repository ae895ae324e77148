"""Options of `qth demo`: limits, the login beyond loopback, and fixes that can be typed."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from problem_assertions import raises_problem

from qwen_task_heads import DemoArguments, cli
from qwen_task_heads.demo.arguments import LOGIN
from qwen_task_heads.errors import TaskHeadsError


def test_the_model_may_be_the_first_word(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for number, words in enumerate((["me/news"], ["--model", "me/news"])):
        folder = tmp_path / str(number)
        assert cli.main(["demo", *words, "--space", str(folder)]) == 0
        assert "me/news-demo" in capsys.readouterr().out
        assert "model='me/news'" in (folder / "app.py").read_text()


def test_a_command_without_words_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err.startswith("error: --model: ")


@pytest.mark.parametrize(
    ("options", "code", "where"),
    [
        ({"port": -1}, "option-range", "--port"),
        ({"port": 70_000}, "option-range", "--port"),
        ({"max_titles": 0}, "option-range", "--max_titles"),
        ({"max_words": 0}, "option-range", "--max_words"),
        ({"host": "0.0.0.0"}, "option-missing", "--host"),
        ({"host": "192.0.2.1"}, "option-missing", "--host"),
    ],
)
def test_options_are_checked(options: dict, code: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOGIN, raising=False)
    with raises_problem(code, where) as problems:
        DemoArguments(model="me/news", **options)
    assert len(problems) == 1


@pytest.mark.parametrize("login", ["ann", "ann:", ":secret"])
def test_half_a_login_is_refused_and_not_printed(login: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOGIN, login)
    for host in ("127.0.0.1", "0.0.0.0"):
        with raises_problem("option-value", LOGIN) as problems:
            DemoArguments(model="me/news", host=host)
        assert login not in problems[0].problem
        assert len(problems) == 1


def test_the_login_of_the_fix_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOGIN, raising=False)
    with pytest.raises(TaskHeadsError) as caught:
        DemoArguments(model="me/news", host="::")
    typed = re.match(rf"export {LOGIN}=(\w+):\$\(python -c '(.+)'\)$", caught.value.problems[0].fix)
    assert typed
    monkeypatch.setenv(LOGIN, f"{typed[1]}:{len(typed[2])}:x")
    assert DemoArguments(model="me/news", host="::").login == (typed[1], f"{len(typed[2])}:x")


def test_an_mcp_server_has_no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOGIN, "ann:secret")
    with raises_problem("option-conflict", "--mcp"):
        DemoArguments(model="me/news", mcp=True)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOGIN, raising=False)
    if find_spec("mcp") is not None:
        assert DemoArguments(model="me/news", mcp=True).mcp
        return
    with raises_problem("package-missing", "--mcp") as problems:
        DemoArguments(model="me/news", mcp=True)
    assert problems[0].fix == "pip install 'gradio[mcp]'"
