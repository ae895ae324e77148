"""Content of the manifest: versions, settings and hashes, without paths of the machine."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.data.title_datasets import hash_pairs
from qwen_task_heads.files import hash_files
from qwen_task_heads.reports.run_manifest import hash_code, settings_of, versions
from qwen_task_heads.training.title_arguments import TitleConfig

PAIR = PairExample(chosen="A", rejected="B", prompt="p", margin=0.5, preference=0.9, weight=2.0, source="a:1")


@pytest.mark.parametrize(
    "change",
    [
        {"chosen": "C"},
        {"rejected": "C"},
        {"prompt": "q"},
        {"margin": None},
        {"preference": 0.8},
        {"weight": 1.0},
    ],
    ids=str,
)
def test_the_hash_of_a_dataset_depends_on_every_column_and_the_order(change):
    other = PairExample(chosen="X", rejected="Y")
    assert hash_pairs([replace(PAIR, **change), other]) != hash_pairs([PAIR, other])
    assert hash_pairs([other, PAIR]) != hash_pairs([PAIR, other])
    assert hash_pairs([PAIR]) != hash_pairs([PAIR, PAIR])


def test_the_hash_does_not_depend_on_the_source():
    assert hash_pairs([replace(PAIR, source="b:9")]) == hash_pairs([PAIR])


def test_versions_name_the_libraries_that_a_result_depends_on():
    found = versions()
    assert {"python", "qwen-task-heads", "torch", "transformers", "trl", "peft", "tokenizers"} <= set(found)
    assert all(found.values())


def test_settings_have_no_secret_and_no_folder(tmp_path):
    file = tmp_path / "clicks.jsonl"
    file.write_text("")
    args = TitleConfig(
        str(tmp_path / "run"),
        use_cpu=True,
        learning_rate=3e-4,
        hub_token="hf_secret",
        run_name="private",
        report_to="none",
    )
    settings = settings_of(
        args, {"dataset_name": str(file), "base": "Qwen/Qwen2.5-7B", "loss_nu": None, "loss": "soft"}
    )
    assert settings["learning_rate"] == 3e-4
    assert settings["dataset_name"] == "clicks.jsonl"
    assert settings["base"] == "Qwen/Qwen2.5-7B"
    assert settings["loss"] == "soft"
    assert "loss_nu" not in settings
    assert "hf_secret" not in str(settings)
    assert str(tmp_path) not in str(settings)


def test_code_and_files_are_hashed_file_by_file(tmp_path):
    assert "modeling_task_heads.py" in hash_code()
    assert all(len(value) == 64 for value in hash_code().values())
    (tmp_path / "sub").mkdir()
    for name in ("b", "a", "manifest.json", "sub/c"):
        (tmp_path / name).write_text(name)
    found = hash_files(tmp_path)
    assert found == {name: hashlib.sha256(name.encode()).hexdigest() for name in "ab"}
    assert list(found) == ["a", "b"]
