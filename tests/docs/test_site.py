"""Pages that are written by docs/reference.py, and the text that the site shows."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from documentation import CHINESE, REPO

from qwen_task_heads import cli, option_catalog
from qwen_task_heads.errors import CODES


def test_the_reference_has_all_options_and_codes() -> None:
    pages = runpy.run_path(str(REPO / "docs" / "reference.py"), run_name="reference")
    commands = pages["command_pages"]()
    own = [
        one["name"]
        for options in option_catalog.read().values()
        for one in options
        if one["group"] != option_catalog.OTHERS
    ]
    assert all(f"| `--{name}` |" in commands for name in own)
    assert all(f"## qth {name}" in commands for name in cli.COMMANDS if name in option_catalog.read())
    assert all(f"| `{code}` |" in pages["error_page"]() for code in CODES)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("第一行，\n第二行。\n\n- 项目：\n  续行", "第一行，第二行。\n\n- 项目：续行"),
        ("运行\n测试", "运行测试"),
        ("使用\n`make`：\n`qth`", "使用\n`make`：`qth`"),
        ("列表：\n- 项目\n1. 项目\n| 表 |", "列表：\n- 项目\n1. 项目\n| 表 |"),
        ("```text\n第一行，\n第二行\n```", "```text\n第一行，\n第二行\n```"),
        ("One line,\nanother", "One line,\nanother"),
    ],
)
def test_lines_of_a_chinese_paragraph_are_joined(written: str, shown: str) -> None:
    join = runpy.run_path(str(REPO / "docs" / "chinese_lines.py"))["on_page_markdown"]
    assert join(written) == shown


@pytest.mark.parametrize("page", sorted(CHINESE.rglob("*.md")), ids=lambda path: path.stem)
def test_chinese_pages_keep_their_structure(page: Path) -> None:
    join = runpy.run_path(str(REPO / "docs" / "chinese_lines.py"))["on_page_markdown"]
    text = page.read_text(encoding="utf-8")

    def starts(text: str) -> list[str]:
        return [
            line for line in text.splitlines() if line.lstrip().startswith(("#", "|", "-", "1.", "```", "<!"))
        ]

    assert [line.split("：")[0][:8] for line in starts(join(text))] == [
        line.split("：")[0][:8] for line in starts(text)
    ]
