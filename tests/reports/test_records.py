"""Reference of a run for its verification, which the manifest lists."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from qwen_task_heads.reports.records import keep_reference
from qwen_task_heads.verification.reference import Reference, read_reference


def test_the_reference_is_listed_with_the_files_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, path = tmp_path / "manifest.json", tmp_path / "reference.json"
    manifest.write_text(json.dumps({"seed": 1, "files": {"config.json": "ab"}}))
    keep_reference(tmp_path, take=lambda: Reference({"texts": ["短い"]}, {"rows": [[1]]}))
    assert read_reference(tmp_path).job == {"texts": ["短い"]}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = {"seed": 1, "files": {"config.json": "ab", "reference.json": digest}}
    assert json.loads(manifest.read_text()) == expected

    def take() -> Reference:
        raise torch.OutOfMemoryError

    keep_reference(tmp_path, take=take)
    assert not path.exists()  # the file of the earlier run is removed
    assert "no reference was kept" in capsys.readouterr().out
