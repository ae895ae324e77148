"""Benchmark of the label audit: how many flipped labels it finds, and the accuracy that correction regains.

    python benchmarks/label_audit.py --data ../shared/data --output_dir runs/audit \
        --model MODELS/qwen2.5-coder-0.5b

5% of the training labels are flipped to another one at random, for each of three seeds. The audit does not
know which. Recall is the share of flipped labels among as many most suspicious rows. Accuracy is that of
TF-IDF on test_public: with the flipped labels, without the suspicious rows, and with the true labels.
Features of the backbone are computed once and kept under `--output_dir`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qwen_task_heads import read_text_sets
from qwen_task_heads.labeling.audits import backbone_features
from qwen_task_heads.labeling.confident_learning import audit_labels, features_texts, tfidf_texts
from qwen_task_heads.metrics.shares import share_of_rows
from qwen_task_heads.metrics.text_baselines import TfidfBaseline

RESULTS = Path(__file__).parent / "results"
SETS = {"banking77": 9_220, "thucnews-titles": 10_000, "waimai-10k": 8_381}  # data set -> training rows
FLIPPED, SEEDS = 0.05, (0, 1, 2)


def main() -> None:
    """Measure each data set, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--model", help="backbone of the features; without one, TF-IDF alone is measured")
    parser.add_argument("--only", nargs="+", default=list(SETS))
    options = parser.parse_args()
    path = RESULTS / "label_audit.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    for name in options.only:
        if not (options.data / name).is_dir():
            print(f"{name}: skipped, no {options.data / name}")
            continue
        measured = measure(name, options)
        engines = {one["engine"] for one in measured}
        rows = [row for row in rows if row["data"] != name or row["engine"] not in engines]
        rows += measured
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "label_audit.md").write_text(table(rows), encoding="utf-8")


def measure(name: str, options: Any) -> list[dict[str, Any]]:
    """Return a row per engine, with the mean over seeds."""
    folder = options.data / name
    places = {split: str(folder / f"{split}.jsonl") for split in ("train", "dev", "test_public")}
    sets = read_text_sets(places["train"], dev=places["dev"], test=places["test_public"])
    texts, test, count = list(sets.train)[: SETS[name]], list(sets.test), len(sets.labels)
    truth = np.array([row.target for row in texts])
    states = features(name, texts, options)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in SEEDS:
        draw = np.random.default_rng(seed)
        wrong = draw.choice(len(texts), round(FLIPPED * len(texts)), replace=False)
        labels = truth.copy()
        labels[wrong] = (labels[wrong] + draw.integers(1, count, len(wrong))) % count
        rows = [replace(row, target=int(label)) for row, label in zip(texts, labels, strict=True)]
        engines = {"TF-IDF": [tfidf_texts(rows, sets.problem_type, count)]}
        if states is not None:
            engines[f"TF-IDF and {Path(options.model).name}"] = [
                *engines["TF-IDF"],
                features_texts(states, labels.tolist(), count),
            ]
        for engine, own in engines.items():
            audit = audit_labels(rows, num_labels=count, engines=own, seed=seed)
            suspicious = set(audit.order[: len(wrong)].tolist())
            kept = [row for number, row in enumerate(rows) if number not in suspicious]
            found.setdefault(engine, []).append(
                {
                    "recall": len(suspicious & set(wrong.tolist())) / len(wrong),
                    "estimated": audit.wrong / len(rows),
                    "flipped": accuracy(rows, test, count),
                    "without": accuracy(kept, test, count),
                    "true": accuracy(texts, test, count),
                }
            )
            print(name, engine, seed, found[engine][-1], flush=True)
    return [
        {
            "data": name,
            "engine": engine,
            "rows": len(texts),
            **{key: float(np.mean([one[key] for one in each])) for key in each[0]},
            "recalls": [one["recall"] for one in each],
        }
        for engine, each in found.items()
    ]


def features(name: str, rows: list[Any], options: Any) -> Any:
    """Return features of the training rows, from the file of an earlier run if there is one."""
    if options.model is None:
        return None
    path = options.output_dir / f"{name}--{Path(options.model).name}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, backbone_features([row.text for row in rows], options.model, "huggingface"))
    return np.load(path)


def accuracy(rows: list[Any], test: list[Any], count: int) -> float:
    """Return the accuracy on test of TF-IDF."""
    scores = TfidfBaseline("single_label_classification", count).fit(rows).predict(test)
    return share_of_rows(scores.argmax(1) == np.array([row.target for row in test]), test).value


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    lines = [
        "# Label audit",
        "",
        "`python benchmarks/label_audit.py`: 5% of the training labels flipped, mean of three seeds.",
        "Accuracy is that of TF-IDF on test_public.",
        "",
        "| set | rows | engine | recall at the flipped count | estimated share | accuracy flipped "
        "| without the suspicious rows | true labels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        recalls = ", ".join(f"{one:.3f}" for one in row["recalls"])
        lines.append(
            f"| {row['data']} | {row['rows']:,} | {row['engine']} | **{row['recall']:.3f}** ({recalls}) "
            f"| {100 * row['estimated']:.1f}% | {row['flipped']:.3f} | {row['without']:.3f} "
            f"| {row['true']:.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
