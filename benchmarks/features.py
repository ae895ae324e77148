"""Benchmark of cached features: heads on a frozen backbone, from features and from tokens in every epoch.

    OMP_NUM_THREADS=1 python benchmarks/features.py --data_dir DATA

The peer is `ClassifierTrainer` with a frozen backbone over padded batches, as in a stock loop; in a second
row it uses packing. Both train one head on the same rows in the same order (waimai, Qwen's tokenizer, a
random Qwen2 of 6 layers of 256 channels). The difference is that of their final logits. Time is CPU time on
one thread; only ratios are reported. The limit is `epochs x padded / real tokens`, because features are
computed once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, Qwen2Config, TrainingArguments

from qwen_task_heads import ClassifierTrainer, PooledClassifier, PooledClassifierConfig, adapter_config
from qwen_task_heads.losses.registry import resolve_text_loss
from qwen_task_heads.tokenization.collators import TextCollator
from qwen_task_heads.training.feature_rows import TextRows, logits_of
from qwen_task_heads.training.features import extract_features
from qwen_task_heads.training.frozen_heads import HeadTraining, fit_head
from qwen_task_heads.training.head_sweep import sweep_heads, text_rows

RESULTS = Path(__file__).parent / "results" / "features.json"
VOCABULARY, BATCH, RATE, KIND = 8192, 32, 1e-3, "single_label_classification"
EPOCHS, TURNS, TARGET, SWEEP_ROWS, DEV_ROWS = 10, 3, 9.0, 2000, 500


def classifier() -> PooledClassifier:
    """Return the same random model at each call."""
    torch.manual_seed(0)
    text_config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.04,
        pad_token_id=0,
    )
    config = PooledClassifierConfig(text_config=text_config, num_labels=2, problem_type=KIND)
    return PooledClassifier(config).eval()


def read(data: Path, tokenizer: Any, count: int, *, split: str) -> Dataset:
    """Return rows of waimai in the format of `text_dataset`, evenly spaced over the file."""
    lines = (data / "waimai-10k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:: max(1, len(lines) // count)][:count]]
    ids = tokenizer([row["text"] for row in rows])["input_ids"]
    folded = [[2 + token % (VOCABULARY - 2) for token in row[:512]] for row in ids]
    columns = {"input_ids": folded, "labels": [row["label"] for row in rows], "row": [*range(len(rows))]}
    return Dataset.from_dict(columns)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return CPU seconds and the result of a call."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def loop(train: Dataset, tokenizer: Any, *, packing: bool) -> dict[str, torch.Tensor]:
    """Train the head on tokens; return its tensors."""
    model = classifier()
    model.packing = packing
    args = TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        num_train_epochs=EPOCHS,
        learning_rate=RATE,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        bf16=False,
    )
    trainer = ClassifierTrainer(
        model,
        args=args,
        train_dataset=train,
        processing_class=tokenizer,
        data_collator=TextCollator(0),
        peft_config=adapter_config(model, head_only=True),
    )
    trainer.train()
    return model.score.modules_to_save["default"].state_dict()


def cached(train: Dataset, seconds: dict[str, float]) -> dict[str, torch.Tensor]:
    """Compute the features, then train the head on them; return its tensors."""
    model, loss = classifier(), resolve_text_loss(None, problem_type=KIND, num_labels=2)
    seconds["features"], features = timed(lambda: extract_features(model, list(train["input_ids"])))
    rows = TextRows.of_table(next(iter(features.values())), train, loss=loss, problem_type=KIND)
    settings = HeadTraining(epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE, shuffle=False)
    seconds["head"], fitted = timed(lambda: fit_head(model.score, rows, settings=settings))
    return fitted.state


def against(train: Dataset, tokenizer: Any, *, packing: bool) -> dict[str, Any]:
    """Measure the ratio of both sides in alternating turns."""
    lengths = [len(row) for row in train["input_ids"]]
    batches = [lengths[at : at + BATCH] for at in range(0, len(lengths), BATCH)]
    waste = 1.0 if packing else sum(max(batch) * len(batch) for batch in batches) / sum(lengths)
    ratios, parts, score, logits = [], {}, classifier().score, []
    for _ in range(TURNS):
        theirs, head = timed(lambda: loop(train, tokenizer, packing=packing))
        ours, own = timed(lambda: cached(train, parts))
        ratios.append(round(theirs / ours, 2))
    [features] = extract_features(classifier(), list(train["input_ids"])).values()
    for state in (head, own):
        score.load_state_dict(state)
        logits.append(logits_of(score, features))
    return {
        "workload": f"head-only training of {EPOCHS} epochs, features cached",
        "peer": "the frozen loop, packed" if packing else "the frozen stock loop, padded",
        "settings": {"rows": len(train), "batch": BATCH, "tokens": sum(lengths), "turns": TURNS},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "target": None if packing else TARGET,
        "limit": round(EPOCHS * waste, 1),
        "difference": float((logits[0] - logits[1]).abs().max()),
        "share_of_features": round(parts["features"] / (parts["features"] + parts["head"]), 3),
        "an_epoch_after_the_first": round(theirs / parts["head"]),
    }


def sweep(train: Dataset, dev: Dataset) -> dict[str, Any]:
    """Measure CPU seconds of a sweep of 3 layers x 3 poolings x 2 heads x 3 seeds, 10 epochs each."""
    model, ids = classifier(), [*train["input_ids"], *dev["input_ids"]]
    extract = {"layers": [2, 4, 6], "poolings": ["last", "mean", "max"], "cache_dir": tempfile.mkdtemp()}
    first, features = timed(lambda: extract_features(model, ids, **extract))
    again, _ = timed(lambda: extract_features(model, ids, **extract))
    rows = text_rows(train, dev, config=model.config, options={"cross_entropy": {}})
    options = {"heads": [(), (64,)], "losses": ["cross_entropy"], "seeds": [0, 1, 2], "progress": False}
    settings = HeadTraining(epochs=EPOCHS, batch_size=2 * BATCH, learning_rate=RATE)
    heads, results = timed(lambda: sweep_heads(model, features, rows, settings=settings, **options))
    return {
        "workload": f"sweep of 3 layers x 3 poolings x 2 heads x 3 seeds, {EPOCHS} epochs each",
        "settings": {
            "rows": len(train),
            "dev": len(dev),
            "heads": sum(len(result.values) for result in results),
            "batch": 2 * BATCH,
        },
        "cpu_seconds": {"features": round(first, 1), "read_again": round(again, 2), "heads": round(heads, 1)},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=600, help="training rows of the loop")
    options = parser.parse_args()
    if not (options.data_dir / "waimai-10k").is_dir():
        raise SystemExit(f"skipped: waimai-10k is not in {options.data_dir}")
    torch.set_num_threads(1)
    words = AutoTokenizer.from_pretrained(options.data_dir / "qwen2.5-tokenizer")
    few, many = (read(options.data_dir, words, n, split="train") for n in (options.rows, SWEEP_ROWS))
    results = [sweep(many, read(options.data_dir, words, DEV_ROWS, split="dev"))]
    results += [against(few, words, packing=packing) for packing in (False, True)]
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
