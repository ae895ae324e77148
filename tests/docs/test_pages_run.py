"""Every block of docs/ that needs neither a GPU nor a network runs, in the order of its page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from documentation import PAGES, REPO, blocks_of, name_of

RUNS = [
    page
    for page in PAGES[2:]
    if any(block.language in ("bash", "python") and not block.needs for block in blocks_of(page))
]
QTH = f'qth() {{ "{sys.executable}" -m qth "$@"; }}\n'
# As a machine without a GPU and without a log-in.
ENVIRONMENT = {
    "PYTHONPATH": str(REPO),
    "PYTHONDONTWRITEBYTECODE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "agg",
}


def test_most_pages_run() -> None:
    assert len([page for page in RUNS if page.parent.name == "tutorials"]) == 7
    assert len(RUNS) >= 14


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNS, ids=name_of)
def test_blocks_run_in_order_in_an_empty_folder(page: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    for block in blocks_of(page):
        if block.needs or block.language not in ("bash", "python"):
            continue
        command = (
            ["bash", "-euo", "pipefail", "-c", QTH + block.text]
            if block.language == "bash"
            else [sys.executable, "-c", block.text]
        )
        done = subprocess.run(
            command, cwd=tmp_path, env=environment | ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
