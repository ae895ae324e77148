"""Rows of LoRA, of training only a head, and of transformers' Trainer and CrossEncoderTrainer."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import torch
from speed_measure import Bench, Result, compare, largest_difference
from speed_rows import gradients, step_all
from speed_serving import cross_encoder, prompted_titles
from speed_trainers import QUIET, compare_trainers, our_titles
from speed_workloads import (
    PAD,
    batches,
    classifier,
    computed,
    lengths,
    padded,
    real,
    rows_of,
    stock_of,
    titles,
    with_labels,
)

from qwen_task_heads import ClassifierTrainer, adapter_config, load_tokenizer
from qwen_task_heads.hubcode.encoding_task_heads import encode
from qwen_task_heads.losses.registry import resolve_text_loss
from qwen_task_heads.training.feature_rows import TextRows
from qwen_task_heads.training.features import extract_features
from qwen_task_heads.training.frozen_heads import HeadTraining, fit_head


def has_bfloat16(bench: Bench) -> bool:
    """Return whether the device multiplies bf16 faster than fp32."""
    if not bench.on_cpu:
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def lora(bench: Bench) -> Iterator[Result]:
    """Measure LoRA on all linear layers at the 0.5B shape, against LoRA on the stock class in fp32."""
    from peft import get_peft_model

    size = 32 if bench.full else 16
    model = classifier(bench, "0.5b", labels=10)
    sides = {"stock": stock_of(model), "ours": model}
    if has_bfloat16(bench):
        sides["ours, bf16"] = copy.deepcopy(model)
        sides["ours, bf16"].model.to(torch.bfloat16)
    inputs = with_labels([padded(bench, rows_of(titles(size)))], model)
    for name, side in sides.items():
        torch.manual_seed(0)  # the same initial LoRA matrices
        sides[name] = get_peft_model(side, adapter_config(model, dropout=0.0))
    theirs = gradients(sides["stock"], inputs[0])
    optimizers = {
        name: torch.optim.AdamW([p for p in side.parameters() if p.requires_grad], lr=0.0, fused=True)
        for name, side in sides.items()
    }
    for name in list(sides)[1:]:
        timing = compare(
            bench,
            peer=lambda: step_all(sides["stock"], inputs, optimizers["stock"]),
            ours=lambda name=name: step_all(sides[name], inputs, optimizers[name]),  # type: ignore[misc]
        )
        in_half = name != "ours"
        yield Result(
            workload=f"LoRA training, packed {'bf16' if in_half else 'fp32'}, titles of 8 to 40 tokens",
            peer="peft on transformers Qwen2ForSequenceClassification, fp32",
            settings={"shape": "0.5b", "rank": 16, "targets": "all-linear", "batch": size},
            target=3.0 if in_half else None,
            limit=None if in_half else computed(inputs) / real(inputs),
            difference=largest_difference(theirs, gradients(sides[name], inputs[0])),
            compared="loss and gradients",
            note="" if len(sides) > 2 else "the target of 3 is for bf16, which this processor does not have",
            **timing.result_fields(),
        )


def head_only(bench: Bench) -> Iterator[Result]:
    """Measure ten epochs of a head, with a backbone pass in each epoch and with cached features."""
    epochs, size = 10, 32
    model = classifier(bench, "small", labels=10)
    stock = stock_of(model)
    stock.model.requires_grad_(False)
    rows = rows_of(titles(size * (8 if bench.full else 2)))
    inputs = with_labels(batches(bench, rows, size=size), model)
    labels = torch.cat([batch["labels"] for batch in inputs])
    first = copy.deepcopy(stock.score.state_dict())
    settings = HeadTraining(epochs=epochs, batch_size=size, shuffle=False)
    loss = resolve_text_loss(None, problem_type="single_label_classification", num_labels=10)

    def theirs() -> torch.Tensor:
        stock.score.load_state_dict(first)
        optimizer = torch.optim.AdamW(stock.score.parameters(), weight_decay=0.0)
        rates = iter(settings.rates(epochs * len(inputs)))
        for _ in range(epochs):
            for batch in inputs:
                optimizer.param_groups[0]["lr"] = next(rates)
                optimizer.zero_grad()
                stock(**batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(stock.score.parameters(), settings.max_grad_norm)
                optimizer.step()
        return stock.score.weight

    def ours() -> torch.Tensor:
        features = extract_features(model, rows, progress=False)[
            model.config.text_config.num_hidden_layers, "last"
        ]
        table = TextRows(features.to(bench.device), labels, loss, "single_label_classification")
        model.score.load_state_dict(first)
        fit_head(model.score, table, settings=settings)
        return model.score.weight

    yield Result(
        workload="head-only training, 10 epochs, features cached, titles of 8 to 40 tokens",
        peer="transformers Qwen2ForSequenceClassification, backbone frozen",
        settings={"shape": "small", "batch": size, "rows": len(rows)},
        target=9.0,
        limit=epochs * computed(inputs) / real(inputs),
        difference=largest_difference([theirs()], [ours()]),
        compared="head after training",
        **compare(bench, peer=theirs, ours=ours).result_fields(),
    )


def trainers(bench: Bench) -> Iterator[Result]:
    """Measure transformers' Trainer on the stock class, and our trainer, both with the recipe's settings."""
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    size, updates = 32, 8 if bench.full else 4
    model = classifier(bench, "small", labels=2)
    stock, words = stock_of(model), load_tokenizer("embedded")
    words.pad_token = words.convert_ids_to_tokens(PAD)
    rows = rows_of(lengths(bench, "waimai-10k", rows=size * updates, longest=512))
    draw = random.Random(0)
    labels = [draw.randrange(2) for _ in rows]
    masks = [[1] * len(row) for row in rows]
    theirs = Dataset.from_dict({"input_ids": rows, "attention_mask": masks, "labels": labels})
    mine = Dataset.from_dict({"input_ids": rows, "labels": labels, "row": list(range(len(rows)))})
    options: dict[str, Any] = {
        "per_device_train_batch_size": size,
        "num_train_epochs": 1,
        "use_cpu": bench.on_cpu,
        "train_sampling_strategy": "sequential",
        **QUIET,
    }
    peer = Trainer(
        stock,
        TrainingArguments(str(bench.scratch / "trainer"), **options),
        train_dataset=theirs,
        data_collator=DataCollatorWithPadding(words),
    )
    ours = ClassifierTrainer(
        model,
        args=TrainingArguments(str(bench.scratch / "ours-labels"), **options),
        train_dataset=mine,
        processing_class=words,
    )
    inputs = batches(bench, rows, size=size)
    yield compare_trainers(
        bench,
        peer,
        ours,
        workload="classification, trainers, waimai-10k lengths",
        peer="transformers Trainer, defaults",
        settings={"shape": "small", "batch": size, "updates": updates},
        limit=computed(inputs) / real(inputs),
    )


def listwise(bench: Bench) -> Iterator[Result]:
    """Measure sentence-transformers' trainer with ListMLE on groups, against our Plackett-Luce loss."""
    count, together, updates = 8, 4, 4
    model, words, peer = cross_encoder(bench, name="stock-listwise")
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import ListMLELoss

    # Every update uses all lists, because CrossEncoderTrainer draws its own order.
    lists = prompted_titles(bench, lists=together, count=count)
    gains = [float(count - rank) for rank in range(count)]
    theirs = {
        "query": [prompt for prompt, _ in lists],
        "docs": [rows for _, rows in lists],
        "labels": [gains] * len(lists),
    }
    mine: dict[str, list[Any]] = {
        "title_ids": [encode(words, rows, prompts=[prompt] * count).input_ids for prompt, rows in lists],
        "gains": [gains] * len(lists),
        "row": list(range(len(lists))),
    }
    options = {
        "per_device_train_batch_size": together,
        "num_train_epochs": updates,
        "train_sampling_strategy": "sequential",
    }
    sizes = [[len(row) for row in group] for group in mine["title_ids"]]
    prompts = [len(words(prompt, add_special_tokens=False)["input_ids"]) for prompt, _ in lists]
    needed = sum(sum(one) - (count - 1) * before for one, before in zip(sizes, prompts, strict=True))
    for mini, name in ((None, "defaults"), (-1, "whole batches at once")):
        if mini is not None:  # start again from the initial weights
            model, words, peer = cross_encoder(bench, name="stock-listwise-again")
        args = CrossEncoderTrainingArguments(
            output_dir=str(bench.scratch / "cross"), use_cpu=bench.on_cpu, **QUIET, **options
        )
        trainer = CrossEncoderTrainer(
            model=peer,
            args=args,
            train_dataset=Dataset.from_dict(theirs),
            loss=ListMLELoss(peer, mini_batch_size=mini),
        )
        per_pass = together if mini is None else together * count
        flat = [size for one in sizes for size in one]
        passes = [flat[start : start + per_pass] for start in range(0, len(flat), per_pass)]
        yield compare_trainers(
            bench,
            trainer,
            our_titles(bench, copy.deepcopy(model), Dataset.from_dict(mine), loss="plackett_luce", **options),
            workload=f"training on lists of {count} real titles (upworthy), prompt of about 100",
            peer=f"sentence-transformers CrossEncoderTrainer, ListMLE, {name}",
            settings={"shape": "small", "groups": together, "updates": updates},
            limit=sum(len(one) * max(one) for one in passes) / needed,
        )
