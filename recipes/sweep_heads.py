"""Select layers, pooling and head for texts or titles on a frozen backbone, which runs over them once.

qth sweep --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name reviews.jsonl
qth sweep --task titles --dataset_name clicks.jsonl --model_name_or_path smollm2-135m
accelerate launch recipes/sweep_heads.py  # the embedded sample and backbone
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[train]"]
# ///

import sys

from qwen_task_heads import SweepRun, extract_features, run_recipe, sweep_heads


def main() -> None:
    """Extract features once, train the heads, save the best one, and report its metrics."""
    run = SweepRun.from_command_line()
    run.read_datasets()  # before the model: most runs fail at their data
    model, rows = run.tokenize()
    features = extract_features(model, rows, **run.feature_options())  # the backbone runs once
    results = sweep_heads(model, features, **run.head_options())  # every combination, best first
    run.finish(results)  # save the best, measure each layer, write the card, publish


if __name__ == "__main__":
    sys.exit(run_recipe(main))
