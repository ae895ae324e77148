"""Choose which unlabelled texts to label next: unsure, different ones, as a CSV file to fill in.

qth select --dataset_name train.jsonl --unlabeled_dataset pool.jsonl --output_file next.csv --count 200
qth select --dataset_name train.jsonl --unlabeled_dataset pool.jsonl --output_file next.csv --model runs/news
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[train,data]"]
# ///

import sys

from qwen_task_heads import SelectionArguments, run_recipe, select_rows


def main() -> None:
    """Choose texts, and print where the file is."""
    print(select_rows(SelectionArguments.from_command_line()))


if __name__ == "__main__":
    sys.exit(run_recipe(main))
