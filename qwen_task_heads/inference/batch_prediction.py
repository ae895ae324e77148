"""A file of texts to a file of answers, by any number of processes: the order and the row count are kept.

Design:
- The input is read twice. The first pass, before the model is loaded, names every bad row, counts, and
  hashes what was read; the second streams, one block of rows in memory at a time.
- Block i (rows i*B to i*B+B-1) is computed by process i mod P. Every process parses the whole input,
  because parsing costs far less than a model, and nobody has to hand out work. Neither the blocks nor the
  batches inside them depend on P, so any number of processes gives the same bytes on one machine, and
  resumes another's. Machines with other processors may differ in the last decimal of a number.
- A row comes out with all that it came in with, and the answer under names with a prefix, so that a `label`
  in the input stays what it was. A row without a usable text gets an `error` instead of an answer with
  `bad_rows="skip"`, and a row that cannot be read at all has nothing else: rows in = answers + errors.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from qwen_task_heads.data.file_options import PLAIN, UTF_8, FileOptions, options_of
from qwen_task_heads.data.json_files import FileProblem
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.text_readers import InputProblem, TextInput, read_inputs
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.inference.batch_report import ERROR, FileReport
from qwen_task_heads.inference.identity import model_hash
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.inference.loading import choose, labels_to_choose, open_scorer, with_candidates
from qwen_task_heads.inference.predictions import (
    DIGITS,
    answer_columns,
    check_options,
    confidence_for,
    problem_type_of,
)
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.inference.shards import SUFFIXES, Parts

CATEGORY = "category"  # where the rows of training offer labels


@dataclass(frozen=True)
class InputScan:
    """What the first pass found: rows, bad ones, those that offer no labels, columns, pairs, and a hash."""

    rows: int
    errors: int
    without_candidates: int
    columns: tuple[str, ...]
    pairs: bool
    sha256: str


def scan_inputs(
    source: str,
    *,
    split: str | None = None,
    hub: str = "huggingface",
    bad_rows: str = "raise",
    candidates: str | None = None,
    labels: LabelMap | None = None,
    files: FileOptions = PLAIN,
) -> InputScan:
    """Read a whole input without a model.

    Args:
        source: a file, a folder, or a data set id, as `read_inputs` takes them.
        split: which split of a folder or data set.
        hub: where ids are looked up.
        bad_rows: `raise`: every bad row is named, in one error; `skip`: they are counted.
        candidates: the column with the labels that a row offers, which are held against `labels`.
        labels: those of a model that writes them.
        files: encoding of text files, and columns of tables without a header.

    Raises:
        TaskHeadsError: bad rows, a column that no row has, or a file that is damaged as a whole, which is
            never skipped.
    """
    if bad_rows not in ("raise", "skip"):
        raise _problem("bad_rows", f"found {bad_rows!r}", "raise, skip", "choose one of them")
    digest, columns = hashlib.sha256(), dict[str, None]()
    problems: list[Problem] = []
    rows = errors = pairs = without = 0
    for _, item in _inputs(source, split=split, hub=hub, candidates=candidates, labels=labels, files=files):
        rows += 1
        if isinstance(item, Problem):
            errors += 1
            if isinstance(item, FileProblem):
                problems.append(item)
            elif bad_rows == "raise":
                problems.append(replace(item, fix=f"{item.fix}, or keep it unanswered: --bad_rows skip"))
            digest.update(str(item).encode())
            if isinstance(item, InputProblem):
                columns.update(dict.fromkeys(item.row))
                digest.update(json.dumps(item.row, default=str).encode())
        else:
            pairs += bool(item.text_b)
            without += not item.candidates
            columns.update(dict.fromkeys(item.row))
            digest.update(json.dumps([item.text, item.text_b, item.row], default=str).encode())
    if problems:
        raise TaskHeadsError(problems)
    if not rows:
        raise _problem(source, "found no rows", "at least one", "add rows")
    if candidates is not None and candidates not in columns:
        found = f"found {candidates!r}, which no row of {source} has"
        raise _problem("--candidates", found, ", ".join(columns), "name the column of the labels")
    return InputScan(rows, errors, without, tuple(columns), pairs > 0, digest.hexdigest())


def predict_file(
    model: str | Path | Scorer | LabelScorer,
    *,
    source: str,
    output: str | Path,
    split: str | None = None,
    hub: str = "huggingface",
    bad_rows: str = "raise",
    top_k: int | None = None,
    threshold: float | None = None,
    abstain: float | None = None,
    max_error: float | None = None,
    prefix: str = "predicted_",
    candidates: str | None = None,
    encoding: str = UTF_8,
    columns: Sequence[str] = (),
    block_rows: int = 2048,
    process_index: int = 0,
    num_processes: int = 1,
    wait: Callable[[], None] = lambda: None,
    **scorer: Any,
) -> FileReport | None:
    """Answer for every row of a file, in order; the same call again resumes after a kill.

    Args:
        model: a classifier, a title scorer or a label writer: repo id, folder, `Scorer` or `LabelScorer`.
        source: `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, a folder of them, or a data set id.
        output: `.jsonl`, `.csv` or `.tsv`; it must not be there yet.
        split: which split of a folder or data set.
        hub: where ids are looked up, of the model too: `huggingface` or `modelscope`.
        bad_rows: `raise` or `skip`, see `scan_inputs`.
        top_k: see `Scorer.predict`.
        threshold: see `Scorer.predict`.
        abstain: see `Scorer.predict`.
        max_error: see `Scorer.predict`.
        prefix: before the names of the answer's columns.
        candidates: of models that give one label, the column with the labels that a row offers (a list, or
            separated by commas; empty for all): the answer is one of these.
        encoding: of text files, such as `gb18030`.
        columns: names of the columns of CSV and TSV files without a header.
        block_rows: rows that are computed and written at a time.
        process_index: which of the processes this is.
        num_processes: how many there are.
        wait: a barrier of all processes.
        **scorer: arguments of `open_scorer`, where `model` is a name.

    Returns:
        A report, in the main process; None in the others.

    Raises:
        TaskHeadsError: bad rows, bad options, an output that is there, parts of another run, a full disk.
    """
    from tqdm.auto import tqdm

    started, output = time.monotonic(), Path(output)
    if output.suffix not in SUFFIXES:
        raise _problem(str(output), f"found the suffix {output.suffix!r}", ", ".join(SUFFIXES), "choose one")
    if block_rows < 1:
        raise _problem("block_rows", f"found {block_rows}", "1 or more", "choose such as 2048")
    labels = None
    if candidates is not None:
        labels = labels_to_choose(model, revision=scorer.get("revision"), hub=hub)
    read: dict[str, Any] = {"split": split, "hub": hub, "candidates": candidates, "labels": labels}
    read["files"] = options_of(encoding, columns)
    scan = scan_inputs(source, bad_rows=bad_rows, **read)
    if isinstance(model, (str, Path)):
        model = open_scorer(str(model), hub=hub, progress=False, **scorer)
    options: dict[str, Any] = {"top_k": top_k, "threshold": threshold, "abstain": abstain}
    options["max_error"] = max_error
    config = model.config
    if scan.pairs and not model.takes_pairs:
        accepted = (
            "one title per row for a title scorer"
            if model.is_title_scorer
            else "single texts, as in training"
        )
        raise _problem(source, "found pairs of texts", accepted, "drop a column")
    if model.needs_pairs and not scan.pairs and scan.errors < scan.rows:
        remedy = "write the texts into the columns text_a and text_b"
        raise _problem(source, "found no second text in any row", "pairs of texts, as in training", remedy)
    check_options(problem_type_of(config), **options)
    if max_error is not None:
        confidence_for(max_error, config)
    identity = {
        "input": scan.sha256, "model": model_hash(model, asked=_asked(model)), "bad_rows": bad_rows,
        "prefix": prefix,
        "batch_tokens": model.batch_tokens, "dtype": str(model.dtype), "int8": model.int8,
        "candidates": candidates, **options,
    }  # fmt: skip
    parts = Parts(output, rows=scan.rows, block_rows=block_rows, identity=identity)
    header = _columns(scan, config, prefix=prefix)
    parts.check()
    wait()  # nobody writes before everybody has looked
    missing: list[int] = []
    if process_index == 0:
        parts.open()
        missing = parts.missing()  # before anybody writes: the rest is of an earlier start
    wait()
    mine = {block for block in parts.missing() if block % num_processes == process_index}
    items = _inputs(source, **read)
    with tqdm(
        total=sum(min(block_rows, scan.rows - block * block_rows) for block in mine),
        desc=f"Predicting ({num_processes} processes)" if num_processes > 1 else "Predicting",
        unit="row",
        disable=process_index != 0,
    ) as bar:
        for block in range(max(mine, default=-1) + 1):
            if block not in mine:
                deque(islice(items, block_rows), maxlen=0)
                continue
            rows = _answer(list(islice(items, block_rows)), model, options=options, prefix=prefix)
            parts.write(block, rows)
            bar.update(len(rows))
    wait()  # until all blocks are written
    if process_index != 0:
        return None
    report = FileReport(output)
    parts.assemble(columns=header, rows=report.counted(parts.read(), prefix=prefix))
    report.seconds = time.monotonic() - started
    report.resumed = scan.rows - sum(min(block_rows, scan.rows - block * block_rows) for block in missing)
    report.notes = _notes(scan, model, candidates=candidates)
    if isinstance(model, Scorer) and model.throughput.padded:
        report.speed = model.throughput.summary()
    return report


def _inputs(
    source: str,
    *,
    split: str | None,
    hub: str,
    candidates: str | None,
    labels: LabelMap | None,
    files: FileOptions,
) -> Iterator[tuple[str, TextInput | Problem]]:
    """The rows of a file, with the labels that they offer."""
    items = read_inputs(source, split=split, hub=hub, options=files)
    if candidates is None or labels is None:
        return items
    return with_candidates(items, column=candidates, labels=labels)


def _answer(
    items: list[tuple[str, TextInput | Problem]],
    scorer: Scorer | LabelScorer,
    *,
    options: dict[str, Any],
    prefix: str,
) -> list[dict[str, Any]]:
    """Rows of the input to rows of the output."""
    good = [item for _, item in items if isinstance(item, TextInput)]
    texts, pairs = [item.text for item in good], [item.text_b for item in good]
    if isinstance(scorer, Scorer) and scorer.is_title_scorer:
        prompts = [item.row.get("prompt") or "" for item in good]
        answers = [{"score": round(score, DIGITS)} for score in scorer.score(texts, prompts=prompts)]
    else:
        offered = [item.candidates for item in good]
        found = choose(scorer, texts, candidates=offered, text_pairs=pairs, **options)
        answers = [answer.as_dict() for answer in found]
    rest = iter(answers)
    return [
        {**(item.row if isinstance(item, InputProblem) else {}), ERROR: str(item)}
        if isinstance(item, Problem)
        else {**item.row, **{f"{prefix}{name}": value for name, value in next(rest).items()}}
        for _, item in items
    ]


def _notes(scan: InputScan, scorer: Scorer | LabelScorer, *, candidates: str | None) -> list[str]:
    """What who reads the answers may not expect."""
    if candidates is not None and scan.without_candidates:
        return [
            f"{scan.without_candidates:,} rows offer no labels in {candidates!r}: they were asked for all"
        ]
    if candidates is None and isinstance(scorer, LabelScorer) and CATEGORY in scan.columns:
        told = f"with --candidates {CATEGORY} every answer is one of what its row offers"
        return [f"the column {CATEGORY!r} was not looked at: {told}"]
    return []


def _columns(scan: InputScan, config: Any, *, prefix: str) -> list[str]:
    """Columns of the output; those of the answer must not be in the input, where they would be lost."""
    names = [f"{prefix}{name}" for name in answer_columns(config)] + ([ERROR] if scan.errors else [])
    if taken := [name for name in names if name in scan.columns]:
        found = f"the input has the columns {', '.join(map(repr, taken))}"
        remedy = "rename the column" if taken == [ERROR] else "name another --prefix"
        raise _problem("--prefix", found, "names that the input does not have", remedy)
    return [*scan.columns, *names]


def _asked(scorer: Scorer | LabelScorer) -> list[Any] | None:
    """What a model that writes labels is asked; None of a head."""
    if isinstance(scorer, Scorer):
        return None
    prompts = scorer.prompts
    words = [*prompts.around(), asdict(prompts.labels), prompts.max_length, prompts.truncation]
    return [*words, scorer.calibrate, scorer.length_normalized, scorer.answers]


def _problem(where: str, found: str, accepted: str, remedy: str) -> TaskHeadsError:
    return TaskHeadsError(Problem(where, found, f"{accepted}", remedy))
