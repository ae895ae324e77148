"""The end of a run of `recipes/grpo_titles.py`: the titles of its last step, and what is printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import TrainerState

from qwen_task_heads.errors import shorten
from qwen_task_heads.inference.rewards import Paid

TITLES = "titles.jsonl"
CLIPPED = "completions/clipped_ratio"  # trl's name for the share that met no end of text


def finish_generator(
    state: TrainerState, last: Sequence[Paid], *, texts: int, seconds: float, folder: str | Path
) -> None:
    """Write the titles of the last step, the best rewarded first, and print the result of the run.

    Args:
        state: of the trainer, at the end.
        last: completions of the last step with their rewards.
        texts: number of texts that titles were written for.
        seconds: time of the training.
        folder: of the run.
    """
    print(f"\nTrained a title generator for {state.global_step} steps on {texts:,} texts in {seconds:.0f} s.")
    rewards = [entry["reward"] for entry in state.log_history if "reward" in entry]
    if rewards:
        ends = f"{rewards[0]:.2f} at the first logging step, {rewards[-1]:.2f} at the last"
        only = f"{rewards[0]:.2f} at the only logging step"
        print(f"Mean reward: {ends if len(rewards) > 1 else only} (0: an average title")
        print("of the scorer's dev set, 1: a standard deviation better; no title: -5 or less).")
    cut = [entry[CLIPPED] for entry in state.log_history if CLIPPED in entry]
    if cut and cut[-1]:
        print(
            f"Cut at --max_completion_length: {cut[-1]:.0%} of the completions of the last logging step.\n"
            "Their reward is that of the part before the cut. A larger limit lets them end;\n"
            "--mask_truncated_completions true leaves them out of the loss."
        )
    rows = sorted(last, key=lambda one: -one.reward)
    lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in rows]
    Path(folder, TITLES).write_text("".join(lines), encoding="utf-8")
    shown, what = rows, "The titles of the last step, the best rewarded first:"
    if len(rows) > 2:
        shown = [rows[0], rows[len(rows) // 2], rows[-1]]
        what = f"Of the {len(rows):,} titles of the last step, those with the best, median and worst reward:"
    print(what)
    for one in shown:
        print(f"  {one.reward:6.2f}  {shorten(one.title or '(no title)', 90)}")
    print(f"The generator and its card are in {folder}, these titles with their prompts in {TITLES}.")
    print("A higher reward does not prove a better title: read some of them.")
