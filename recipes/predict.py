"""Label or score every row of a file with a trained model, in order, on any number of processes.

Requires: pip install "qwen-task-heads[train]"

accelerate launch recipes/predict.py --model runs/news --input big.jsonl --output answers.jsonl
accelerate launch --multi_gpu --num_processes 8 recipes/predict.py --model me/news --input big.parquet \
    --output answers.csv --top_k 3 --abstain 0.6 --bad_rows skip

The same command resumes a run that was killed, on any number of processes.
"""

import argparse
import sys
from datetime import timedelta

import torch
from accelerate import PartialState

from qwen_task_heads.errors import run_recipe
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.inference.batch_prediction import predict_file
from qwen_task_heads.training.callbacks import check_world

# Processes may differ by hours; a process that has ended is detected at once.
TIMEOUT = timedelta(days=7)


def parse_arguments() -> argparse.Namespace:
    """Parse the options; those of another problem type are refused once the model is loaded."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="folder or repo id of a classifier, title scorer or generative classifier",
    )
    add("--input", required=True, help="JSONL, JSON, CSV, TSV or Parquet file, folder, or data set id")
    add("--output", required=True, help="new file: .jsonl, .csv or .tsv")
    add("--split", help="split of a folder or data set")
    add("--encoding", default="utf-8", help="encoding of text files, such as gb18030 (default: %(default)s)")
    add("--columns", nargs="+", default=(), help="columns of CSV and TSV without a header: label,title,text")
    add("--hub", default=HUGGINGFACE, choices=HUBS, help="hub to load from (default: %(default)s)")
    add("--revision", help="branch, tag or commit of the model")
    add(
        "--bad_rows",
        default="raise",
        choices=("raise", "skip"),
        help="skip: defective rows get an 'error' in the output",
    )
    add("--top_k", type=int, help="number of labels with probabilities per row (default: all)")
    add("--threshold", type=float, help="multi-label: predict labels at or above it (default: the model's)")
    add("--abstain", type=float, help="single-label, ordinal: no label if the best probability is below it")
    add(
        "--max_error", type=float, help="no label if more than this share of the predictions on dev was wrong"
    )
    add("--prefix", default="predicted_", help="prefix of the names of the added columns")
    add("--candidates", help="column with the candidate labels of a row; all labels if empty")
    add(
        "--batch_tokens",
        type=int,
        help="tokens per batch (8192 with a head, 32768 with a generative classifier)",
    )
    add(
        "--block_rows",
        type=int,
        default=2048,
        help="rows predicted and saved at a time (default: %(default)s)",
    )
    types = ("auto", "float32", "bfloat16", "float16")
    add("--dtype", default="auto", choices=types, help="auto: as saved")
    add("--int8", action="store_true", help="on a CPU: multiply in int8; predictions may change slightly")
    return parser.parse_args()


def main() -> None:
    """Check the file, load the model, predict every row and print a report."""
    args = parse_arguments()
    # Without an accelerator, accelerate forms a process group only with cpu=True.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=TIMEOUT)
    check_world(None, running=state.num_processes)
    try:
        report = predict_file(
            args.model,
            source=args.input,
            output=args.output,
            split=args.split,
            encoding=args.encoding,
            columns=args.columns,
            hub=args.hub,
            bad_rows=args.bad_rows,
            top_k=args.top_k,
            threshold=args.threshold,
            abstain=args.abstain,
            max_error=args.max_error,
            prefix=args.prefix,
            candidates=args.candidates,
            block_rows=args.block_rows,
            process_index=state.process_index,
            num_processes=state.num_processes,
            wait=state.wait_for_everyone,
            revision=args.revision,
            batch_tokens=args.batch_tokens,
            dtype=args.dtype,
            int8=args.int8,
            device=state.device,
        )
    finally:
        state.destroy_process_group()
    if report is not None:
        print(report)


if __name__ == "__main__":
    sys.exit(run_recipe(main, interrupted="the same command resumes"))
