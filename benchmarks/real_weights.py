"""Benchmark of task heads on real pretrained weights, compared with TF-IDF and other methods.

    python ../shared/tools/real_weights.py qwen2.5-coder-0.5b MODELS/qwen2.5-coder-0.5b
    python benchmarks/real_weights.py --data ../shared/data --output_dir runs/real \
        --qwen MODELS/qwen2.5-coder-0.5b --methods frozen

Each row runs a recipe with its command line and reads `metrics.json`:

- `recipes/sweep_heads.py`: frozen heads on a quarter, half, three quarters and all of the layers, single and
  concatenated, with mean and last-token pooling and an L2 path;
- LoRA by `recipes/classify.py` and `recipes/reward_titles.py`;
- the same training by the stock class and Trainer;
- label scoring by the chat models through `recipes/compare.py`.

Layer, pooling and penalty are selected on dev, and test is evaluated once. Training rows are limited if two
cores need it, and the table shows their number.

Runs are kept under `--output_dir`: a finished row is not computed again, and `results/` is written after each
row. A missing data set, model or package is skipped with a reason. SmolLM2-135M is used for English only. The
0.5B model is a 4-bit quantisation of Qwen2.5-Coder-0.5B-Instruct, for measurements here only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from real_weights_data import (
    ASKED,
    ASKED_ROWS,
    DATASETS,
    EPOCHS,
    FROZEN,
    LAYERS,
    LORA,
    METHODS,
    QWEN,
    SMOL,
    STOCK,
    WARM,
    DatasetSpec,
    Row,
    all_rows,
    split_arguments,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MODEL = "this model"
ENDS = ("value", "low", "high")


def words_of(row: Row, options: argparse.Namespace) -> list[str] | str:
    """Return the command of a row, or the reason why it cannot be run."""
    spec, folder = DATASETS[row.data], options.data / row.data
    model = options.qwen if row.model == QWEN else SMOL
    if not folder.is_dir():
        return f"{folder} does not exist"
    if model is None:
        return "--qwen was not given"
    if row.method == ASKED:
        engines = ["--engines", f"zero_shot={model}", f"few_shot={model}", "--max_rows", str(ASKED_ROWS)]
        asked = [*split_arguments(row.data, spec, folder, options), *engines, "--latency_rows", "20"]
        return ["recipes/compare.py", *asked, "--output_dir", str(options.output_dir / row.name)]
    rows = spec.rows if row.method == FROZEN else spec.lora_rows
    words = [
        *split_arguments(row.data, replace(spec, rows=rows), folder, options),
        "--model_name_or_path",
        str(model),
    ]
    words += ["--output_dir", str(options.output_dir / row.name), "--use_cpu", str(not options.cuda).lower()]
    words += [*spec.options, "--disable_tqdm", "true"]
    if row.method == FROZEN:
        words = ["recipes/sweep_heads.py", *words, *_length(spec)]
        words += ["--task", "titles"] if spec.titles else []
        words += ["--layers", *LAYERS[row.model], "--poolings", "mean", "last"]
        words += ["--heads", "linear", "--seeds", "0"]
        words += ["--feature_cache", str(options.output_dir / "features")]
        return [*words, "--feature_dtype", "float32" if row.model == SMOL else "bfloat16"]
    epochs = ["--num_train_epochs", str(EPOCHS[row.method]), "--per_device_train_batch_size", "16"]
    tuned = [*words, *_length(spec), "--use_peft", "--lora_r", "16", "--learning_rate", "2e-4", *epochs]
    recipe = "recipes/reward_titles.py" if spec.titles else "recipes/classify.py"
    if row.method == WARM:
        frozen = options.output_dir / replace(row, method=FROZEN).name
        if not (frozen / "manifest.json").exists():
            return "the frozen head that LoRA starts from does not exist"
        return [recipe, *tuned, "--init_head", str(frozen)]
    if row.method == LORA:
        return [recipe, *tuned, "--pooling", "mean"]
    ours = options.output_dir / replace(row, method=LORA).name
    if not (ours / "manifest.json").exists():
        return "our run with the same budget does not exist"
    titles = ["--titles"] if spec.titles else []
    return ["benchmarks/real_weights_stock.py", "--ours", str(ours), *titles, *tuned]


def _length(spec: DatasetSpec) -> list[str]:
    return ["--max_length" if spec.titles else "--max_seq_length", str(spec.length)]


def run(row: Row, words: list[str], options: argparse.Namespace) -> dict[str, Any] | None:
    """Run a recipe; return its time and memory, or None if it failed."""
    log = options.output_dir / f"{row.name}.log"
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        print(f"{row.name}: failed, see {log}", flush=True)
        return None
    used = {"seconds": round(time.monotonic() - start), "cpu_seconds": round(usage.ru_utime)}
    return {**used, "peak_gb": round(usage.ru_maxrss / (1 << 20), 2)}  # Linux counts KiB


def stock_entry(row: Row, took: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the results of a stock run; its verdict is that of our run."""
    found = json.loads((folder / "stock.json").read_text(encoding="utf-8"))
    return {
        "data": row.data,
        "model": row.model,
        "method": row.method,
        "metric": found["metric"],
        "value": found["stock"],
        "verdict": found["verdict"],
        **took,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def asked_entry(row: Row, took: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the results of a chat model, without examples and with eight."""
    found = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    known, answers = {*found["data"]["labels"]}, [json.loads(line)["answers"] for line in lines]
    labels = [answer["label"] for row_of in answers for name, answer in row_of.items() if "=" in name]
    return {
        "data": row.data,
        "model": row.model,
        "method": row.method,
        "metric": "accuracy",
        "rows": found["data"]["rows"],
        "answers": len(labels),
        "outside": sum(label not in known for label in labels),
        "engines": {
            one["name"].split("=")[0]: {key: one["figures"]["accuracy"][key] for key in ENDS}
            for one in found["engines"]
        },
        **took,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def entry_of(row: Row, took: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the results of a finished run."""
    if row.method == STOCK:
        return stock_entry(row, took, folder)
    if row.method == ASKED:
        return asked_entry(row, took, folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["settings"]
    metric, split = DATASETS[row.data].metric, "test"
    calibration = metrics.get("calibration") or {}
    ours = metrics[split][MODEL]
    taken = ("backbone_layers", "head_layers", "pooling", "penalty", "learning_rate", "num_train_epochs")
    found: dict[str, Any] = {
        "data": row.data,
        "model": row.model,
        "method": row.method,
        "metric": metric,
        **{key: ours[metric][key] for key in ENDS},
        "dev": metrics["dev"][MODEL][metric]["value"],
        "baselines": {
            name: entry[metric]["value"]
            for name, entry in metrics[split].items()
            if name != MODEL and metric in entry
        },
        "verdict": metrics.get("verdict"),
        "calibration": {name: calibration.get(name) for name in ("temperature", "metrics")},
        "train": next(iter(metrics["data"]["train"].values())),
        "settings": {name: settings[name] for name in taken if settings.get(name) is not None},
        **took,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": metrics["train"]["device"],
    }
    if row.method == FROZEN:
        exits = json.loads((folder / "early_exit.json").read_text(encoding="utf-8"))
        found["tried"] = {  # dev metrics by layers and pooling
            f"{'+'.join(map(str, one['layers']))}, {one['pooling']}": round(one["value"], 4)
            for one in exits["tried"]
        }
    for extra in ("macro_f1", "ece"):
        if extra in ours:
            found[extra] = ours[extra]["value"] if isinstance(ours[extra], dict) else ours[extra]
    return found


HEAD = (
    "| set | model | method | train rows | metric | test | TF-IDF | difference to the best baseline "
    "| verdict | ECE before, after | layers, pooling | seconds | GB |"
)
WRITTEN = "| set | model | rows | accuracy of engines and baselines | seconds |"
VERSUS = "| set | model | metric | ours | stock | difference | verdict | seconds of stock |"


def write(entries: dict[str, dict[str, Any]]) -> None:
    """Write the rows as JSON, and as tables."""
    text = json.dumps(list(entries.values()), indent=2, ensure_ascii=False) + "\n"
    (RESULTS / "real_weights.json").write_text(text, encoding="utf-8")
    order = [row.name for row in all_rows(list(METHODS))]
    ordered = [entries[name] for name in sorted(entries, key=order.index)]
    lines = [
        "# Real pretrained weights",
        "",
        "`python benchmarks/real_weights.py`: settings are selected on dev, and test_public is evaluated",
        "once. Intervals of 95% are over groups. Differences are paired by row.",
        "",
        HEAD,
        "|" + "---|" * (HEAD.count("|") - 1),
        *(_line(entry) for entry in ordered if entry["method"] not in (STOCK, ASKED)),
    ]
    if stock := [entry for entry in ordered if entry["method"] == STOCK]:
        lines += ["", "## Comparison with the stock classes on equal budget", "", VERSUS]
        lines += ["|" + "---|" * (VERSUS.count("|") - 1), *map(_versus, stock)]
    if asked := [entry for entry in ordered if entry["method"] == ASKED]:
        outside, answers = (sum(entry[key] for entry in asked) for key in ("outside", "answers"))
        summary = (
            f"Answers outside the labels: {outside:,} of {answers:,}. Accuracy is on randomly drawn rows."
        )
        lines += ["", "## Labels generated by the chat models", "", summary, "", WRITTEN]
        lines += ["|" + "---|" * (WRITTEN.count("|") - 1), *map(_written, asked)]
    (RESULTS / "real_weights.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(entry: dict[str, Any]) -> str:
    if entry["method"] in (STOCK, ASKED):
        return {STOCK: _versus, ASKED: _written}[entry["method"]](entry)
    verdict, settings = entry["verdict"] or {}, entry["settings"]
    tfidf = next((value for name, value in entry["baselines"].items() if name.startswith("TF-IDF")), None)
    layers = settings.get("head_layers") or settings.get("backbone_layers") or "all"
    ece = ""
    measured = ((entry["calibration"] or {}).get("metrics") or {}).get("test", {}).get("ece")
    if measured:
        ece = f"{measured['before']['value']:.3f}, {measured['after']['value']:.3f}"
    cells = [
        entry["data"],
        entry["model"],
        entry["method"],
        f"{entry['train']:,}",
        entry["metric"],
        f"**{entry['value']:.3f}** ({entry['low']:.3f} to {entry['high']:.3f})",
        "" if tfidf is None else f"{tfidf:.3f}",
        _difference(verdict),
        verdict.get("word", ""),
        ece,
        f"{layers}, {settings.get('pooling', '')}",
        str(entry["seconds"]),
        str(entry["peak_gb"]),
    ]
    return "| " + " | ".join(cells) + " |"


def _versus(entry: dict[str, Any]) -> str:
    verdict = entry["verdict"]
    ours = entry["value"] + verdict["difference"]
    cells = [
        entry["data"],
        entry["model"],
        entry["metric"],
        f"**{ours:.3f}**",
        f"{entry['value']:.3f}",
        _difference(verdict),
        verdict["word"],
        str(entry["seconds"]),
    ]
    return "| " + " | ".join(cells) + " |"


def _written(entry: dict[str, Any]) -> str:
    engines = " · ".join(
        f"{name} {one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
        for name, one in entry["engines"].items()
    )
    cells = [entry["data"], entry["model"], f"{entry['rows']:,}", engines, str(entry["seconds"])]
    return "| " + " | ".join(cells) + " |"


def _difference(verdict: dict[str, Any]) -> str:
    if not verdict or verdict["low"] is None:
        return ""
    return f"{verdict['difference']:+.3f} ({verdict['low']:+.3f} to {verdict['high']:+.3f})"


def main() -> None:
    """Run the requested rows that have no results yet, one after the other."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--qwen", type=Path, help="folder of the 0.5B model; without it, its rows are skipped"
    )
    parser.add_argument("--methods", nargs="+", default=[FROZEN], choices=METHODS)
    parser.add_argument("--only", nargs="+", help="rows whose names contain one of these texts")
    parser.add_argument("--cuda", action="store_true", help="use the GPU")
    options = parser.parse_args()
    options.output_dir = options.output_dir.resolve()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "real_weights.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    entries = {Row(entry["data"], entry["model"], entry["method"]).name: entry for entry in known}
    for row in all_rows(options.methods):
        if row.name in entries or (options.only and not any(part in row.name for part in options.only)):
            continue
        words = words_of(row, options)
        if isinstance(words, str):
            print(f"{row.name}: skipped, {words}", flush=True)
            continue
        print(f"{row.name} ...", flush=True)
        folder = options.output_dir / row.name
        kept = options.output_dir / f"{row.name}.json"
        if not kept.exists():
            shutil.rmtree(folder, ignore_errors=True)  # files of an interrupted run
            usage = run(row, words, options)
            if usage is None:
                continue
            kept.write_text(json.dumps(usage), encoding="utf-8")
        if usage := json.loads(kept.read_text(encoding="utf-8")):
            entries[row.name] = entry_of(row, usage, folder)
            write(entries)
            print(_line(entries[row.name]), flush=True)


if __name__ == "__main__":
    main()
