"""Predict for a file of texts with any number of processes; the order and the number of rows are kept.

Design:
- The input is read twice. The first pass, before the model is loaded, validates, counts and hashes all rows.
  The second pass streams the input, with one shard of rows in memory at a time.
- Shard i (rows i*B to i*B+B-1) is computed by process i mod P. Every process parses the whole input, because
  parsing is much cheaper than the model, and no coordination is needed. Neither the shards nor the batches
  inside them depend on P. Any number of processes gives the same bytes on one machine, and can resume another
  run. Machines with other processors may differ in the last decimal of a number.
- An output row has the columns of the input and those of the answer, whose names have a prefix, so that a
  `label` column of the input is kept. With `bad_rows="skip"` an invalid row gets an `error` instead of an
  answer, and a row that cannot be parsed has only the `error`: rows in = answers + errors.
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
from qwen_task_heads.inference.shards import SUFFIXES, Shards

CATEGORY = "category"  # the column of candidates in training data


@dataclass(frozen=True)
class InputScan:
    """Result of the first pass: counts of rows, errors and rows without candidates; columns, pairs, hash."""

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
    """Validate and count all rows of an input, without a model.

    Args:
        source: a file, a folder, or a dataset id, see `read_inputs`.
        split: split of a folder or dataset.
        hub: hub of ids.
        bad_rows: `raise` raises all invalid rows in one error; `skip` counts them.
        candidates: column with the candidate labels of a row, which must be in `labels`.
        labels: labels of the model.
        files: encoding of text files, and columns of tables without a header.

    Raises:
        TaskHeadsError: invalid rows, a missing column, or a file that cannot be read, which is never skipped.
    """
    if bad_rows not in ("raise", "skip"):
        raise _error(
            "bad_rows",
            f"found {bad_rows!r}",
            "raise, skip",
            "choose one of them",
            code="option-value",
        )
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
        raise _error(source, "found no rows", "at least one row", "add rows", code="file-empty")
    if candidates is not None and candidates not in columns:
        raise _error(
            "--candidates",
            f"column {candidates!r} is missing in {source}",
            ", ".join(columns),
            "name the column of the labels",
            code="column-missing",
        )
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
    """Predict for every row of a file, in order; the same call resumes a killed run.

    Args:
        model: a classifier, a title scorer or a generative classifier: repo id, folder, `Scorer` or
            `LabelScorer`.
        source: `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, a folder of them, or a dataset id.
        output: `.jsonl`, `.csv` or `.tsv`; must not exist.
        split: split of a folder or dataset.
        hub: hub of ids, also of the model: `huggingface` or `modelscope`.
        bad_rows: `raise` or `skip`, see `scan_inputs`.
        top_k: see `Scorer.predict`.
        threshold: see `Scorer.predict`.
        abstain: see `Scorer.predict`.
        max_error: see `Scorer.predict`.
        prefix: prefix of the names of the answer's columns.
        candidates: for models with one label per text, the column with the candidate labels of a row (a list,
            or separated by commas; empty for all labels).
        encoding: encoding of text files, such as `gb18030`.
        columns: names of the columns of CSV and TSV files without a header.
        block_rows: rows of a shard.
        process_index: index of this process.
        num_processes: number of processes.
        wait: a barrier of all processes.
        **scorer: arguments of `open_scorer`, if `model` is a name.

    Returns:
        A report in the main process; None in the others.

    Raises:
        TaskHeadsError: invalid rows or options, an existing output, shards of another run, or a full disk.
    """
    from tqdm.auto import tqdm

    started, output = time.monotonic(), Path(output)
    if output.suffix not in SUFFIXES:
        raise _error(
            str(output),
            f"found the suffix {output.suffix!r}",
            ", ".join(SUFFIXES),
            "choose one of them",
            code="option-value",
        )
    if block_rows < 1:
        raise _error(
            "block_rows", f"found {block_rows}", "1 or more", "choose such as 2048", code="option-range"
        )
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
        title = "one title per row for a title scorer"
        raise _error(
            source,
            "found pairs of texts",
            title if model.is_title_scorer else "single texts, as in training",
            "drop a column",
            code="dataset-mismatch",
        )
    if model.needs_pairs and not scan.pairs and scan.errors < scan.rows:
        raise _error(
            source,
            "found no second text in any row",
            "pairs of texts, as in training",
            "write the texts into the columns text_a and text_b",
            code="dataset-mismatch",
        )
    check_options(problem_type_of(config), **options)
    if max_error is not None:
        confidence_for(max_error, config)
    identity = {
        "input": scan.sha256,
        "model": model_hash(model, asked=_prompt(model)),
        "bad_rows": bad_rows,
        "prefix": prefix,
        "batch_tokens": model.batch_tokens,
        "dtype": str(model.dtype),
        "int8": model.int8,
        "candidates": candidates,
        **options,
    }
    shards = Shards(output, rows=scan.rows, block_rows=block_rows, identity=identity)
    header = _columns(scan, config, prefix=prefix)
    shards.check()
    wait()  # until all processes have checked, before the first one writes
    missing: list[int] = []
    if process_index == 0:
        shards.open()
        missing = shards.missing()  # before any process writes; the other shards are of an earlier start
    wait()
    own = {index for index in shards.missing() if index % num_processes == process_index}
    items = _inputs(source, **read)
    with tqdm(
        total=sum(min(block_rows, scan.rows - index * block_rows) for index in own),
        desc=f"Predicting ({num_processes} processes)" if num_processes > 1 else "Predicting",
        unit="row",
        disable=process_index != 0,
    ) as bar:
        for index in range(max(own, default=-1) + 1):
            if index not in own:
                deque(islice(items, block_rows), maxlen=0)
                continue
            rows = _answer(list(islice(items, block_rows)), model, options=options, prefix=prefix)
            shards.write(index, rows)
            bar.update(len(rows))
    wait()  # until all shards are written
    if process_index != 0:
        return None
    report = FileReport(output)
    shards.assemble(columns=header, rows=report.counted(shards.read(), prefix=prefix))
    report.seconds = time.monotonic() - started
    report.resumed = scan.rows - sum(min(block_rows, scan.rows - index * block_rows) for index in missing)
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
    """Return the rows of an input with their candidate labels."""
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
    """Return the output rows of input rows."""
    good = [item for _, item in items if isinstance(item, TextInput)]
    texts, pairs = [item.text for item in good], [item.text_b for item in good]
    if isinstance(scorer, Scorer) and scorer.is_title_scorer:
        prompts = [item.row.get("prompt") or "" for item in good]
        answers = [{"score": round(score, DIGITS)} for score in scorer.score(texts, prompts=prompts)]
    else:
        candidates = [item.candidates for item in good]
        predictions = choose(scorer, texts, candidates=candidates, text_pairs=pairs, **options)
        answers = [prediction.as_dict() for prediction in predictions]
    rest = iter(answers)
    return [
        {**(item.row if isinstance(item, InputProblem) else {}), ERROR: str(item)}
        if isinstance(item, Problem)
        else {**item.row, **{f"{prefix}{name}": value for name, value in next(rest).items()}}
        for _, item in items
    ]


def _notes(scan: InputScan, scorer: Scorer | LabelScorer, *, candidates: str | None) -> list[str]:
    """Return messages on the candidates of the rows."""
    if candidates is not None and scan.without_candidates:
        return [
            f"{scan.without_candidates:,} rows have no candidates in {candidates!r}: all labels were scored"
        ]
    if candidates is None and isinstance(scorer, LabelScorer) and CATEGORY in scan.columns:
        hint = f"--candidates {CATEGORY} restricts every answer to the candidates of its row"
        return [f"the column {CATEGORY!r} was ignored: {hint}"]
    return []


def _columns(scan: InputScan, config: Any, *, prefix: str) -> list[str]:
    """Return the columns of the output; raise if the input has a column of the answer already."""
    names = [f"{prefix}{name}" for name in answer_columns(config)] + ([ERROR] if scan.errors else [])
    if existing := [name for name in names if name in scan.columns]:
        raise _error(
            "--prefix",
            f"the input has the columns {', '.join(map(repr, existing))}",
            "names that the input does not have",
            "rename the column" if existing == [ERROR] else "name another --prefix",
            code="option-conflict",
        )
    return [*scan.columns, *names]


def _prompt(scorer: Scorer | LabelScorer) -> list[Any] | None:
    """Return the prompt and options of a generative classifier; None for a head."""
    if isinstance(scorer, Scorer):
        return None
    prompts = scorer.prompts
    values = [*prompts.around(), asdict(prompts.labels), prompts.max_length, prompts.truncation]
    return [*values, scorer.calibrate, scorer.length_normalized, scorer.answers]


def _error(where: str, problem: str, expected: str, fix: str, *, code: str) -> TaskHeadsError:
    return TaskHeadsError(Problem(where, problem, expected, fix, code=code))
