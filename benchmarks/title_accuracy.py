"""Benchmark of the title recipe: pair accuracy over three seeds and of the baselines, on two data sets.

    python benchmarks/title_accuracy.py --data_dir ../shared/data --seeds 0 1 2

Every row runs `recipes/reward_titles.py` with its command line and reads `metrics.json`. The checkpoint is
selected on dev, and test is evaluated once per run. The script writes `results/title_accuracy.json` and `.md`
after each row. Rows that `--only` excludes are kept unchanged. A missing data set is skipped with a reason. A
random start is the same network without pretraining.
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
QUICK, SOFT = "recipes/configs/quick_start_embedded.yaml", "recipes/configs/soft_clicks.yaml"
ADS = "benchmarks/configs/adparaphrase.yaml"
MODEL, LONGER, TFIDF = "this model", "the longer title wins", "TF-IDF Bradley-Terry"


def run(*command: str) -> None:
    """Run a recipe from the root of the project, with its output on the terminal."""
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def random_start(folder: Path) -> None:
    """Save a model with the embedded backbone's shape and tokenizer, and random weights."""
    from transformers import AutoConfig, AutoModel, set_seed

    from qwen_task_heads import load_tokenizer
    from qwen_task_heads.pretrained import locate

    set_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(locate("embedded"))).save_pretrained(folder)
    load_tokenizer("embedded").save_pretrained(folder)


def rows_of(data: Path, scratch: Path) -> list[dict[str, object]]:
    """Return the rows: name, config, options. A row whose data is missing has the key `skip`."""
    sample = ROOT / "qwen_task_heads" / "assets" / "upworthy"
    arms, ads = data / "upworthy" / "arms_train.jsonl", data / "adparaphrase-v2-ja"
    sets = ["--dev_dataset", str(sample / "dev.jsonl"), "--test_dataset", str(sample / "test_public.jsonl")]
    fresh = ["--model_name_or_path", str(scratch / "random")]
    votes = ["--model_name_or_path", str(scratch / "adparaphrase"), "--dataset_name", str(ads)]
    english, japanese = (
        "Upworthy test_public (English clicks)",
        "AdParaphrase v2 test_public (Japanese votes)",
    )
    table = (
        (english, "quick start", QUICK, [], None),
        (english, "quick start, random start", QUICK, fresh, None),
        (english, "soft click targets", SOFT, ["--dataset_name", str(arms), *sets], arms),
        (japanese, "hard targets (Bradley-Terry)", ADS, votes, ads),
        (japanese, "soft targets (votes)", ADS, [*votes, "--loss", "soft"], ads),
    )
    return [
        {"data": name, "name": row, "config": config, "options": options}
        | ({"skip": f"{needed} does not exist"} if needed and not needed.exists() else {})
        for name, row, config, options, needed in table
    ]


def prepare(row: dict[str, object], data: Path, scratch: Path) -> None:
    """Create the backbone that a row starts from, unless it exists."""
    options = row["options"]
    if str(scratch / "random") in options and not (scratch / "random").exists():  # type: ignore[operator]
        random_start(scratch / "random")
    if str(scratch / "adparaphrase") in options and not (scratch / "adparaphrase").exists():  # type: ignore[operator]
        config = ["--config", "tools/pretrain_adparaphrase.yaml", "--data_dir", str(data)]
        run("tools/pretrain_backbone.py", *config, "--output_dir", str(scratch / "adparaphrase"))


def measure(row: dict[str, object], seeds: list[int], scratch: Path) -> dict[str, object]:
    """Train with every seed; return mean, interval and baselines on test, and the mean on dev."""
    test, dev, last = [], [], {}
    for seed in seeds:
        output = scratch / f"{row['name']}-{seed}".replace(" ", "-")
        options = [*row["options"], "--seed", str(seed), "--output_dir", str(output)]  # type: ignore[misc]
        run("recipes/reward_titles.py", "--config", str(row["config"]), *options)
        last = json.loads((output / "metrics.json").read_text())
        test.append(last["test"][MODEL]["pair_accuracy"])
        dev.append(last["dev"][MODEL]["pair_accuracy"]["value"])
    values = [metric["value"] for metric in test]
    return {
        "data": row["data"],
        "row": row["name"],
        "seeds": seeds,
        "test_accuracy": [round(value, 4) for value in values],
        "test_mean": round(statistics.mean(values), 4),
        # Mean over seeds of each end: the groups of the test set are the same in every run.
        "test_interval": [
            round(statistics.mean(metric[end] for metric in test), 4) for end in ("low", "high")
        ],
        "dev_mean": round(statistics.mean(dev), 4),
        "longer_title": round(last["test"][LONGER]["pair_accuracy"]["value"], 4),
        "tfidf": round(last["test"][TFIDF]["pair_accuracy"]["value"], 4),
        "train_seconds": last["train"]["seconds"],
    }


def table(results: list[dict[str, object]]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "# Pair accuracy of the title recipe",
        "",
        "`python benchmarks/title_accuracy.py`; two CPU cores; checkpoints are selected on dev; the",
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
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "title_accuracy.json"
    results = {row["row"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for row in rows_of(args.data_dir, scratch):
            if args.only not in str(row["name"]):
                continue
            skipped = {"data": row["data"], "row": row["name"], "skip": row.get("skip")}
            if "skip" not in row:
                prepare(row, args.data_dir, scratch)
            results[row["name"]] = skipped if "skip" in row else measure(row, args.seeds, scratch)
            path.write_text(json.dumps(list(results.values()), indent=2) + "\n")
            (RESULTS / "title_accuracy.md").write_text(table(list(results.values())))
    print(table(list(results.values())))


if __name__ == "__main__":
    main()
