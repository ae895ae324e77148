"""Printed summary of a run of the title generator."""

from __future__ import annotations

import re

import pytest
from transformers import TrainerState

from qwen_task_heads.inference.rewards import Paid
from qwen_task_heads.reports.grpo_report import CLIPPED, finish_generator


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_no_title_is_printed_twice(count, tmp_path, capsys) -> None:
    last = [Paid(prompt="p", title=f"title {n}", reward=float(n), completion="c") for n in range(count)]
    finish_generator(TrainerState(), last, texts=4, seconds=1.0, folder=tmp_path)
    printed = capsys.readouterr().out
    found = re.findall(r"^ +\d\.00  .*title (\d)", printed, re.MULTILINE)
    expected = (
        [str(n) for n in range(count)][::-1] if count < 3 else [str(count - 1), str((count - 1) // 2), "0"]
    )
    assert found == expected


@pytest.mark.parametrize(("ratio", "reported"), [(0.0, False), (0.25, True)])
def test_cut_completions_are_reported_at_the_end(ratio, reported, tmp_path, capsys) -> None:
    state = TrainerState(log_history=[{CLIPPED: 1.0}, {CLIPPED: ratio}])
    finish_generator(state, [], texts=4, seconds=1.0, folder=tmp_path)
    printed = capsys.readouterr().out
    assert ("25%" in printed) == ("--mask_truncated_completions" in printed) == reported
