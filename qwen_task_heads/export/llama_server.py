"""Command and request that serve a GGUF export with llama-server of llama.cpp.

The request sends token ids. llama-server parses control tokens in texts, does not normalize Unicode (NFC),
and adds at most one token on each side, so that a text alone may become other ids. The settings of the
command keep fp32: flash attention and the cache round to fp16, which changes logits by about 1e-2.

llama-server answers as many values as the model has channels. Only the first ones, one per label, are those
of the model; the rest is other memory of the server, and normalization would mix it in.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from qwen_task_heads.gguf_weights import GGUF_FILE
from qwen_task_heads.hubcode.encoding_task_heads import TEMPLATE_KEY

LONGEST = 8192  # context for a tokenizer without a limit of its own, because its memory is taken at the start
URL = "http://localhost:8080"


def has_reference(config: dict[str, Any]) -> bool:
    """Return whether the head of a file has a last row of zeros: for outputs without softmax.

    Args:
        config: content of `config.json`, with `id2label` and `problem_type`.

    Example:
        >>> from qwen_task_heads.export.llama_server import has_reference
        >>> has_reference({"id2label": {"0": "no", "1": "yes"}}), has_reference({"id2label": {"0": "score"}})
        (False, True)
    """
    kind = config.get("problem_type")
    return len(config["id2label"]) == 1 or kind in ("multi_label_classification", "regression")


def llama_command(folder: Path, config: dict[str, Any], tokenizer: dict[str, Any], name: str | None) -> str:
    """Return the command of a GGUF export.

    Args:
        folder: written by `export_gguf`.
        config: content of `config.json`.
        tokenizer: content of `tokenizer_config.json`.
        name: repo id of the Hugging Face Hub; None for the file in the folder.
    """
    model = ["-hf", name, "--hf-file", GGUF_FILE] if name else ["-m", str(folder / GGUF_FILE)]
    exact = ["--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"]
    size = str(_limit(config, tokenizer))
    sizes = ["--parallel", "1", "--ctx-size", size, "--batch-size", size, "--ubatch-size", size]
    return shlex.join(["llama-server", *model, "--embedding", "--pooling", "rank", *exact, *sizes])


def llama_request(config: dict[str, Any], tokenizer: dict[str, Any]) -> list[str]:
    """Return the lines of a Python program that sends one text with the ids of training.

    Args:
        config: content of `config.json`.
        tokenizer: content of `tokenizer_config.json`; its template is in the program.
    """
    template = tokenizer.get(TEMPLATE_KEY) or {"before": [], "after": []}
    before, after = template["before"], template["after"]
    room = _limit(config, tokenizer) - len(before) - len(after)
    kept = f"ids[-{room}:]" if tokenizer.get("truncation_side") == "left" else f"ids[:{room}]"
    labels = [config["id2label"][index] for index in sorted(config["id2label"], key=int)]
    count = len(labels) + has_reference(config)
    if not has_reference(config):
        answer = "dict(zip(labels, values))"
    elif config.get("problem_type") == "multi_label_classification":
        answer = "{label: p / (p + values[-1]) for label, p in zip(labels, values)}"
    else:
        answer = "{label: math.log(p / values[-1]) for label, p in zip(labels, values)}"
    return [
        *(["import math"] if "math." in answer else []),
        "import unicodedata",
        "",
        "import requests",
        "",
        f"labels = {json.dumps(labels, ensure_ascii=False)}",
        'text = unicodedata.normalize("NFC", "A text")',
        'body = {"content": text, "parse_special": False}',
        f'ids = requests.post("{URL}/tokenize", json=body).json()["tokens"]',
        f'body = {{"input": [*{before}, *{kept}, *{after}], "embd_normalize": -1}}',
        f'answer = requests.post("{URL}/embedding", json=body).json()',
        f'values = answer[0]["embedding"][0][:{count}]',
        f"print({answer})",
    ]


def _limit(config: dict[str, Any], tokenizer: dict[str, Any]) -> int:
    """Return the longest row in tokens: that of training, or what the model and `LONGEST` allow."""
    return int(min(tokenizer.get("model_max_length") or LONGEST, config["max_position_embeddings"], LONGEST))
