"""Stock peers for the rows of `real_weights.py`: transformers' and trl's classes with LoRA, on equal budget.

    python benchmarks/real_weights_stock.py --ours runs/real/banking77--smollm2-135m--lora \\
        --output_dir runs/stock … (the arguments of the recipe that trained ours)

Rows, steps, batches, rate, schedule, rank and targets of LoRA are those of our run. The pooling is the last
token, as in the stock class, and the tokenizer adds no special tokens. Both models score test, and the
difference is paired by row. Writes `stock.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    set_seed,
)
from trl import RewardConfig, RewardTrainer

from qwen_task_heads import Scorer
from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.data.title_datasets import read_title_sets
from qwen_task_heads.hubcode.families_task_heads import ALL_LINEAR
from qwen_task_heads.metrics.classification import BEST_METRIC
from qwen_task_heads.metrics.verdicts import PAIR_ACCURACY, give_verdict, pair_measure, text_measure
from qwen_task_heads.pretrained import locate
from qwen_task_heads.training.classifier_arguments import parse_classifier_arguments
from qwen_task_heads.training.title_arguments import parse_title_arguments

OURS, STOCK = "ours", "stock"


def stock_model(model_args: Any, **options: Any) -> Any:
    """Return the stock class with the LoRA of our run."""
    path = locate(model_args.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, **options)
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=ALL_LINEAR,
        modules_to_save=["score"],
    )
    return get_peft_model(model, lora)


def texts(words: list[str], ours: str, output: Path) -> dict[str, Any]:
    """Train and score the stock classifier; return the comparison."""
    options, args, model_args = parse_classifier_arguments(words)
    sets = read_text_sets(options.dataset_name, **options.data_options())
    kind, labels = sets.problem_type, len(sets.labels)
    args.choose_metric(kind)
    args.load_best_model_at_end, args.eval_strategy, args.save_strategy = False, "no", "no"
    args.output_dir = str(output / "trainer")
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(locate(model_args.model_name_or_path))
    model = stock_model(
        model_args,
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id,
        problem_type="single_label_classification" if kind == "ordinal" else kind,
    )

    def encode(examples: Any) -> Dataset:
        first, second = [e.text for e in examples], [e.text_b for e in examples]
        both = second if any(second) else None
        rows = tokenizer(first, both, truncation=True, max_length=options.max_seq_length)
        targets: list[Any] = [e.target for e in examples]
        if kind == "multi_label_classification":
            targets = [[float(k in target) for k in range(labels)] for target in targets]
        elif kind == "regression":
            targets = [float(target[0]) for target in targets]
        return Dataset.from_dict({**rows, "labels": targets})

    trainer = Trainer(
        model,
        args,
        train_dataset=encode(sets.train),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    start = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - start
    theirs = np.asarray(trainer.predict(encode(sets.test)).predictions, np.float64).reshape(
        len(sets.test), -1
    )
    scorer, pairs = Scorer(ours), [e.text_b for e in sets.test]
    found = (
        scorer.logits([e.text for e in sets.test], text_pairs=pairs if any(pairs) else None).double().numpy()
    )
    targets = [e.target for e in sets.test]
    measures = {
        name: text_measure(kind, scores, targets, num_labels=labels)
        for name, scores in ((OURS, found), (STOCK, theirs))
    }
    metric = BEST_METRIC[kind][0].removeprefix("eval_")
    return report(measures, metric, groups=[e.group for e in sets.test], seconds=seconds)


def titles(words: list[str], ours: str, output: Path) -> dict[str, Any]:
    """Train and score trl's reward model; return the comparison."""
    options, args, model_args = parse_title_arguments(words)
    sets = read_title_sets(options.dataset_name, **options.data_options())
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(locate(model_args.model_name_or_path))
    model = stock_model(model_args, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    schedule = {
        "learning_rate": args.learning_rate,
        "num_train_epochs": args.num_train_epochs,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "lr_scheduler_type": args.lr_scheduler_type,
        "seed": args.seed,
    }
    config = RewardConfig(
        str(output / "trainer"),
        **schedule,
        max_length=args.max_length,
        bf16=False,
        use_cpu=args.use_cpu,
        report_to="none",
        eval_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    rows = Dataset.from_list([{"chosen": pair.chosen, "rejected": pair.rejected} for pair in sets.train])
    trainer = RewardTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    start = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - start
    both = [pair.chosen for pair in sets.test] + [pair.rejected for pair in sets.test]
    model = trainer.model.eval()
    scores = []
    with torch.inference_mode():
        for start in range(0, len(both), 32):
            # trl's trainer appends the end token.
            with_end = [text + tokenizer.eos_token for text in both[start : start + 32]]
            batch = tokenizer(
                with_end, padding=True, truncation=True, max_length=args.max_length, return_tensors="pt"
            )
            scores += model(**batch.to(model.device)).logits[:, 0].tolist()
    theirs = np.array(scores).reshape(2, -1)
    found = np.array(Scorer(ours).score(both)).reshape(2, -1)
    measures = {OURS: pair_measure(*found), STOCK: pair_measure(*theirs)}
    return report(measures, PAIR_ACCURACY, groups=[pair.group for pair in sets.test], seconds=seconds)


def report(measures: Any, metric: str, *, groups: list[str], seconds: float) -> dict[str, Any]:
    """Return the metric of stock and the paired difference of ours."""
    verdict = give_verdict(measures, model=OURS, metric=metric, groups=groups, count=len(groups))
    value = float(measures[STOCK](np.ones((1, len(groups))))[metric][0])
    return {"metric": metric, "stock": value, "seconds": round(seconds), "verdict": verdict}


def main() -> None:
    """Train the stock model and compare it with ours."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ours", required=True, help="folder of our run with the same arguments")
    parser.add_argument("--titles", action="store_true")
    parser.add_argument("--output_dir", type=Path, required=True)
    known, words = parser.parse_known_args()
    known.output_dir.mkdir(parents=True, exist_ok=True)
    words += ["--output_dir", str(known.output_dir / "words")]
    found = (titles if known.titles else texts)(words, known.ours, known.output_dir)
    text = json.dumps(found, indent=2) + "\n"
    (known.output_dir / "stock.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
