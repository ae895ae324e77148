"""Five fixed runs and the numbers in their `metrics.json`, to compare two states of the code on one machine.

    python tests/golden/fixed_runs.py before.json     # in one checkout
    python tests/golden/fixed_runs.py after.json --compare before.json

A refactoring changes no digit. Times, rates and paths are left out; names of fields may change, so numbers
are compared in their order of appearance.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMON = ["--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true", "--seed", "3"]
STEPS = ["--max_steps", "6"]
MEASURED = (
    "seconds",
    "per_second",
    "utilisation",
    "utilization",
    "time",
    "gb",
    "memory",
    "speed",
    "peak",
)


def runs(data: Path) -> dict[str, list[str]]:
    """Return the command of each run, on data written to a folder."""
    rows = data / "emotions.jsonl"
    names = ["joy", "fear", "anger"]
    rows.write_text(
        "".join(
            json.dumps(
                {
                    "text": f"note {n} on {' and '.join(names[k] for k in range(3) if n >> k & 1) or 'rest'}",
                    "labels": [names[k] for k in range(3) if n >> k & 1],
                }
            )
            + "\n"
            for n in range(240)
        )
    )
    return {
        "titles": ["reward_titles.py", *STEPS],
        "single": ["classify.py", *STEPS, "--use_peft"],
        "multi": [
            "classify.py",
            *STEPS,
            "--dataset_name",
            str(rows),
            "--problem_type",
            "multi_label_classification",
            "--test_fraction",
            "0.2",
        ],
        "generative": ["sft_classify.py", "--max_steps", "3"],
        "sweep": ["sweep_heads.py", "--layers", "1", "2", "--heads", "linear", "mlp:8", "--seeds", "0"],
    }


def numbers(value: Any, name: str = "") -> list[float]:
    """Return all numbers of a JSON value in their order of appearance, measured times left out."""
    if any(part in name.lower() for part in MEASURED):
        return []
    if isinstance(value, dict):
        return [number for key, one in value.items() for number in numbers(one, key)]
    if isinstance(value, list):
        return [number for one in value for number in numbers(one, name)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def main() -> int:
    """Run all five, write their numbers, and compare them where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--compare", type=Path)
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (recipe, *words) in runs(Path(scratch)).items():
            folder = Path(scratch, name)
            command = [sys.executable, str(ROOT / "recipes" / recipe), "--output_dir", str(folder)]
            subprocess.run([*command, *words, *COMMON], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            found[name] = numbers(metrics)
            print(f"{name}: {len(found[name]):,} numbers", flush=True)
    options.output.write_text(json.dumps(found) + "\n", encoding="utf-8")
    if options.compare is None:
        return 0
    wanted = json.loads(options.compare.read_text(encoding="utf-8"))
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    print(f"different: {', '.join(differing)}" if differing else "all numbers are equal")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
