"""The figures as a line, a JSON file, a table, a plot and a paragraph of the README."""

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

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"


def machine(bench: Bench) -> str:
    """What the run is measured on."""
    where = torch.cuda.get_device_name() if not bench.on_cpu else processor()
    return (
        f"{where}, {torch.get_num_threads()} of {os.cpu_count()} threads, clock: {bench.clock_name}; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def processor() -> str:
    """Name of the CPU, with what it computes fast."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    fast = [flag for flag in ("avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{names[0] if names else platform.processor()} ({', '.join(fast) or 'no AVX-512'})"


def verdict(row: dict[str, Any]) -> str:
    """Whether the target is met; nothing where there is none."""
    if row["target"] is None:
        return ""
    return "yes" if row["ratio"] >= row["target"] else "**no**"


def number(value: float | None) -> str:
    """Two decimals, one from 10 on."""
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def line(result: Result) -> str:
    """One row as it is measured."""
    parts = [f"{number(result.ratio):>6}"]
    parts.append(f"target {number(result.target) or '-':>5}  limit {number(result.limit) or '-':>5}")
    difference = "" if result.difference is None else f"difference {result.difference:.0e}"
    spread = "" if result.spread is None else f"spread {result.spread:.0%}"
    words = f"{result.workload} | {result.peer}"
    return "  ".join([*parts, f"{difference:<16}", f"{spread:<11}", words, result.note]).rstrip()


def keep(path: Path, result: Result, bench: Bench) -> None:
    """Put a row into the file, in the place of the one measured before in the same way."""
    rows = read(path)
    row = {
        **asdict(result),
        "device": bench.device if bench.on_cpu else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "clock": bench.clock_name,
        "size": "full" if bench.full else "short",
        "machine": machine(bench),
    }
    kept = [other for other in rows if _key(other) != _key(row)]
    place = next((at for at, other in enumerate(rows) if _key(other) == _key(row)), len(kept))
    kept.insert(place, row)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ",\n".join(json.dumps(one, ensure_ascii=False) for one in kept)
    path.write_text(f"[\n{text}\n]\n", encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["workload"], row["peer"], row["device"], row["settings"].get("shape")


def markdown(rows: list[dict[str, Any]]) -> str:
    """All rows as one table."""
    lines = [
        "# Speed, measured",
        "",
        "`make bench-full`; every row has both sides in one process, same weights and inputs, in turn; the ratio is",
        "the median over at least five turns of the peer's time over ours. *limit* is computed: tokens that the peer",
        "computes over those that are needed; skipping the last layer for all but the pooled token can pass it.",
        "*difference* is the largest absolute difference of what both sides computed, in the same run.",
        "",
    ]
    lines += [f"- {name}" for name in dict.fromkeys(row["machine"] for row in rows)]
    lines += ["", "| workload | against | ratio | target | limit | met | difference | of | spread | shape |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        difference = "" if row["difference"] is None else f"{row['difference']:.0e}"
        spread = "" if row["spread"] is None else f"{row['spread']:.0%}"
        cells = [row["workload"], row["peer"], f"**{number(row['ratio'])}**", number(row["target"])]
        cells += [number(row["limit"]), verdict(row), difference, row["compared"], spread]
        cells.append(str(row["settings"].get("shape", "")))
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"- {row['workload']}, {row['peer']}: {row['note']}" for row in rows if row["note"]]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def write(path: Path) -> None:
    """Make the table from the file of rows."""
    rows = read(path)
    path.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")
