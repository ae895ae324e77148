"""Export a linear last-token model on Qwen3 to GGUF with the classifier of llama.cpp.

With pooling `rank` llama.cpp multiplies the state of the last token by `cls.output.weight` and answers one
number per label. Of the decoders, it reads that tensor for Qwen3 only. A file of Qwen2 or Llama with a head
does not load ("wrong number of tensors"), so these families are refused here. It always applies softmax. For
scores without one (multi-label, regression, titles) the head gets a last row of zeros, `REFERENCE`: with it
`log(p[i] / p[-1])` is the logit of label i, and `p[i] / (p[i] + p[-1])` its sigmoid.

The folder has `model.gguf`, and config and tokenizer in their usual files. Before it gets its final name, the
file is read by the loader of transformers: tokens, merges, every weight, and the logits are compared with
those of the model. `servers.serve_example` has the command and a request to llama-server.

Source: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-graph.cpp (`build_pooling`); the format:
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from qwen_task_heads.dtypes import DTYPES, store_in
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at
from qwen_task_heads.export.llama_server import has_reference
from qwen_task_heads.export.shared import (
    TOLERANCE,
    check_difference,
    float_logits,
    folder_problems,
    last_token_problems,
    load_merged,
    make_portable,
    server_config,
    staging_folder,
    unmet,
    verification_rows,
)
from qwen_task_heads.export.stock import choose_pad
from qwen_task_heads.gguf_weights import GGUF_FILE, require_gguf
from qwen_task_heads.hubcode.encoding_task_heads import PARTS, TEMPLATE_KEY, pad_rows, template_of
from qwen_task_heads.hubcode.saving_task_heads import embedding_rows
from qwen_task_heads.hubs import HUGGINGFACE

HEAD = "cls.output.weight"
REFERENCE = "reference"  # label of the row of zeros
ARCHITECTURE = "Qwen3ForSequenceClassification"
FIX = "publish the model with save(), or export it with export_stock()"
Q8_0 = "q8_0"
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", Q8_0: "Q8_0"}  # names of ggml
# Relative difference of logits that 8-bit blocks of 32 weights may cause.
Q8_TOLERANCE = 8e-2
# Split pattern of the pre-tokenizer that llama.cpp calls `qwen2`; it has that of Qwen2 and Qwen3.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def export_gguf(
    model_or_folder: Any,
    *,
    tokenizer: Any = None,
    folder: str | Path,
    revision: str | None = None,
    hub: str = HUGGINGFACE,
    dtype: str | None = None,
) -> Path:
    """Export a model as a GGUF file that llama.cpp serves with pooling `rank`.

    Args:
        model_or_folder: a `PooledClassifier` or `TitleScorer` on Qwen3, a `PeftModel` around one, or the
            folder or repo of one. An adapter is merged first, into a given model in place.
        tokenizer: with the compiled template; None for the one in the folder.
        folder: new or empty folder to write.
        revision: branch, tag or commit of a repo.
        hub: hub of the ids, also of an adapter's base: `huggingface` or `modelscope`.
        dtype: `float32`, `float16`, `bfloat16` or `q8_0` for the matrices of the backbone; None for that of
            the model. Norms and head are stored in fp32.

    Returns:
        The folder, with `model.gguf`.

    Raises:
        TaskHeadsError: an unsupported model or tokenizer, with all reasons; the package `gguf` is not
            installed; or a file that transformers reads as another model.

    Example:
        >>> import tempfile
        >>> from transformers import Qwen3Config, Qwen3Model
        >>> from qwen_task_heads import build, load_tokenizer
        >>> from qwen_task_heads.export.gguf import export_gguf
        >>> from qwen_task_heads.tokenization.templates import bind_template
        >>> tokenizer = load_tokenizer("embedded")
        >>> sizes = {"vocab_size": 5120, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16}
        >>> heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Qwen3Model(Qwen3Config(**sizes, **heads)).save_pretrained(f"{root}/base")
        ...     _ = tokenizer.save_pretrained(f"{root}/base")
        ...     model = build(f"{root}/base", task="pooled_classifier", labels=["no", "yes"])
        ...     bind_template(tokenizer, model.config)
        ...     folder = export_gguf(model, tokenizer=tokenizer, folder=f"{root}/gguf")
        ...     sorted(path.name for path in folder.iterdir())
        ['config.json', 'model.gguf', 'tokenizer.json', 'tokenizer_config.json']
    """
    require_gguf("export_gguf()")
    folder = Path(folder)
    model, tokenizer = load_merged(model_or_folder, tokenizer=tokenizer, revision=revision, hub=hub)
    problems = [
        *gguf_problems(model),
        *_unknown_tokenizer(tokenizer),
        *choose_pad(tokenizer, rows=embedding_rows(model)),
        *folder_problems(folder),
    ]
    stored = dtype or str(model.dtype).removeprefix("torch.")
    problems += unmet([("dtype", stored, stored in STORED, ", ".join(STORED))], fix="choose one of them")
    if problems:
        raise TaskHeadsError(problems)
    if dtype in DTYPES:
        store_in(model, dtype=dtype)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"
    # The request of `llama_server` reads the template, also of a tokenizer without a compiled one.
    tokenizer.init_kwargs.setdefault(TEMPLATE_KEY, dict(zip(PARTS, template_of(tokenizer), strict=True)))
    with staging_folder(folder) as staged:
        staged.mkdir()
        default = "regression" if model.config.num_labels == 1 else "single_label_classification"
        config = server_config(
            model,
            architecture=ARCHITECTURE,
            problem_type=model.config.problem_type or default,
            pad_id=tokenizer.pad_token_id,
        )
        config.dtype = str(model.dtype).removeprefix("torch.")
        config.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        make_portable(staged)
        _write(model, tokenizer, staged / GGUF_FILE, stored=stored)
        _verify(model, tokenizer, staged, exact=stored != Q8_0)
    return folder


def load_classifier(folder: str | Path) -> Any:
    """Load the file of an export with transformers: the backbone by its GGUF loader, and the head.

    transformers does not read the head, so that it is set here from `cls.output.weight`. The sizes are those
    of `config.json`, because the loader ignores the width of the attention heads.

    Args:
        folder: written by `export_gguf`.

    Returns:
        The class of transformers, in fp32 and eval mode.
    """
    from gguf import GGUFReader

    folder = Path(folder)
    config = AutoConfig.from_pretrained(folder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the missing head, which is set below
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, gguf_file=GGUF_FILE, config=config, dtype=torch.float32
        )
    finally:
        logging.set_verbosity(verbosity)
    [head] = [tensor.data for tensor in GGUFReader(folder / GGUF_FILE).tensors if tensor.name == HEAD]
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(head[: config.num_labels].copy()))
    return model.eval()


def gguf_problems(model: Any, *, fix: str = FIX) -> list[Problem]:
    """Return the settings of a model that llama.cpp does not compute.

    Args:
        model: a `PooledClassifier` or `TitleScorer`, trained or not.
        fix: fix of the problems.
    """
    config, inner = model.config, model.config.text_config
    family = inner.model_type
    rules = [("text_config", family, family == "qwen3", "qwen3, the only decoder whose head llama.cpp reads")]
    if family == "qwen3":
        rope = inner.rope_parameters["rope_type"]
        kinds = sorted(set(inner.layer_types))
        rules += [
            ("rope_type", rope, rope == "default", "default"),
            ("layer_types", kinds, kinds == ["full_attention"], "full_attention"),
            ("attention_bias", inner.attention_bias, not inner.attention_bias, "false"),
            ("hidden_act", inner.hidden_act, inner.hidden_act == "silu", "silu"),
        ]
    head = ("head", config.head, config.head == "linear", "linear")
    return [*unmet([*rules, head], fix=fix), *last_token_problems(model, fix=fix)]


def _unknown_tokenizer(tokenizer: Any) -> list[Problem]:
    """Return the parts of a tokenizer for which llama.cpp would give other ids."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    normalizer = (content["normalizer"] or {}).get("type")
    steps = (content["pre_tokenizer"] or {}).get("pretokenizers") or [content["pre_tokenizer"] or {}]
    pattern = (steps[0].get("pattern") or {}).get("Regex")
    kinds = [step.get("type") for step in steps]
    plain = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.special]
    rules = [
        ("tokenizer model", content["model"]["type"], content["model"]["type"] == "BPE", "BPE"),
        ("tokenizer normalizer", normalizer, normalizer in (None, "NFC"), "NFC or none"),
        ("tokenizer pre_tokenizer", kinds, kinds == ["Split", "ByteLevel"], "Split and ByteLevel"),
        ("tokenizer pattern", pattern, pattern == QWEN2_PATTERN, "that of Qwen2, which llama.cpp has"),
        ("tokenizer added_tokens", plain, not plain, "control tokens alone, as with a compiled template"),
    ]
    return unmet(rules, fix=FIX)


def _write(model: Any, tokenizer: Any, path: Path, *, stored: str) -> None:
    """Write the file: sizes, tokenizer, labels and tensors."""
    from gguf import (
        GGML_QUANT_VERSION,
        MODEL_ARCH,
        GGMLQuantizationType,
        GGUFWriter,
        LlamaFileType,
        PoolingType,
        get_tensor_name_map,
        quants,
    )

    config = model.config.text_config
    writer = GGUFWriter(path, "qwen3")
    name = STORED[stored]
    writer.add_type("model")
    writer.add_file_type(LlamaFileType.ALL_F32 if name == "F32" else LlamaFileType[f"MOSTLY_{name}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_pooling_type(PoolingType.RANK)
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    linear: Any = model.score[-1] if isinstance(model.score, torch.nn.Sequential) else model.score
    head = linear.weight.detach().float().cpu()
    if has_reference(model.config.to_dict()):
        labels.append(REFERENCE)
        head = torch.cat([head, torch.zeros_like(head[:1])])
    writer.add_array("qwen3.classifier.output_labels", labels)
    _add_tokenizer(writer, tokenizer, size=embedding_rows(model))
    names = get_tensor_name_map(MODEL_ARCH.QWEN3, config.num_hidden_layers)
    for ours, tensor in model.model.state_dict().items():
        values = tensor.detach().float().cpu().numpy()
        kind = GGMLQuantizationType[name if values.ndim > 1 else "F32"]  # as llama.cpp expects of norms
        if kind is GGMLQuantizationType.Q8_0 and values.shape[-1] % 32:
            kind = GGMLQuantizationType.F16
        theirs = names[f"model.{ours}".removesuffix(".weight")] + ".weight"
        writer.add_tensor(theirs, quants.quantize(values, kind), raw_dtype=kind)
    writer.add_tensor(HEAD, head.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, tokenizer: Any, *, size: int) -> None:
    """Add tokens, merges and special tokens.

    If the template is at most one token on each side, these are BOS and EOS, so that llama.cpp adds them to a
    text. Any other template is added by the client, see `llama_server.py`.
    """
    from gguf import TokenType

    tokens = [f"[PAD{index}]" for index in range(size)]  # rows of the embeddings without a token
    types = [TokenType.UNUSED] * size
    for token, index in tokenizer.get_vocab().items():
        tokens[index], types[index] = token, TokenType.NORMAL
    for index in tokenizer.added_tokens_decoder:
        types[index] = TokenType.CONTROL  # not matched in texts if the request switches that off
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(_merges(tokenizer))
    before, _, after = template_of(tokenizer)
    by_flags = len(before) <= 1 and len(after) <= 1
    begin = before[0] if by_flags and before else tokenizer.bos_token_id
    end = after[0] if by_flags and after else tokenizer.eos_token_id
    if begin is not None:
        writer.add_bos_token_id(begin)
    if end is not None:
        writer.add_eos_token_id(end)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(by_flags and bool(before))
    writer.add_add_eos_token(by_flags and bool(after))


def _merges(tokenizer: Any) -> list[str]:
    """Return the merges of a BPE tokenizer, as pairs with a space."""
    pairs = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]


@torch.no_grad()
def _verify(model: Any, tokenizer: Any, folder: Path, *, exact: bool) -> None:
    """Compare the file, read by transformers, with the model: tokens, weights, logits."""
    where = str(folder)
    opened = load_classifier(folder)
    expected_weights = {f"model.{name}": tensor for name, tensor in model.model.state_dict().items()}
    found_weights = opened.state_dict()
    differing = [
        name
        for name, tensor in expected_weights.items()
        if exact and not torch.equal(found_weights[name], tensor.detach().float().cpu())
    ]
    reader = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
    vocabulary = reader.get_vocab()
    if _merges(reader) != _merges(tokenizer) or any(
        vocabulary.get(token) != index for token, index in tokenizer.get_vocab().items()
    ):
        differing.append("tokenizer")
    if differing:
        raise error_at(
            where,
            f"transformers reads another {differing[0]} from the file",
            "the weights and tokens of the model",
            FIX,
            code="verification-failed",
        )
    rows = verification_rows(model, tokenizer)
    batch = pad_rows(rows, pad_id=tokenizer.pad_token_id)
    check_difference(
        opened(**batch).logits,
        float_logits(model, batch),
        tolerance=TOLERANCE if exact else Q8_TOLERANCE,
        where=where,
        runtime=f"the {GGUF_FILE} that transformers reads",
    )
