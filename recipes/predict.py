"""Label or score every row of a file with a trained model, in order, on any number of processes.

Requires: pip install "qwen-task-heads[train]"

accelerate launch recipes/predict.py --model runs/news --input big.jsonl --output answers.jsonl
accelerate launch --multi_gpu --num_processes 8 recipes/predict.py --model me/news --input big.parquet \
    --output answers.csv --top_k 3 --abstain 0.6 --bad_rows skip

The same command again resumes a run that was killed, on any number of processes.
"""

import argparse
import sys
from datetime import timedelta

import torch
from accelerate import PartialState

from qwen_task_heads.data.sources import HUBS
from qwen_task_heads.errors import run_recipe
from qwen_task_heads.inference.batch_prediction import predict_file
from qwen_task_heads.training.callbacks import check_world

PATIENCE = timedelta(
    days=7
)  # one process may be slower than another, by hours; a dead one is noticed at once


def parse_arguments() -> argparse.Namespace:
    """Options; those of a problem type that the model does not have are refused when it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="folder or repo id of a classifier, title scorer or label writer")
    add("--input", required=True, help="JSONL, JSON, CSV, TSV or Parquet file, folder, or data set id")
    add("--output", required=True, help="new file: .jsonl, .csv or .tsv")
    add("--split", help="split of a folder or data set")
    add("--encoding", default="utf-8", help="of text files, such as gb18030 (default: %(default)s)")
    add("--columns", nargs="+", default=(), help="of CSV and TSV without a header: label,title,text")
    add("--hub", default=HUBS[0], choices=HUBS, help="where ids are looked up (default: %(default)s)")
    add("--revision", help="branch, tag or commit of the model")
    add(
        "--bad_rows",
        default="raise",
        choices=("raise", "skip"),
        help="skip: they get an 'error' in the output",
    )
    add("--top_k", type=int, help="labels with their probabilities per row; all when absent, or if fewer")
    add("--threshold", type=float, help="multi-label: predict labels at or over it (default: the model's)")
    add("--abstain", type=float, help="single-label, ordinal: no label where the best probability is below")
    add("--max_error", type=float, help="no label where more than this share of dev's answers was wrong")
    add("--prefix", default="predicted_", help="before the names of the answer's columns")
    add("--candidates", help="column with the labels that a row offers to choose from; all where empty")
    add("--batch_tokens", type=int, help="tokens per batch (8192 with a head, 32768 with a label writer)")
    add(
        "--block_rows",
        type=int,
        default=2048,
        help="rows computed and saved at a time (default: %(default)s)",
    )
    types = ("auto", "float32", "bfloat16", "float16")
    add("--dtype", default="auto", choices=types, help="as saved when absent")
    add("--int8", action="store_true", help="on a CPU: multiply in int8; answers may change a little")
    return parser.parse_args()


def main() -> None:
    """Check the file, load the model, answer, and say what came out."""
    args = parse_arguments()
    # Without a device accelerate forms no group of processes, unless it is told that a CPU is meant.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
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
    sys.exit(run_recipe(main, interrupted="the same command goes on from there"))
