"""The review file of a label audit: written for people, edited in a spreadsheet, and read back.

| column | content |
|---|---|
| row | file and line of the training row |
| hash | of its text and label; a file that was edited against other data is refused |
| text, text_b; or prompt, chosen, rejected | for reading only |
| label | given label; several ones are joined by a vertical bar |
| suggested | label that the audit prefers |
| confidence | out-of-fold probability of the given label |
| decision | empty or `keep`, `drop`, a label name (texts), or `swap` (pairs) |
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.labeling.confident_learning import LabelAudit

KEEP, DROP, SWAP = "keep", "drop", "swap"
BETWEEN = "|"
FORMULA = ("=", "+", "-", "@", "\t")  # first characters that a spreadsheet would compute


def write_review(
    path: str | Path, rows: Sequence[Any], audit: LabelAudit, *, labels: Sequence[str], count: int
) -> Path:
    """Write the most suspicious rows, most suspicious first.

    Args:
        path: CSV file, UTF-8 with a byte order mark, which spreadsheets expect.
        rows: those of the audit, texts or pairs.
        audit: of `audit_labels` or `audit_pairs`.
        labels: names of the labels; () for pairs.
        count: number of rows to write.
    """
    table = [_entry(rows[number], audit, int(number), labels) for number in audit.order[:count]]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0]) if table else ["row"])
    writer.writeheader()
    writer.writerows(table)
    return write_whole(path, text.getvalue().encode("utf-8-sig"))


def read_review(path: str | Path, rows: Sequence[Any], *, labels: Sequence[str]) -> dict[int, str]:
    """Read the decisions of a review file.

    Args:
        path: of `write_review`, edited; a spreadsheet may have changed the delimiter to a semicolon or tab.
        rows: the same rows as in the audit.
        labels: as in `write_review`.

    Returns:
        Number of a row -> `drop`, `swap`, or the names of its labels, joined as in the file; kept rows are
        left out.

    Raises:
        TaskHeadsError: every unknown row, changed row, repeated row and unknown decision.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problem, fix = f"cannot be read ({error})", "save it as CSV in UTF-8"
        raise TaskHeadsError(Problem(str(path), problem, "a review file", fix, code="file-format")) from None
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    places = {PurePath(row.source).name: number for number, row in enumerate(rows)}
    decisions: dict[int, str] = {}
    problems: list[Problem] = []
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    if missing := {"row", "hash", "decision"} - {*(reader.fieldnames or ())}:
        found = f"found no column {', '.join(sorted(missing))}"
        fix = "write the file again: qth audit without --review"
        raise TaskHeadsError(Problem(str(path), found, "row, hash, decision", fix, code="column-missing"))
    seen: set[int] = set()
    for entry in reader:
        where = f"{path}:{reader.line_num}"
        number = places.get(entry["row"] or "")
        if number is None or row_hash(rows[number], labels) != entry["hash"]:
            changed = "is not in the data" if number is None else "has another text or label in the data"
            fix = "give the data that was audited, or write the file again: qth audit without --review"
            found = f"{shorten(entry['row'] or '')} {changed}"
            problems.append(Problem(where, found, "a row of the audited data", fix, code="dataset-mismatch"))
            continue
        if number in seen:
            found, fix = f"{shorten(entry['row'])} is there twice", "keep one of the lines"
            problems.append(Problem(where, found, "one line per row", fix, code="value-conflict"))
            continue
        seen.add(number)
        decision = (entry["decision"] or "").strip()
        if decision.lower() in ("", KEEP):
            continue
        invalid = _decision_problem(where, decision, labels)
        problems += invalid
        if not invalid:
            decisions[number] = decision.lower() if decision.lower() in (DROP, SWAP) else decision
    if problems:
        raise TaskHeadsError(problems)
    return decisions


def apply_review(rows: Sequence[Any], decisions: Mapping[int, str], *, labels: Sequence[str]) -> list[Any]:
    """Return the rows with their decisions: dropped, labelled again, or with their titles exchanged.

    Example:
        >>> rows = [TextExample(text="a", target=0), TextExample(text="b", target=0)]
        >>> [row.target for row in apply_review(rows, {0: "drop", 1: "good"}, labels=["bad", "good"])]
        [1]
    """
    ids = {name: number for number, name in enumerate(labels)}
    result: list[Any] = []
    for number, row in enumerate(rows):
        decision = decisions.get(number, KEEP)
        if decision == DROP:
            continue
        if decision == SWAP:
            preference = None if row.preference is None else 1 - row.preference
            row = replace(row, chosen=row.rejected, rejected=row.chosen, preference=preference)
        elif decision != KEEP:
            several = isinstance(row.target, tuple)
            chosen = [decision] if decision in ids else decision.split(BETWEEN)
            target = tuple(sorted(ids[name] for name in chosen)) if several else ids[decision]
            row = replace(row, target=target, soft=None)
        result.append(row)
    return result


def write_rows(path: str | Path, rows: Sequence[Any], *, labels: Sequence[str]) -> Path:
    """Write rows as JSONL that training reads: texts with label names, or pairs.

    Columns without a value are left out. `audited_from` has the place of each row in the data.
    """
    lines = [json.dumps(as_columns(row, labels), ensure_ascii=False) for row in rows]
    return write_whole(path, "".join(f"{line}\n" for line in lines).encode("utf-8"))


def as_columns(row: Any, labels: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a row, as training reads them."""
    if isinstance(row, PairExample):
        names = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
        names |= {"margin": "margin", "preference": "preference"}
    else:
        names = {"text": "text", "text_b": "text_b"}
    columns = {name: vars(row)[own] for name, own in names.items() if vars(row)[own] not in ("", None)}
    if isinstance(row, TextExample) and isinstance(row.target, tuple):
        columns["labels"] = [labels[int(one)] for one in row.target]
    elif isinstance(row, TextExample):
        columns["label"] = labels[row.target]  # type: ignore[index]
        columns |= {"probabilities": list(row.soft)} if row.soft is not None else {}
    columns |= {"weight": row.weight} if row.weight != 1 else {}
    columns |= {"group_id": row.group} if row.group else {}
    return {**columns, "audited_from": PurePath(row.source).name}


def row_hash(row: Any, labels: Sequence[str]) -> str:
    """Return 16 hexadecimal digits of SHA-256 of the columns of a row."""
    columns = {name: value for name, value in as_columns(row, labels).items() if name != "audited_from"}
    content = json.dumps(columns, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write a file that appears when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return path


def _entry(row: Any, audit: LabelAudit, number: int, labels: Sequence[str]) -> dict[str, str]:
    entry = {"row": PurePath(row.source).name, "hash": row_hash(row, labels)}
    if isinstance(row, PairExample):
        entry |= {name: cell(vars(row)[name]) for name in ("prompt", "chosen", "rejected")}
        suggested = SWAP if audit.suggested[number] else KEEP
    else:
        entry |= {"text": cell(row.text), "text_b": cell(row.text_b)}
        entry["label"] = _names(row.target, labels)
        own = audit.suggested[number]
        suggested = _names(tuple(own.nonzero()[0]) if own.ndim else int(own), labels)
    return {
        **entry,
        "suggested": suggested,
        "confidence": f"{audit.confidence[number]:.4f}",
        "decision": "",
    }


def _names(target: Any, labels: Sequence[str]) -> str:
    numbers = target if isinstance(target, tuple) else (target,)
    return BETWEEN.join(labels[int(number)] for number in numbers)


def cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _decision_problem(where: str, decision: str, labels: Sequence[str]) -> list[Problem]:
    """Return the problem of a decision that is neither a command nor a label, if any."""
    commands = (KEEP, DROP) if labels else (KEEP, DROP, SWAP)
    names = decision.split(BETWEEN) if decision not in labels else [decision]
    if decision.lower() in commands or (labels and all(name in labels for name in names)):
        return []
    expected = ", ".join(commands) + (", or a label" if labels else "")
    fix = "correct it, or leave it empty to keep the row"
    return [Problem(where, f"found the decision {shorten(decision)}", expected, fix, code="label-unknown")]
