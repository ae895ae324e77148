"""Check the files of a repo or folder before anything of it is loaded.

No code and no pickle of a repo is run. A hostile repo could still name files outside its folder, name the
code of another repo, or exhaust time and memory of its reader. So sizes of files are checked before they are
parsed, numbers must be those of a model, names of files must be plain names, and regular expressions are not
accepted. Repos of this library may contain only values that `save` writes. For a plain backbone only harmful
values raise an error.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.hubcode.configuration_task_heads import MODEL_TYPES
from qwen_task_heads.hubcode.families_task_heads import ALL_LINEAR, NO_TARGETS
from qwen_task_heads.hubcode.folder_task_heads import ADAPTER

NEAR = 5  # names of similar folders in a message
LARGEST = {  # bytes
    "config.json": 20_000_000,
    "adapter_config.json": 1_000_000,
    "adapter/adapter_config.json": 1_000_000,
    "model.safetensors.index.json": 20_000_000,
    "tokenizer_config.json": 20_000_000,
    "tokenizer.json": 90_000_000,
}
LIMITS = {  # of whole numbers in a config: above them, building the model would not end
    "num_hidden_layers": 1000,
    "num_labels": 200_000,
    "hidden_size": 100_000,
    "intermediate_size": 1_000_000,
    "vocab_size": 10_000_000,
    "num_attention_heads": 10_000,
    "num_experts": 10_000,
}
ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
NAMES = {dict: "a JSON object", list: "a list", int: "a whole number", str: "a text"}
KINDS: dict[str, type] = {
    "text_config": dict,
    "probe": dict,
    "id2label": dict,
    "label2id": dict,
    "template": dict,
    "layer_types": list,
    "head_layers": list,
    "max_seq_length": int,
    "backbone_layers": int,
    "window_overlap": int,
}
MODULES = re.compile(r"(configuration|modeling|pipeline)_task_heads\.\w+")
PROBE = (16, 64)  # rows and tokens, at most
# Fields that PEFT reads as regular expressions if they are texts; a hostile expression may never end.
TEXTS = ("layers_pattern", "exclude_modules", "target_parameters")
KEYS = ("rank_pattern", "alpha_pattern")
FIX = "do not use it unless you trust its author; in that case save() it again"


def _invalid(where: str, problem: str, expected: str) -> Problem:
    return Problem(where, problem, expected, FIX, code="config-invalid")


def _untrusted(where: str, problem: str, expected: str) -> Problem:
    return Problem(where, problem, expected, FIX, code="code-untrusted")


def _malformed(where: str, problem: str, expected: str) -> Problem:
    return Problem(where, problem, expected, FIX, code="file-format")


def check_repo(path: str, *, revision: str | None = None) -> None:
    """Raise for a repo or folder whose files would be harmful or would block their reader.

    Args:
        path: a folder or an id; missing files are reported by the loader.
        revision: revision of an id.

    Raises:
        TaskHeadsError: all problems that were found.
    """
    problems: list[Problem] = []
    config = _read(path, "config.json", revision, problems)
    index = _read(path, "model.safetensors.index.json", revision, problems)
    if config is not None:
        problems += _check_numbers(path, config)
        kind = config.get("model_type")
        if kind is not None and not isinstance(kind, str):
            problem = f"found model_type {shorten(kind)}"
            raise TaskHeadsError(_invalid(f"{path}/config.json", problem, "a text"))
        if config.get("model_type") in MODEL_TYPES:
            problems += _check_kinds(path, config) or _check_own_config(path, config)
            for name in ("adapter_config.json", f"{ADAPTER}/adapter_config.json"):  # version 0.1; current
                adapter = _read(path, name, revision, problems)
                problems += _check_adapter(f"{path}/{name}", adapter or {})
            problems += _check_links(path)
    shards = (index or {}).get("weight_map")
    names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
    problems += [
        _untrusted(
            f"{path}/model.safetensors.index.json",
            f"found {shorten(name)}",
            "names of files in the same folder",
        )
        for name in sorted(names)
        if not re.fullmatch(r"[\w.-]+\.safetensors", name)
    ]
    if problems:
        raise TaskHeadsError(problems)


def check_tokenizer(path: str, *, revision: str | None = None) -> None:
    """Raise for a tokenizer with its own code, or with files that are too large.

    Raises:
        TaskHeadsError: all problems that were found.
    """
    problems: list[Problem] = []
    config = _read(path, "tokenizer_config.json", revision, problems)
    _find(path, "tokenizer.json", revision, problems)
    if config and config.get("auto_map"):
        problems.append(
            _untrusted(
                f"{path}/tokenizer_config.json",
                f"auto_map {shorten(config['auto_map'])} names code of the repo",
                "a tokenizer of transformers",
            )
        )
    if problems:
        raise TaskHeadsError(problems)


def _find(path: str, name: str, revision: str | None, problems: list[Problem]) -> Path | None:
    """Return the file of a folder or repo, if it exists and is not too large."""
    file = Path(path, name)
    if not Path(path).is_dir():
        try:
            found = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError):  # no such repo or no network, which the loader reports
            return None
        file = Path(found) if found else file
    if not file.is_file():
        return None
    if (size := file.stat().st_size) > LARGEST[name]:
        problems.append(_malformed(f"{path}/{name}", f"found {size:,} bytes", f"at most {LARGEST[name]:,}"))
        return None
    return file


def _read(path: str, name: str, revision: str | None, problems: list[Problem]) -> dict[str, Any] | None:
    file = _find(path, name, revision, problems)
    if file is None:
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = f"the file is not valid JSON ({type(error).__name__})"
        problems.append(_malformed(f"{path}/{name}", reason, "JSON in UTF-8"))
        return None
    if not isinstance(content, dict):
        kind = f"found a {type(content).__name__}"
        problems.append(_malformed(f"{path}/{name}", kind, "a JSON object"))
        return None
    return content


def _check_kinds(path: str, config: dict[str, Any]) -> list[Problem]:
    """Return problems of fields whose type no loader expects, which would end in a traceback."""
    where, problems = f"{path}/config.json", []
    inner = config.get("text_config")
    for prefix, part in (("", config), ("text_config.", inner if isinstance(inner, dict) else {})):
        for name, kind in KINDS.items():
            value = part.get(name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                problems.append(_invalid(where, f"found {prefix}{name} {shorten(value)}", NAMES[kind]))
    probe = config.get("probe")
    if isinstance(probe, dict):
        for name in ("input_ids", "logits"):
            rows = probe.get(name)
            lists = rows if isinstance(rows, list) else [None]
            items = [item for row in lists for item in (row if isinstance(row, list) else [None])]
            if not all(isinstance(item, (int, float)) for item in items):
                problems.append(_invalid(where, f"found probe.{name} {shorten(rows)}", "rows of numbers"))
    return problems


def _check_numbers(path: str, config: dict[str, Any]) -> list[Problem]:
    """Return problems of sizes in the config and its nested config, and of attention code on a hub."""
    problems, where = [], f"{path}/config.json"
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for name, limit in LIMITS.items():
            value = part.get(name)
            if isinstance(value, str):
                problems.append(_invalid(where, f"found {name} {shorten(value)}", "a number"))
            if isinstance(value, (int, float)) and not 0 <= value <= limit:
                problems.append(_invalid(where, f"found {name} {value:.10g}", f"0 to {limit:,}"))
        for name in ATTENTION_KEYS:
            if part.get(name) not in ATTENTION:
                known = ", ".join(map(str, ATTENTION[1:]))
                problems.append(_untrusted(where, f"found {name} {shorten(part[name])}", known))
    return problems


def _check_own_config(path: str, config: dict[str, Any]) -> list[Problem]:
    """Return problems of values that `save` never writes into a config of this library."""
    where, problems = f"{path}/config.json", []
    auto_map = config.get("auto_map") or {}
    pipelines = config.get("custom_pipelines") or {}
    if not isinstance(auto_map, dict) or not isinstance(pipelines, dict):
        return [_invalid(where, "auto_map or custom_pipelines has another type", "JSON objects")]
    named = {
        **{f"auto_map {auto}": name for auto, name in auto_map.items()},
        **{
            f"custom_pipelines {task}": entry.get("impl") if isinstance(entry, dict) else entry
            for task, entry in pipelines.items()
        },
    }
    expected = "code files of this library next to the config"
    problems += [
        _untrusted(where, f"found {key} {shorten(name)}", expected)
        for key, name in named.items()
        if not isinstance(name, str) or not MODULES.fullmatch(name)
    ]
    sizes = config.get("head_sizes") or []
    if not isinstance(sizes, list) or len(sizes) > 100 or any(s > 1_000_000 for s in map(_number, sizes)):
        problems.append(
            _invalid(where, f"found head_sizes {shorten(sizes)}", "at most 100 sizes, each below 1,000,000")
        )
    layers = config.get("head_layers") or []
    if len(layers) > LIMITS["num_hidden_layers"]:
        problems.append(_invalid(where, f"found {len(layers):,} head_layers", "distinct layer numbers"))
    rows = (config.get("probe") or {}).get("input_ids", [])
    if len(rows) > PROBE[0] or any(len(row) > PROBE[1] for row in rows):
        largest = f"at most {PROBE[0]} rows of {PROBE[1]} tokens"
        problems.append(_invalid(where, "the probe has too many tokens", largest))
    return problems


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("inf")


def _check_adapter(where: str, adapter: dict[str, Any]) -> list[Problem]:
    """Return problems of an adapter that is not a LoRA with plain names of modules."""
    problems = []
    if adapter and adapter.get("peft_type") != "LORA":
        problems.append(_invalid(where, f"found peft_type {shorten(adapter.get('peft_type'))}", "LORA"))
    if adapter.get("auto_mapping"):
        problems.append(
            _untrusted(
                where,
                f"found auto_mapping {shorten(adapter['auto_mapping'])}",
                "an adapter config without auto_mapping",
            )
        )
    if isinstance(adapter.get("r"), int) and adapter["r"] > 100_000:
        problems.append(_invalid(where, f"found r {adapter['r']}", "a rank up to 100,000"))
    targets = adapter.get("target_modules")
    if isinstance(targets, str) and targets not in (ALL_LINEAR, NO_TARGETS):
        problems.append(_invalid(where, f"found target_modules {shorten(targets)}", "a list of names"))
    problems += [
        _invalid(where, f"found {name} {shorten(adapter[name])}", "a list of names")
        for name in TEXTS
        if isinstance(adapter.get(name), str)
    ]
    problems += [
        _invalid(where, f"found {name} {shorten(key)}", "names of modules")
        for name in KEYS
        for key in adapter.get(name) or {}
        if not re.fullmatch(r"[\w.]+", str(key))
    ]
    return problems


def _check_links(path: str) -> list[Problem]:
    """Return problems of links out of a folder; a hub's client links to its `blobs`, two folders up."""
    folder = Path(path)
    if not folder.is_dir():
        return []
    real = folder.resolve()
    within = [real, real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [real]
    return [
        _untrusted(str(file), f"found a link to {shorten(file.resolve())}", "files inside the folder")
        for file in sorted([*folder.iterdir(), *(folder / ADAPTER).glob("*")])
        if file.is_symlink() and not any(file.resolve().is_relative_to(place) for place in within)
    ]


def commit_of(path: str, revision: str | None) -> str | None:
    """Return the commit of a hub repo's `config.json`; None for a folder, which is pinned by hashes.

    Raises:
        TaskHeadsError: a cache that does not record the commit.
    """
    if Path(path).is_dir():
        return None
    file = Path(cached_file(path, "config.json", revision=revision))
    found = re.search(r"snapshots/([0-9a-f]{40})/", file.as_posix())
    if found is None:
        raise error_at(
            path,
            "its cache does not record the commit",
            "a base that can be pinned",
            "clear its cache, or download it and give the folder",
            code="model-not-found",
        )
    return found[1]


def not_there(path: str, error: Exception, what: str) -> TaskHeadsError:
    """Return the error of a name without a model, with the names of similar folders.

    Args:
        path: name as the user gave it.
        error: error of the loader.
        what: the missing object: `a model`, `a tokenizer`.
    """
    folder, reason = Path(path), str(error).splitlines()[0][:160]
    if not folder.exists() and _is_folder_name(path):
        parent = next(place for place in (*folder.parents, Path()) if place.is_dir())
        existing = sorted(entry.name for entry in parent.iterdir() if entry.is_dir())
        wanted = folder.name if parent == folder.parent else folder.relative_to(parent).parts[0]
        near = difflib.get_close_matches(wanted, existing, n=NEAR) or existing[:NEAR]
        repo = f", and no repo has this id ({reason})" if re.fullmatch(r"\w[^/]*/[^/]+", path) else ""
        return error_at(
            path,
            f"the folder does not exist{repo}",
            f"a folder with {what}, or a repo id",
            f"check the name (folders in {str(parent)!r}: {', '.join(near) or 'none'})",
            code="model-not-found",
        )
    return error_at(
        path,
        f"{what} was not found ({reason})",
        f"a repo id or folder with {what}, or {EMBEDDED!r}",
        "check the name, the network and HF_TOKEN",
        code="model-not-found",
    )


def _is_folder_name(name: str) -> bool:
    """Return whether a name means a folder: by its first character, depth, or an existing parent."""
    path = Path(name)
    own_parent = len(path.parts) > 1 and path.parent.is_dir()
    return name.startswith((".", "/", "~")) or path.is_absolute() or len(path.parts) > 2 or own_parent
