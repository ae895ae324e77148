"""Benchmark of CPU time and memory for reading, checking, splitting and encoding large data sets.

    python benchmarks/data_scale.py           # 500,000 texts, 300,000 arms, 1 million rows of Parquet
    python benchmarks/data_scale.py --full    # also 10 million rows of Parquet, and a run on a click log

The generated files are the same on every machine. Each row runs in its own process. CPU seconds are those
after the imports. Memory is the largest resident set, in total and above the one after the imports. Rows are
stored in `benchmarks/results/data_scale.json`; a new measurement replaces the old one.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "data_scale.json"
SYLLABLES = [
    a + b + c for a in ("ka", "lo", "mi", "ne", "pu", "ra") for b in "rnls" for c in ("a", "ing", "er")
]
LABELS = ("art", "food", "sport", "trade")
BLOCK = 100_000
# Name -> (kind, rows, suffix, limits of CPU seconds, MB above the imports and MB in total); None for no
# limit.
CASES: dict[str, tuple[str, int, str, float | None, int | None, int | None]] = {
    "500,000 texts, JSONL": ("texts", 500_000, "jsonl", 6.0, 350, None),
    "500,000 texts, CSV": ("texts", 500_000, "csv", 6.0, 350, None),
    "500,000 texts, Parquet": ("texts", 500_000, "parquet", 6.0, 350, None),
    "500,000 texts with scores, JSONL": ("scores", 500_000, "jsonl", 6.0, 350, None),
    "500,000 texts with several labels, JSONL": ("several", 500_000, "jsonl", 6.0, 350, None),
    "300,000 arms, JSONL": ("arms", 300_000, "jsonl", 6.0, 350, None),
    "300,000 arms, Parquet": ("arms", 300_000, "parquet", 6.0, 350, None),
    "1 million texts, Parquet": ("texts", 1_000_000, "parquet", None, None, 1000),
}
FULL: dict[str, tuple[str, int, str, float | None, int | None, int | None]] = {
    "10 million texts, Parquet": ("texts", 10_000_000, "parquet", None, None, 1000),
    "a run on 1 million arms, Parquet": ("run", 1_000_000, "parquet", None, None, None),
}
HEADER = """# CPU time and memory for large data sets

`python benchmarks/data_scale.py --full`. Texts have 8 to 20 words and four labels. Arms have 8 to 13 words
and 1,000 to 6,000 impressions; four arms form an experiment, which gives six pairs. Reading includes the
checks of every row, duplicates, contradictions, pairs of arms, a dev split by hash, and overlaps.
"""


def blocks(kind: str, rows: int, *, seed: int = 0) -> Iterator[dict[str, list[Any]]]:
    """Yield columns of generated rows."""
    rng = np.random.default_rng(seed)
    words = np.array(SYLLABLES)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        sizes = rng.integers(8, 14 if kind == "arms" else 21, count)
        drawn = iter(rng.choice(words, int(sizes.sum())).tolist())
        texts = [" ".join(next(drawn) for _ in range(size)) + f" {start + n}" for n, size in enumerate(sizes)]
        if kind == "scores":
            yield {"text": texts, "score": rng.uniform(0, 5, count).tolist()}
            continue
        if kind == "several":
            has_label = rng.integers(0, 2, (count, len(LABELS)))
            yield {
                "text": texts,
                "labels": [[LABELS[index] for index in np.flatnonzero(row)] for row in has_label],
            }
            continue
        if kind == "texts":
            yield {"text": texts, "label": rng.choice(LABELS, count).tolist()}
            continue
        impressions = rng.integers(1000, 6001, count)
        clicks = rng.binomial(impressions, rng.uniform(0.005, 0.03, count))
        yield {
            "test_id": [f"t{(start + n) // 4}" for n in range(count)],
            "headline": texts,
            "impressions": impressions.tolist(),
            "clicks": clicks.tolist(),
        }


def generate(kind: str, rows: int, path: Path, *, seed: int = 0) -> None:
    """Write a file of generated rows."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        writer = None
        for columns in blocks(kind, rows, seed=seed):
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
        return
    with path.open("w", encoding="utf-8") as stream:
        for number, columns in enumerate(blocks(kind, rows, seed=seed)):
            names = list(columns)
            if path.suffix == ".csv" and not number:
                stream.write(",".join(names) + "\n")
            for row in zip(*columns.values(), strict=True):
                line = (
                    json.dumps(dict(zip(names, row, strict=True)))
                    if path.suffix == ".jsonl"
                    else ",".join(map(str, row))
                )
                stream.write(line + "\n")


def measure(kind: str, path: str) -> dict[str, Any]:
    """Read a file in this process."""
    import datasets  # noqa: F401
    import sklearn  # noqa: F401
    import torch  # noqa: F401

    from qwen_task_heads.data.text_datasets import read_text_sets
    from qwen_task_heads.data.title_datasets import read_title_sets

    before, start = peak(), time.process_time()
    splits = read_title_sets(path) if kind == "arms" else read_text_sets(path)
    spent = time.process_time() - start
    return {
        "cpu_s": round(spent, 2),
        "above_mb": round(peak() - before),
        "peak_mb": round(peak()),
        "train": len(splits.train),
        "dev": len(splits.dev),
    }


def peak() -> float:
    """Return the largest resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(path: Path, folder: Path) -> dict[str, Any]:
    """Train five steps of the title recipe on a click log."""
    generate("arms", 2000, dev := folder / "dev.parquet", seed=1)
    words = [
        sys.executable,
        str(ROOT / "recipes" / "reward_titles.py"),
        "--dataset_name",
        str(path),
        "--dev_dataset",
        str(dev),
        "--output_dir",
        str(folder / "run"),
        "--max_steps",
        "5",
        "--eval_strategy",
        "no",
        "--save_strategy",
        "no",
        "--load_best_model_at_end",
        "false",
    ]
    subprocess.run(words, check=True, capture_output=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"cpu_s": round(used.ru_utime + used.ru_stime, 1), "peak_mb": round(used.ru_maxrss / 1024)}


def report(results: dict[str, dict[str, Any]]) -> str:
    """Return all rows as a Markdown page."""
    lines = [
        HEADER,
        "| data | file, MB | CPU s | limit | MB above the imports | limit | MB in total | limit "
        "| train / dev |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for name, (_, _, _, cpu, above, total) in {**CASES, **FULL}.items():
        if name not in results:
            continue
        row = results[name]
        sizes = f"{row['train']:,} / {row['dev']:,}" if "train" in row else ""
        cells = [
            name,
            row["file_mb"],
            row["cpu_s"],
            cpu,
            row.get("above_mb"),
            above,
            row["peak_mb"],
            total,
            sizes,
        ]
        lines.append("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--full", action="store_true", help="measure all sizes")
    parser.add_argument(
        "--measure", nargs=2, metavar=("KIND", "FILE"), help="measure one file in this process, print JSON"
    )
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name, (kind, rows, suffix, *_) in {**CASES, **(FULL if args.full else {})}.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"train.{suffix}")
            generate("arms" if kind == "run" else kind, rows, path)
            if kind == "run":
                row = run(path, Path(folder))
            else:
                words = [sys.executable, __file__, "--measure", kind, str(path)]
                row = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            results[name] = {"rows": rows, "file_mb": round(path.stat().st_size / 2**20), **row}
        print(name, results[name], flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        RESULTS.with_suffix(".md").write_text(report(results), encoding="utf-8")


if __name__ == "__main__":
    main()
