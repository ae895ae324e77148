"""Find wrong labels of a training set: write a review file, and apply it once it is edited.

qth audit --dataset_name train.jsonl --output_dir audit
qth audit --dataset_name train.jsonl --review audit/review.csv --output_dir audit
qth audit --dataset_name pairs.jsonl --task titles --model_name_or_path smollm2-135m --output_dir audit
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[train,data]"]
# ///

import sys

from qwen_task_heads import AuditArguments, audit_dataset, run_recipe


def main() -> None:
    """Audit the labels, and print where the review file is and what to type next."""
    print(audit_dataset(AuditArguments.from_command_line()))


if __name__ == "__main__":
    sys.exit(run_recipe(main))
