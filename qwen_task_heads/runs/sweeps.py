"""A run that trains heads on a frozen backbone, which runs once over the data."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import Any

from qwen_task_heads.reports.early_exits import measure_exits, sweep_table, write_exits
from qwen_task_heads.reports.sweeps import open_sweep
from qwen_task_heads.runs.base import Run
from qwen_task_heads.training.checkpoints import open_output
from qwen_task_heads.training.head_sweep import Result, choose, parse_head
from qwen_task_heads.training.sweep_arguments import parse_sweep_arguments
from qwen_task_heads.training.sweep_commands import warm_start_command


class SweepRun(Run):
    """A run of `recipes/sweep_heads.py`; its methods are called in their order.

    Example:
        >>> from qwen_task_heads import SweepRun
        >>> run = SweepRun.from_command_line(["--output_dir", "runs/x", "--use_cpu", "true"])
        Train heads on a frozen backbone on the embedded sample ...
        >>> run.task.save_as
        'adapter'
    """

    PROCESSES = 1  # it extracts features and trains heads

    @classmethod
    def from_command_line(cls, argv: Sequence[str] | None = None) -> SweepRun:
        """Parse options and `--config`; `argv` is None for the words of this process."""
        return cls(*parse_sweep_arguments(argv))

    def read_datasets(self) -> Any:
        """Read and check train, dev and test, and claim the output folder.

        Raises:
            TaskHeadsError: all defects of the files, data of the other task, or a model that has a head.
        """
        self._sweep = open_sweep(self.task, self.args, self.model_args)
        self._start = time.monotonic()
        self.datasets = self._sweep.sets
        open_output(self.args.output_dir, None)
        return self.datasets

    def tokenize(self) -> tuple[Any, list[Sequence[int]]]:
        """Return the model of all layers, and the rows of token ids; print what was read and truncated."""
        rows, lines = self._sweep.encode()
        print("\n".join(lines), flush=True)
        return self._sweep.model, rows

    def feature_options(self) -> dict[str, Any]:
        """Return layers, poolings, cache and dtype, as `extract_features` takes them."""
        return {
            "layers": self._sweep.read_layers,
            "progress": not self.args.disable_tqdm,
            "usage": self._sweep.usage,
            **self.task.feature_options(),
        }

    def head_options(self) -> dict[str, Any]:
        """Return rows, layers, heads, losses and seeds, as `sweep_heads` takes them."""
        return {
            "rows": self._sweep.rows,
            "layers": self._sweep.layers,
            "heads": [parse_head(head) for head in self.task.heads],
            "losses": self._sweep.losses,
            "seeds": self.task.seeds,
            "settings": self.args.head_training(),
            "penalties": self.task.penalties,
            "progress": not self.args.disable_tqdm,
        }

    def finish(self, results: Sequence[Result]) -> None:
        """Save the best head, measure the latency of each layer, report and publish.

        Args:
            results: best first, from `sweep_heads`.
        """
        sweep, folder = self._sweep, self.args.output_dir
        seconds, chosen = time.monotonic() - self._start, choose(results, tolerance=self.task.tolerance)
        points = measure_exits(results, sweep.with_head, rows=sweep.timed)
        write_exits(folder, points, metric=sweep.metric, chosen=chosen, results=results)
        metrics = sweep.finish(chosen, seconds=seconds, trackers=self.trackers)
        baseline = metrics["dev"].get(sweep.BASELINE)
        table = sweep_table(results, chosen=chosen, points=points, metric=sweep.metric, baseline=baseline)
        command = warm_start_command(
            self.task, self.args, self.model_args, folder=folder, chosen=chosen.combination
        )
        next_step = ["", "Next, LoRA that starts from this head:", f"  {shlex.join(command)}"]
        print("", *table, *next_step, sep="\n", flush=True)
        self.publish()
