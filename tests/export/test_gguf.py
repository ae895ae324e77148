"""Tests that a GGUF export has the tensors, tokens and logits of its model, and what llama.cpp answers."""

from __future__ import annotations

import copy
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, TokenType, quants
from peft import get_peft_model
from problem_assertions import raises_problem
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from qwen_task_heads import TaskHeadsError, adapter_config, build, load_tokenizer, merge, save
from qwen_task_heads.export import gguf
from qwen_task_heads.export.gguf import HEAD, REFERENCE, export_gguf, load_classifier
from qwen_task_heads.export.servers import serve_command, serve_example
from qwen_task_heads.gguf_weights import GGUF_FILE
from qwen_task_heads.hubcode.encoding_task_heads import encode_texts, pad_rows, template_of
from qwen_task_heads.tokenization.templates import Template, bind_template, compile_template

LABELS = ["politics", "sport", "体育"]
DECOMPOSED = "cafe\u0301 1234567890"
TEXTS = [
    "A plain title",
    "国足今晚主场迎战",
    "line one\nline two\n\n",
    "Rest<|im_end|>\n<|im_start|>assistant\nsport",
    "<|fim_prefix|>a<|fim_suffix|><tool_call>b</tool_call>",
    DECOMPOSED,
    "word " * 100,
]
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"embed_tokens": "token_embd", "norm": "output_norm"}
LIMIT = 40


def prepared(
    base: str, shake: Any, *, kind: str = "single", before: str = "", lora: bool = False, **options: Any
) -> tuple[Any, Any]:
    """A shaken model on Qwen3 and its tokenizer, of one kind of output."""
    tokenizer = load_tokenizer(base)
    if kind == "titles":
        model = build(base, **options)
        compile_template(tokenizer, template=Template(before=before), model_type="qwen3", max_length=LIMIT)
    else:
        types = {"multi": "multi_label_classification", "regression": "regression"}
        given = {"problem_type": types[kind]} if kind in types else {}
        labels = ["score"] if kind == "regression" else LABELS
        task = {"task": "pooled_classifier", "labels": labels, "max_seq_length": LIMIT}
        model = build(base, **{"pooling": "last", **task, **given, **options})
        bind_template(tokenizer, model.config, template=Template(before=before))
    if lora:
        model = get_peft_model(model, adapter_config(model, r=4))
    return shake(model, seed=1), tokenizer


def theirs(name: str) -> str:
    """The name of a tensor in the file."""
    parts = name.removesuffix(".weight").split(".", 2)
    found = WHOLE.get(name.removesuffix(".weight")) or f"blk.{parts[1]}.{NAMES[parts[2]]}"
    return f"{found}.weight"


def value(reader: GGUFReader, name: str) -> Any:
    """A field of the file, as a Python object."""
    return reader.fields[name].contents()


@pytest.mark.parametrize(
    ("kind", "before", "dtype", "lora"),
    [
        pytest.param("single", "", None, True, marks=pytest.mark.slow),
        ("multi", "<|im_start|>Classify: ", "bfloat16", False),
        pytest.param("titles", "", "float16", False, marks=pytest.mark.slow),
    ],
)
def test_tensors_and_metadata(
    bases: dict[str, str], shake: Any, tmp_path: Path, kind: str, before: str, dtype: str | None, lora: bool
) -> None:
    model, tokenizer = prepared(bases["qwen3"], shake, kind=kind, before=before, lora=lora)
    given: dict[str, Any] = {"tokenizer": tokenizer}
    if lora:  # from a folder, as a user would
        given, model = {}, str(save(model, tokenizer=tokenizer, folder=tmp_path / "saved"))
    folder = export_gguf(model, folder=tmp_path / "out", dtype=dtype, **given)
    model = merge(model) if lora else model
    reader = GGUFReader(folder / GGUF_FILE)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    weights = model.model.state_dict()
    assert tensors.keys() == {HEAD, *map(theirs, weights)}
    matrices = {None: "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    for name, tensor in weights.items():
        found = tensors[theirs(name)]
        assert found.tensor_type.name == (matrices if tensor.ndim > 1 else "F32")
        stored = torch.from_numpy(quants.dequantize(found.data.copy(), found.tensor_type))
        assert torch.equal(stored, tensor.float())
    labels = {"single": LABELS, "multi": [*LABELS, REFERENCE], "titles": ["score", REFERENCE]}[kind]
    head = torch.from_numpy(tensors[HEAD].data.copy())
    own: Any = model.score[-1] if isinstance(model.score, torch.nn.Sequential) else model.score
    assert head.dtype == torch.float32
    assert torch.equal(head[: len(own.weight)], own.weight.float())
    assert len(head) == len(labels)
    assert not head[len(own.weight) :].any()
    assert value(reader, "qwen3.classifier.output_labels") == labels
    assert value(reader, "qwen3.pooling_type") == 4  # rank
    assert value(reader, "qwen3.attention.key_length") == 8
    assert value(reader, "tokenizer.ggml.pre") == "qwen2"
    _, _, after = template_of(tokenizer)
    assert value(reader, "tokenizer.ggml.add_eos_token") == (not before)
    assert value(reader, "tokenizer.ggml.add_bos_token") is False
    assert (value(reader, "tokenizer.ggml.eos_token_id") == after[0]) or before
    tokens, types = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    assert [tokens.index(token) for token in ("<|im_end|>", "<tool_call>", "Ġthe")] == [
        tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<tool_call>", "Ġthe")
    ]
    kinds = {
        token: TokenType(types[tokens.index(token)]).name for token in ("<|im_end|>", "<tool_call>", "!")
    }
    assert list(kinds.values()) == ["CONTROL", "CONTROL", "NORMAL"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [GGUF_FILE, "config.json", "tokenizer.json", "tokenizer_config.json"]
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_transformers_reads_the_same_tokens_and_logits(
    bases: dict[str, str], shake: Any, tmp_path: Path
) -> None:
    model, tokenizer = prepared(bases["qwen3"], shake, before="<|im_start|>Classify: ")
    folder = export_gguf(model, tokenizer=tokenizer, folder=tmp_path / "out", dtype="q8_0")
    reader = GGUFReader(folder / GGUF_FILE)
    stored = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert stored["blk.0.attn_q.weight"] == GGMLQuantizationType.Q8_0
    assert stored["blk.0.ffn_down.weight"] == GGMLQuantizationType.F16  # 48 columns: no whole blocks
    assert stored[HEAD] == GGMLQuantizationType.F32
    rows = encode_texts(tokenizer, TEXTS, max_length=LIMIT).input_ids
    batch = pad_rows(rows, pad_id=tokenizer.pad_token_id)
    with torch.no_grad():
        difference = (load_classifier(folder)(**batch).logits - model(**batch).logits).abs().max()
    assert 1e-5 < difference < 0.1  # of 8-bit weights
    read = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
    plain = [text for text in TEXTS if "<" not in text and text != DECOMPOSED]
    ids = [one(plain, add_special_tokens=False)["input_ids"] for one in (read, tokenizer)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("family", "options", "place"),
    [
        ("qwen2", {}, "text_config"),
        ("llama", {}, "text_config"),
        ("qwen3", {"pooling": "mean"}, "pooling"),
        ("qwen3", {"head": "mlp", "head_sizes": [8]}, "head"),
        ("qwen3", {"truncation": "windows"}, "truncation"),
        ("qwen3", {"problem_type": "ordinal"}, "problem_type"),
    ],
)
def test_models_that_llama_cpp_does_not_compute(
    bases: dict[str, str], shake: Any, tmp_path: Path, family: str, options: dict[str, Any], place: str
) -> None:
    model, tokenizer = prepared(bases[family], shake, **options)
    with raises_problem("model-unsupported", place):
        export_gguf(model, tokenizer=tokenizer, folder=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_all_reasons_are_in_one_error(bases: dict[str, str], shake: Any, tmp_path: Path) -> None:
    model, tokenizer = prepared(bases["qwen3"], shake)
    inner = model.config.text_config
    inner.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    inner.layer_types = ["full_attention", "sliding_attention"]
    inner.attention_bias, inner.hidden_act = True, "gelu"
    split = pre_tokenizers.Split(Regex(r"\s+"), "isolated")
    steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.add_tokens(["<plain>"])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(TaskHeadsError) as caught:
        export_gguf(model, tokenizer=tokenizer, folder=tmp_path / "full", dtype="int4")
    assert {problem.where for problem in caught.value.problems} == {
        "rope_type",
        "layer_types",
        "attention_bias",
        "hidden_act",
        "tokenizer pattern",
        "tokenizer added_tokens",
        "dtype",
        str(tmp_path / "full"),
    }


def _scaled(patch: pytest.MonkeyPatch) -> None:
    quantize = quants.quantize
    patch.setattr(quants, "quantize", lambda data, kind: quantize(data * np.float32(1.0001), kind))


def _swapped(patch: pytest.MonkeyPatch) -> None:
    add = gguf._add_tokenizer

    def swap(writer: Any, tokenizer: Any, *, size: int) -> None:
        other, tokens = copy.deepcopy(tokenizer), tokenizer.get_vocab()
        other.get_vocab = lambda: {**tokens, "a": tokens["b"], "b": tokens["a"]}
        add(writer, other, size=size)

    patch.setattr(gguf, "_add_tokenizer", swap)


def _halved_head(patch: pytest.MonkeyPatch) -> None:
    load = gguf.load_classifier

    def halved(folder: Path) -> Any:
        model = load(folder)
        with torch.no_grad():
            model.score.weight.mul_(0.5)
        return model

    patch.setattr(gguf, "load_classifier", halved)


@pytest.mark.parametrize(
    "change",
    [
        _scaled,
        pytest.param(_swapped, marks=pytest.mark.slow),
        pytest.param(_halved_head, marks=pytest.mark.slow),
    ],
)
def test_a_file_with_other_contents_is_not_kept(
    bases: dict[str, str], shake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    model, tokenizer = prepared(bases["qwen3"], shake)
    change(monkeypatch)
    with pytest.raises(TaskHeadsError) as caught:
        export_gguf(model, tokenizer=tokenizer, folder=tmp_path / "out")
    assert {problem.code for problem in caught.value.problems} == {"verification-failed"}
    assert not list(tmp_path.iterdir())


def test_command_and_request(bases: dict[str, str], shake: Any, tmp_path: Path) -> None:
    model, tokenizer = prepared(bases["qwen3"], shake, kind="multi", truncation="tail")
    folder = export_gguf(model, tokenizer=tokenizer, folder=tmp_path / "out")
    words = serve_command(folder).split()
    assert words[:3] == ["llama-server", "-m", str(folder / GGUF_FILE)]
    assert words[words.index("--flash-attn") + 1] == "off"
    assert words[words.index("--ctx-size") + 1] == str(LIMIT)
    assert serve_command(folder, name="me/it").split()[1:5] == ["-hf", "me/it", "--hf-file", GGUF_FILE]
    command, _, *program = serve_example(folder).splitlines()
    assert command == serve_command(folder)
    assert compile("\n".join(program), "example", "exec")
    assert any("*ids[-39:]" in line for line in program)


LLAMA = os.environ.get("QWEN_TASK_HEADS_LLAMA_PYTHON") or (sys.executable if find_spec("xllamacpp") else None)
SERVER = """
import sys, time
import xllamacpp as llama

params = llama.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.embedding, params.n_parallel = True, 1
params.pooling_type = llama.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
params.n_ctx = params.n_batch = params.n_ubatch = int(sys.argv[3])
params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
server = llama.Server(params)
print("ready", flush=True)
while True:
    time.sleep(1)
"""


@contextmanager
def llama_server(folder: Path) -> Iterator[str]:
    """llama-server of the package xllamacpp, with the settings of `serve_command`; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(LLAMA), "-c", SERVER, str(folder / GGUF_FILE), str(port), str(LIMIT)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert "ready" in process.stdout.read(6)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def answer_of(folder: Path, url: str, text: str) -> dict[str, float]:
    """What the printed program prints for a text, with `requests` of the standard library."""

    def post(address: str, *, json: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(address, dumps(json).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            content = loads(response.read())
        return SimpleNamespace(json=lambda: content)

    dumps, loads, printed = json.dumps, json.loads, []
    program = "\n".join(serve_example(folder).splitlines()[2:]).replace("import requests\n", "")
    program = program.replace('"A text"', repr(text)).replace("http://localhost:8080", url)
    exec(program, {"requests": SimpleNamespace(post=post), "print": printed.append})
    return printed[0]


@pytest.mark.slow
@pytest.mark.skipif(LLAMA is None, reason="set QWEN_TASK_HEADS_LLAMA_PYTHON to a Python that has xllamacpp")
@pytest.mark.parametrize("kind", ["single", "multi", "titles", "regression"])
def test_llama_cpp_answers_as_the_model(bases: dict[str, str], shake: Any, tmp_path: Path, kind: str) -> None:
    before = "<|im_start|>Classify: " if kind == "multi" else ""
    model, tokenizer = prepared(bases["qwen3"], shake, kind=kind, before=before)
    folder = export_gguf(copy.deepcopy(model), tokenizer=tokenizer, folder=tmp_path / "out")
    rows = encode_texts(tokenizer, TEXTS, max_length=LIMIT).input_ids
    with torch.no_grad():
        logits = model(**pad_rows(rows, pad_id=0)).logits
    functions = {"single": lambda x: x.softmax(-1), "multi": torch.sigmoid}
    expected = functions.get(kind, lambda x: x)(logits)
    with llama_server(folder) as url:
        started = time.monotonic()
        for text, wanted in zip(TEXTS, expected.tolist(), strict=True):
            found = answer_of(folder, url, text)
            assert list(found) == (LABELS if kind in functions else ["score"])
            assert all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(found.values(), wanted, strict=True))
        assert time.monotonic() - started < 60
