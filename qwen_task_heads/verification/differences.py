"""What differs between a trained model and an artefact of it, each difference by its name.

`logits differ` helps nobody. So the causes are looked for first: facts of the config, the template, the
token ids, every tensor (its dtype, its values, and what folding an adapter must have given). The logits
come last and find what is none of these.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen_task_heads.errors import Problem, shorten
from qwen_task_heads.verification.fingerprint import canonical, tensor_facts

NAMED = 3  # tensors in one message
NORM = {True: 1e-5, False: 1e-2}  # of a folded weight, in fp32 and in half precision
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
STOCK_OWN = ("problem_type", "pad_token_id", "architectures")
NOTHING = "nothing"


def differ(where: str, found: Any, accepted: Any, remedy: str) -> Problem:
    """One difference, both values cut to what fits a line."""
    return Problem(where, f"found {shorten(found, 200)}", f"{shorten(accepted, 200)}, of training", remedy)


def compare_facts(wanted: dict[str, Any], found: dict[str, Any], *, adapter: bool) -> list[Problem]:
    """Fields of a config of ours; the base is part of what an adapter is."""
    remedy = "restore config.json, or save the model again"
    base = ("backbone_name_or_path", "backbone_revision")
    names = [name for name in sorted(wanted.keys() | found.keys()) if adapter or name not in base]
    return [
        differ(f"{'the base: ' if name in base else ''}config.json {name}",
               found.get(name, NOTHING), wanted.get(name, NOTHING), remedy)
        for name in names
        if found.get(name) != wanted.get(name)
    ]  # fmt: skip


def compare_stock(
    wanted: dict[str, Any], found: dict[str, Any], tokenizer: dict[str, Any], rows: Sequence[Sequence[int]]
) -> list[Problem]:
    """Fields that a stock class reads; it finds the end of a text by the pad id, which must be right."""
    single = "regression" if len(wanted["labels"]) == 1 else "single_label_classification"
    expected = {
        "labels": wanted["labels"],
        "label2id": wanted["label2id"],
        "problem_type": wanted["problem_type"] or single,
        "pad_token_id": tokenizer["pad_token_id"],
        **{
            name.removeprefix("text_config."): value
            for name, value in wanted.items()
            if name.startswith("text_config.") and name.removeprefix("text_config.") not in STOCK_OWN
        },
    }
    problems = [
        differ(f"config.json {name}", found.get(name, NOTHING), value, "export the model again")
        for name, value in expected.items()
        if found.get(name) != value
    ]
    if any(row[-1] == found["pad_token_id"] for row in rows):
        text = "the token that ends every text, as pad token"
        problems.append(
            Problem(
                "config.json pad_token_id", f"found {text}", "another token", "choose a pad token of its own"
            )
        )
    if tokenizer["padding_side"] != "right":
        problems.append(differ("tokenizer padding_side", tokenizer["padding_side"], "right", "export again"))
    return problems


def compare_tokenizers(
    wanted: dict[str, Any], found: dict[str, Any], *, texts: Sequence[str], stock: bool
) -> list[Problem]:
    """What the tokenizer adds and cuts, and the ids of texts; `wanted` and `found` are whole reports."""
    remedy = "save the tokenizer of training beside the model"
    ours, theirs = wanted["tokenizer"], found["tokenizer"]
    skipped = {"padding_side"} | ({"pad_token_id"} if stock else set())
    problems = [
        differ(f"tokenizer {name}", theirs[name], ours[name], remedy)
        for name in ours
        if name not in skipped and theirs[name] != ours[name]
    ]
    for kind, where in (("bare_ids", "tokenizer ids"), ("token_ids", "tokenizer template")):
        wrong = [at for at, ids in enumerate(wanted[kind]) if found[kind][at] != ids]
        if wrong:
            at = wrong[0]
            place = f"{where} of {shorten(texts[at], 40)}"
            problems.append(differ(place, found[kind][at], wanted[kind][at], remedy))
            break  # other ids of the text alone are also other ids of the whole row
    return problems


def compare_tensors(
    wanted: dict[str, Any], found: dict[str, dict[str, Any]], *, folded: bool, quantized: bool
) -> list[Problem]:
    """Every tensor by name; `wanted` is the report of the trained model.

    Args:
        wanted: with `tensors` and `merged`.
        found: the tensors of the artefact.
        folded: the artefact is one without an adapter.
        quantized: the base of training was quantised: its values are not comparable.
    """
    expected, unmerged, bases = dict(wanted["tensors"]), [], {}
    unknown: set[str] = set()
    if folded:
        expected = {}
        for name, facts in wanted["tensors"].items():
            plain = name.replace(".base_layer.", ".")
            bases[plain] = facts
            if ".lora_" not in name:
                # Folded in fp32, and saved in the dtype of the base.
                expected[plain] = wanted["merged"].get(plain, facts) | {"dtype": facts["dtype"]}
            if ".base_layer." in name and not name.endswith(".bias") and plain not in wanted["merged"]:
                unknown.add(plain)  # what folding gives there is for the logits to tell
        found = _one_head(found, expected)
    adapted = any(".lora_" in name for name in wanted["tensors"])
    groups: dict[tuple[str, str], list[str]] = {}
    problems, base = [], []
    for name in sorted(expected.keys() | found.keys()):
        own, theirs = expected.get(name), found.get(name)
        trained = not adapted or name.startswith("score.") or ".lora_" in name
        if quantized and not trained:
            continue
        if own is None or theirs is None or own["shape"] != theirs["shape"]:
            shapes = [NOTHING if facts is None else f"a tensor {facts['shape']}" for facts in (theirs, own)]
            problems.append(
                Problem(f"tensor {name}", f"found {shapes[0]}", shapes[1], "save the model again")
            )
        elif theirs["norm"] is None and own["norm"] is not None:
            problems.append(
                Problem(f"tensor {name}", "found NaN or inf", "finite values", "save the model again")
            )
        elif theirs.get("int8") and not own.get("int8"):
            text = "values in whole int8 steps"
            problems.append(
                Problem(f"tensor {name}", f"found {text}", own["dtype"], "save the head as it was trained")
            )
        elif (theirs["dtype"] not in (own["dtype"], "float32") and ".lora_" not in name) or (
            theirs["dtype"] != own["dtype"] and not folded and ".lora_" not in name
        ):
            groups.setdefault((theirs["dtype"], own["dtype"]), []).append(name)
        elif theirs["sha256"] == own["sha256"] or name in unknown:
            continue
        elif folded and name in wanted["merged"]:
            limit = NORM[theirs["dtype"] == "float32"]
            if theirs["sha256"] == bases[name]["sha256"]:
                unmerged.append(name)
            elif abs(theirs["norm"] - own["norm"]) > limit * max(own["norm"], 1e-12):
                problems.append(_values(name, theirs, own))
        elif trained:
            problems.append(_values(name, theirs, own))
        else:
            base.append(name)
    for (dtype, right), names in groups.items():
        problems.append(
            Problem(f"dtype of {_list(names)}", f"found {dtype}", right, "save it in the dtype of training")
        )
    if unmerged:
        where, text = "the adapter is not merged", f"the base's own {_list(unmerged)}"
        problems.append(
            Problem(where, f"found {text}", "base and adapter folded", "merge the adapter, then save")
        )
    if base:
        text = f"other values in {_list(base)}"
        problems.append(
            Problem("the base", f"found {text}", "the base", "name the base and the revision of training")
        )
    return problems


def with_stored_head(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Tensors of an opened model, with the head as it is in the files.

    A stock class in half precision rounds the head when it is opened. The files keep it as it was trained,
    for the servers that compute it in fp32, and they are what is published.

    Args:
        found: the tensors of the opened model, by name.
        folder: of the model.
    """
    from safetensors import SafetensorError, safe_open

    kept = {name: facts for name, facts in found.items() if not name.startswith("score.")}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names = [*file.keys()]
                heads = {name: file.get_tensor(name) for name in names if name.startswith("score.")}
        except SafetensorError:  # opening it says so
            continue
        kept |= {name: tensor_facts(tensor, head=True) for name, tensor in heads.items()}
    return kept


def _one_head(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """The one matrix of a stock class under the name it has behind our dropout."""
    heads = [name for name in expected if name.startswith("score.")]
    if len(heads) == 1 and "score.weight" in found and heads[0] != "score.weight":
        return {heads[0] if name == "score.weight" else name: facts for name, facts in found.items()}
    return found


def _values(name: str, found: dict[str, Any], own: dict[str, Any]) -> Problem:
    norms = [f"values of norm {facts['norm']!r}" for facts in (found, own)]
    return Problem(f"tensor {name}", f"found {norms[0]}", norms[1], "save the model again")


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def compare_stored(wanted: dict[str, Any], folder: Path) -> list[Problem]:
    """Dtypes as they are in the files, which a loader may widen without a word."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, dtype in _stored_dtypes(path).items():
            own = wanted["tensors"].get(canonical(name))
            stored = DTYPES.get(dtype, f"{dtype} (no float: a quantised tensor)")
            if own and own["dtype"] in DTYPES.values() and stored not in (own["dtype"], "float32"):
                groups.setdefault((path.name, stored, own["dtype"]), []).append(canonical(name))
    remedy = "save it in the dtype of training"
    return [
        Problem(f"dtype of {_list(names)} in {file}", f"found {stored}", right, remedy)
        for (file, stored, right), names in groups.items()
    ]


def _stored_dtypes(path: Path) -> dict[str, str]:
    """Dtypes by name from the header of a safetensors file; a file without one has none."""
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if size > min(path.stat().st_size, 100_000_000):
            return {}
        try:
            header = json.loads(file.read(size) or b"{}")
        except ValueError:  # opening it will say so
            return {}
    return {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}


def agreement(found: Any, wanted: Any, *, problem_type: str | None) -> float:
    """Share of equal answers: the likeliest label, each label's yes or no, or the order of two scores.

    Example:
        >>> from qwen_task_heads.verification.differences import agreement
        >>> agreement([[0.1], [0.3]], [[0.2], [0.1]], problem_type="regression")
        0.0
    """
    ours, theirs = np.asarray(wanted, dtype=np.float64), np.asarray(found, dtype=np.float64)
    if problem_type == "multi_label_classification":
        return float(((ours > 0) == (theirs > 0)).mean())
    if ours.shape[1] > 1:
        return float((ours.argmax(1) == theirs.argmax(1)).mean())
    above = np.triu_indices(len(ours), k=1)
    orders = [np.sign(scores[:, 0][:, None] - scores[:, 0])[above] for scores in (ours, theirs)]
    return float((orders[0] == orders[1]).mean()) if len(above[0]) else 1.0


def largest(rows: Iterable[Iterable[float]]) -> float:
    """The largest absolute value of logits, at least 1: what a relative bound is relative to."""
    return max(1.0, float(np.abs(np.asarray(list(rows), dtype=np.float64)).max()))
