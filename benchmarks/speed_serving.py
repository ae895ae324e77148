"""Rows of serving: pipelines, rankings, long instructions, and the first score after the start."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from speed_measure import Bench, Result, compare, largest_difference, take_turns
from speed_workloads import (
    NoData,
    classifier,
    computed,
    lengths,
    padded,
    real,
    rows_of,
    scorer,
    stock_of,
    texts,
    titles,
    tokenizer,
)

from qwen_task_heads import Scorer, bind_template, build, compile_template, export_stock, load_tokenizer, save
from qwen_task_heads.hubcode.encoding_task_heads import encode

REAL_VOCABULARY = 151_936


def long_instruction(bench: Bench) -> Iterator[Result]:
    """Measure scoring of 64 titles after a cached instruction of 500 tokens."""
    count, prompt = 64, 500
    sizes = {"titles of 8 to 40 tokens": titles(count)}
    try:
        sizes["THUCNews titles"] = lengths(bench, "thucnews-titles", rows=count)
    except NoData as reason:
        print(f"skipped: THUCNews titles: {reason}")
    for name, title_lengths in sizes.items():
        yield from _after_instruction(bench, title_lengths, prompt=prompt, name=name)


def _after_instruction(bench: Bench, sizes: list[int], *, prompt: int, name: str) -> Iterator[Result]:
    model = scorer(bench, "small")
    stock = stock_of(model)
    whole = rows_of(sizes, prompt=prompt)
    inputs, rest = padded(bench, whole), padded(bench, [row[prompt:] for row in whole])
    begin = inputs["input_ids"][:1, :prompt]
    known = model.encode_prefix(begin)
    ones = torch.ones(len(sizes), prompt, device=bench.device, dtype=torch.long)
    mask = torch.cat([ones, rest["attention_mask"]], dim=1)
    with torch.inference_mode():
        cache = stock.model(begin, use_cache=True).past_key_values

    def again() -> torch.Tensor:
        with torch.inference_mode():
            return stock(**inputs).logits

    def cached() -> torch.Tensor:
        # See "prefill a cache" in https://huggingface.co/docs/transformers/kv_cache.
        with torch.inference_mode():
            own = copy.deepcopy(cache)
            own.batch_repeat_interleave(len(sizes))
            return stock(rest["input_ids"], attention_mask=mask, past_key_values=own, use_cache=True).logits

    def ours() -> torch.Tensor:
        with torch.inference_mode():
            return model(**rest, prefix=known).logits

    needed = real([rest])
    peers = {
        "transformers, encoding it again": (again, 30.0, computed([inputs]) / needed),
        "transformers' KV cache, repeated for the batch": (cached, 3.5, computed([rest]) / needed),
    }
    for peer_name, (peer, target, limit) in peers.items():
        yield Result(
            workload=f"scoring {len(sizes)} {name} behind an instruction of {prompt}, seen before",
            peer=peer_name,
            settings={"shape": "small", "titles": name, "tokens": needed},
            target=target,
            limit=limit,
            difference=largest_difference([peer()], [ours()]),
            compared="logits",
            **compare(bench, peer=peer, ours=ours).result_fields(),
        )


def pipelines(bench: Bench) -> Iterator[Result]:
    """Measure `pipeline("text-classification")` on the stock export of a model, against our scorer."""
    from transformers import pipeline

    words = copy.deepcopy(tokenizer(bench))
    model = classifier(bench, "small", labels=2, vocabulary=REAL_VOCABULARY)
    bind_template(words, model.config)
    folder = export_stock(copy.deepcopy(model).cpu(), tokenizer=words, folder=bench.scratch / "stock-labels")
    stock = pipeline("text-classification", model=str(folder), device=bench.device)
    ours = Scorer(model, tokenizer=words, progress=False)
    rows = texts(bench, "waimai-10k", rows=512 if bench.full else 64)
    sizes = [len(row) for row in words(rows)["input_ids"]]
    for batch in (1, 32):
        answers = stock(rows, batch_size=batch)
        mine = ours.predict(rows)
        difference = max(
            abs(a["score"] - b.probabilities[a["label"]]) for a, b in zip(answers, mine, strict=True)
        )
        passes = [sizes[start : start + batch] for start in range(0, len(sizes), batch)]
        padded_tokens = sum(len(one) * max(one) for one in passes)
        yield Result(
            workload=f"classifying {len(rows)} real texts (waimai)",
            peer=f'pipeline("text-classification"), batch {batch}' + (" (its default)" if batch == 1 else ""),
            settings={"shape": "small", "vocabulary": REAL_VOCABULARY, "texts": len(rows)},
            target=5.0,
            limit=padded_tokens / sum(sizes),
            difference=difference,
            compared="probabilities",
            note="no limit by tokens holds at batch 1: small matrices and a call a text cost more than tokens"
            if batch == 1
            else "",
            **compare(
                bench,
                peer=lambda batch=batch: stock(rows, batch_size=batch),  # type: ignore[misc]
                ours=lambda: ours.predict(rows),
            ).result_fields(),
        )


def prompted_titles(bench: Bench, *, lists: int, count: int) -> list[tuple[str, list[str]]]:
    """Return lists of real titles with prompts of about 100 tokens, which are other titles joined."""
    rows = texts(bench, "upworthy", rows=lists * (count + 4))
    if len(rows) < lists * (count + 4):
        raise NoData("too few titles")
    parts = [rows[start : start + count + 4] for start in range(0, len(rows), count + 4)]
    return [(" ".join(part[:4]), part[4:]) for part in parts]


def cross_encoder(bench: Bench, *, name: str) -> tuple[Any, Any, Any]:
    """Return a title scorer, its tokenizer and sentence-transformers' CrossEncoder on its stock export."""
    try:
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        raise NoData(
            "sentence-transformers is not installed (pip install --no-deps --target DIR "
            "sentence-transformers; then PYTHONPATH=DIR)"
        ) from error
    words = load_tokenizer("embedded")
    words.chat_template = None  # with a template, CrossEncoder formats the pairs as chats, with other ids
    model = scorer(bench, "small")
    compile_template(words, template=None, model_type="qwen2")
    folder = export_stock(copy.deepcopy(model).cpu(), tokenizer=words, folder=bench.scratch / name)
    return model, words, CrossEncoder(str(folder), device=bench.device, activation_fn=torch.nn.Identity())


def ranking(bench: Bench) -> Iterator[Result]:
    """Measure sentence-transformers' `rank`, one list per call, each list with its own prompt."""
    count = 16
    model, words, peer = cross_encoder(bench, name="stock-ranking")
    lists = prompted_titles(bench, lists=8 if bench.full else 3, count=count)
    ours = Scorer(model, tokenizer=words, progress=False)

    def theirs() -> list[float]:
        scores = []
        for prompt, rows in lists:
            ranked = peer.rank(prompt, rows, show_progress_bar=False)
            scores += [row["score"] for row in sorted(ranked, key=lambda row: row["corpus_id"])]
        return scores

    def mine() -> list[float]:
        return [score for prompt, rows in lists for score in ours.score(rows, prompts=[prompt] * len(rows))]

    sizes = [
        [len(row) for row in encode(words, rows, prompts=[prompt] * count).input_ids]
        for prompt, rows in lists
    ]
    shared = [len(words(prompt, add_special_tokens=False)["input_ids"]) for prompt, _ in lists]
    needed = sum(sum(one) - (count - 1) * before for one, before in zip(sizes, shared, strict=True))
    yield Result(
        workload=f"ranking {count} real titles (upworthy) behind a prompt of about 100",
        peer="sentence-transformers CrossEncoder.rank",
        settings={"shape": "small", "lists": len(lists)},
        limit=sum(count * max(one) for one in sizes) / needed,
        difference=largest_difference([torch.tensor(theirs())], [torch.tensor(mine())]),
        compared="scores",
        **compare(bench, peer=theirs, ours=mine).result_fields(),
    )


OURS = """
from qwen_task_heads import Scorer
print(Scorer({folder!r}, device={device!r}).predict(["A plain title"])[0].probabilities["no"])
"""
THEIRS = """
from transformers import pipeline
answer = pipeline("text-classification", model={folder!r}, device={device!r}, top_k=None)(["A plain title"])
print(next(label["score"] for label in answer[0] if label["label"] == "no"))
"""


def first_score(bench: Bench) -> Iterator[Result]:
    """Measure the time from `import` to the first score on a saved model, each time in a new process."""
    model = build("embedded", task="pooled_classifier", labels=["no", "yes"])
    yield first_score_of(bench, model, load_tokenizer("embedded"), shape="embedded")


def first_score_of(bench: Bench, model: Any, words: Any, *, name: str = "", **settings: Any) -> Result:
    """Measure the first score of a classifier of the labels no and yes; `name` is added to the workload."""
    bind_template(words, model.config)
    ours = save(model, tokenizer=words, folder=bench.scratch / "ours-first")
    stock = export_stock(model, tokenizer=words, folder=bench.scratch / "stock-first")
    last: dict[str, float] = {}
    # Installed packages have bytecode. Without this, ours would be compiled in every process.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def start(code: str, folder: Path) -> float:
        # With a CPU clock, the CPU time of the child is measured.
        before, began = os.times(), time.perf_counter()
        command = [sys.executable, "-c", code.format(folder=str(folder), device=bench.device)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        last[str(folder)] = float(done.stdout.split()[-1])
        after, ended = os.times(), time.perf_counter()
        if bench.clock_name == "wall":
            return ended - began
        used = after.children_user - before.children_user
        return used + after.children_system - before.children_system

    start(THEIRS, stock)
    start(OURS, ours)
    timing = take_turns(bench, peer=lambda: start(THEIRS, stock), ours=lambda: start(OURS, ours))
    return Result(
        workload=f"from import to the first score on a saved model{name}",
        peer='pipeline("text-classification")',
        settings=settings,
        target=1.0,
        difference=abs(last[str(stock)] - last[str(ours)]),
        compared="probabilities",
        **timing.result_fields(),
    )
