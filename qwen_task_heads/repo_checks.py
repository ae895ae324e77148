"""What a name leads to, and whether it may be opened: looked at before anything of it is loaded.

No code and no pickle of a repo runs here, so what is left to a hostile one is to lead out of its folder, to
name somebody else's code, or to make its reader work without end. Files are small before they are parsed,
numbers are those of a model, names of files are names, patterns are none. What a repo of ours may say is
narrow, because all of ours is written by `save`; of a plain backbone only what could hurt is refused.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from qwen_task_heads.backbones import ALL_LINEAR, EMBEDDED
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.configuration_task_heads import MODEL_TYPES
from qwen_task_heads.hubcode.folder_task_heads import ADAPTER

NEAR = 5  # names of other folders in a message
LARGEST = {  # bytes
    "config.json": 20_000_000, "adapter_config.json": 1_000_000, "adapter/adapter_config.json": 1_000_000,
    "model.safetensors.index.json": 20_000_000,
    "tokenizer_config.json": 20_000_000, "tokenizer.json": 90_000_000,
}  # fmt: skip
LIMITS = {  # of whole numbers in a config: above, building the model alone takes without end
    "num_hidden_layers": 1000, "num_labels": 200_000, "hidden_size": 100_000, "intermediate_size": 1_000_000,
    "vocab_size": 10_000_000, "num_attention_heads": 10_000, "num_experts": 10_000,
}  # fmt: skip
ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
NAMES = {dict: "a JSON object", list: "a list", int: "a whole number", str: "a text"}
KINDS: dict[str, type] = {
    "text_config": dict, "probe": dict, "id2label": dict, "label2id": dict, "template": dict,
    "layer_types": list, "head_layers": list, "max_seq_length": int, "backbone_layers": int,
    "window_overlap": int,
}  # fmt: skip
MODULES = re.compile(r"(configuration|modeling|pipeline)_task_heads\.\w+")
PROBE = (16, 64)  # rows and tokens, at most
NO_TARGETS = "dummy-target-modules"  # PEFT's own word
# What PEFT takes as regular expressions where it is a text; a hostile one never ends.
TEXTS = ("layers_pattern", "exclude_modules", "target_parameters")
KEYS = ("rank_pattern", "alpha_pattern")
REMEDY = "do not use it, unless you know who made it; then save() it anew"


def check_repo(path: str, *, revision: str | None = None) -> None:
    """Refuse a repo or folder whose files would harm or hold up who opens it.

    Args:
        path: a folder or an id; what is not there is left to the loader to say.
        revision: of an id.

    Raises:
        TaskHeadsError: everything that was found.
    """
    problems: list[Problem] = []
    config = _read(path, "config.json", revision, problems)
    index = _read(path, "model.safetensors.index.json", revision, problems)
    if config is not None:
        problems += _check_numbers(path, config)
        kind = config.get("model_type")
        if kind is not None and not isinstance(kind, str):
            raise TaskHeadsError(_problem(f"{path}/config.json", f"model_type {shorten(kind)}", "a text"))
        if config.get("model_type") in MODEL_TYPES:
            problems += _check_kinds(path, config) or _check_ours(path, config)
            for name in ("adapter_config.json", f"{ADAPTER}/adapter_config.json"):  # of version 0.1, of today
                adapter = _read(path, name, revision, problems)
                problems += _check_adapter(f"{path}/{name}", adapter or {})
            problems += _check_links(path)
    shards = (index or {}).get("weight_map")
    names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
    problems += [
        _problem(f"{path}/model.safetensors.index.json", shorten(name), "names of files beside it")
        for name in sorted(names)
        if not re.fullmatch(r"[\w.-]+\.safetensors", name)
    ]
    if problems:
        raise TaskHeadsError(problems)


def check_tokenizer(path: str, *, revision: str | None = None) -> None:
    """Refuse a tokenizer that brings code, or files no tokenizer needs.

    Raises:
        TaskHeadsError: what was found.
    """
    problems: list[Problem] = []
    config = _read(path, "tokenizer_config.json", revision, problems)
    _find(path, "tokenizer.json", revision, problems)
    if config and config.get("auto_map"):
        found = f"auto_map {shorten(config['auto_map'])}, code of its own"
        problems.append(_problem(f"{path}/tokenizer_config.json", found, "a tokenizer of transformers"))
    if problems:
        raise TaskHeadsError(problems)


def _find(path: str, name: str, revision: str | None, problems: list[Problem]) -> Path | None:
    """The file of a folder or repo, if it is there and not too large."""
    file = Path(path, name)
    if not Path(path).is_dir():
        try:
            found = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError):  # no such repo, no network: the loader says so
            return None
        file = Path(found) if found else file
    if not file.is_file():
        return None
    if (size := file.stat().st_size) > LARGEST[name]:
        problems.append(_problem(f"{path}/{name}", f"{size:,} bytes", f"at most {LARGEST[name]:,}"))
        return None
    return file


def _read(path: str, name: str, revision: str | None, problems: list[Problem]) -> dict[str, Any] | None:
    file = _find(path, name, revision, problems)
    if file is None:
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        problems.append(_problem(f"{path}/{name}", f"no JSON ({type(error).__name__})", "JSON in UTF-8"))
        return None
    if not isinstance(content, dict):
        problems.append(_problem(f"{path}/{name}", f"a {type(content).__name__}", "a JSON object"))
        return None
    return content


def _check_kinds(path: str, config: dict[str, Any]) -> list[Problem]:
    """Fields whose value is of another kind than any loader expects, which would end in its traceback."""
    where, problems = f"{path}/config.json", []
    inner = config.get("text_config")
    for prefix, part in (("", config), ("text_config.", inner if isinstance(inner, dict) else {})):
        for name, kind in KINDS.items():
            value = part.get(name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                problems.append(_problem(where, f"{prefix}{name} {shorten(value)}", NAMES[kind]))
    probe = config.get("probe")
    if isinstance(probe, dict):
        for name in ("input_ids", "logits"):
            rows = probe.get(name)
            lists = rows if isinstance(rows, list) else [None]
            items = [item for row in lists for item in (row if isinstance(row, list) else [None])]
            if not all(isinstance(item, (int, float)) for item in items):
                problems.append(_problem(where, f"probe.{name} {shorten(rows)}", "rows of numbers"))
    return problems


def _check_numbers(path: str, config: dict[str, Any]) -> list[Problem]:
    """Sizes of the config and of the config inside it, and attention that is code of a hub."""
    problems, where = [], f"{path}/config.json"
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for name, limit in LIMITS.items():
            value = part.get(name)
            if isinstance(value, str):
                problems.append(_problem(where, f"{name} {shorten(value)}", "a number"))
            if isinstance(value, (int, float)) and not 0 <= value <= limit:
                problems.append(_problem(where, f"{name} {value:.10g}", f"0 to {limit:,}"))
        for name in ATTENTION_KEYS:
            if part.get(name) not in ATTENTION:
                accepted = ", ".join(map(str, ATTENTION[1:]))
                problems.append(_problem(where, f"{name} {shorten(part[name])}", accepted))
    return problems


def _check_ours(path: str, config: dict[str, Any]) -> list[Problem]:
    """What `save` never writes into a config of ours."""
    where, problems = f"{path}/config.json", []
    auto_map = config.get("auto_map") or {}
    pipelines = config.get("custom_pipelines") or {}
    if not isinstance(auto_map, dict) or not isinstance(pipelines, dict):
        return [_problem(where, "auto_map or custom_pipelines of another kind", "JSON objects")]
    named = {
        **{f"auto_map {auto}": name for auto, name in auto_map.items()},
        **{
            f"custom_pipelines {task}": entry.get("impl") if isinstance(entry, dict) else entry
            for task, entry in pipelines.items()
        },
    }
    accepted = "the files of this library, beside the config"
    problems += [
        _problem(where, f"{key} {shorten(name)}", accepted)
        for key, name in named.items()
        if not isinstance(name, str) or not MODULES.fullmatch(name)
    ]
    sizes = config.get("head_sizes") or []
    if not isinstance(sizes, list) or len(sizes) > 100 or any(s > 1_000_000 for s in map(_number, sizes)):
        problems.append(_problem(where, f"head_sizes {shorten(sizes)}", "at most 100, each below 1,000,000"))
    layers = config.get("head_layers") or []
    if len(layers) > LIMITS["num_hidden_layers"]:
        problems.append(_problem(where, f"{len(layers):,} head_layers", "numbers of layers, each one once"))
    rows = (config.get("probe") or {}).get("input_ids", [])
    if len(rows) > PROBE[0] or any(len(row) > PROBE[1] for row in rows):
        problems.append(_problem(where, "a probe of many tokens", f"{PROBE[0]} rows of {PROBE[1]} at most"))
    return problems


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("inf")


def _check_adapter(where: str, adapter: dict[str, Any]) -> list[Problem]:
    """An adapter of ours is a LoRA that names its modules by their names."""
    problems = []
    if adapter and adapter.get("peft_type") != "LORA":
        problems.append(_problem(where, f"peft_type {shorten(adapter.get('peft_type'))}", "LORA"))
    if adapter.get("auto_mapping"):
        problems.append(_problem(where, f"auto_mapping {shorten(adapter['auto_mapping'])}", "none"))
    if isinstance(adapter.get("r"), int) and adapter["r"] > 100_000:
        problems.append(_problem(where, f"r {adapter['r']}", "a rank up to 100,000"))
    targets = adapter.get("target_modules")
    if isinstance(targets, str) and targets not in (ALL_LINEAR, NO_TARGETS):
        problems.append(_problem(where, f"target_modules {shorten(targets)}", "a list of names"))
    problems += [
        _problem(where, f"{name} {shorten(adapter[name])}", "a list of names")
        for name in TEXTS
        if isinstance(adapter.get(name), str)
    ]
    problems += [
        _problem(where, f"{name} {shorten(key)}", "names of modules")
        for name in KEYS
        for key in adapter.get(name) or {}
        if not re.fullmatch(r"[\w.]+", str(key))
    ]
    return problems


def _check_links(path: str) -> list[Problem]:
    """Files of a folder that lie elsewhere. A hub's client links to its `blobs`, two folders up."""
    folder = Path(path)
    if not folder.is_dir():
        return []
    real = folder.resolve()
    within = [real, real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [real]
    return [
        _problem(str(file), f"a link to {shorten(file.resolve())}", "files that lie in the folder")
        for file in sorted([*folder.iterdir(), *(folder / ADAPTER).glob("*")])
        if file.is_symlink() and not any(file.resolve().is_relative_to(place) for place in within)
    ]


def _problem(where: str, found: str, accepted: str, remedy: str = REMEDY) -> Problem:
    return Problem(where, f"found {found}", accepted, remedy)


def commit_of(path: str, revision: str | None) -> str | None:
    """The commit that a hub repo's `config.json` came from; None for a folder, which is pinned by hashes.

    Raises:
        TaskHeadsError: a cache that does not say.
    """
    if Path(path).is_dir():
        return None
    file = Path(cached_file(path, "config.json", revision=revision))
    found = re.search(r"snapshots/([0-9a-f]{40})/", file.as_posix())
    if found is None:
        remedy = "clear its cache, or download it and give the folder"
        raise TaskHeadsError(
            _problem(path, "a cache without its commit", "a base that can be pinned", remedy)
        )
    return found[1]


def not_there(path: str, error: Exception, what: str) -> TaskHeadsError:
    """The error of a name that leads nowhere, with the folders that have one like it.

    Args:
        path: as the user named it.
        error: of the loader.
        what: should be there: `a model`, `a tokenizer`.
    """
    folder, reason = Path(path), str(error).splitlines()[0][:160]
    if not folder.exists() and _is_folder_name(path):
        parent = next(place for place in (*folder.parents, Path()) if place.is_dir())
        there = sorted(entry.name for entry in parent.iterdir() if entry.is_dir())
        wanted = folder.name if parent == folder.parent else folder.relative_to(parent).parts[0]
        near = difflib.get_close_matches(wanted, there, n=NEAR) or there[:NEAR]
        remedy = f"check the name (folders in {str(parent)!r}: {', '.join(near) or 'none'})"
        found = "no such folder" + (
            f", and no repo ({reason})" if re.fullmatch(r"\w[^/]*/[^/]+", path) else ""
        )
        return TaskHeadsError(_problem(path, found, f"a folder with {what}, or a repo id", remedy))
    accepted = f"a repo id or folder with {what}, or {EMBEDDED!r}"
    found, remedy = f"no {what[2:]} there ({reason})", "check the name, the network and HF_TOKEN"
    return TaskHeadsError(_problem(path, found, accepted, remedy))


def _is_folder_name(name: str) -> bool:
    """Whether a folder must be meant: by the first sign, the depth, or a parent that is there."""
    path = Path(name)
    own_parent = len(path.parts) > 1 and path.parent.is_dir()
    return name.startswith((".", "/", "~")) or path.is_absolute() or len(path.parts) > 2 or own_parent
