"""Continue the language modelling of a backbone on texts of the domain, before a head is trained on it.

qth adapt --model_name_or_path smollm2-135m --dataset_name texts.jsonl --use_peft --output_dir runs/adapted
qth classify --model_name_or_path runs/adapted --dataset_name labelled.jsonl --use_peft
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[train]"]
# ///

import sys

from qwen_task_heads import AdaptationArguments, adapt, run_recipe


def main() -> None:
    """Train, merge and save the decoder, and print its perplexity before and after."""
    print(adapt(AdaptationArguments.from_command_line()))


if __name__ == "__main__":
    sys.exit(run_recipe(main))
