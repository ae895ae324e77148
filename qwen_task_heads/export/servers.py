"""Commands and requests that serve an export with vLLM.

vLLM serves folders of safetensors, and llama-server serves a GGUF export (`llama_server.py`). Every setting
matters: without `--dtype` vLLM casts fp32 weights to float16, and without `truncate_prompt_tokens` it refuses
long texts.

Source: https://docs.vllm.ai/en/latest/models/pooling_models/
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_task_heads.errors import TaskHeadsError, error_at, shorten
from qwen_task_heads.export.llama_server import llama_command, llama_request
from qwen_task_heads.gguf_weights import GGUF_FILE
from qwen_task_heads.hubcode.questions_task_heads import as_request

HEADS = ("PooledClassifier", "TitleScorer")
JSON = "-H 'Content-Type: application/json'"
ADDRESS = "http://localhost:8000"
# Versions whose answers were compared with `Scorer`; see benchmarks/results/serve_matrix.md
RUN_WITH = {
    "vllm": "0.32.0",
    "transformers": "5.23.0",
    "transformers4": "4.57.6",
    "infinity": "0.0.78",
    "onnxruntime": "1.31.1",
}


@dataclass(frozen=True, kw_only=True)
class Served:
    """Facts of a folder that its commands and requests depend on.

    Args:
        architecture: class of the model.
        dtype: of the weights of the backbone; the head is in fp32 in any case.
        max_length: limit of the tokenizer, if it is lower than that of the model.
        truncates_right: the tokenizer truncates the right side, as vLLM does.
        pairs: a request has a second text.
        is_adapter: the folder has no full weights.
        bidirectional: tokens attend to both sides.
        questions: of the config of a model with several.
    """

    architecture: str
    dtype: str = "float32"
    max_length: int | None = None
    truncates_right: bool = True
    pairs: bool = False
    is_adapter: bool = False
    bidirectional: bool = False
    questions: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def read(cls, folder: str | Path) -> Served:
        """Read the facts of a folder of `export_stock`, `export_reward_model` or `save`.

        Raises:
            TaskHeadsError: the folder has no such model.
        """
        folder = Path(folder)
        config, tokenizer = _read(folder)
        limit = tokenizer.get("model_max_length")
        longest = config.get("max_position_embeddings") or config.get("n_positions") or 0
        return cls(
            architecture=config["architectures"][0],
            dtype=str(config.get("dtype") or (config.get("text_config") or {}).get("dtype") or "float32"),
            max_length=limit if limit and limit < longest else None,
            truncates_right=tokenizer.get("truncation_side", "right") == "right",
            pairs="between" in (config.get("template") or {}),
            is_adapter=not any(folder.glob("*.safetensors")),
            bidirectional=bool(config.get("bidirectional")),
            questions=config.get("questions") or (),
        )

    @classmethod
    def find(cls, folder: str | Path) -> Served | None:
        """Return the facts of a folder; None for a model of another kind."""
        try:
            return cls.read(folder)
        except TaskHeadsError:
            return None

    @property
    def has_head(self) -> bool:
        """Whether the model is one of this package, which vLLM serves by the plugin."""
        return self.architecture in HEADS

    def command(self, name: str) -> str:
        """Return the vLLM command of a model.

        Args:
            name: folder or repo id.
        """
        words = ["vllm", "serve", name, "--runner", "pooling", "--dtype", self.dtype]
        if self.has_head:
            return f"VLLM_PLUGINS=qwen_task_heads {shlex.join(words)}"
        if self.max_length:
            words += ["--max-model-len", str(self.max_length)]
        if self.architecture.endswith("ForRewardModel"):
            words += ["--pooler-config", '{"use_activation": false}']
        return shlex.join(words)

    def request(self, name: str) -> tuple[str, dict[str, Any], str]:
        """Return path, body and the expression of the answer for one request, to `qth serve` or vLLM."""
        if self.architecture == "TitleScorer":
            return "/rank", {"titles": ["A plain title", "Another title"]}, 'answer["data"]'
        text = [{"text": "A text", "text_pair": "Another text"}] if self.pairs else ["A text"]
        if self.questions:
            asked = {"model": name, "state": text[0], "questions": as_request(self.questions)}
            return "/v1/systemone", asked, 'answer["answers"]'
        body: dict[str, Any] = {"model": name, "input": text}
        if self.has_head:
            return "/classify", body, 'answer["data"]'
        # vLLM truncates the right side. Tail truncation cannot be requested if a template precedes the text.
        if self.truncates_right:
            body["truncate_prompt_tokens"] = -1
        if self.architecture.endswith("ForRewardModel"):
            return "/pooling", body, 'answer["data"][0]["data"][-1]'
        return "/classify", body, 'answer["data"][0]["probs"]'

    def curl(self, name: str) -> str:
        """Return the command that sends one request."""
        path, body, _ = self.request(name)
        return f"curl {ADDRESS}{path} {JSON} -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"


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
        TaskHeadsError: the folder has no such model, an adapter, or bidirectional attention.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads import build, load_tokenizer, save
        >>> from qwen_task_heads.export.servers import serve_command
        >>> folder = save(build("embedded"), tokenizer=load_tokenizer("embedded"), folder=tempfile.mkdtemp())
        >>> serve_command(folder, name="me/titles")
        'VLLM_PLUGINS=qwen_task_heads vllm serve me/titles --runner pooling --dtype float32'
    """
    if Path(folder, GGUF_FILE).is_file():
        return llama_command(Path(folder), *_read(Path(folder)), name)
    return _in_vllm(folder).command(name or str(folder))


def serve_example(folder: str | Path, *, name: str | None = None) -> str:
    """Return the command of an export with one exact request, in Python and for vLLM also in the shell.

    Args:
        folder: see `serve_command`.
        name: see `serve_command`.

    Raises:
        TaskHeadsError: see `serve_command`.
    """
    if Path(folder, GGUF_FILE).is_file():
        return "\n".join([serve_command(folder, name=name), "", *llama_request(*_read(Path(folder)))])
    served, name = _in_vllm(folder), name or str(folder)
    path, body, value = served.request(name)
    return "\n".join(
        [
            served.command(name),
            "",
            served.curl(name),
            "",
            "import requests",
            "",
            f'answer = requests.post("{ADDRESS}{path}", json={json.dumps(body, ensure_ascii=False)}).json()',
            f"print({value})",
        ]
    )


def _in_vllm(folder: str | Path) -> Served:
    """Read the facts of a folder; raise if vLLM does not load its model."""
    served = Served.read(folder)
    if served.is_adapter:
        raise error_at(
            str(folder),
            "found an adapter",
            "a full model, which vLLM can load",
            "publish it by qth publish --form merged or --form stock",
            code="model-unsupported",
        )
    if served.bidirectional:
        raise error_at(
            str(folder),
            "found bidirectional attention",
            "causal attention, as vLLM's decoders have",
            "serve it by qth serve",
            code="model-unsupported",
        )
    return served


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configs of the model and the tokenizer."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    architecture = str((config.get("architectures") or [None])[0])
    if architecture not in HEADS and not architecture.endswith(
        ("ForSequenceClassification", "ForRewardModel")
    ):
        raise error_at(
            str(folder),
            f"found {shorten(architecture)}" if config else "config.json is missing",
            "a folder of export_stock(), export_reward_model(), export_gguf() or save()",
            "export the model first",
            code="model-type" if config else "model-not-found",
        )
    path = folder / "tokenizer_config.json"
    return config, json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
