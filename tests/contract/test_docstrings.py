"""Examples in docstrings run with the stated results; ruff checks that docstrings exist, mypy the types."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
from sources import MODULES, REPO, text_of

DOCUMENTED = [path for path in MODULES if path.name not in ("__init__.py", "__main__.py")]
WITH_EXAMPLES = [
    ".".join(path.relative_to(REPO).with_suffix("").parts) for path in DOCUMENTED if ">>>" in text_of(path)
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples may write files
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0
