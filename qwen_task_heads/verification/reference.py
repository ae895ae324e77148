"""Reference outputs of a trained model, saved for the verification of its artifacts.

They are computed with the model itself at the end of a run, in fp32 on its device. The texts are dev texts of
all lengths, a few fixed texts, and one text over the length limit to verify truncation. The reference has
texts of the data: it is saved in the run folder as `reference.json` and never published.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qwen_task_heads.errors import error_at
from qwen_task_heads.hubcode.attention_task_heads import PACKED
from qwen_task_heads.hubcode.families_task_heads import family_of
from qwen_task_heads.hubcode.folder_task_heads import REFERENCE
from qwen_task_heads.hubcode.saving_task_heads import is_quantized
from qwen_task_heads.verification.artifacts import attempts
from qwen_task_heads.verification.fingerprint import describe

HELD, LONGEST = 16, 2000  # number of dev texts, and characters of each
# Texts of several lengths and scripts, one of them with control tokens.
FIXED_TEXTS = (
    "A plain title",
    "短い題",
    "?",
    "如何在三十天内学会游泳，并且不花一分钱",
    "Rest<|im_end|>\n<|im_start|>assistant\nfirst",
    "Ten small ways to rest before a long day, and what they cost",
)


@dataclass(frozen=True)
class Reference:
    """Outputs of a trained model, and its fingerprint.

    Args:
        job: the texts and how they are fed.
        report: see `fingerprint.describe`.
    """

    job: dict[str, Any]
    report: dict[str, Any]


def take_reference(
    model: Any, *, tokenizer: Any, texts: Sequence[str] = (), text_pairs: Sequence[str] | None = None
) -> Reference:
    """Compute the fingerprint and the outputs of a trained model, in fp32 on its device.

    Args:
        model: a `TitleScorer` or `PooledClassifier`, or a `PeftModel` around one; its state is restored.
        tokenizer: as it is saved with the model.
        texts: dev texts, of which up to 16 of all lengths are used, in addition to a few fixed ones. For
            pairs (a prompt and its title) the first texts.
        text_pairs: the second texts of the pairs, or None.

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
    # One text over the limit verifies truncation; a thousand words are enough for that.
    limit = inner.config.to_dict().get("max_seq_length") or 64
    fixed = [*FIXED_TEXTS, "word " * min(limit + limit // 2, 1000)]
    job = {
        "texts": [first for first, _ in held] + fixed,
        "text_pairs": None if text_pairs is None else [second for _, second in held] + fixed,
        "paddings": ["left", "right"],
    }
    with _as_loaded(inner):
        report = _describe(inner, tokenizer, job)
    report["facts"]["pad_token_id"] = tokenizer.pad_token_id  # as saving writes it
    return Reference(job, report)


def take_answer_reference(
    model: Any, *, tokenizer: Any, prompts: Any, texts: Sequence[str] = ()
) -> Reference:
    """Compute the reference of a generative classifier: the logits of the labels' first tokens.

    Args:
        model: a causal language model, or a `PeftModel` around one; its state is restored.
        tokenizer: the tokenizer of the model, as it is saved.
        prompts: the `AnswerPrompts` of the model.
        texts: dev texts, of which up to 16 of all lengths are used, in addition to a few fixed ones.
    """
    held = [first for first, _ in _choose(texts, None)] + list(FIXED_TEXTS)
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
    """Call `describe` in fp32 on the model's device, else in fp32 on the CPU, else in the stored dtype.

    Raises:
        torch.OutOfMemoryError: the memory is not enough for any of these.
    """
    home, training, quantized = model.device, model.training, is_quantized(model.config)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    # A quantized model cannot be moved.
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
            torch.cuda.empty_cache()  # after the failed computation has been released


def _choose(texts: Sequence[str], pairs: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return texts of evenly spaced ranks by length, from the shortest to the longest."""
    both = zip(texts, pairs if pairs is not None else [""] * len(texts), strict=True)
    different = sorted(
        {(first[:LONGEST], second[:LONGEST]) for first, second in both if first.strip() or second.strip()},
        key=lambda pair: (len(pair[0]) + len(pair[1]), pair),
    )
    if len(different) <= HELD:
        return different
    return [different[round(step * (len(different) - 1) / (HELD - 1))] for step in range(HELD)]


@contextmanager
def _as_loaded(model: Any) -> Iterator[None]:
    """Compute as a newly loaded model does: packed attention, and no flash kernel, which has no fp32."""
    attention = model.model.config._attn_implementation
    packing, sharing = model.packing, model.prefix_sharing
    if family_of(model.model.config.model_type).packable and attention != PACKED:
        model.set_attn_implementation(PACKED)
    model.packing = model.prefix_sharing = True
    try:
        yield
    finally:
        model.packing, model.prefix_sharing = packing, sharing
        if model.model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)


def write_reference(folder: str | Path, reference: Reference) -> Path:
    """Write `reference.json` to a run folder. It has dev texts and is never published."""
    path = Path(folder, REFERENCE)
    path.write_text(json.dumps(asdict(reference), ensure_ascii=False), encoding="utf-8")
    return path


def read_reference(folder: str | Path) -> Reference:
    """Read the reference of a run folder.

    Raises:
        TaskHeadsError: the reference is missing or cannot be read.
    """
    path = Path(folder, REFERENCE)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Reference(content["job"], content["report"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise error_at(
            str(path),
            f"the reference is missing or cannot be read ({type(error).__name__})",
            "the file that the run wrote at its end",
            "finish the run again, or call take_reference(load(folder), ...) and write_reference()",
            code="path-not-found" if isinstance(error, OSError) else "file-format",
        ) from error
