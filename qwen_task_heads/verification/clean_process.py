"""Load an artifact in a process that cannot import the package, and write its fingerprint.

`artifacts.in_subprocess` runs this file by its path. It imports only the standard library, torch,
transformers, peft for an adapter, onnxruntime for a graph, and gguf for a GGUF file. `fingerprint.py` is next
to it.
"""

from __future__ import annotations

import importlib.abc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGE = "qwen_task_heads"
# Exceptions of loading that are written to the report.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class _Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == PACKAGE:
            raise ImportError(f"{name}: the artifact imports the package that wrote it")


def _load(job: dict[str, Any], report: dict[str, Any]) -> None:
    """Load the model of a job without the package, and write its fingerprint to the report."""
    import torch
    from huggingface_hub import constants
    from safetensors import SafetensorError
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    from transformers.utils import logging

    sys.path.append(str(Path(__file__).parent))  # the package cannot be imported here
    fingerprint = import_module("fingerprint")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if job["cache"]:
        constants.HF_HUB_CACHE = job["cache"]
    name, trust = job["name"], {"trust_remote_code": job["trust"]}

    @contextmanager
    def stage(what: str) -> Iterator[None]:
        try:
            yield
        except (*FAILURES, MemoryError, SafetensorError) as error:
            report["failed"][what] = f"{type(error).__name__}: {error}"
            full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if full or "can't allocate memory" in str(error):  # torch's message for the CPU
                report["out_of_memory"] = what

    is_generative = "answers" in job
    if not is_generative:  # the adapter of a generative classifier has no config.json
        with stage("config"):
            config = AutoConfig.from_pretrained(name, **trust)
            report["facts"] = fingerprint.facts(config)
    tokenizer = None
    with stage("tokenizer"):
        # The tokenizer needs no code of the repo. With the default, transformers would prompt for it.
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        report |= {"tokenizer": fingerprint.tokenizer_facts(tokenizer), **fingerprint.ids_of(tokenizer, job)}
    if job["graph"]:
        with stage("graph"):
            forward = _graph_forward(job["graph"])
            rows = job["rows"] if tokenizer is None else fingerprint.rows_of(tokenizer, job)
            pad_id = tokenizer.pad_token_id if tokenizer is not None else 0
            report["logits"] = fingerprint.layouts(
                forward, rows, pad_id=pad_id or 0, paddings=job["paddings"]
            )
        return
    model = None
    auto_class = AutoModelForCausalLM if is_generative else AutoModelForSequenceClassification
    with stage("model"):
        if job["base_dtype"]:
            model = _stock_adapter(name, dtype=job["base_dtype"])
        elif job.get("gguf"):
            model = _gguf_classifier(name, Path(job["gguf"]))
        else:
            model = auto_class.from_pretrained(name, **trust)
    if model is None and job["trust"]:  # the stored probe failed: load without it to find the cause
        with stage("model, unverified"):
            model = AutoModelForSequenceClassification.from_pretrained(name, verify=False, **trust)
    if model is not None and tokenizer is not None:
        with stage("logits"):
            report |= fingerprint.describe(model.to(job["device"]), tokenizer, job)
    elif model is not None:
        report |= {"tensors": fingerprint.tensors(model), "merged": {}}


def _stock_adapter(name: str, *, dtype: str) -> Any:
    """Load an adapter with PEFT, because transformers would round the adapter to the base's dtype."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    named = PeftConfig.from_pretrained(name)
    base = AutoModelForCausalLM.from_pretrained(
        named.base_model_name_or_path, revision=named.revision or "main", dtype=dtype
    )
    return PeftModel.from_pretrained(base, name)


def _gguf_classifier(name: str, path: Path) -> Any:
    """Load a GGUF file in the dtype of its config: the backbone with transformers, and the head."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(
        name, gguf_file=path.name, config=config, dtype=torch.float32
    )
    [head] = [tensor.data for tensor in GGUFReader(path).tensors if tensor.name == "cls.output.weight"]
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(head[: config.num_labels].copy()))
    for parameter in model.model.parameters():  # exact, because the file has the values of this dtype
        parameter.data = parameter.data.to(config.dtype)
    return model.eval()


def _graph_forward(path: str) -> Any:
    """Return a function that runs an ONNX file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(input_ids: Any, attention_mask: Any) -> list[list[float]]:
        given = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return session.run(["logits"], given)[0].tolist()

    return forward


def main() -> None:
    """Read the job file of the command line and write `report.json` next to it."""
    sys.meta_path.insert(0, _Block())
    if PACKAGE in sys.modules:
        raise SystemExit(f"{PACKAGE} is imported already: this process cannot verify an artifact")
    path = Path(sys.argv[1])
    report: dict[str, Any] = {"failed": {}}
    _load(json.loads(path.read_text(encoding="utf-8")), report)
    path.with_name("report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
