"""The files of a Space: metadata of the hub, and an app that builds the page."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from demo_models import scorer_of
from huggingface_hub import SpaceCard
from problem_assertions import raises_problem

from qwen_task_heads import DemoArguments, run_demo, save


def test_the_app_builds_the_page_of_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "space"
    options = {"revision": "v1", "max_titles": 7, "port": 9}
    run_demo(DemoArguments(model="me/titles", compare="me/other", space=str(folder), **options))
    assert f"hf upload me/titles-demo {folder} . --repo-type space" in capsys.readouterr().out
    card = SpaceCard.load(folder / "README.md", ignore_metadata_errors=False)
    assert (card.data.sdk, card.data.app_file) == ("gradio", "app.py")
    assert card.data.models == ["me/titles", "me/other"]
    assert (folder / "requirements.txt").read_text() == "qwen-task-heads[demo]\n"

    app = (folder / "app.py").read_text()
    assert "revision='v1'" in app
    assert "max_titles=7" in app
    assert "port=" not in app
    scorer = scorer_of("titles")
    saved = save(scorer.model, tokenizer=scorer.tokenizer, folder=tmp_path / "model")
    app = app.replace("'me/titles'", repr(str(saved))).replace("'me/other'", repr(str(saved)))
    names: dict = {"__name__": "app"}

    async def run() -> None:  # Gradio needs a loop
        exec(compile(app, "app.py", "exec"), names)

    asyncio.run(run())
    assert "At most 7." in str(names["demo"].get_config_file())


def test_a_space_of_another_hub_installs_its_client(tmp_path: Path) -> None:
    run_demo(DemoArguments(model="me/news", hub="modelscope", space=str(tmp_path), mcp=True))
    assert (tmp_path / "requirements.txt").read_text() == "qwen-task-heads[demo,modelscope]\n"
    assert SpaceCard.load(tmp_path / "README.md").data.models is None
    assert "mcp_server=True" in (tmp_path / "app.py").read_text()


def test_a_space_needs_ids_and_an_empty_folder(tmp_path: Path) -> None:
    with raises_problem("option-value", "--model") as problems:
        DemoArguments(model=str(tmp_path), compare=str(tmp_path), space=str(tmp_path / "new"))
    assert [problem.where for problem in problems] == ["--model", "--compare"]
    (tmp_path / "kept").write_text("")
    for taken in (tmp_path, tmp_path / "kept"):
        with raises_problem("path-exists", "--space"):
            DemoArguments(model="me/news", space=str(taken))
