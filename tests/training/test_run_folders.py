"""Output folders of runs that name none: numbered, never one that is there, the newest one on resume."""

from __future__ import annotations

import pytest

from qwen_task_heads.training.run_folders import default_folder
from qwen_task_heads.training.title_arguments import TitleConfig


@pytest.mark.parametrize(
    ("there", "resume", "chosen"),
    [
        ([], None, "titles"),
        ([], "true", "titles"),  # nothing to resume: a fresh start
        (["titles"], None, "titles-2"),
        (["titles"], "true", "titles"),
        (["titles", "titles-2", "titles-10"], None, "titles-11"),
        (["titles", "titles-2", "titles-10"], True, "titles-10"),
        (["titles-3"], None, "titles-4"),  # the newest run has the highest number
        (["titles", "titles-x", "titles-02", "my-titles", "titles-2-lora"], None, "titles-2"),
    ],
)
def test_the_number_is_one_above_the_highest(tmp_path, there, resume, chosen):
    for name in there:
        (tmp_path / name).mkdir()
    assert default_folder("titles", resume, root=tmp_path) == str(tmp_path / chosen)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(there)  # nothing is created


def test_a_file_of_the_name_is_not_overwritten(tmp_path):
    (tmp_path / "titles").write_text("notes")
    assert default_folder("titles", root=tmp_path) == str(tmp_path / "titles-2")


def test_the_path_of_a_checkpoint_names_its_run(tmp_path):
    checkpoint = str(tmp_path / "titles-3" / "checkpoint-84")
    assert default_folder("titles", checkpoint, root=tmp_path) == str(tmp_path / "titles-3")


def test_the_training_arguments_use_it_unless_a_folder_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert TitleConfig(use_cpu=True).output_dir == "runs/titles"
    (tmp_path / "runs" / "titles").mkdir(parents=True)
    assert TitleConfig(use_cpu=True).output_dir == "runs/titles-2"
    assert TitleConfig(use_cpu=True, resume_from_checkpoint="true").output_dir == "runs/titles"
    assert TitleConfig("mine", use_cpu=True).output_dir == "mine"
