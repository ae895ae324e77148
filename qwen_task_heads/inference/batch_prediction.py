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
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from qwen_task_heads.data.text_readers import InputProblem, TextInput, read_inputs
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at
from qwen_task_heads.inference.arguments import PredictArguments
from qwen_task_heads.inference.batch_report import ERROR, FileReport
from qwen_task_heads.inference.identity import model_hash
from qwen_task_heads.inference.inputs import check_count
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.inference.loading import choose, labels_to_choose, open_scorer, with_candidates
from qwen_task_heads.inference.predictions import DIGITS, answer_columns, check_options
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.inference.shards import SUFFIXES, Shards
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.sources.file_options import options_of
from qwen_task_heads.sources.json_files import FileProblem
from qwen_task_heads.training.callbacks import check_world

CATEGORY = "category"  # the column of candidates in training data
TIMEOUT = timedelta(days=7)  # processes may differ by hours; a process that has ended is detected at once


@dataclass(frozen=True)
class InputScan:
    """Result of the first pass: counts of rows, errors and rows without candidates; columns, pairs, hash."""

    rows: int
    errors: int
    without_candidates: int
    columns: tuple[str, ...]
    pairs: bool
    sha256: str


def scan_inputs(arguments: PredictArguments, *, labels: LabelMap | None = None) -> InputScan:
    """Validate and count all rows of an input, without a model.

    Args:
        arguments: with `bad_rows="raise"` all invalid rows are raised in one error; with `skip` they are
            counted.
        labels: labels of the model, for candidates.

    Raises:
        TaskHeadsError: invalid rows, a missing column, or a file that cannot be read, which is never skipped.
    """
    source, candidates, skips = arguments.input, arguments.candidates, arguments.bad_rows == "skip"
    digest, columns = hashlib.sha256(), dict[str, None]()
    problems: list[Problem] = []
    rows = errors = pairs = without = 0
    for _, item in _inputs(arguments, labels):
        rows += 1
        if isinstance(item, Problem):
            errors += 1
            if isinstance(item, FileProblem):
                problems.append(item)
            elif not skips:
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
        raise error_at(source, "found no rows", "at least one row", "add rows", code="file-empty")
    if candidates is not None and candidates not in columns:
        problem, fix = f"column {candidates!r} is missing in {source}", "name the column of the labels"
        raise error_at("--candidates", problem, ", ".join(columns), fix, code="column-missing")
    return InputScan(rows, errors, without, tuple(columns), pairs > 0, digest.hexdigest())


def predict_file(
    arguments: PredictArguments, *, scorer: Scorer | LabelScorer | None = None, state: Any = None
) -> FileReport | None:
    """Predict for every row of a file, in order; the same call resumes a killed run.

    Args:
        arguments: the model, the files and the options.
        scorer: a loaded model, used instead of `arguments.model`.
        state: `accelerate.PartialState` of the processes; if None, the group that the launcher asks for is
            formed, and left at the end.

    Returns:
        A report in the main process; None in the others.

    Raises:
        TaskHeadsError: invalid rows or options, an existing output, shards of another run, or a full disk.
    """
    if state is not None:
        return _predict(arguments, scorer, state)
    from accelerate import PartialState

    # Without an accelerator, accelerate forms a process group only with cpu=True.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=TIMEOUT)
    check_world(None, running=state.num_processes)
    try:
        return _predict(arguments, scorer, state)
    finally:
        state.destroy_process_group()


def _predict(args: PredictArguments, scorer: Scorer | LabelScorer | None, state: Any) -> FileReport | None:
    from tqdm.auto import tqdm

    started, output = time.monotonic(), Path(args.output)
    _check_arguments(args)
    labels = None
    if args.candidates is not None:
        labels = labels_to_choose(scorer or args.model, revision=args.revision, hub=args.hub)
    scan = scan_inputs(args, labels=labels)
    model = scorer or open_scorer(
        args.model,
        revision=args.revision,
        hub=args.hub,
        batch_tokens=args.batch_tokens,
        dtype=args.dtype,
        int8=args.int8,
        device=state.device,
        progress=False,
    )
    _check_pairs(args.input, scan, model)
    options = {name: vars(args)[name] for name in ("top_k", "threshold", "abstain", "max_error")}
    check_options(model.config, **options)
    identity = {
        "input": scan.sha256,
        "model": model_hash(model, asked=_prompt(model)),
        "bad_rows": args.bad_rows,
        "prefix": args.prefix,
        "batch_tokens": model.batch_tokens,
        "dtype": str(model.dtype),
        "int8": model.int8,
        "candidates": args.candidates,
        **options,
    }
    shards = Shards(output, rows=scan.rows, block_rows=args.block_rows, identity=identity)
    header = _columns(scan, model.config, prefix=args.prefix)
    shards.check()
    state.wait_for_everyone()  # until all processes have checked, before the first one writes
    missing: list[int] = []
    if state.process_index == 0:
        shards.open()
        missing = shards.missing()  # before any process writes; the other shards are of an earlier start
    state.wait_for_everyone()
    own = {index for index in shards.missing() if index % state.num_processes == state.process_index}
    items = _inputs(args, labels)
    with tqdm(
        total=shards.count_rows(own),
        desc=f"Predicting ({state.num_processes} processes)" if state.num_processes > 1 else "Predicting",
        unit="row",
        disable=state.process_index != 0,
    ) as bar:
        for index in range(max(own, default=-1) + 1):
            if index not in own:
                deque(islice(items, args.block_rows), maxlen=0)
                continue
            rows = _answer(list(islice(items, args.block_rows)), model, options=options, prefix=args.prefix)
            shards.write(index, rows)
            bar.update(len(rows))
    state.wait_for_everyone()  # until all shards are written
    if state.process_index != 0:
        return None
    report = FileReport(output)
    shards.assemble(columns=header, rows=report.counted(shards.read(), prefix=args.prefix))
    report.seconds = time.monotonic() - started
    report.resumed = scan.rows - shards.count_rows(missing)
    report.notes = _notes(scan, model, candidates=args.candidates)
    if isinstance(model, Scorer) and model.throughput.padded:
        report.speed = model.throughput.summary()
    return report


def _check_arguments(args: PredictArguments) -> None:
    """Raise for options that need neither data nor a model; the parser checks none of a Python caller."""
    suffix, choose = Path(args.output).suffix, "choose one of them"
    if suffix not in SUFFIXES:
        problem = f"found the suffix {suffix!r}"
        raise error_at(args.output, problem, ", ".join(SUFFIXES), choose, code="option-value")
    check_count("block_rows", args.block_rows, example=2048)
    if args.bad_rows not in ("raise", "skip"):
        raise error_at("bad_rows", f"found {args.bad_rows!r}", "raise, skip", choose, code="option-value")


def _check_pairs(source: str, scan: InputScan, model: Scorer | LabelScorer) -> None:
    """Raise if the input has pairs of texts and the model takes single texts, or the other way round."""
    if scan.pairs and not model.takes_pairs:
        single = "single texts, as in training"
        expected = "one title per row for a title scorer" if model.is_title_scorer else single
        raise error_at(source, "found pairs of texts", expected, "drop a column", code="dataset-mismatch")
    if model.needs_pairs and not scan.pairs and scan.errors < scan.rows:
        problem, expected = "found no second text in any row", "pairs of texts, as in training"
        fix = "write the texts into the columns text_a and text_b"
        raise error_at(source, problem, expected, fix, code="dataset-mismatch")


def _inputs(args: PredictArguments, labels: LabelMap | None) -> Iterator[tuple[str, TextInput | Problem]]:
    """Return the rows of an input with their candidate labels."""
    files = options_of(args.encoding, args.columns or ())
    items = read_inputs(args.input, split=args.split, hub=args.hub, options=files)
    if args.candidates is None or labels is None:
        return items
    return with_candidates(items, column=args.candidates, labels=labels)


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
        raise error_at(
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
