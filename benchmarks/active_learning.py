"""Benchmark of active learning: accuracy by number of labelled rows, chosen by each strategy.

    python benchmarks/active_learning.py --data ../shared/data

A pool of training rows is labelled step by step, beginning with random ones. Each step fits TF-IDF on the
labelled rows and asks `choose` for the next ones. Accuracy is that of TF-IDF on test_public, mean of three
seeds. A second table has the number of rows with which a strategy reaches the accuracy of random rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from qwen_task_heads import read_text_sets
from qwen_task_heads.labeling.confident_learning import out_of_fold, softmax, temperature_of, tfidf_texts
from qwen_task_heads.labeling.selection import choose
from qwen_task_heads.metrics.text_baselines import TfidfBaseline

RESULTS = Path(__file__).parent / "results"
SETS = {"banking77": (400, 400, 4_000), "thucnews-titles": (200, 200, 2_000)}  # first rows, step, last rows
POOL, TEST, SEEDS = 9_000, 2_000, (0, 1, 2)
STRATEGIES = {
    "random": ("random", False),
    "margin": ("margin", False),
    "margin, diverse": ("margin", True),
    "entropy": ("entropy", False),
}


def main() -> None:
    """Measure each data set, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", default=list(SETS))
    options = parser.parse_args()
    path = RESULTS / "active_learning.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in options.only:
        if not (options.data / name).is_dir():
            print(f"{name}: skipped, no {options.data / name}")
            continue
        found[name] = measure(name, options.data / name)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "active_learning.md").write_text(table(found), encoding="utf-8")


def measure(name: str, folder: Path) -> dict[str, dict[str, float]]:
    """Return strategy -> number of rows -> accuracy, the mean over seeds."""
    sets = read_text_sets(str(folder / "train.jsonl"), test=str(folder / "test_public.jsonl"))
    first, step, last = SETS[name]
    pool, test, count = list(sets.train), list(sets.test)[:TEST], len(sets.labels)
    truth = np.array([row.target for row in test])
    curves: dict[str, dict[int, list[float]]] = {strategy: {} for strategy in STRATEGIES}
    for seed in SEEDS:
        rows = [pool[int(number)] for number in np.random.default_rng(seed).permutation(len(pool))[:POOL]]
        for title, (strategy, diverse) in STRATEGIES.items():
            labelled = list(range(first))
            while True:
                own = [rows[number] for number in labelled]
                scores = TfidfBaseline(sets.problem_type, count).fit(own).predict(test)
                accuracy = float((scores.argmax(1) == truth).mean())
                curves[title].setdefault(len(labelled), []).append(accuracy)
                print(name, seed, title, len(labelled), f"{accuracy:.3f}", flush=True)
                if len(labelled) >= last:
                    break
                known = set(labelled)
                rest = [number for number in range(len(rows)) if number not in known]
                others = [rows[number] for number in rest]
                engine = [np.full((len(rest), count), 1 / count)]
                if strategy != "random":
                    engine = [predicted(own, others, sets.problem_type, count, seed)]
                options: dict[str, Any] = {"strategy": strategy, "diverse": diverse, "seed": seed}
                labelled += [rest[int(number)] for number in choose(others, engine, count=step, **options)]
    return {
        strategy: {str(size): float(np.mean(values)) for size, values in curve.items()}
        for strategy, curve in curves.items()
    }


def predicted(own: list[Any], others: list[Any], problem_type: str, count: int, seed: int) -> Any:
    """Return the probabilities (M, L) of TF-IDF, with a temperature from out-of-fold rows."""
    every = [*own, *others]
    engine = tfidf_texts(every, problem_type, count)
    targets = np.array([row.target for row in own])
    temperature = temperature_of(out_of_fold(own, engine, width=count, seed=seed, folds=3), targets)
    fitted, asked = np.arange(len(own)), np.arange(len(own), len(every))
    return softmax(engine(fitted, asked) / temperature)


def rows_to_reach(curve: dict[str, float], accuracy: float) -> float | None:
    """Return the number of rows at which a curve reaches an accuracy, interpolated; None if it does not."""
    sizes = sorted(map(int, curve))
    for before, size in zip([None, *sizes], sizes, strict=False):
        if curve[str(size)] >= accuracy:
            if before is None:
                return float(size)
            low, high = curve[str(before)], curve[str(size)]
            return before + (size - before) * (accuracy - low) / max(high - low, 1e-9)
    return None


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the tables as Markdown."""
    lines = [
        "# Active learning",
        "",
        "`python benchmarks/active_learning.py`: accuracy of TF-IDF on test_public,",
    ]
    lines += ["mean of three seeds, by number of labelled rows.", ""]
    for name, curves in found.items():
        sizes = sorted(map(int, curves["random"]))
        doubles = [size for size in sizes if 2 * size in sizes]
        header, rule = " | ".join(curves), "|---" * (len(curves) + 1) + "|"
        lines += [f"## {name}", "", f"| rows | {header} |", rule]
        lines += [
            f"| {size:,} | " + " | ".join(f"{curve[str(size)]:.3f}" for curve in curves.values()) + " |"
            for size in sizes
        ]
        lines += ["", "Rows that reach the accuracy of random rows at:", ""]
        lines += [f"| random rows | {header} |", rule]
        for size in doubles:
            goal = curves["random"][str(2 * size)]
            reached = [rows_to_reach(curve, goal) for curve in curves.values()]
            cells = ["not reached" if one is None else f"{one:,.0f}" for one in reached]
            lines.append(f"| {2 * size:,} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
