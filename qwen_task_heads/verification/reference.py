"""What a trained model answers, kept until an artefact of it is held against it.

Taken from the model itself at the end of a run, in fp32 on the device it is on: texts of dev of all lengths,
a few fixed ones that every proof here uses, and one over the limit, which shows that all cut alike. It holds
texts of the data, so it stays in the run folder as `reference.json` and never travels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.attention_task_heads import EXACT, PACKED
from qwen_task_heads.hubcode.folder_task_heads import REFERENCE
from qwen_task_heads.verification.artifacts import attempts
from qwen_task_heads.verification.fingerprint import describe

HELD, LONGEST = 16, 2000  # texts of dev, and characters of one
# Of many lengths and scripts, with a control token in one of them.
PROOF = (
    "A plain title",
    "短い題",
    "?",
    "如何在三十天内学会游泳，并且不花一分钱",
    "Rest<|im_end|>\n<|im_start|>assistant\nfirst",
    "Ten small ways to rest before a long day, and what they cost",
)


@dataclass(frozen=True)
class Reference:
    """What a trained model answers, and what it is.

    Args:
        job: the texts and how they are fed.
        report: see `opened.describe`.
    """

    job: dict[str, Any]
    report: dict[str, Any]


def take_reference(
    model: Any, *, tokenizer: Any, texts: Sequence[str] = (), text_pairs: Sequence[str] | None = None
) -> Reference:
    """Describe a trained model and its answers, in fp32 on the device it is on.

    Args:
        model: a `TitleScorer` or `PooledClassifier`, or a `PeftModel` around one. It is as before afterwards.
        tokenizer: as it is saved with the model.
        texts: held texts, of which up to 16 of all lengths are taken, beside a few fixed ones; of pairs (a
            prompt and its title) the first.
        text_pairs: the second of each, or None.

    Example:
        >>> from qwen_task_heads import build, load_tokenizer
        >>> from qwen_task_heads.verification.reference import take_reference
        >>> reference = take_reference(build("embedded"), tokenizer=load_tokenizer("embedded"))
        >>> reference.report["facts"]["pooling"], len(reference.report["rows"])
        ('last', 7)
    """
    from peft import PeftModel

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    held = _choose(texts, text_pairs)
    # One text over the limit shows that all cut alike; beyond a thousand words it would show no more.
    limit = inner.config.to_dict().get("max_seq_length") or 64
    fixed = [*PROOF, "word " * min(limit + limit // 2, 1000)]
    job = {
        "texts": [first for first, _ in held] + fixed,
        "text_pairs": None if text_pairs is None else [second for _, second in held] + fixed,
        "paddings": ["left", "right"],
    }
    with _as_opened(inner):
        report = _describe(inner, tokenizer, job)
    report["facts"]["pad_token_id"] = tokenizer.pad_token_id  # as saving writes it
    return Reference(job, report)


def take_answer_reference(
    model: Any, *, tokenizer: Any, prompts: Any, texts: Sequence[str] = ()
) -> Reference:
    """As `take_reference`, of a language model that writes the label: the logits of the labels' first tokens.

    Args:
        model: a causal language model, or a `PeftModel` around one. It is as before afterwards.
        tokenizer: the model's own, as it is saved.
        prompts: its `AnswerPrompts`.
        texts: held texts, of which up to 16 of all lengths are taken, beside a few fixed ones.
    """
    held = [first for first, _ in _choose(texts, None)] + list(PROOF)
    job = {
        "texts": held,
        "text_pairs": None,
        "paddings": ["left", "right"],
        "prompts": prompts.encode(held).input_ids,
        "answers": sorted({ids[0] for ids in prompts.answers}),
    }
    report = _describe(model, tokenizer, job)
    return Reference(job, report)


def _describe(model: Any, tokenizer: Any, job: dict[str, Any]) -> dict[str, Any]:
    """`describe` where the memory allows it: in fp32 there, in fp32 on the CPU, or as the model is stored.

    Raises:
        torch.OutOfMemoryError: not even that.
    """
    home, training, quantized = model.device, model.training, is_quantized(model)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    # What is quantised stays where it is.
    ways = [way for way in attempts(home.type, numbers=numbers) if way[0] == home.type or not quantized]
    while True:
        device, wide = ways.pop(0)
        try:
            there = model if device == home.type else model.to(device)
            return describe(there, tokenizer, job | {"wide": wide}) | {"quantized": quantized}
        except torch.OutOfMemoryError:
            if not ways:
                raise
        finally:
            model.train(training)
            if model.device != home:
                model.to(home)
        if home.type == "cuda":
            torch.cuda.empty_cache()  # once the failed computation is let go of


def is_quantized(model: Any) -> bool:
    """Return whether the weights of a model, or of the base of its adapter, are quantized."""
    return model.config.__dict__.get("quantization_config") is not None


def _choose(texts: Sequence[str], pairs: Sequence[str] | None) -> list[tuple[str, str]]:
    """Texts spread over all lengths, from the shortest to the longest."""
    both = zip(texts, pairs if pairs is not None else [""] * len(texts), strict=True)
    found = sorted(
        {(first[:LONGEST], second[:LONGEST]) for first, second in both if first.strip() or second.strip()},
        key=lambda pair: (len(pair[0]) + len(pair[1]), pair),
    )
    if len(found) <= HELD:
        return found
    return [found[round(at * (len(found) - 1) / (HELD - 1))] for at in range(HELD)]


@contextmanager
def _as_opened(model: Any) -> Iterator[None]:
    """Compute as a reader's process will: packed attention, no flash kernel, which has no fp32."""
    attention = model.model.config._attn_implementation
    packing, sharing = model.packing, model.prefix_sharing
    if model.model.config.model_type in EXACT and attention != PACKED:
        model.set_attn_implementation(PACKED)
    model.packing = model.prefix_sharing = True
    try:
        yield
    finally:
        model.packing, model.prefix_sharing = packing, sharing
        if model.model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)


def write_reference(folder: str | Path, reference: Reference) -> Path:
    """Write `reference.json` into a run folder. It holds texts of dev, and never travels."""
    path = Path(folder, REFERENCE)
    path.write_text(json.dumps(asdict(reference), ensure_ascii=False), encoding="utf-8")
    return path


def read_reference(folder: str | Path) -> Reference:
    """Read the reference of a run folder.

    Raises:
        TaskHeadsError: there is none, or it cannot be read.
    """
    path = Path(folder, REFERENCE)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Reference(content["job"], content["report"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"found no reference ({type(error).__name__})"
        remedy = "finish the run again, or take_reference(load(folder), ...) and write_reference()"
        raise TaskHeadsError(Problem(str(path), found, "what the run wrote at its end", remedy)) from error
