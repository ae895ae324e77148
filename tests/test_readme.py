"""The README is short, its blocks of Python run, and its links lead to files.

`tests/docs` checks its commands.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = {
    title: re.search(r"^```python\n(.*?)^```", README.split(f"\n## {title}\n")[1], re.MULTILINE | re.DOTALL)
    for title in ("Classify texts", "Score titles")
}


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100 and not line.startswith(("|", "from "))] == []


# The blocks name no device: on a machine without a GPU torch warns that it pins no memory.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
@pytest.mark.parametrize("title", BLOCKS)
@pytest.mark.slow
def test_training_from_python_takes_15_lines_and_runs(title, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = BLOCKS[title][1]
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    [folder] = (tmp_path / "runs").iterdir()
    assert (folder / "model.safetensors").is_file()
    assert names["trainer"].state.global_step > 0


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w./-]+)\)", README))))
def test_links_lead_to_files(path: str) -> None:
    assert (ROOT / path).exists()
