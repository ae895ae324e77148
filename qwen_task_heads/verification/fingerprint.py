"""Compute the fingerprint of a model for comparison between processes: config, tensors, token ids, logits.

Verification computes the fingerprint of the trained model at the end of a run. `clean_process.py` then runs
this file by its path in a process that cannot import the package, and computes the fingerprint of the loaded
artifact. Both sides run the same code. Therefore this file imports only the standard library, torch and peft.

Logits are computed in fp32 on both sides, whatever the stored dtype, because rounding to bfloat16 would hide
differences. The weights of a trained model are widened in place and narrowed again without a loss. If the
memory is not enough, the report says so; logits computed in the stored dtype are marked by `computed_in`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

HALF = ("torch.bfloat16", "torch.float16")
FEW, MORE = 4, 3  # number of rows that are padded one by one, and the pad tokens of each
VERY_LONG = 10**9  # a tokenizer without a limit has a larger one
# Fields of a config that state how it was made or saved, not what is computed.
NOISE = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "backbone_files",
    "backbone_hub",
    "backbone_name_or_path",
    "backbone_revision",
    "custom_pipelines",
    "dtype",
    "id2label",
    "label2id",
    "num_labels",
    "probe",
    "quantization_config",
    "transformers_version",
    "use_cache",
}
Logits = list[list[float]]
Forward = Callable[[Any, Any], Logits]  # input_ids (B, T), attention_mask (B, T) -> logits (B, L)


def describe(model: Any, tokenizer: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Return the fingerprint of a model of this library or of a stock class, with its tokenizer.

    Args:
        model: in any dtype, with or without an adapter; its training mode is restored.
        tokenizer: as it was saved with the model.
        job: `texts`, `text_pairs` (or None) and `paddings`, the padding sides to compute (`left`, `right`).
            For a generative classifier also `prompts`, the input ids, and `answers`, the tokens whose logits
            are reported. `wide` is false if fp32 does not fit the memory.

    Returns:
        A JSON object: `facts` of the config, `tokenizer`, `token_ids` and `rows` of the texts, `tensors`,
        `logits` per layout, and `computed_in`, the dtype of the weights. For an adapter also `merged`, the
        weights that merging must give.
    """
    answers = job.get("answers")
    rows = rows_of(tokenizer, job) if answers is None else job["prompts"]
    training = model.training
    model.eval()
    report = {
        "facts": facts(model.config),
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "tokenizer": tokenizer_facts(tokenizer),
        **ids_of(tokenizer, job),
        "rows": rows,
        "tensors": tensors(model),
    }
    with in_fp32(model, wide=job["wide"]):
        report["computed_in"] = str(model.dtype).removeprefix("torch.")
        report["merged"] = _merged(model)
        report["logits"] = layouts(
            _torch_forward(model, answers), rows, pad_id=tokenizer.pad_token_id or 0, paddings=job["paddings"]
        )
    model.train(training)
    return report


def facts(config: Any) -> dict[str, Any]:
    """Return the fields of a config that affect results, flat: `pooling`, `text_config.rope_theta`."""
    fields = _plain(config.to_dict())
    inner = fields.pop("text_config", None) or {}
    found = {name: value for name, value in fields.items() if name not in NOISE}
    found |= {f"text_config.{name}": value for name, value in inner.items() if name not in NOISE}
    labels = _plain(config.id2label)
    found["labels"] = [labels[index] for index in sorted(labels, key=int)]
    found["label2id"] = sorted(config.label2id, key=lambda name: int(config.label2id[name]))
    found["pad_token_id"] = config.get_text_config().pad_token_id
    found.pop("text_config.pad_token_id", None)
    for name in ("backbone_name_or_path", "backbone_revision"):
        if name in fields:
            found[name] = fields[name]
    return found


def tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """Return the settings of a tokenizer that affect every text."""
    given = tokenizer.init_kwargs
    limit = tokenizer.model_max_length
    return _plain(
        {
            "template": given.get("task_template"),
            "split_special_tokens": bool(given.get("split_special_tokens")),
            "truncation_side": tokenizer.truncation_side,
            "model_max_length": limit if limit < VERY_LONG else None,
            "padding_side": tokenizer.padding_side,
            "pad_token_id": tokenizer.pad_token_id,
        }
    )


def ids_of(tokenizer: Any, job: dict[str, Any]) -> dict[str, list[list[int]]]:
    """Return the token ids of the texts, with the tokens of the template and without."""
    texts = (job["texts"],) if job["text_pairs"] is None else (job["texts"], job["text_pairs"])
    return {
        "token_ids": tokenizer(*texts, verbose=False)["input_ids"],
        "bare_ids": tokenizer(*texts, add_special_tokens=False, verbose=False)["input_ids"],
    }


def rows_of(tokenizer: Any, job: dict[str, Any]) -> list[list[int]]:
    """Return the input ids of the model, truncated if the tokenizer has a limit, as in pipelines."""
    texts = (job["texts"],) if job["text_pairs"] is None else (job["texts"], job["text_pairs"])
    cut = tokenizer.model_max_length < VERY_LONG
    return tokenizer(*texts, truncation=cut, verbose=False)["input_ids"]


def canonical(name: str) -> str:
    """Return the name of a tensor without the wrappers of an adapter, which differ in PEFT and transformers.

    Example:
        >>> from qwen_task_heads.verification.fingerprint import canonical
        >>> canonical("base_model.model.score.modules_to_save.default.weight")
        'score.weight'
    """
    name = name.removeprefix("base_model.model.")
    name = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)
    return re.sub(r"\.(lora_\w+)\.(?!weight$|bias$)[^.]+", r".\1", name)


def tensors(model: Any) -> dict[str, dict[str, Any]]:
    """Return dtype, shape, hash and norm of every tensor, by its canonical name.

    The values are hashed in fp32, so that a tensor widened without a loss has the same hash.
    """
    found = {}
    for name, tensor in model.state_dict().items():
        if ".original_module." in name:  # the untrained copy of a trained head
            continue
        found[canonical(name)] = tensor_facts(tensor, head=canonical(name).startswith("score."))
    return found


def tensor_facts(tensor: Any, *, head: bool = False) -> dict[str, Any]:
    """Return the facts of one tensor; for a head also whether its values were rounded to int8."""
    import torch

    value = tensor.detach().cpu()
    wide = value.float() if value.is_floating_point() else value
    floating = wide.is_floating_point()
    norm = float(torch.linalg.vector_norm(wide, dtype=torch.float64)) if floating else 0.0
    found = {
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
        "sha256": hashlib.sha256(wide.contiguous().reshape(-1).numpy()).hexdigest(),
        "norm": norm if math.isfinite(norm) else None,
    }
    if head and floating:
        found["int8"] = _in_int8_steps(wide)
    return found


def _in_int8_steps(weight: Any) -> bool:
    """Return whether all values are multiples of 1/127 of the largest, as after rounding to int8."""
    if weight.dim() != 2 or weight.numel() < 16:
        return False
    for largest in (weight.abs().max(), weight.abs().amax(dim=1, keepdim=True)):
        steps = weight / (largest / 127).clamp(min=1e-30)
        if bool(((steps - steps.round()).abs() < 1e-2).all()):
            return True
    return False


def _merged(model: Any) -> dict[str, dict[str, Any]]:
    """Return the weights after merging the adapter into its base; {} without an adapter."""
    if not any(".lora_" in name for name, _ in model.named_parameters()):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        weight = dict(module.get_base_layer().named_parameters(recurse=False)).get("weight")
        # Merging into quantized weights has an unpredictable loss; layers of experts have no single weight.
        if weight is None or not weight.is_floating_point():
            continue
        layer = copy.deepcopy(module)
        layer.merge()
        found[f"{canonical(name)}.weight"] = tensor_facts(layer.get_base_layer().weight)
    return found


@contextmanager
def in_fp32(model: Any, *, wide: bool = True) -> Iterator[None]:
    """Compute in fp32 with a model stored in half precision, if `wide`; the stored bits are restored."""
    import torch

    both = (*model.parameters(), *model.buffers())
    narrow = [tensor for tensor in both if wide and str(tensor.dtype) in HALF]
    dtypes = [tensor.dtype for tensor in narrow]
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for tensor in narrow:  # may run out of memory in the middle
            tensor.data = tensor.data.float()
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        for tensor, dtype in zip(narrow, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)
        torch.set_float32_matmul_precision(precision)


def _torch_forward(model: Any, answers: Sequence[int] | None) -> Forward:
    def forward(input_ids: Any, attention_mask: Any) -> Logits:
        given = {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}
        if answers is None:
            return model(**given).logits.float().cpu().tolist()
        counted = given["attention_mask"].cumsum(1)
        # `argmax` gives the position of the last real token. Logits are computed only there: those of
        # 22 rows of 1024 tokens and 152k ids would be 13.7 GB.
        last, row = counted.argmax(1).unique(return_inverse=True)
        places = (counted - 1).clamp(min=0)
        logits = model(**given, position_ids=places, logits_to_keep=last).logits
        return logits[range(len(row)), row][:, list(answers)].float().cpu().tolist()

    return forward


def layouts(
    forward: Forward, rows: Sequence[Sequence[int]], *, pad_id: int, paddings: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the logits of rows one by one and in a batch, without padding and padded on each side.

    Returns:
        `{"padding", "batch", "logits"}`; in the batch without padding, rows are cut to the shortest.
    """
    shortest = min(map(len, rows))
    together = [list(row[-shortest:]) for row in rows]
    few = [list(row) for row in rows[:FEW]]
    found = [
        {"padding": "none", "batch": 1, "logits": [forward(*_batch([row], 0, "", 0))[0] for row in rows]},
        {"padding": "none", "batch": len(rows), "logits": forward(*_batch(together, 0, "", 0))},
    ]
    for side in paddings:
        single = [forward(*_batch([row], pad_id, side, MORE))[0] for row in few]
        found.append({"padding": side, "batch": 1, "logits": single})
        padded = forward(*_batch(rows, pad_id, side, 0))
        found.append({"padding": side, "batch": len(rows), "logits": padded})
    return found


def _batch(rows: Sequence[Sequence[int]], pad_id: int, side: str, more: int) -> tuple[Any, Any]:
    """Return `input_ids` and `attention_mask` (B, T) int64, with `more` pad tokens beyond the longest row."""
    import torch

    width = max(map(len, rows)) + more
    ids, mask = [], []
    for row in rows:
        room = width - len(row)
        left, right = (room, 0) if side == "left" else (0, room)
        ids.append([pad_id] * left + list(row) + [pad_id] * right)
        mask.append([0] * left + [1] * len(row) + [0] * right)
    return torch.tensor(ids), torch.tensor(mask)


def _plain(value: Any) -> Any:
    """Return a value as `json` would read it back, so that both processes compare the same types."""
    return json.loads(json.dumps(value, default=str))
