"""How good the title recipe is: pair accuracy over three seeds, beside the floors, on two data sets.

    python benchmarks/title_accuracy.py --data_dir ../shared/data --seeds 0 1 2

Every row is `recipes/reward_titles.py` run as users run it; its `metrics.json` is read back. The checkpoint
is picked on dev and test is looked at once per run. Writes `results/title_accuracy.json` and `.md`. A data
set that is not there is skipped with a reason. A random start is the same network without pretraining.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QUICK, ADS = "recipes/configs/quick_start.yaml", "benchmarks/configs/adparaphrase.yaml"
MODEL, LONGER, TFIDF = "this model", "the longer title wins", "TF-IDF Bradley-Terry"


def run(*command: str) -> None:
    """Run a recipe from the root of the project; its output is shown."""
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def random_start(folder: Path) -> str:
    """The embedded backbone's shape and tokenizer with fresh weights."""
    from transformers import AutoConfig, AutoModel, set_seed

    from qwen_task_heads import load_tokenizer
    from qwen_task_heads.backbones import locate

    set_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(locate("embedded"))).save_pretrained(folder)
    load_tokenizer("embedded").save_pretrained(folder)
    return str(folder)


def rows_of(data: Path, scratch: Path) -> list[dict[str, object]]:
    """What to run: name, config, options. A row whose data is absent has a `skip`."""
    upworthy = {"config": QUICK, "data": "Upworthy test_public (English clicks)"}
    rows = [
        {**upworthy, "name": "quick start", "options": []},
        {
            **upworthy,
            "name": "quick start, random start",
            "options": ["--model_name_or_path", random_start(scratch / "random")],
        },
    ]
    arms, sample = data / "upworthy" / "arms_train.jsonl", ROOT / "qwen_task_heads" / "assets" / "upworthy"
    soft = {**upworthy, "name": "soft click targets, all arms", "config": "recipes/configs/soft_clicks.yaml"}
    sets = ["--dev_dataset", str(sample / "dev.jsonl"), "--test_dataset", str(sample / "test_public.jsonl")]
    if arms.is_file():
        rows.append({**soft, "options": ["--dataset_name", str(arms), *sets]})
    else:
        rows.append({**soft, "skip": f"{arms} is not there"})
    folder = data / "adparaphrase-v2-ja"
    ads = {"config": ADS, "data": "AdParaphrase v2 test_public (Japanese votes)"}
    if not folder.is_dir():
        return [*rows, {**ads, "name": "AdParaphrase", "skip": f"{folder} is not there"}]
    backbone = scratch / "adparaphrase"
    config = "recipes/configs/pretrain_adparaphrase.yaml"
    run(
        "recipes/pretrain_backbone.py",
        "--config",
        config,
        "--data_dir",
        str(data),
        "--output_dir",
        str(backbone),
    )
    common = ["--model_name_or_path", str(backbone), "--dataset_name", str(folder)]
    return [
        *rows,
        {**ads, "name": "hard targets (Bradley-Terry)", "options": common},
        {**ads, "name": "soft targets (votes)", "options": [*common, "--loss", "soft"]},
    ]


def measure(row: dict[str, object], seeds: list[int], scratch: Path) -> dict[str, object]:
    """Train with every seed; give mean, spread and floors on test, and the mean on dev."""
    test, dev, last = [], [], {}
    for seed in seeds:
        output = scratch / f"{row['name']}-{seed}".replace(" ", "-")
        options = [*row["options"], "--seed", str(seed), "--output_dir", str(output)]  # type: ignore[misc]
        run("recipes/reward_titles.py", "--config", str(row["config"]), *options)
        last = json.loads((output / "metrics.json").read_text())
        test.append(last["test"][MODEL]["pair_accuracy"])
        dev.append(last["dev"][MODEL]["pair_accuracy"]["value"])
    values = [figure["value"] for figure in test]
    return {
        "data": row["data"],
        "row": row["name"],
        "seeds": seeds,
        "test_accuracy": [round(value, 4) for value in values],
        "test_mean": round(statistics.mean(values), 4),
        # the mean over seeds of each end: the groups of the test set are the same in every run
        "test_interval": [round(statistics.mean(f[end] for f in test), 4) for end in ("low", "high")],
        "dev_mean": round(statistics.mean(dev), 4),
        "longer_title": round(last["test"][LONGER]["pair_accuracy"]["value"], 4),
        "tfidf": round(last["test"][TFIDF]["pair_accuracy"]["value"], 4),
        "train_seconds": last["train"]["seconds"],
    }


def table(results: list[dict[str, object]]) -> str:
    """The results as Markdown."""
    lines = [
        "# Pair accuracy of the title recipe",
        "",
        "`python benchmarks/title_accuracy.py`; two CPU cores; checkpoints are picked on dev; the",
        "interval is a bootstrap over groups, averaged over seeds.",
        "",
        "| data | row | test, mean of seeds | 95% interval | each seed | dev | longer title | TF-IDF |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        if "skip" in r:
            lines.append(f"| {r['data']} | {r['row']} | skipped: {r['skip']} | | | | | |")
            continue
        low, high = r["test_interval"]  # type: ignore[misc]
        each = ", ".join(f"{value:.3f}" for value in r["test_accuracy"])  # type: ignore[attr-defined]
        lines.append(
            f"| {r['data']} | {r['row']} | **{r['test_mean']:.3f}** | {low:.3f} to {high:.3f} | {each} "
            f"| {r['dev_mean']:.3f} | {r['longer_title']:.3f} | {r['tfidf']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for row in rows_of(args.data_dir, scratch):
            skipped = {"data": row["data"], "row": row["name"], "skip": row.get("skip")}
            results.append(skipped if "skip" in row else measure(row, args.seeds, scratch))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "title_accuracy.json").write_text(json.dumps(results, indent=2) + "\n")
    (RESULTS / "title_accuracy.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
