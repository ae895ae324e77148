"""Common code of the suites of timed rows: their options, and the loop that measures and stores each row."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import datasets
import speed_report
import torch
import transformers
from speed_measure import TURNS, Bench, Result
from speed_workloads import NoData

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Rows = Callable[[Bench], Iterator[Result]]


def options(doc: str, *, names: Iterable[str], results: str) -> argparse.ArgumentParser:
    """Return the parser of a suite, with the `names` of its rows and its file in `results/`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="measure all rows and sizes")
    parser.add_argument("--only", nargs="+", choices=sorted(names), help="measure only these rows")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=TURNS, help="minimum number of turns of each comparison")
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data")
    qwen = os.environ.get("QWEN_FOLDER")
    parser.add_argument(
        "--qwen", type=Path, default=qwen, help="real weights of Qwen2.5-0.5B, or QWEN_FOLDER"
    )
    parser.add_argument("--results", type=Path, default=RESULTS / results)
    return parser


def measure(args: argparse.Namespace, suite: dict[str, Rows]) -> None:
    """Measure, print and store every row of a suite; rows without data or peer are skipped with a message."""
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args.device, args.data_dir, args.full, args.turns, Path(scratch), args.qwen)
        print(speed_report.machine(bench), flush=True)
        for name, rows in suite.items():
            start = time.monotonic()
            try:
                for result in rows(bench):
                    print(speed_report.line(result), flush=True)
                    speed_report.keep(args.results, result, bench)
            except NoData as reason:
                print(f"skipped: {name}: {reason}", flush=True)
            print(f"  {name}: {time.monotonic() - start:.0f} s", flush=True)
