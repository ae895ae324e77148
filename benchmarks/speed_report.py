"""Output of the results: a line, a JSON file, a table and a plot."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from speed_measure import Bench, Result

HEAD = """# Speed

`make bench-full`, or `make bench` for the short sizes. In every row both sides run in one process with the
same weights and inputs, in alternating turns. *ratio* is the median over at least five turns of the peer's
time over ours. *limit* is computed: the tokens of the peer over the required tokens. Work that is not
proportional to the tokens (masks of padded attention, one call per text, the last layer of tokens that are
not pooled) can raise a ratio above it. *difference* is the largest absolute difference between the results of
both sides in the same run. *spread* is the interquartile range of the turns over their median. With one
thread on a CPU the clock is the CPU time of the process.
"""


def machine(bench: Bench) -> str:
    """Return a description of the machine and the versions."""
    where = torch.cuda.get_device_name() if not bench.on_cpu else processor()
    return (
        f"{where}, {torch.get_num_threads()} of {os.cpu_count()} threads, clock: {bench.clock_name}; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def processor() -> str:
    """Return the name of the CPU and its vector extensions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    fast = [flag for flag in ("avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{names[0] if names else platform.processor()} ({', '.join(fast) or 'no AVX-512'})"


def verdict(row: dict[str, Any]) -> str:
    """Return whether the target is met; "" without a target."""
    if row["target"] is None:
        return ""
    return "yes" if row["ratio"] >= row["target"] else "**no**"


def number(value: float | None) -> str:
    """Return a number with two decimals, or one decimal from 10 on."""
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def line(result: Result) -> str:
    """Return a row as one line of text."""
    head = f"{number(result.ratio):>6}  target {number(result.target) or '-':>5}"
    head += f"  limit {number(result.limit) or '-':>5}"
    difference = "" if result.difference is None else f"difference {result.difference:.0e}"
    spread = "" if result.spread is None else f"spread {result.spread:.0%}"
    words = f"{result.workload} | {result.peer}"
    return "  ".join([head, f"{difference:<16}", f"{spread:<11}", words, result.note]).rstrip()


def keep(path: Path, result: Result, bench: Bench) -> None:
    """Store a row in the file; it replaces an older row with the same settings."""
    row = {
        **asdict(result),
        "device": bench.device if bench.on_cpu else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "size": "full" if bench.full else "short",
        "machine": machine(bench),
    }
    rows = read(path)
    keys = [_key(other) for other in rows]
    if _key(row) in keys:
        rows[keys.index(_key(row))] = row
    else:
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ",\n".join(json.dumps(one, ensure_ascii=False) for one in rows)
    path.write_text(f"[\n{text}\n]\n", encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file; an empty list if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["workload"], row["peer"], row["device"], row["threads"], row["settings"].get("shape")


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return a page of the rows with targets, the other rows, and notes."""
    lines = [HEAD, *(f"- {name}" for name in dict.fromkeys(row["machine"] for row in rows)), ""]
    sections = {
        "Rows with a target": [row for row in rows if row["target"] is not None],
        "Other peers, growth and memory": [row for row in rows if row["target"] is None],
    }
    for head, section in sections.items():
        lines += [f"## {head}", ""]
        lines += ["| workload | against | shape | ratio | target | limit | met | difference | spread |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for row in section:
            difference = "" if row["difference"] is None else f"{row['difference']:.0e} ({row['compared']})"
            spread = "" if row["spread"] is None else f"{row['spread']:.0%}"
            cells = [row["workload"], row["peer"], str(row["settings"].get("shape", ""))]
            cells += [f"**{number(row['ratio'])}**", number(row["target"]), number(row["limit"])]
            lines.append(f"| {' | '.join([*cells, verdict(row), difference, spread])} |")
        lines.append("")
    notes = [f"- {row['workload']}, {row['peer']}: {row['note']}" for row in rows if row["note"]]
    return "\n".join([*lines, "## Notes", "", *notes]) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot each row's ratio as a bar, with marks for target and limit, on a logarithmic axis."""
    from matplotlib.figure import Figure

    plotted = [row for row in rows if row["target"] is not None][::-1]
    figure = Figure(figsize=(10, 0.34 * len(plotted) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    positions = list(range(len(plotted)))
    colors = ["#2c7fb8" if row["ratio"] >= row["target"] else "#bdbdbd" for row in plotted]
    axes.barh(positions, [row["ratio"] for row in plotted], color=colors)
    axes.plot([row["target"] for row in plotted], positions, "k|", markersize=14, label="target")
    limits = [(row["limit"], y) for y, row in zip(positions, plotted, strict=True) if row["limit"]]
    axes.plot([x for x, _ in limits], [y for _, y in limits], "r.", label="limit by tokens")
    labels = [f"{row['workload'][:70]} · {_short(row['peer'])}" for row in plotted]
    axes.set_yticks(positions, labels, fontsize=6)
    axes.set_xscale("log")
    axes.set_xlabel("ratio (utilisation: share of the peak)")
    axes.legend(loc="lower right", fontsize=7)
    figure.savefig(path, dpi=140)


def _short(peer: str) -> str:
    for long, short in (
        ("transformers Qwen2ForSequenceClassification", "stock class"),
        (", right-padded", ""),
        (", repeated for the batch", ""),
        (" (its default)", ""),
        ("the product of two matrices of 1024", "a matrix product"),
        (" batches of 32", ""),
        ("AutoModel, output_hidden_states", "AutoModel, all layers"),
        ("transformers Qwen3_5TextForSequenceClassification", "stock class"),
        (", checkpointing off, grouped by length", ", at its best"),
        ("peft on ", "LoRA on "),
    ):
        peer = peer.replace(long, short)
    return peer[:50]


def write(path: Path) -> None:
    """Write table and plot next to the file of rows."""
    rows = read(path)
    path.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")
    plot(rows, path.with_suffix(".png"))
