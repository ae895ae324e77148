"""Commands and requests that serve an export with vLLM.

vLLM serves folders of safetensors, and llama-server serves a GGUF export (`llama_server.py`). Every setting
matters: without `--dtype` vLLM casts fp32 weights to float16, and without `truncate_prompt_tokens` it refuses
long texts.

Source: https://docs.vllm.ai/en/latest/models/pooling_models/
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import error_at, shorten
from qwen_task_heads.export.llama_server import llama_command, llama_request
from qwen_task_heads.gguf_weights import GGUF_FILE

HEADS = ("PooledClassifier", "TitleScorer")
JSON = "-H 'Content-Type: application/json'"


def serve_command(folder: str | Path, *, name: str | None = None) -> str:
    """Return the command of an export: vLLM's, or that of llama-server for a GGUF file.

    vLLM answers at `/classify` for a stock class, and at `/pooling` for a reward model.

    For a reward model vLLM returns a value per token, and the last one is the score; the command switches off
    the sigmoid. With `--max-model-len` the server refuses a prompt over the tokenizer's limit, because the
    model was not trained on longer ones. A full model of this package is served by its plugin.

    Args:
        folder: written by `export_stock`, `export_reward_model`, `export_gguf` or `save`.
        name: name of the model in the command, such as a repo id; the folder if None.

    Raises:
        TaskHeadsError: the folder has no such model, or an adapter.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads import build, load_tokenizer, save
        >>> from qwen_task_heads.export.servers import serve_command
        >>> folder = save(build("embedded"), tokenizer=load_tokenizer("embedded"), folder=tempfile.mkdtemp())
        >>> serve_command(folder, name="me/titles")
        'VLLM_PLUGINS=qwen_task_heads vllm serve me/titles --runner pooling --dtype float32'
    """
    config, tokenizer = _read(Path(folder))
    if Path(folder, GGUF_FILE).is_file():
        return llama_command(Path(folder), config, tokenizer, name)
    words = ["vllm", "serve", name or str(folder), "--runner", "pooling", "--dtype", _dtype(config)]
    if _is_head(config):
        return f"VLLM_PLUGINS=qwen_task_heads {shlex.join(words)}"
    limit, longest = tokenizer.get("model_max_length"), config.get("max_position_embeddings")
    if limit and limit < (longest or config.get("n_positions") or 0):
        words += ["--max-model-len", str(limit)]
    if config["architectures"][0].endswith("ForRewardModel"):
        words += ["--pooler-config", '{"use_activation": false}']
    return shlex.join(words)


def serve_example(folder: str | Path, *, name: str | None = None) -> str:
    """Return the command of an export with one exact request, in Python and for vLLM also in the shell.

    Args:
        folder: see `serve_command`.
        name: see `serve_command`.

    Raises:
        TaskHeadsError: see `serve_command`.
    """
    config, tokenizer = _read(Path(folder))
    if Path(folder, GGUF_FILE).is_file():
        return "\n".join([serve_command(folder, name=name), "", *llama_request(config, tokenizer)])
    path, body, value = _request(config, tokenizer, name or str(folder))
    return "\n".join(
        [
            serve_command(folder, name=name),
            "",
            f"curl http://localhost:8000{path} {JSON} -d {shlex.quote(json.dumps(body, ensure_ascii=False))}",
            "",
            "import requests",
            "",
            f'answer = requests.post("http://localhost:8000{path}", json={_literal(body)}).json()',
            f"print({value})",
        ]
    )


def _request(config: dict[str, Any], tokenizer: dict[str, Any], name: str) -> tuple[str, dict[str, Any], str]:
    """Return path, body and the expression of the answer for one request."""
    if config["architectures"][0] == "TitleScorer":
        return "/rank", {"titles": ["A plain title", "Another title"]}, 'answer["data"]'
    body: dict[str, Any] = {"model": name, "input": ["A text"]}
    if _is_head(config):
        return "/classify", body, 'answer["data"]'
    # vLLM truncates the right side. Tail truncation cannot be requested if a template precedes the text.
    if tokenizer.get("truncation_side", "right") == "right":
        body["truncate_prompt_tokens"] = -1
    if config["architectures"][0].endswith("ForRewardModel"):
        return "/pooling", body, 'answer["data"][0]["data"][-1]'
    return "/classify", body, 'answer["data"][0]["probs"]'


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configs of the model and the tokenizer."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    classes = config.get("architectures") or [None]
    served = str(classes[0]).endswith(("ForSequenceClassification", "ForRewardModel")) or _is_head(config)
    if not served:
        raise error_at(
            str(folder),
            f"found {shorten(classes[0])}" if config else "config.json is missing",
            "a folder of export_stock(), export_reward_model(), export_gguf() or save()",
            "export the model first",
            code="model-type" if config else "model-not-found",
        )
    if not (folder / GGUF_FILE).is_file() and not any(folder.glob("*.safetensors")):
        raise error_at(
            str(folder),
            "found an adapter",
            "a full model, which vLLM can load",
            "publish it by qth publish --form merged or --form stock",
            code="model-unsupported",
        )
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return config, tokenizer


def _is_head(config: dict[str, Any]) -> bool:
    return (config.get("architectures") or [None])[0] in HEADS


def _dtype(config: dict[str, Any]) -> str:
    """Return the dtype of the backbone's weights; the head is in fp32 in any case."""
    stated = config.get("dtype") or (config.get("text_config") or {}).get("dtype")
    return str(stated or "float32")


def _literal(body: dict[str, Any]) -> str:
    """Return Python source of a body, with double quotes."""
    return json.dumps(body, ensure_ascii=False)
