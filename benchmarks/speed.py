"""Benchmark of packing and prefix sharing: every row with its peer, its target and its limit.

    python benchmarks/speed.py                 # minutes: `make bench`
    python benchmarks/speed.py --full          # all rows and sizes: `make bench-full`
    python benchmarks/speed.py --only lists --device cuda

Both sides run in one process on the same weights and inputs, in alternating turns (`speed_measure`), and
their results are compared in the same run. Rows are stored in `benchmarks/results/speed.json` as they are
measured; a new measurement replaces the old row. The table, the plot and the README's paragraph are generated
from that file.

Missing peers and data are skipped, with the reason. ms-swift is not a peer: version 4.6 requires trl below
1.0 and transformers below 5.20, which this project does not support.
"""

from __future__ import annotations

import os

# Set before torch is imported: the time of actively waiting threads would be counted for the other side.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import speed_memory
import speed_real
import speed_report
import speed_rows
import speed_run
import speed_scale
import speed_serving
import speed_trainers
import speed_tuning
from speed_run import Rows

# Name on the command line, rows, and whether `make bench` runs them.
SUITE: dict[str, tuple[Rows, bool]] = {
    "classification": (speed_rows.classification, True),
    "lists": (speed_rows.lists, True),
    "instruction": (speed_rows.instruction, True),
    "pairs": (speed_trainers.pairs, True),
    "groups": (speed_trainers.groups, True),
    "long_instruction": (speed_serving.long_instruction, True),
    "pipelines": (speed_serving.pipelines, True),
    "first_score": (speed_serving.first_score, True),
    "real_features": (speed_real.features, True),
    "real_lora": (speed_real.lora_pairs, True),
    "real_labels": (speed_real.labels_by_trie, True),
    "real_memory": (speed_real.lora_memory, True),
    "real_first_score": (speed_real.first_score, True),
    "hybrids": (speed_real.hybrids, True),
    "head_only": (speed_tuning.head_only, True),
    "utilisation": (speed_scale.utilisation, True),
    "trainers": (speed_tuning.trainers, False),
    "lora": (speed_tuning.lora, False),
    "ranking": (speed_serving.ranking, False),
    "listwise": (speed_tuning.listwise, False),
    "growth": (speed_scale.growth, False),
    "memory": (speed_memory.memory, False),
}


def main() -> None:
    """Measure, print, and write the results."""
    parser = speed_run.options(str(__doc__), names=SUITE, results="speed.json")
    parser.add_argument("--report", action="store_true", help="only regenerate table, plot and README")
    args = parser.parse_args()
    if not args.report:
        chosen = args.only or [name for name, (_, is_short) in SUITE.items() if is_short or args.full]
        speed_run.measure(args, {name: SUITE[name][0] for name in chosen})
    speed_report.write(args.results)


if __name__ == "__main__":
    main()
