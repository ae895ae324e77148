"""Export a model to `onnx/model.onnx` for ONNX Runtime without torch, and to an int8 graph.

The graph is traced by transformers' exporter (`torch.export`) along the padded path of `forward`. Packing and
the prefix cache depend on the lengths of one batch, so both are switched off for tracing. Batch size and
length are free, padding may be on either side, and every pooling and head is supported. Truncation inside
`forward` is not supported: the tokenizer has to truncate, so only `head` and `tail` are. Label names, and
thresholds if the model has them, are copied to the metadata of the file.

An export is verified under ONNX Runtime on left-padded, right-padded and single rows against the logits of
the model, before it gets its final name. int8 is not verified: `agreement` measures how often the predictions
are equal on the exported weights.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at
from qwen_task_heads.export.shared import (
    check_difference,
    float_logits,
    load_merged,
    truncation_rules,
    unmet,
    verification_rows,
)
from qwen_task_heads.hubcode.attention_task_heads import PACKED, rotates_by_length
from qwen_task_heads.hubcode.encoding_task_heads import encode, encode_texts, pad_rows, strip_title
from qwen_task_heads.hubcode.modeling_task_heads import PooledClassifier
from qwen_task_heads.inference import int8 as torch_int8
from qwen_task_heads.inference.inputs import rows_of
from qwen_task_heads.inference.predictions import problem_type_of

if TYPE_CHECKING:
    import numpy as np

# Two computations in fp32 with other kernels. On the 30 layers of SmolLM2-135M the logits of torch itself
# differ by 5e-6 from those in fp64, and those of ONNX Runtime by 1.1e-5 from torch.
ONNX_TOLERANCE = 3e-5
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INPUTS = ("input_ids", "attention_mask")
# A protobuf file is limited to 2 GiB; larger weights are saved in `model.onnx.data`.
MAX_INLINE = 1 << 30
HEAD = "score."  # prefix of the names of the head's operations in the file
BATCH = 16  # rows per batch of `agreement`
# Raised by torch 2.13 inside torch.export: https://github.com/pytorch/pytorch/issues/146879
_DEPRECATED = (r".*(LeafSpec|treespec).*", FutureWarning)


@dataclass(frozen=True)
class Agreement:
    """Agreement of an ONNX file with the model that it was exported from.

    Args:
        texts: number of compared texts.
        argmax: share of texts, 0 to 1, with the same best label; for title scorers, of pairs in the same
            order.
        difference: largest absolute difference of a logit.
    """

    texts: int
    argmax: float
    difference: float


def export_onnx(
    model_or_folder: Any, *, tokenizer: Any = None, folder: str | Path, int8: bool = False
) -> Path:
    """Export a graph of `input_ids` and `attention_mask` (B, T) int64 to `logits` (B, labels) fp32.

    Args:
        model_or_folder: a `PooledClassifier` or `TitleScorer`, a `PeftModel` around one, or the folder or
            repo of one. An adapter is merged first, into a given model in place.
        tokenizer: with the compiled template; None for the one in the folder.
        folder: gets `onnx/model.onnx`, replacing an existing one, and the tokenizer if it is absent.
        int8: also write `onnx/model_int8.onnx`: the backbone's matrices per channel, activations per call.

    Returns:
        The path of `model.onnx`; weights over 1 GiB are saved in `model.onnx.data` next to it.

    Raises:
        TaskHeadsError: a model that cannot be traced, with all reasons; a missing package; or logits that
            differ under ONNX Runtime.

    Example:
        >>> from qwen_task_heads.export.onnx import export_onnx, run_onnx
        >>> path = export_onnx("me/sentiment", folder="sentiment", int8=True)    # doctest: +SKIP
        >>> run_onnx(path, [[5, 6, 7]], [[1, 1, 1]]).shape    # doctest: +SKIP
        (1, 2)

    Source: https://huggingface.co/docs/transformers/main/en/serialization
    """
    check_packages()
    model, tokenizer = load_merged(model_or_folder, tokenizer=tokenizer)
    if problems := _unsupported(model):
        raise TaskHeadsError(problems)
    plain = model
    if model.device.type != "cpu" or model.dtype != torch.float32:
        plain = copy.deepcopy(model).cpu().float()
    folder = Path(folder, "onnx")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as staging:
        path = Path(staging, "model.onnx")
        _write(_trace(plain), path, config=model.config)
        _verify(plain, tokenizer, path)
        if int8:
            _quantize(path, Path(staging, "model_int8.onnx"))
        # Weights first, so that an existing graph can always be loaded.
        for file in sorted(Path(staging).iterdir(), key=lambda file: file.suffix == ".onnx"):
            os.replace(file, folder / file.name)
    if not (folder.parent / "tokenizer.json").exists():
        tokenizer.save_pretrained(folder.parent)
    return folder / "model.onnx"


def run_onnx(
    path: str | Path, input_ids: Sequence[Sequence[int]] | np.ndarray, attention_mask: Any
) -> np.ndarray:
    """Return logits (B, labels) fp32, computed by ONNX Runtime on the CPU without torch and transformers.

    Args:
        path: the `.onnx` file.
        input_ids: (B, T) ids, padded on any side with any id.
        attention_mask: (B, T), 1 for real tokens, at least one a row.
    """
    check_packages("onnxruntime")
    return _run(_session(path), input_ids, attention_mask)


def agreement(
    path: str | Path,
    *,
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    text_pairs: Iterable[str] | None = None,
) -> Agreement:
    """Compare an ONNX file with the model on texts, in batches of 16 of similar length.

    int8 has one scale for all activations of a call, so the logits of a text depend slightly on its batch.

    Args:
        path: `model.onnx` or `model_int8.onnx`.
        model: the exported model, merged.
        tokenizer: with the compiled template.
        texts: n texts, or titles.
        text_pairs: n second texts, or the prompts of titles; or None.

    Raises:
        TaskHeadsError: no texts, or a missing package.
    """
    check_packages("onnxruntime")
    texts = rows_of("texts", texts)
    text_pairs = None if text_pairs is None else rows_of("text_pairs", text_pairs)
    if not texts:
        raise error_at("texts", "found no texts", "one or more", "pass held-out texts", code="rows-too-few")
    if isinstance(model, PooledClassifier):
        config = model.config
        rows = encode_texts(
            tokenizer,
            texts,
            text_pairs=text_pairs,
            max_length=config.max_seq_length,
            truncation=config.truncation,
        ).input_ids
    else:
        rows = encode(tokenizer, [strip_title(text) for text in texts], prompts=text_pairs).input_ids
    rows.sort(key=len)
    plain = model if model.dtype == torch.float32 else copy.deepcopy(model).float()  # once for all batches
    session, ours, theirs = _session(path), [], []
    for start in range(0, len(rows), BATCH):
        batch = pad_rows(rows[start : start + BATCH], pad_id=tokenizer.pad_token_id or 0)
        ours += float_logits(plain, batch).tolist()
        theirs += _run(session, *(batch[name].numpy() for name in INPUTS)).tolist()
    difference = (torch.tensor(ours) - torch.tensor(theirs)).abs().max()
    return Agreement(len(rows), torch_int8.agreement(ours, theirs), float(difference))


def check_packages(*names: str) -> None:
    """Raise with all missing packages of the extra `[onnx]`.

    Args:
        names: the packages that are needed; all of the extra if none is named.

    Raises:
        TaskHeadsError: a package is not installed.
    """
    if missing := [name for name in names or PACKAGES if find_spec(name) is None]:
        raise error_at(
            "onnx",
            f"{', '.join(missing)} not installed",
            ", ".join(names or PACKAGES),
            "pip install 'qwen-task-heads[onnx]'",
            code="package-missing",
        )


def _unsupported(model: Any) -> list[Problem]:
    """Return the settings of a model that a graph of free batch size and length does not support."""
    config = model.config
    attention = config.text_config._attn_implementation
    quantization = config.__dict__.get("quantization_config")
    method = quantization and dict(quantization).get("quant_method")
    rotation = (config.text_config.to_dict().get("rope_parameters") or {}).get("rope_type")
    sdpa = attention in (PACKED, "sdpa", "eager")
    free = "rotations that do not depend on the longest row of a batch"
    save = "publish the model with save()"
    rules = [
        *((rule, save) for rule in truncation_rules(model)),
        (
            ("quantization_config", method, quantization is None, "a base in float32, bfloat16 or float16"),
            "load the model with dtype=torch.float32",
        ),
        (
            ("attn_implementation", attention, sdpa, "sdpa or eager"),
            "load the model with attn_implementation='sdpa'",
        ),
        (("rope_type", rotation, not rotates_by_length(config.text_config), free), save),
    ]
    return [problem for rule, fix in rules for problem in unmet([rule], fix=fix)]


def _trace(model: Any) -> Any:
    """Trace a model to an `onnx_ir.Model`; the state of the model is restored."""
    from torch._dynamo.exc import TorchDynamoException
    from torch.onnx.errors import OnnxExporterError
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    # Several rows of several tokens, padded on both sides: a size of 1 would be traced as a constant.
    ids = torch.arange(1, 22).reshape(3, 7)
    mask = torch.ones_like(ids)
    mask[1, :3] = mask[2, 5:] = 0
    free = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1)}
    options = OnnxConfig(dynamic=True, dynamic_shapes=dict.fromkeys(INPUTS, free))
    with _padded(model), _quiet():
        try:
            return (
                OnnxExporter()
                .export(model, {"input_ids": ids, "attention_mask": mask}, config=options)
                .program
            )
        except (OnnxExporterError, TorchDynamoException, RuntimeError, ValueError, TypeError) as error:
            name, reason = model.config.text_config.model_type, " ".join(str(error).split())[:200]
            raise error_at(
                "text_config",
                f"transformers' exporter cannot trace {name!r} ({reason})",
                "a decoder whose forward does not depend on lengths",
                "publish the model with save()",
                code="model-unsupported",
            ) from error


@contextlib.contextmanager
def _padded(model: Any) -> Iterator[None]:
    """Compute padded batches in eval mode and without truncation, which is left to the tokenizer."""
    config, kept = model.config, (model.packing, model.prefix_sharing, model.training)
    limit = config.__dict__.get("max_seq_length")
    model.packing = model.prefix_sharing = False
    model.eval()
    if limit is not None:
        config.max_seq_length = None
    try:
        yield
    finally:
        model.packing, model.prefix_sharing, training = kept
        model.train(training)
        if limit is not None:
            config.max_seq_length = limit


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress messages of torch's exporter; its errors are raised."""
    # onnxruntime's quantizer uses the root logger.
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "transformers.exporters")]
    levels = [logger.level for logger in loggers]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_DEPRECATED[0], category=_DEPRECATED[1])
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _write(program: Any, path: Path, *, config: Any) -> None:
    """Write a traced graph with the labels of its outputs, without paths of this machine."""
    import onnx_ir

    for graph in (program.graph, *program.functions.values()):
        for node in graph.all_nodes():
            if "'score'" in node.metadata_props.get("pkg.torch.onnx.name_scopes", ""):
                node.name = f"{HEAD}{node.name}"
            node.metadata_props.clear()  # stack traces with paths of this machine
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        graph.metadata_props.clear()
    for value in program.graph.inputs:
        value.shape = onnx_ir.Shape(["batch", "length"])
    for value in program.graph.outputs:
        value.shape = onnx_ir.Shape(["batch", config.num_labels])
    program.metadata_props.clear()
    program.metadata_props["id2label"] = json.dumps(config.id2label, ensure_ascii=False)
    program.metadata_props["problem_type"] = problem_type_of(config)
    if config.__dict__.get("label_thresholds"):
        program.metadata_props["label_thresholds"] = json.dumps(config.label_thresholds)
    size = sum(value.const_value.nbytes for value in program.graph.initializers.values())
    onnx_ir.save(program, str(path), external_data=f"{path.name}.data" if size > MAX_INLINE else None)


def _verify(model: Any, tokenizer: Any, path: Path) -> None:
    """Compare the file with the model on rows padded on the left, on the right, and without padding."""
    rows, session = verification_rows(model, tokenizer), _session(path)
    right = pad_rows(rows, pad_id=tokenizer.pad_token_id or 0)
    left = {name: _to_left(right[name], right["attention_mask"]) for name in INPUTS}
    for batch in (right, left, *(pad_rows([row], pad_id=0) for row in rows)):
        expected = float_logits(model, batch)
        logits = torch.from_numpy(_run(session, *(batch[name].numpy() for name in INPUTS)))
        check_difference(logits, expected, tolerance=ONNX_TOLERANCE, where=path.name, runtime="ONNX Runtime")


def _to_left(rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Move the padding of right-padded rows (B, T) to the left."""
    return torch.stack([row.roll(int((real == 0).sum())) for row, real in zip(rows, mask, strict=True)])


def _quantize(path: Path, target: Path) -> None:
    """Quantize the backbone's matrices; embeddings and the head stay in fp32.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path, load_external_data=False)
    # onnxruntime 1.31 reads shapes from here that are wrong after quantization, and fails.
    del graph.graph.value_info[:]
    cleared = path.with_name("cleared.onnx")
    onnx.save(graph, cleared)
    head = [node.name for node in graph.graph.node if node.name.startswith(HEAD)]
    head += [f"{name}_MatMul" for name in head]  # the quantizer turns a Gemm into a MatMul
    with _quiet():
        quantize_dynamic(
            cleared,
            target,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=head,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=path.with_name(f"{path.name}.data").exists(),
        )
    cleared.unlink()


def _session(path: str | Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: Any, input_ids: Any, attention_mask: Any) -> np.ndarray:
    import numpy as np

    values = (np.asarray(value, dtype=np.int64) for value in (input_ids, attention_mask))
    return session.run(["logits"], dict(zip(INPUTS, values, strict=True)))[0]  # type: ignore[no-any-return]
