"""Write the answers of a teacher as soft targets, on which any smaller student trains.

qth distill --dataset_name train.jsonl --teacher runs/large --output_file soft.jsonl --temperature 2
qth distill --task titles --dataset_name pairs.jsonl --teacher tfidf --output_file soft.jsonl
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[train]"]
# ///

import sys

from qwen_task_heads import DistillationArguments, distill, run_recipe


def main() -> None:
    """Ask the teacher, and print where the soft targets are."""
    print(distill(DistillationArguments.from_command_line()))


if __name__ == "__main__":
    sys.exit(run_recipe(main))
