"""Find the differences between a trained model and an artifact of it, each reported with its cause.

The causes are compared first: the config, the template, the token ids, and the dtype and values of every
tensor. The tensors of a merged model are compared with the result of merging. The logits come last and detect
all other differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from qwen_task_heads.errors import Problem, shorten
from qwen_task_heads.hubcode.questions_task_heads import slices_of
from qwen_task_heads.verification.fingerprint import canonical, tensor_facts

NAMED = 3  # tensors listed in one message
NORM = {True: 1e-5, False: 1e-2}  # tolerance of a merged weight's norm, in fp32 and in half precision
STORED_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
STOCK_OWN = ("problem_type", "pad_token_id", "architectures")
NOTHING = "nothing"


def mismatch(where: str, problem: str, expected: str, fix: str) -> Problem:
    """Return the problem of one difference from the trained model."""
    return Problem(where, problem, expected, fix, code="verification-failed")


def _other_value(where: str, found: Any, trained: Any, fix: str) -> Problem:
    """Return the problem of a value that differs, both values shortened."""
    return mismatch(where, f"found {shorten(found, 200)}", f"{shorten(trained, 200)}, as in training", fix)


def compare_facts(wanted: dict[str, Any], found: dict[str, Any], *, adapter: bool) -> list[Problem]:
    """Compare the fields of two configs of this library; the base is compared only for an adapter."""
    base = ("backbone_name_or_path", "backbone_revision")
    names = [name for name in sorted(wanted.keys() | found.keys()) if adapter or name not in base]
    return [
        _other_value(
            f"{'the base: ' if name in base else ''}config.json {name}",
            found.get(name, NOTHING),
            wanted.get(name, NOTHING),
            "restore config.json, or save the model again",
        )
        for name in names
        if found.get(name) != wanted.get(name)
    ]


def compare_stock(
    wanted: dict[str, Any], found: dict[str, Any], tokenizer: dict[str, Any], rows: Sequence[Sequence[int]]
) -> list[Problem]:
    """Compare the fields that a stock class reads; it finds the end of a text by the pad id."""
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
        _other_value(f"config.json {name}", found.get(name, NOTHING), value, "export the model again")
        for name, value in expected.items()
        if found.get(name) != value
    ]
    if any(row[-1] == found["pad_token_id"] for row in rows):
        problems.append(
            mismatch(
                "config.json pad_token_id",
                "the pad token is also the last token of texts",
                "another pad token",
                "choose a token that is used for padding only",
            )
        )
    if tokenizer["padding_side"] != "right":
        side = tokenizer["padding_side"]
        problems.append(_other_value("tokenizer padding_side", side, "right", "export the model again"))
    return problems


def compare_tokenizers(
    wanted: dict[str, Any], found: dict[str, Any], *, texts: Sequence[str], stock: bool
) -> list[Problem]:
    """Compare template, truncation and token ids of the tokenizers in two reports."""
    fix = "save the tokenizer of training with the model"
    ours, theirs = wanted["tokenizer"], found["tokenizer"]
    skipped = {"padding_side"} | ({"pad_token_id"} if stock else set())
    problems = [
        _other_value(f"tokenizer {name}", theirs[name], ours[name], fix)
        for name in ours
        if name not in skipped and theirs[name] != ours[name]
    ]
    for kind, where in (("bare_ids", "tokenizer ids"), ("token_ids", "tokenizer template")):
        wrong = [index for index, ids in enumerate(wanted[kind]) if found[kind][index] != ids]
        if wrong:
            index = wrong[0]
            where = f"{where} of {shorten(texts[index], 40)}"
            problems.append(_other_value(where, found[kind][index], wanted[kind][index], fix))
            break  # if the ids of the text differ, those of the whole row differ too
    return problems


def compare_tensors(
    wanted: dict[str, Any], found: dict[str, dict[str, Any]], *, merged: bool, quantized: bool
) -> list[Problem]:
    """Compare every tensor by name.

    Args:
        wanted: report of the trained model, with `tensors` and `merged`.
        found: tensors of the artifact.
        merged: whether the artifact has no adapter.
        quantized: whether the base was quantized in training; its values cannot be compared.
    """
    expected, unmerged, bases = dict(wanted["tensors"]), [], {}
    unknown: set[str] = set()
    if merged:
        expected = {}
        for name, facts in wanted["tensors"].items():
            plain = name.replace(".base_layer.", ".")
            bases[plain] = facts
            if ".lora_" not in name:
                # Merged in fp32, and saved in the dtype of the base.
                expected[plain] = wanted["merged"].get(plain, facts) | {"dtype": facts["dtype"]}
            if ".base_layer." in name and not name.endswith(".bias") and plain not in wanted["merged"]:
                unknown.add(plain)  # the merged values are not known; the logits are compared instead
        found = _one_head(found, expected)
    adapted = any(".lora_" in name for name in wanted["tensors"])
    groups: dict[tuple[str, str], list[str]] = {}
    problems: list[Problem] = []
    base: list[str] = []

    def tell(where: str, found: str, wanted: str, fix: str) -> None:
        problems.append(mismatch(where, f"found {found}", wanted, fix))

    for name in sorted(expected.keys() | found.keys()):
        own, theirs = expected.get(name), found.get(name)
        trained = not adapted or name.startswith("score.") or ".lora_" in name
        if quantized and not trained:
            continue
        if own is None or theirs is None or own["shape"] != theirs["shape"]:
            shapes = [NOTHING if facts is None else f"a tensor {facts['shape']}" for facts in (theirs, own)]
            tell(f"tensor {name}", shapes[0], shapes[1], "save the model again")
        elif theirs["norm"] is None and own["norm"] is not None:
            tell(f"tensor {name}", "NaN or inf", "finite values", "save the model again")
        elif theirs.get("int8") and not own.get("int8"):
            wide = f"values in {own['dtype']}"
            tell(f"tensor {name}", "values rounded to int8 steps", wide, "save the head as it was trained")
        elif (theirs["dtype"] not in (own["dtype"], "float32") and ".lora_" not in name) or (
            theirs["dtype"] != own["dtype"] and not merged and ".lora_" not in name
        ):
            groups.setdefault((theirs["dtype"], own["dtype"]), []).append(name)
        elif theirs["sha256"] == own["sha256"] or name in unknown:
            continue
        elif merged and name in wanted["merged"] and theirs["sha256"] == bases[name]["sha256"]:
            unmerged.append(name)
        elif merged and name in wanted["merged"]:
            limit = NORM[theirs["dtype"] == "float32"]
            if abs(theirs["norm"] - own["norm"]) > limit * max(own["norm"], 1e-12):
                tell(f"tensor {name}", _norm(theirs), _norm(own), "save the model again")
        elif trained:
            tell(f"tensor {name}", _norm(theirs), _norm(own), "save the model again")
        else:
            base.append(name)
    for (dtype, expected_dtype), names in groups.items():
        tell(f"dtype of {_joined(names)}", dtype, expected_dtype, "save it in the dtype of training")
    if unmerged:
        values = f"the base's values of {_joined(unmerged)}"
        fix = "merge the adapter, then save"
        tell("the adapter is not merged", values, "the base with the adapter merged", fix)
    if base:
        fix = "name the base and the revision of training"
        tell("the base", f"other values in {_joined(base)}", "the base of training", fix)
    return problems


def with_stored_head(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Replace the head in the tensors of a loaded model by the head in its files.

    A stock class in half precision rounds the head when it is loaded. The published files keep it as it was
    trained, for servers that compute it in fp32.

    Args:
        found: tensors of the loaded model, by name.
        folder: folder of the model.
    """
    kept = {name: facts for name, facts in found.items() if not name.startswith("score.")}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names = [*file.keys()]
                heads = {name: file.get_tensor(name) for name in names if name.startswith("score.")}
        except SafetensorError:  # loading the model reports it
            continue
        kept |= {name: tensor_facts(tensor, head=True) for name, tensor in heads.items()}
    return kept


def _one_head(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Rename the head of a stock class to its name behind the dropout of this library's heads."""
    heads = [name for name in expected if name.startswith("score.")]
    if len(heads) == 1 and "score.weight" in found and heads[0] != "score.weight":
        return {heads[0] if name == "score.weight" else name: facts for name, facts in found.items()}
    return found


def _norm(facts: dict[str, Any]) -> str:
    return f"values of norm {facts['norm']!r}"


def _joined(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def compare_stored(wanted: dict[str, Any], folder: Path) -> list[Problem]:
    """Compare the dtypes in the files, because a loader may widen them silently."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, dtype in _stored_dtypes(path).items():
            own = wanted["tensors"].get(canonical(name))
            stored = STORED_DTYPES.get(dtype, f"{dtype} (a quantized tensor)")
            if own and own["dtype"] in STORED_DTYPES.values() and stored not in (own["dtype"], "float32"):
                groups.setdefault((path.name, stored, own["dtype"]), []).append(canonical(name))
    return [
        mismatch(
            f"dtype of {_joined(names)} in {file}",
            f"found {stored}",
            expected,
            "save it in the dtype of training",
        )
        for (file, stored, expected), names in groups.items()
    ]


def _stored_dtypes(path: Path) -> dict[str, str]:
    """Return the dtypes of a safetensors file by name; {} for a file that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except SafetensorError:  # loading the model reports it
        return {}


def equal_share(
    found: Any,
    wanted: Any,
    *,
    problem_type: str | None,
    questions: Sequence[Mapping[str, Any]] | None = None,
) -> float:
    """Return the share of equal predictions: the best label, each label's decision, or the order of scores.

    For a model with several questions, it is the share of equal answers.

    Example:
        >>> from qwen_task_heads.verification.differences import equal_share
        >>> equal_share([[0.1], [0.3]], [[0.2], [0.1]], problem_type="regression")
        0.0
        >>> asked = [{"name": "refund", "type": "noul"}, {"name": "spam", "type": "noul"}]
        >>> equal_share([[2.0, -1.0]], [[1.0, 3.0]], problem_type="questions", questions=asked)
        0.5
    """
    ours, theirs = np.asarray(wanted, dtype=np.float64), np.asarray(found, dtype=np.float64)
    if questions:
        equal = [
            (own > 0) == (their > 0) if own.shape[1] == 1 else own.argmax(1) == their.argmax(1)
            for own, their in ((ours[:, part], theirs[:, part]) for part in slices_of(questions).values())
        ]
        return float(np.mean([np.ravel(one) for one in equal]))
    if problem_type == "multi_label_classification":
        return float(((ours > 0) == (theirs > 0)).mean())
    if ours.shape[1] > 1:
        return float((ours.argmax(1) == theirs.argmax(1)).mean())
    above = np.triu_indices(len(ours), k=1)
    orders = [np.sign(scores[:, 0][:, None] - scores[:, 0])[above] for scores in (ours, theirs)]
    return float((orders[0] == orders[1]).mean()) if len(above[0]) else 1.0


def largest(rows: Iterable[Iterable[float]]) -> float:
    """Return the largest absolute logit, at least 1: the scale of a relative bound."""
    return max(1.0, float(np.abs(np.asarray(list(rows), dtype=np.float64)).max()))
