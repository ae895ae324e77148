"""Report of a run of `recipes/grpo_titles.py`: the titles of its last step, and a printed summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import TrainerState

from qwen_task_heads.errors import shorten
from qwen_task_heads.inference.rewards import Paid

TITLES = "titles.jsonl"
CLIPPED = "completions/clipped_ratio"  # column of trl: share of completions without an end-of-text token


def finish_generator(
    state: TrainerState, last: Sequence[Paid], *, texts: int, seconds: float, folder: str | Path
) -> None:
    """Write the titles of the last step, by descending reward, and print a summary of the run.

    Args:
        state: of the trainer, after training.
        last: completions of the last step with their rewards.
        texts: number of texts that titles were generated for.
        seconds: time of the training.
        folder: of the run.
    """
    print(f"\nTrained a title generator for {state.global_step} steps on {texts:,} texts in {seconds:.0f} s.")
    rewards = [entry["reward"] for entry in state.log_history if "reward" in entry]
    if rewards:
        change = f"{rewards[0]:.2f} at the first logging step, {rewards[-1]:.2f} at the last"
        only = f"{rewards[0]:.2f} at the only logging step"
        print(f"Mean reward: {change if len(rewards) > 1 else only} (0: an average title")
        print("of the scorer's dev set, 1: a standard deviation better; no title: -5 or less).")
    clipped = [entry[CLIPPED] for entry in state.log_history if CLIPPED in entry]
    if clipped and clipped[-1]:
        print(
            f"Truncated at --max_completion_length: {clipped[-1]:.0%} of the completions of the last\n"
            "logging step. Their reward is that of the truncated text. Raise the limit, or exclude\n"
            "them from the loss with --mask_truncated_completions true."
        )
    rows = sorted(last, key=lambda one: -one.reward)
    lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in rows]
    Path(folder, TITLES).write_text("".join(lines), encoding="utf-8")
    printed, heading = rows, "The titles of the last step, by descending reward:"
    if len(rows) > 2:
        printed = [rows[0], rows[len(rows) // 2], rows[-1]]
        heading = (
            f"Of the {len(rows):,} titles of the last step, those with the best, median and worst reward:"
        )
    print(heading)
    for one in printed:
        print(f"  {one.reward:6.2f}  {shorten(one.title or '(no title)', 90)}")
    print(f"The generator and its card are in {folder}; {TITLES} has the titles with their prompts.")
    print("A higher reward does not imply a better title: read some of the titles.")
