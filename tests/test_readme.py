"""The README's examples of training from Python run unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SECTION = README.split("\n## Train from Python\n")[1].split("\n## ")[0]
BLOCKS = re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)


def test_there_is_a_block_of_at_most_15_lines_for_each_trainer():
    assert [next(name for name in ("TitleTrainer", "ClassifierTrainer") if name in block) for block in BLOCKS]
    assert len(BLOCKS) == 2
    assert all(len([line for line in block.splitlines() if line.strip()]) <= 15 for block in BLOCKS)


# The blocks name no device: on a machine without a GPU torch warns that it pins no memory.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
@pytest.mark.parametrize("block", BLOCKS, ids=["titles", "texts"])
def test_a_block_trains_and_saves(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    [folder] = (tmp_path / "runs").iterdir()
    assert (folder / "model.safetensors").is_file()
    assert names["trainer"].state.global_step > 0
