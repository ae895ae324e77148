"""A model to `onnx/model.onnx`, which ONNX Runtime computes without torch, and to int8 beside it.

The graph is traced by transformers' own exporter (`torch.export`) along the padded path of `forward`:
packed rows and shared beginnings hang on the lengths of one batch, so both are switched off while it is
traced. Batch and length are free, padding may stand on either side, and every pooling and head is in the
graph. What cannot be is a policy that cuts ids inside `forward`: the tokenizer has to cut, so `head` and
`tail` are left. Label names, and thresholds if the model has some, travel in the file's metadata.

An export is run under ONNX Runtime on left-padded, right-padded and single rows, and has to give the logits
of the model, before it appears under its name. int8 is not held to that: `agreement` says how often the
answers stay, on the weights that are served.
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

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.export.stock import (
    check_difference,
    float_logits,
    open_merged,
    proof_rows,
    truncation_rules,
)
from qwen_task_heads.hubcode.attention_task_heads import PACKED, rotates_by_length
from qwen_task_heads.hubcode.encoding_task_heads import encode, encode_texts, pad_rows, strip_title
from qwen_task_heads.inference import int8 as torch_int8
from qwen_task_heads.inference.inputs import rows_of
from qwen_task_heads.inference.predictions import problem_type_of
from qwen_task_heads.models import PooledClassifier

if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INPUTS = ("input_ids", "attention_mask")
TOLERANCE = 1e-5  # of logits in fp32, relative to the largest one where that is above 1
# Protobuf holds 2 GiB a file; over this, the weights go to `model.onnx.data` beside the graph.
MAX_INLINE = 1 << 30
HEAD = "score."  # how the names of the head's operations begin in the file
BATCH = 16  # rows per call of `agreement`
# Raised by torch 2.13 inside torch.export: https://github.com/pytorch/pytorch/issues/146879
_DEPRECATED = (r".*(LeafSpec|treespec).*", FutureWarning)


@dataclass(frozen=True)
class Agreement:
    """How an ONNX file answers beside the model it came from.

    Args:
        texts: how many were compared.
        argmax: share of texts, 0 to 1, with the same best label; of title scorers, of pairs in one order.
        difference: largest absolute difference of a logit.
    """

    texts: int
    argmax: float
    difference: float


def export_onnx(
    model_or_folder: Any, *, tokenizer: Any = None, folder: str | Path, int8: bool = False
) -> Path:
    """Write `onnx/model.onnx`: `input_ids` and `attention_mask` (B, T) int64 to `logits` (B, labels) fp32.

    Args:
        model_or_folder: a `PooledClassifier` or `TitleScorer`, a `PeftModel` around one, or the folder or
            repo of one. An adapter is merged first, into a given model in place.
        tokenizer: with the compiled template; None for the one in the folder.
        folder: gets `onnx/model.onnx`, which replaces one that is there, and the tokenizer where there is
            none, so that texts can be read from it alone.
        int8: also write `onnx/model_int8.onnx`: the backbone's matrices per channel, activations per call.

    Returns:
        The path of `model.onnx`; over 1 GiB its weights lie in `model.onnx.data` beside it.

    Raises:
        TaskHeadsError: a model that cannot be traced, all reasons at once; a missing package; or logits that
            differ under ONNX Runtime.

    Example:
        >>> from qwen_task_heads.export.onnx import export_onnx, run_onnx
        >>> path = export_onnx("me/sentiment", folder="sentiment", int8=True)    # doctest: +SKIP
        >>> run_onnx(path, [[5, 6, 7]], [[1, 1, 1]]).shape    # doctest: +SKIP
        (1, 2)

    Source: https://huggingface.co/docs/transformers/main/en/serialization
    """
    check_packages()
    model, tokenizer = open_merged(model_or_folder, tokenizer=tokenizer)
    if problems := _reasons(model):
        raise TaskHeadsError(problems)
    plain = model
    if model.device.type != "cpu" or model.dtype != torch.float32:
        plain = copy.deepcopy(model).cpu().float()
    folder = Path(folder, "onnx")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as staging:
        path = Path(staging, "model.onnx")
        _write(_trace(plain), path, config=model.config)
        _prove(plain, tokenizer, path)
        if int8:
            _quantize(path, Path(staging, "model_int8.onnx"))
        # Weights first: a graph that is there can be opened.
        for file in sorted(Path(staging).iterdir(), key=lambda file: file.suffix == ".onnx"):
            os.replace(file, folder / file.name)
    if not (folder.parent / "tokenizer.json").exists():
        tokenizer.save_pretrained(folder.parent)
    return folder / "model.onnx"


def run_onnx(
    path: str | Path, input_ids: Sequence[Sequence[int]] | np.ndarray, attention_mask: Any
) -> np.ndarray:
    """Logits (B, labels) fp32 by ONNX Runtime on the CPU; needs neither torch nor transformers.

    Args:
        path: of the `.onnx` file.
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

    int8 has one scale for all activations of a call, so a text's logits hang a little on its batch.

    Args:
        path: `model.onnx` or `model_int8.onnx`.
        model: what it was exported from, merged.
        tokenizer: with the compiled template.
        texts: n texts, or titles.
        text_pairs: n second texts, or the prompts of titles; None for none.

    Raises:
        TaskHeadsError: no texts, or a missing package.
    """
    check_packages("onnxruntime")
    texts = rows_of("texts", texts)
    text_pairs = None if text_pairs is None else rows_of("text_pairs", text_pairs)
    if not texts:
        raise TaskHeadsError(Problem("texts", "found none", "one or more", "give held-out texts"))
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
    """Refuse to go on without the packages of the extra `[onnx]`, naming all that are missing."""
    if missing := [name for name in names or PACKAGES if find_spec(name) is None]:
        found, accepted = f"found no {', no '.join(missing)}", f"{', '.join(names or PACKAGES)}"
        raise TaskHeadsError(Problem("onnx", found, accepted, "pip install 'qwen-task-heads[onnx]'"))


def _reasons(model: Any) -> list[Problem]:
    """Why a graph of free batch and length cannot give what this model gives; all reasons."""
    config = model.config
    attention = config.text_config._attn_implementation
    quantization = config.__dict__.get("quantization_config")
    method = quantization and dict(quantization).get("quant_method")
    rotation = (config.text_config.to_dict().get("rope_parameters") or {}).get("rope_type")
    full, sdpa = "load the model with dtype=torch.float32", "load the model with attn_implementation='sdpa'"
    rules = [
        *((*rule, "a graph cuts nothing: publish the model with save()") for rule in truncation_rules(model)),
        ("quantization_config", method, quantization is None, "a base in float32, bfloat16 or float16", full),
        ("attn_implementation", attention, attention in (PACKED, "sdpa", "eager"), "sdpa or eager", sdpa),
        (
            "rope_type", rotation, not rotates_by_length(config.text_config),
            "rotations that do not hang on the longest row of a batch", "publish the model with save()",
        ),
    ]  # fmt: skip
    return [
        Problem(field, f"found {value!r}", f"{accepted}", remedy)
        for field, value, fits, accepted, remedy in rules
        if not fits
    ]


def _trace(model: Any) -> Any:
    """Trace a model to an `onnx_ir.Model`; the model is afterwards as it was."""
    from torch._dynamo.exc import TorchDynamoException
    from torch.onnx.errors import OnnxExporterError
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    # Several rows of several tokens, padded on both sides: what is 1 in a sample is taken for a constant.
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
            found = f"found {name!r}, which transformers' exporter cannot trace ({reason})"
            accepted = "a decoder whose forward hangs on no length"
            raise TaskHeadsError(
                Problem("text_config", found, accepted, "publish the model with save()")
            ) from error


@contextlib.contextmanager
def _padded(model: Any) -> Iterator[None]:
    """Take the path of padded batches, in eval mode, and cut nothing: a tokenizer has done that."""
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
    """Keep the progress of torch's exporter off the screen; its errors are raised."""
    # onnxruntime's quantiser speaks by the root logger.
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
    """Write a traced graph with the labels of its outputs, and with nothing of the machine that traced it."""
    import onnx_ir

    for graph in (program.graph, *program.functions.values()):
        for node in graph.all_nodes():
            if "'score'" in node.metadata_props.get("pkg.torch.onnx.name_scopes", ""):
                node.name = f"{HEAD}{node.name}"
            node.metadata_props.clear()  # the stack of every operation, with the paths of this machine
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


def _prove(model: Any, tokenizer: Any, path: Path) -> None:
    """Run the file on rows padded on the left, on the right and not at all, against the model."""
    rows, session = proof_rows(model, tokenizer), _session(path)
    right = pad_rows(rows, pad_id=tokenizer.pad_token_id or 0)
    left = {name: _to_left(right[name], right["attention_mask"]) for name in INPUTS}
    for batch in (right, left, *(pad_rows([row], pad_id=0) for row in rows)):
        wanted = float_logits(model, batch)
        found = torch.from_numpy(_run(session, *(batch[name].numpy() for name in INPUTS)))
        check_difference(found, wanted, tolerance=TOLERANCE, where=str(path.name), what="ONNX Runtime")


def _to_left(rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Move the padding of right-padded rows (B, T) to the left."""
    return torch.stack([row.roll(int((real == 0).sum())) for row, real in zip(rows, mask, strict=True)])


def _quantize(path: Path, target: Path) -> None:
    """Quantise the backbone's matrices; embeddings and the head stay in fp32.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path, load_external_data=False)
    # onnxruntime 1.31 takes shapes from here that no longer hold after quantisation, and fails on them.
    del graph.graph.value_info[:]
    cleared = path.with_name("cleared.onnx")
    onnx.save(graph, cleared)
    head = [node.name for node in graph.graph.node if node.name.startswith(HEAD)]
    head += [f"{name}_MatMul" for name in head]  # what the quantiser makes of a Gemm
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
