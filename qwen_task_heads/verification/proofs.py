"""The proof before every push: what is published is opened again where the package is not, and is equal.

A reference (`reference.py`) is what the trained model itself answered, in fp32 on held texts. An artefact is
laid out as the hub's client lays out a download, and opened by its id, offline, by a process that cannot
import the package: the id, the code, the adapter's way to its base and the tokenizer are all proven with
the weights. One process per artefact, because its imports take 5 s. All differences come in one error, each
by its name.

Weights are compared by their hash and logits within a bound, because a processor may round a product by where
its weight lies in memory. Bounds are relative to the largest logit where that is above 1: 1e-6 for the same
arithmetic (an adapter, a full model), 1e-5 for another order of the same sums (merged, stock classes), 1e-4
for an ONNX graph, and for what was opened on another kind of device. int8 has none: its agreement is told. Of
a base that was quantised in training nobody can say how much that moves logits: there the bound is
`QUANTIZED`, and the base's own tensors are not compared. What has no room in fp32, neither on the GPU nor on
the CPU, is computed as it is stored, held to `HALF`, and said so.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode import CODE
from qwen_task_heads.hubcode.folder_task_heads import ADAPTER
from qwen_task_heads.hubcode.saving_task_heads import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qwen_task_heads.repo_checks import check_repo
from qwen_task_heads.verification.artifacts import (
    KILLED,
    Opener,
    attempts,
    bring_base,
    in_subprocess,
    lay_out,
)
from qwen_task_heads.verification.differences import (
    agreement,
    compare_facts,
    compare_stock,
    compare_stored,
    compare_tensors,
    compare_tokenizers,
    largest,
    with_stored_head,
)
from qwen_task_heads.verification.reference import Reference

BOUNDS = {
    "adapter": 1e-6, "full": 1e-6, "merged": 1e-5, "stock": 1e-5, "onnx": 1e-4, "onnx_int8": None,
    "generator": 1e-6, "generator_adapter": 1e-6, "generator_merged": 1e-5,
}  # fmt: skip
OTHER_DEVICE, HALF, QUANTIZED = 1e-4, 8e-2, 0.5
GRAPHS = {"onnx": "onnx/model.onnx", "onnx_int8": "onnx/model_int8.onnx"}
GENERATORS = ("generator", "generator_adapter", "generator_merged")
FOLDED = ("merged", "stock", "generator_merged")
MEMORY = "publish where more memory is free: the artefact itself may be sound"
WITH_CODE = ("adapter", "full", "merged")


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


def prove(
    folder: str | Path,
    *,
    reference: Reference,
    kind: str,
    repo_id: str | None,
    run: Opener | None = None,
    named: str | Path | None = None,
) -> Parity:
    """Open an artefact as its readers will, and hold it against the trained model.

    Args:
        folder: exactly what is to be published.
        reference: of the trained model.
        kind: `adapter`, `full`, `merged`, `stock`, `onnx` or `onnx_int8`.
        repo_id: the id it is opened by; None opens the folder by its path.
        run: how `opened.py` is run; a subprocess of its own when None.
        named: the folder that messages name, where `folder` is a copy that its user does not know.

    Returns:
        The differences of logits, per padding and batch.

    Raises:
        TaskHeadsError: all that differs, each by its name.
    """
    folder = Path(folder).resolve()
    named = named or folder
    if kind not in BOUNDS:
        raise TaskHeadsError(Problem("kind", f"found {kind!r}", ", ".join(BOUNDS), "choose one of them"))
    if problems := _missing(folder, kind, named=named):
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
            "folder": str(folder),
            "cache": str(cache),
            "trust": kind in WITH_CODE or _is_ours(folder),
            "graph": str(folder / GRAPHS[kind]) if kind in GRAPHS else None,
            "rows": reference.report["rows"],
            # A stock adapter says nothing of the dtype in which its base was opened for training.
            "base_dtype": reference.report["dtype"] if kind == "generator_adapter" else None,
            "paddings": ["right"] if kind == "stock" else ["left", "right"],
        }
        report = _report(job, reference, path=Path(root, "job.json"), run=run or in_subprocess, named=named)
    problems = _causes(reference, report, kind, folder) + compare_stored(reference.report, folder)
    rows = _rows(reference, report, kind) if "logits" in report else []
    over = [row for row in rows if row.bound is not None and not row.difference <= row.bound]
    over += [row for row in rows if not np.isfinite(row.difference) and row not in over]
    if over:
        worst = max(over, key=lambda row: np.nan_to_num(row.difference, nan=np.inf))
        where = f"logits ({worst.padding} padding, batch {worst.batch})"
        text = f"a difference of {worst.difference:.2g}"
        accepted = "finite logits" if worst.bound is None else f"at most {worst.bound:.1e}"
        problems.append(
            Problem(where, f"found {text}", accepted, "what differs is named above, if it has a name")
        )
    if not rows and not problems:  # a proof that compared nothing is none
        problems.append(
            Problem(str(named), "found no logits to compare", "those of every layout", "make it again")
        )
    if problems:
        raise TaskHeadsError(problems)
    return Parity(tuple(rows))


def _report(
    job: dict[str, Any], reference: Reference, *, path: Path, run: Opener, named: str | Path
) -> dict[str, Any]:
    """What the clean process tells; where memory ends, of an attempt that takes less."""
    device = reference.report["device"] if torch.cuda.is_available() else "cpu"
    numbers = sum(math.prod(tensor["shape"]) for tensor in reference.report["tensors"].values())
    wide = reference.report.get("computed_in", "float32") == "float32"
    failure, report = "", dict[str, Any]()
    for place, in_fp32 in attempts(device, numbers=numbers, wide=wide):
        path.write_text(json.dumps(job | {"device": place, "wide": in_fp32}), encoding="utf-8")
        failure = run(path)
        if failure and KILLED not in failure:
            break
        report = json.loads(path.with_name("report.json").read_text(encoding="utf-8")) if not failure else {}
        if report and "out_of_memory" not in report:
            return report
    if not failure:
        return report
    found, accepted = failure.strip().splitlines()[-1][:500], "an artefact that a clean process opens"
    raise TaskHeadsError(
        Problem(str(named), f"found {found}", accepted, MEMORY if KILLED in failure else "make it again")
    )


def _missing(folder: Path, kind: str, *, named: str | Path) -> list[Problem]:
    """Files without which nothing opens, and code that is not the package's."""
    wanted = ["tokenizer.json", "tokenizer_config.json"]
    wanted += ["label_prompt.json"] if kind in GENERATORS else []
    wanted += ["config.json"] if kind != "generator_adapter" else []
    if kind == "adapter":
        wanted += [f"{ADAPTER}/{ADAPTER_CONFIG}", f"{ADAPTER}/{ADAPTER_WEIGHTS}"]
    elif kind == "generator_adapter":
        wanted += [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
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
        Problem(f"{named}/{name}", "found no such file", "the one that save() writes", remedy)
        for name in missing
    ]
    accepted = "the file of the installed package"
    problems += [Problem(f"{named}/{name}", "found other code", accepted, remedy) for name in changed]
    return problems


def _is_ours(folder: Path) -> bool:
    """Whether a folder brings our code; then it is held against ours above."""
    return (folder / "configuration_task_heads.py").is_file()


def _causes(reference: Reference, report: dict[str, Any], kind: str, folder: Path) -> list[Problem]:
    """All differences that have a name."""
    wanted = reference.report
    full = report.get("out_of_memory")
    problems = [
        Problem(
            f"opening the {what}", f'found {" ".join(reason.split())[:300]}', "no error",
            MEMORY if what == full else "save the model again",
        )
        for what, reason in report["failed"].items()
    ]  # fmt: skip
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
        found = with_stored_head(report["tensors"], folder) if kind == "stock" else report["tensors"]
        problems += compare_tensors(wanted, found, folded=kind in FOLDED, quantized=wanted["quantized"])
    return problems


def _rows(reference: Reference, report: dict[str, Any], kind: str) -> list[Row]:
    """Logits of every layout against those of the same layout of the trained model."""
    wanted = {(entry["padding"], entry["batch"]): entry["logits"] for entry in reference.report["logits"]}
    relative, narrow = BOUNDS[kind], ""
    tensors = report.get("tensors", {})
    if relative is not None:
        if report.get("device", "cpu") != reference.report["device"]:
            relative = max(relative, OTHER_DEVICE)
        rounded = [*reference.report["merged"], *(["score.weight"] if kind == "stock" else [])]
        if any(tensors.get(name, {}).get("dtype") != "float32" for name in rounded):
            relative = max(relative, HALF if kind in FOLDED else 0)
        computed = {told.get("computed_in", "float32") for told in (reference.report, report)}
        if narrow := ", ".join(sorted(computed - {"float32"})):
            relative = max(relative, HALF)
        if reference.report["quantized"]:
            relative = max(relative, QUANTIZED)
    by = "onnxruntime" if kind in GRAPHS else f"{report.get('class')}, without the package"
    by += f", in {narrow}: there was no room for fp32" if narrow else ""
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
