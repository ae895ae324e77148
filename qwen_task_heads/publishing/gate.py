"""The proof before every push: what is published is opened again where the package is not, and is equal.

A reference is taken from the trained model itself, in fp32 on held texts. An artefact is laid out as the
hub's client lays out a download, and opened by its id, offline, by a process that cannot import the
package: the id, the code, the adapter's way to its base and the tokenizer are all proven with the weights.
One process per artefact, because its imports take 5 s. All differences come in one error, each by name.

Bounds are relative to the largest logit where that is above 1: 1e-6 for the same arithmetic (an adapter, a
full model), 1e-5 for another order of the same sums (merged, stock classes), 1e-4 for an ONNX graph, and
for what was opened on another kind of device. int8 has none: its agreement is told. Of a base that was
quantised in training nobody can say how much that moves logits: there the bound is `QUANTIZED`, and the
base's own tensors are not compared.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.attention_task_heads import EXACT, PACKED
from qwen_task_heads.publishing.differences import (
    agreement,
    compare_facts,
    compare_stock,
    compare_stored,
    compare_tensors,
    compare_tokenizers,
    largest,
    say,
)
from qwen_task_heads.publishing.export import CODE
from qwen_task_heads.publishing.opened import describe
from qwen_task_heads.publishing.opening import Opener, bring_base, in_subprocess, lay_out
from qwen_task_heads.repos import check_repo

BOUNDS = {
    "adapter": 1e-6, "full": 1e-6, "merged": 1e-5, "stock": 1e-5, "onnx": 1e-4, "onnx_int8": None,
    "generator": 1e-6, "generator_adapter": 1e-6, "generator_merged": 1e-5,
}  # fmt: skip
OTHER_DEVICE, HALF, QUANTIZED = 1e-4, 8e-2, 0.5
GRAPHS = {"onnx": "onnx/model.onnx", "onnx_int8": "onnx/model_int8.onnx"}
GENERATORS = ("generator", "generator_adapter", "generator_merged")
FOLDED = ("merged", "stock", "generator_merged")
WITH_CODE = ("adapter", "full", "merged")
REFERENCE = "reference.json"
HELD, LONGEST = 16, 2000  # texts of dev, and characters of one
# Of many lengths and scripts, with a control token in one of them.
PROOF = (
    "A plain title",
    "短い題",
    "?",
    "如何在三十天内学会游泳，并且不花一分钱",
    "Rest<|im_end|>\n<|im_start|>assistant\nfirst",
    "Ten small ways to rest before a long day, and what they cost",
)


@dataclass(frozen=True)
class Reference:
    """What a trained model answers, and what it is.

    Args:
        job: the texts and how they are fed.
        report: see `opened.describe`.
    """

    job: dict[str, Any]
    report: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One comparison of logits; `bound` None where agreement is all that is told."""

    artefact: str
    opened_by: str
    padding: str
    batch: int
    difference: float
    bound: float | None
    agreement: float


@dataclass(frozen=True)
class Parity:
    """The comparisons of one artefact, or of several."""

    rows: tuple[Row, ...]

    def __add__(self, other: Parity) -> Parity:
        return Parity(self.rows + other.rows)

    def as_dict(self) -> dict[str, Any]:
        """What `parity.json` holds."""
        return {"rows": [asdict(row) for row in self.rows]}

    def card_rows(self) -> list[dict[str, str]]:
        """The worst layout of each artefact, as texts for the card."""
        names = dict.fromkeys((row.artefact, row.opened_by) for row in self.rows)
        found = []
        for artefact, by in names:
            rows = [row for row in self.rows if (row.artefact, row.opened_by) == (artefact, by)]
            worst = max(rows, key=lambda row: row.difference)
            sides = ", ".join(dict.fromkeys(row.padding for row in rows))
            batches = ", ".join(map(str, sorted({row.batch for row in rows})))
            found.append(
                {
                    "artefact": artefact,
                    "opened by": by,
                    "padding": sides,
                    "batch": batches,
                    "largest difference": f"{worst.difference:.1e}",
                    "bound": "none" if worst.bound is None else f"{worst.bound:.1e}",
                    "agreement": f"{min(row.agreement for row in rows):.1%}",
                }
            )
        return found


def take_reference(
    model: Any, *, tokenizer: Any, texts: Sequence[str] = (), text_pairs: Sequence[str] | None = None
) -> Reference:
    """Describe a trained model and its answers, in fp32 on the device it is on.

    Args:
        model: a `TitleScorer` or `PooledClassifier`, or a `PeftModel` around one. It is as before afterwards.
        tokenizer: as it is saved with the model.
        texts: held texts, of which up to 16 of all lengths are taken, beside a few fixed ones; of pairs (a
            prompt and its title) the first.
        text_pairs: the second of each, or None.

    Example:
        >>> from qwen_task_heads import build, load_tokenizer
        >>> from qwen_task_heads.publishing.gate import take_reference
        >>> reference = take_reference(build("embedded"), tokenizer=load_tokenizer("embedded"))
        >>> reference.report["facts"]["pooling"], len(reference.report["rows"])
        ('last', 7)
    """
    from peft import PeftModel

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    held = _choose(texts, text_pairs)
    # One text over the limit shows that all cut alike; beyond a thousand words it would show no more.
    limit = inner.config.to_dict().get("max_seq_length") or 64
    fixed = [*PROOF, "word " * min(limit + limit // 2, 1000)]
    job = {
        "texts": [first for first, _ in held] + fixed,
        "text_pairs": None if text_pairs is None else [second for _, second in held] + fixed,
        "paddings": ["left", "right"],
    }
    with _as_opened(inner):
        report = describe(inner, tokenizer, job)
    report["facts"]["pad_token_id"] = tokenizer.pad_token_id  # as saving writes it
    report["quantized"] = inner.config.__dict__.get("quantization_config") is not None
    return Reference(job, report)


def take_answer_reference(
    model: Any, *, tokenizer: Any, prompts: Any, texts: Sequence[str] = ()
) -> Reference:
    """As `take_reference`, of a language model that writes the label: the logits of the labels' first tokens.

    Args:
        model: a causal language model, or a `PeftModel` around one. It is as before afterwards.
        tokenizer: the model's own, as it is saved.
        prompts: its `AnswerPrompts`.
        texts: held texts, of which up to 16 of all lengths are taken, beside a few fixed ones.
    """
    held = [first for first, _ in _choose(texts, None)] + list(PROOF)
    job = {
        "texts": held,
        "text_pairs": None,
        "paddings": ["left", "right"],
        "prompts": prompts.encode(held).input_ids,
        "answers": sorted({ids[0] for ids in prompts.answers}),
    }
    report = describe(model, tokenizer, job)
    report["quantized"] = model.config.__dict__.get("quantization_config") is not None
    return Reference(job, report)


def _choose(texts: Sequence[str], pairs: Sequence[str] | None) -> list[tuple[str, str]]:
    """Texts spread over all lengths, from the shortest to the longest."""
    both = zip(texts, pairs if pairs is not None else [""] * len(texts), strict=True)
    found = sorted(
        {(first[:LONGEST], second[:LONGEST]) for first, second in both if first.strip() or second.strip()},
        key=lambda pair: (len(pair[0]) + len(pair[1]), pair),
    )
    if len(found) <= HELD:
        return found
    return [found[round(at * (len(found) - 1) / (HELD - 1))] for at in range(HELD)]


@contextmanager
def _as_opened(model: Any) -> Iterator[None]:
    """Compute as a reader's process will: packed attention, no flash kernel, which has no fp32."""
    attention = model.model.config._attn_implementation
    packing, sharing = model.packing, model.prefix_sharing
    if model.model.config.model_type in EXACT and attention != PACKED:
        model.set_attn_implementation(PACKED)
    model.packing = model.prefix_sharing = True
    try:
        yield
    finally:
        model.packing, model.prefix_sharing = packing, sharing
        if model.model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)


def write_reference(folder: str | Path, reference: Reference) -> Path:
    """Write `reference.json` into a run folder. It holds texts of dev, and never travels."""
    path = Path(folder, REFERENCE)
    path.write_text(json.dumps(asdict(reference), ensure_ascii=False), encoding="utf-8")
    return path


def read_reference(folder: str | Path) -> Reference:
    """Read the reference of a run folder.

    Raises:
        TaskHeadsError: there is none, or it cannot be read.
    """
    path = Path(folder, REFERENCE)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Reference(content["job"], content["report"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"found no reference ({type(error).__name__})"
        remedy = "finish the run again, or take_reference(load(folder), ...) and write_reference()"
        raise TaskHeadsError(
            Problem(str(path), found, "accepted: what the run wrote at its end", remedy)
        ) from error


def prove(
    folder: str | Path, *, reference: Reference, kind: str, repo_id: str | None, run: Opener | None = None
) -> Parity:
    """Open an artefact as its readers will, and hold it against the trained model.

    Args:
        folder: exactly what is to be published.
        reference: of the trained model.
        kind: `adapter`, `full`, `merged`, `stock`, `onnx` or `onnx_int8`.
        repo_id: the id it is opened by; None opens the folder by its path.
        run: how `opened.py` is run; a subprocess of its own when None.

    Returns:
        The differences of logits, per padding and batch.

    Raises:
        TaskHeadsError: all that differs, each by its name.
    """
    folder = Path(folder).resolve()
    if kind not in BOUNDS:
        raise TaskHeadsError(say("kind", repr(kind), ", ".join(BOUNDS), "choose one of them"))
    if problems := _missing(folder, kind):
        raise TaskHeadsError(problems)
    check_repo(str(folder))  # with it, code that is not ours is not run, not even here
    with tempfile.TemporaryDirectory(prefix="proof-") as root:
        cache = Path(root, "hub")
        if repo_id is not None:
            lay_out(folder, cache=cache, repo_id=repo_id)
        bring_base(folder, cache)
        job = {
            **reference.job,
            "name": repo_id or str(folder),
            "cache": str(cache),
            "trust": kind in WITH_CODE or _is_ours(folder),
            "graph": str(folder / GRAPHS[kind]) if kind in GRAPHS else None,
            "rows": reference.report["rows"],
            "device": reference.report["device"],
            "paddings": ["right"] if kind == "stock" else ["left", "right"],
        }
        path = Path(root, "job.json")
        path.write_text(json.dumps(job), encoding="utf-8")
        failure = (run or in_subprocess)(path)
        if failure:
            accepted = "an artefact that a clean process opens"
            raise TaskHeadsError(
                say(str(folder), failure.strip().splitlines()[-1][:500], accepted, "make it again")
            )
        report = json.loads(path.with_name("report.json").read_text(encoding="utf-8"))
    problems = _causes(reference, report, kind) + compare_stored(reference.report, folder)
    rows = _rows(reference, report, kind) if "logits" in report else []
    over = [row for row in rows if row.bound is not None and not row.difference <= row.bound]
    over += [row for row in rows if not np.isfinite(row.difference) and row not in over]
    if over:
        worst = max(over, key=lambda row: np.nan_to_num(row.difference, nan=np.inf))
        where = f"logits ({worst.padding} padding, batch {worst.batch})"
        text = f"a difference of {worst.difference:.2g}"
        accepted = "finite logits" if worst.bound is None else f"at most {worst.bound:.1e}"
        problems.append(say(where, text, accepted, "what differs is named above, if it has a name"))
    if not rows and not problems:  # a proof that compared nothing is none
        problems.append(say(str(folder), "no logits to compare", "those of every layout", "make it again"))
    if problems:
        raise TaskHeadsError(problems)
    return Parity(tuple(rows))


def _missing(folder: Path, kind: str) -> list[Problem]:
    """Files without which nothing opens, and code that is not the package's."""
    wanted = ["tokenizer.json", "tokenizer_config.json"]
    wanted += ["label_prompt.json"] if kind in GENERATORS else []
    wanted += ["config.json"] if kind != "generator_adapter" else []
    if kind in ("adapter", "generator_adapter"):
        wanted += ["adapter_config.json", "adapter_model.safetensors"]
    elif kind in GRAPHS:
        wanted.append(GRAPHS[kind])
    elif not (folder / "model.safetensors.index.json").is_file():
        wanted.append("model.safetensors")
    ours = CODE if kind in WITH_CODE or _is_ours(folder) else []
    missing = [name for name in [*wanted, *(file.name for file in ours)] if not (folder / name).is_file()]
    changed = [
        file.name
        for file in ours
        if file.name not in missing and (folder / file.name).read_bytes() != file.read_bytes()
    ]
    remedy = "save the model again"
    problems = [
        Problem(f"{folder}/{name}", "found no such file", "accepted: one", remedy) for name in missing
    ]
    accepted = "accepted: the file of the installed package"
    problems += [Problem(f"{folder}/{name}", "found other code", accepted, remedy) for name in changed]
    return problems


def _is_ours(folder: Path) -> bool:
    """Whether a folder brings our code; then it is held against ours above."""
    return (folder / "configuration_task_heads.py").is_file()


def _causes(reference: Reference, report: dict[str, Any], kind: str) -> list[Problem]:
    """All differences that have a name."""
    wanted = reference.report
    remedy = "save the model again"
    problems = [
        say(f"opening the {what}", " ".join(reason.split())[:300], "no error", remedy)
        for what, reason in report["failed"].items()
    ]
    stock = "facts" in report and report["facts"]["model_type"] != wanted["facts"]["model_type"]
    if "facts" in report and not stock and kind != "generator_adapter":  # whose config is its base's
        problems += compare_facts(wanted["facts"], report["facts"], adapter=kind == "adapter")
    if stock and "tokenizer" in report:
        rows = report.get("rows", wanted["rows"])
        problems += compare_stock(wanted["facts"], report["facts"], report["tokenizer"], rows)
    if "tokenizer" in report:
        texts = reference.job["texts"]
        problems += compare_tokenizers(wanted, report, texts=texts, stock=stock)
    if "tensors" in report:
        problems += compare_tensors(
            wanted, report["tensors"], folded=kind in FOLDED, quantized=wanted["quantized"]
        )
    return problems


def _rows(reference: Reference, report: dict[str, Any], kind: str) -> list[Row]:
    """Logits of every layout against those of the same layout of the trained model."""
    wanted = {(entry["padding"], entry["batch"]): entry["logits"] for entry in reference.report["logits"]}
    relative = BOUNDS[kind]
    tensors = report.get("tensors", {})
    if relative is not None:
        if report.get("device", "cpu") != reference.report["device"]:
            relative = max(relative, OTHER_DEVICE)
        if any(tensors.get(name, {}).get("dtype") != "float32" for name in reference.report["merged"]):
            relative = max(relative, HALF if kind in FOLDED else 0)
        if reference.report["quantized"]:
            relative = max(relative, QUANTIZED)
    by = "onnxruntime" if kind in GRAPHS else f"{report.get('class')}, without the package"
    problem_type, found = reference.report["facts"].get("problem_type"), []
    for entry in report["logits"]:
        ours, theirs = wanted[entry["padding"], entry["batch"]], entry["logits"]
        scale = largest(ours)
        same = np.shape(ours) == np.shape(theirs)
        row = Row(
            artefact=kind,
            opened_by=by,
            padding=entry["padding"],
            batch=entry["batch"],
            difference=float(np.abs(np.subtract(ours, theirs)).max()) if same else float("inf"),
            bound=None if relative is None else relative * scale,
            agreement=agreement(theirs, ours, problem_type=problem_type) if same else 0.0,
        )
        found.append(replace(row, difference=row.difference if np.isfinite(row.difference) else float("inf")))
    return found
