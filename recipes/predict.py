r"""Label or score every row of a file with a trained model, in order, on any number of processes.

qth predict --model runs/news --input big.jsonl --output answers.jsonl
accelerate launch --multi_gpu --num_processes 8 recipes/predict.py --model me/news --input big.parquet \
    --output answers.csv --top_k 3 --abstain 0.6 --bad_rows skip

The same command resumes a run that was killed, on any number of processes.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[train]"]
# ///

import sys

from qwen_task_heads import PredictArguments, predict_file, run_recipe


def main() -> None:
    """Check the file, load the model, predict every row and print a report."""
    report = predict_file(PredictArguments.from_command_line())
    if report is not None:  # on the main process
        print(report)


if __name__ == "__main__":
    sys.exit(run_recipe(main, interrupted="the same command resumes"))
