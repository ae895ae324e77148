"""Verify an artifact before a push: load it without the package and compare it with the trained model.

A reference (`reference.py`) has the outputs of the trained model, in fp32 on dev texts. The artifact is laid
out as after a download, and loaded by its id, offline, in a process that cannot import the package. This
verifies the id, the code, the base of an adapter, the tokenizer and the weights. Each artifact gets one
process, because the imports take 5 s. All differences are raised in one error.

Weights are compared by their hash. Logits are compared within a bound, because the rounding of a product may
depend on the address of a weight in memory. Bounds are relative to the largest logit, if that is above 1:

- 1e-6 for the same arithmetic (an adapter, a full model);
- 1e-5 for another order of the same sums (merged models, stock classes, GGUF files);
- 1e-4 for an ONNX graph, and for another kind of device;
- none for int8, for which only the agreement is reported;
- `QUANTIZED` for a base that was quantized in training: the effect on the logits cannot be predicted, and the
  tensors of the base are not compared;
- `HALF` for a model that fits neither the GPU nor the CPU in fp32: it is computed in its stored dtype, and
  the report says so.
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

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at
from qwen_task_heads.gguf_weights import GGUF_FILE
from qwen_task_heads.hubcode import CODE
from qwen_task_heads.hubcode.folder_task_heads import ADAPTER
from qwen_task_heads.hubcode.saving_task_heads import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qwen_task_heads.repo_checks import check_repo
from qwen_task_heads.verification.artifacts import (
    KILLED,
    Loader,
    attempts,
    in_subprocess,
    lay_out,
    link_base,
)
from qwen_task_heads.verification.differences import (
    compare_facts,
    compare_stock,
    compare_stored,
    compare_tensors,
    compare_tokenizers,
    equal_share,
    largest,
    mismatch,
    with_stored_head,
)
from qwen_task_heads.verification.reference import Reference

BOUNDS = {
    "adapter": 1e-6,
    "full": 1e-6,
    "merged": 1e-5,
    "stock": 1e-5,
    "gguf": 1e-5,
    "onnx": 1e-4,
    "onnx_int8": None,
    "generator": 1e-6,
    "generator_adapter": 1e-6,
    "generator_merged": 1e-5,
}
OTHER_DEVICE, HALF, QUANTIZED = 1e-4, 8e-2, 0.5
GRAPHS = {"onnx": "onnx/model.onnx", "onnx_int8": "onnx/model_int8.onnx"}
GENERATORS = ("generator", "generator_adapter", "generator_merged")
WITHOUT_ADAPTER = ("merged", "stock", "gguf", "generator_merged")
MORE_MEMORY = "publish with more free memory; the artifact itself may be correct"
WITH_CODE = ("adapter", "full", "merged")


@dataclass(frozen=True)
class Row:
    """One comparison of logits; `bound` is None if only the agreement is reported."""

    artefact: str
    opened_by: str
    padding: str
    batch: int
    difference: float
    bound: float | None
    agreement: float


@dataclass(frozen=True)
class Parity:
    """The comparisons of one or more artifacts."""

    rows: tuple[Row, ...]

    def __add__(self, other: Parity) -> Parity:
        return Parity(self.rows + other.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `parity.json`."""
        return {"rows": [asdict(row) for row in self.rows]}

    def card_rows(self) -> list[dict[str, str]]:
        """Return the worst layout of each artifact, as a table row of the card."""
        names = dict.fromkeys((row.artefact, row.opened_by) for row in self.rows)
        table = []
        for artifact, by in names:
            rows = [row for row in self.rows if (row.artefact, row.opened_by) == (artifact, by)]
            worst = max(rows, key=lambda row: row.difference)
            sides = ", ".join(dict.fromkeys(row.padding for row in rows))
            batches = ", ".join(map(str, sorted({row.batch for row in rows})))
            table.append(
                {
                    "artefact": artifact,
                    "opened by": by,
                    "padding": sides,
                    "batch": batches,
                    "largest difference": f"{worst.difference:.1e}",
                    "bound": "none" if worst.bound is None else f"{worst.bound:.1e}",
                    "agreement": f"{min(row.agreement for row in rows):.1%}",
                }
            )
        return table


def verify_artifact(
    folder: str | Path,
    *,
    reference: Reference,
    kind: str,
    repo_id: str | None,
    run: Loader | None = None,
    named: str | Path | None = None,
) -> Parity:
    """Load an artifact as its users will, and compare it with the trained model.

    Args:
        folder: the files that will be published.
        reference: reference of the trained model.
        kind: `adapter`, `full`, `merged`, `stock`, `gguf`, `onnx`, `onnx_int8`, `generator`,
            `generator_adapter` or `generator_merged`.
        repo_id: the id to load by; None loads the folder by its path.
        run: runs `clean_process.py` on a job file; None for a subprocess.
        named: the folder named in messages, if `folder` is a temporary copy.

    Returns:
        The differences of logits, per padding and batch.

    Raises:
        TaskHeadsError: every difference from the trained model.
    """
    folder = Path(folder).resolve()
    named = named or folder
    if kind not in BOUNDS:
        raise error_at(
            "kind", f"found {kind!r}", ", ".join(BOUNDS), "choose one of them", code="option-value"
        )
    if problems := _missing(folder, kind, named=named):
        raise TaskHeadsError(problems)
    check_repo(str(folder))  # refuses code that is not of this library before it runs
    with tempfile.TemporaryDirectory(prefix="verification-") as root:
        cache = Path(root, "hub")
        if repo_id is not None:
            lay_out(folder, cache=cache, repo_id=repo_id)
        link_base(folder, cache)
        job = {
            **reference.job,
            "name": repo_id or str(folder),
            "folder": str(folder),
            "cache": str(cache),
            "trust": kind in WITH_CODE or _has_code(folder),
            "graph": str(folder / GRAPHS[kind]) if kind in GRAPHS else None,
            "rows": reference.report["rows"],
            # A PEFT adapter does not store the dtype of its base in training.
            "base_dtype": reference.report["dtype"] if kind == "generator_adapter" else None,
            "gguf": str(folder / GGUF_FILE) if kind == "gguf" else None,
            "paddings": ["right"] if kind in ("stock", "gguf") else ["left", "right"],
        }
        report = _report(job, reference, path=Path(root, "job.json"), run=run or in_subprocess, named=named)
    problems = _causes(reference, report, kind, folder) + compare_stored(reference.report, folder)
    rows = _rows(reference, report, kind) if "logits" in report else []
    over = [row for row in rows if row.bound is not None and not row.difference <= row.bound]
    over += [row for row in rows if not np.isfinite(row.difference) and row not in over]
    if over:
        worst = max(over, key=lambda row: np.nan_to_num(row.difference, nan=np.inf))
        problems.append(
            mismatch(
                f"logits ({worst.padding} padding, batch {worst.batch})",
                f"found a difference of {worst.difference:.2g}",
                "finite logits" if worst.bound is None else f"at most {worst.bound:.1e}",
                "correct the problems above, if any, and export the model again",
            )
        )
    if not rows and not problems:
        problems.append(
            mismatch(
                str(named), "found no logits to compare", "logits of every layout", "export the model again"
            )
        )
    if problems:
        raise TaskHeadsError(problems)
    return Parity(tuple(rows))


def _report(
    job: dict[str, Any], reference: Reference, *, path: Path, run: Loader, named: str | Path
) -> dict[str, Any]:
    """Return the report of the clean process; without enough memory, of an attempt that needs less."""
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
    killed = KILLED in failure
    raise error_at(
        str(named),
        f"the clean process failed: {failure.strip().splitlines()[-1][:500]}",
        "an artifact that loads in a clean process",
        MORE_MEMORY if killed else "export the model again",
        code="memory-exceeded" if killed else "verification-failed",
    )


def _missing(folder: Path, kind: str, *, named: str | Path) -> list[Problem]:
    """Return the files that loading needs and the folder lacks, and code that differs from the package."""
    wanted = ["tokenizer.json", "tokenizer_config.json"]
    wanted += ["label_prompt.json"] if kind in GENERATORS else []
    wanted += ["config.json"] if kind != "generator_adapter" else []
    if kind == "adapter":
        wanted += [f"{ADAPTER}/{ADAPTER_CONFIG}", f"{ADAPTER}/{ADAPTER_WEIGHTS}"]
    elif kind == "generator_adapter":
        wanted += [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
    elif kind in GRAPHS:
        wanted.append(GRAPHS[kind])
    elif kind == "gguf":
        wanted.append(GGUF_FILE)
    elif not (folder / "model.safetensors.index.json").is_file():
        wanted.append("model.safetensors")
    ours = CODE if kind in WITH_CODE or _has_code(folder) else []
    found = {
        name: ("the file is missing", "the file that save() writes")
        for name in [*wanted, *(file.name for file in ours)]
        if not (folder / name).is_file()
    }
    found |= {
        file.name: ("found other code", "the file of the installed package")
        for file in ours
        if file.name not in found and (folder / file.name).read_bytes() != file.read_bytes()
    }
    return [
        Problem(f"{named}/{name}", problem, expected, "save the model again", code="model-corrupted")
        for name, (problem, expected) in found.items()
    ]


def _has_code(folder: Path) -> bool:
    """Return whether a folder has the code of this library, which `_missing` compares with the package."""
    return (folder / "configuration_task_heads.py").is_file()


def _causes(reference: Reference, report: dict[str, Any], kind: str, folder: Path) -> list[Problem]:
    """Return the failures of loading and the differences of config, tokenizer and tensors."""
    wanted = reference.report
    out_of_memory = report.get("out_of_memory")
    problems = [
        Problem(
            f"loading the {stage}",
            " ".join(reason.split())[:300],
            "no error",
            MORE_MEMORY if stage == out_of_memory else "save the model again",
            code="memory-exceeded" if stage == out_of_memory else "verification-failed",
        )
        for stage, reason in report["failed"].items()
    ]
    stock = "facts" in report and report["facts"]["model_type"] != wanted["facts"]["model_type"]
    # The config of a `generator_adapter` is that of its base.
    if "facts" in report and not stock and kind != "generator_adapter":
        problems += compare_facts(wanted["facts"], report["facts"], adapter=kind == "adapter")
    if stock and "tokenizer" in report:
        rows = report.get("rows", wanted["rows"])
        problems += compare_stock(wanted["facts"], report["facts"], report["tokenizer"], rows)
    if "tokenizer" in report:
        texts = reference.job["texts"]
        problems += compare_tokenizers(wanted, report, texts=texts, stock=stock)
    if "tensors" in report:
        found = with_stored_head(report["tensors"], folder) if kind == "stock" else report["tensors"]
        problems += compare_tensors(
            wanted, found, merged=kind in WITHOUT_ADAPTER, quantized=wanted["quantized"]
        )
    return problems


def _rows(reference: Reference, report: dict[str, Any], kind: str) -> list[Row]:
    """Compare the logits of every layout with those of the trained model."""
    wanted = {(entry["padding"], entry["batch"]): entry["logits"] for entry in reference.report["logits"]}
    relative, narrow = BOUNDS[kind], ""
    tensors = report.get("tensors", {})
    if relative is not None:
        if report.get("device", "cpu") != reference.report["device"]:
            relative = max(relative, OTHER_DEVICE)
        rounded = [*reference.report["merged"], *(["score.weight"] if kind == "stock" else [])]
        if any(tensors.get(name, {}).get("dtype") != "float32" for name in rounded):
            relative = max(relative, HALF if kind in WITHOUT_ADAPTER else 0)
        computed = {one.get("computed_in", "float32") for one in (reference.report, report)}
        if narrow := ", ".join(sorted(computed - {"float32"})):
            relative = max(relative, HALF)
        if reference.report["quantized"]:
            relative = max(relative, QUANTIZED)
    by = "onnxruntime" if kind in GRAPHS else f"{report.get('class')}, without the package"
    by += f", in {narrow}: not enough memory for fp32" if narrow else ""
    facts, rows = reference.report["facts"], []
    known = {"problem_type": facts.get("problem_type"), "questions": facts.get("questions")}
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
            agreement=equal_share(theirs, ours, **known) if same else 0.0,
        )
        difference = row.difference if np.isfinite(row.difference) else float("inf")
        rows.append(replace(row, difference=difference))
    return rows
