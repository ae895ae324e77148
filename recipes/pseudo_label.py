"""Label the confident part of unlabelled texts by a teacher, and write it with the labelled rows.

qth pseudo --dataset_name train.jsonl --unlabeled_dataset pool.jsonl --output_file more.jsonl
qth pseudo --dataset_name train.jsonl --unlabeled_dataset pool.jsonl --output_file more.jsonl --model me/news
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[train,data]"]
# ///

import sys

from qwen_task_heads import PseudoLabelArguments, pseudo_label, run_recipe


def main() -> None:
    """Label texts, and print the accuracy on dev of each round."""
    print(pseudo_label(PseudoLabelArguments.from_command_line()))


if __name__ == "__main__":
    sys.exit(run_recipe(main))
