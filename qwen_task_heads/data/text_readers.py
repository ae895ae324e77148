"""Files of texts -> rows with unresolved targets, or texts to predict, with the problems of all rows.

`schema.py` lists the accepted columns. A class file (`train.txt`) has `text<TAB>label` lines, or those of
`class_files.py`, with `class.txt` or `labels.txt` next to it. `label_values.py` determines the meaning of the
values of labels.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from qwen_task_heads.data.raw_texts import RawTexts
from qwen_task_heads.data.row_reader import RowReader
from qwen_task_heads.data.scanning import scan_file
from qwen_task_heads.data.schema import STATE, first_of
from qwen_task_heads.data.text_columns import read_text
from qwen_task_heads.data.text_layout import TextLayout, layouts_of, read_text_layout
from qwen_task_heads.data.text_scan import TextScan
from qwen_task_heads.errors import Problem
from qwen_task_heads.sources.batches import RowSource
from qwen_task_heads.sources.class_files import is_label_first
from qwen_task_heads.sources.file_options import PLAIN, FileOptions
from qwen_task_heads.sources.formats import TEXT_KINDS, open_source
from qwen_task_heads.sources.hub_datasets import rows_of


def read_texts(
    source: str,
    *,
    split: str | None = None,
    hub: str = "huggingface",
    problem_type: str | None = None,
    max_samples: int | None = None,
    streaming: bool = False,
    options: FileOptions = PLAIN,
) -> RawTexts:
    """Read labelled texts from a file, a folder, or a dataset id; labels are resolved later.

    Args:
        source: JSONL, JSON, CSV, TSV, Parquet, Arrow, Excel or a class file; a folder of these, or one by
            `save_to_disk`; `owner/name` of a hub, also as `modelscope:owner/name`. An existing path takes
            precedence over an id.
        split: `train`, `dev` or `test` of a folder or hub dataset with several splits.
        hub: the hub of an id without prefix, `huggingface` or `modelscope`.
        problem_type: the problem type, or None to derive it from the target column.
        max_samples: maximum number of rows to read, None for all.
        streaming: whether to read the rows of a hub as they arrive.
        options: encoding of text files, and columns of tables without a header.

    Raises:
        TaskHeadsError: the source, split or hub does not exist or cannot be fetched. Defects of files and
            rows are collected, not raised.
    """
    result = RawTexts(source=source)
    files = open_source(source, split=split, hub=hub, kinds=TEXT_KINDS, streaming=streaming, options=options)
    for rows in files:
        left = None if max_samples is None else max_samples - result.rows_read
        if left == 0:
            result.cut_at = max_samples
            break
        if _read_file(rows, result, problem_type=problem_type or result.kind or None, left=left):
            result.cut_at = max_samples
        if rows.name.endswith(".txt") and os.path.isfile(rows.name) and is_label_first(rows.name, options):
            result.messages.append(f"each line of {os.path.basename(rows.name)} begins with its label")
    return result


def texts_of_rows(rows: Any, *, name: str, problem_type: str | None = None) -> RawTexts:
    """Read labelled texts from rows in memory, validated as those of a file.

    Args:
        rows: a `datasets.Dataset`, or dicts, with the columns of `schema.py`.
        name: name of the rows in messages: `name:row 17`, counted from 1.
        problem_type: the problem type, or None to derive it from the target column.

    Example:
        >>> from qwen_task_heads.data.text_readers import texts_of_rows
        >>> texts_of_rows([{"text": "Cold food.", "label": "bad"}], name="train_dataset").rows.places[0]
        'train_dataset:row 1'
    """
    result = RawTexts(source=name)
    _read_file(rows_of(name, rows), result, problem_type=problem_type, left=None)
    return result


def _read_file(rows: RowSource, result: RawTexts, *, problem_type: str | None, left: int | None) -> bool:
    """Read at most `left` rows of one file, and return whether it has more."""

    def start(where: str, columns: Collection[str]) -> TextScan:
        layout = read_text_layout(where, columns, problem_type=problem_type)
        return TextScan(result, layout, rows.class_names.get(layout.target, ()))

    scan, more = scan_file(rows, result, start=start, left=left)
    if scan is not None and not scan.layout.problems:
        layout = scan.layout
        result.kind, result.target = result.kind or layout.kind, result.target or layout.target
        result.class_names = result.class_names or scan.class_names
    return more


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """A text to predict.

    Args:
        text: stripped, not empty.
        text_b: the second text of a pair, "" for single texts.
        row: the row as it was read, with all its columns.
        source: file and line.
        candidates: names of the labels to choose from, if the caller reads them; () for all.
    """

    text: str
    text_b: str = ""
    row: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputProblem(Problem):
    """A problem of a row without a usable text.

    Args:
        row: the row as it was read, with all its columns.
    """

    row: dict[str, Any] = field(default_factory=dict, compare=False)


def read_inputs(
    source: str,
    *,
    split: str | None = None,
    hub: str = "huggingface",
    streaming: bool = False,
    options: FileOptions = PLAIN,
) -> Iterator[tuple[str, TextInput | Problem]]:
    """Read texts to predict row by row: JSONL, Parquet and class files in constant memory.

    The first row with a text determines the text columns of its file. Without another text, `title` is the
    text. Targets are not read.

    Args:
        source: as in `read_texts`.
        split: split of a folder or hub dataset with several splits.
        hub: the hub of an id without prefix.
        streaming: whether to read the rows of a hub as they arrive.
        options: encoding of text files, and columns of tables without a header.

    Returns:
        An iterator of `(where, text)`, or `(where, problem)` for a row without a text (an `InputProblem`
        if the row can be read); one item per row, and one with a `FileProblem` for a file that cannot be
        read.

    Raises:
        TaskHeadsError: before the first row, if the source, split or hub does not exist or cannot be fetched.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "new.jsonl")
        ...     _ = path.write_text('{"text": " fine ", "id": 7}\\n{"id": 8}\\n')
        ...     (_, one), (_, two) = read_inputs(str(path))
        >>> one.text, one.row["id"], two.problem
        ('fine', 7, "column 'text' is missing")
    """
    files = open_source(source, split=split, hub=hub, kinds=TEXT_KINDS, streaming=streaming, options=options)
    return _inputs(files)


def _inputs(files: Iterable[RowSource]) -> Iterator[tuple[str, TextInput | Problem]]:
    for rows in files:
        layout: TextLayout | None = None
        for where, row in rows:
            if isinstance(row, Problem):
                yield where, row
                continue
            if layout is None:
                own = read_text_layout(where, row, with_target=False)
                # A title is a row for a title scorer, a state one for a model with questions.
                if not layouts_of(row) and (other := first_of(("title", STATE), row)):
                    own = replace(own, problems=(), texts=(other,))
                if own.problems:
                    yield where, InputProblem(**vars(own.problems[0]), row=row)
                    continue
                layout = own
            yield where, _input(where, row, layout)


def _input(where: str, row: dict[str, Any], layout: TextLayout) -> TextInput | Problem:
    own = layouts_of(row)
    if own and [text.columns for text in own] != [layout.texts] and not own[0].are_joined:
        columns, earlier = " and ".join(own[0].columns), " and ".join(layout.texts)
        problem = f"the text is in {columns}, and in {earlier} in earlier rows"
        expected, fix = "the same columns in all rows", "write the file in one form"
        return InputProblem(where, problem, expected, fix, row, code="column-ambiguous")
    reader = RowReader(where, row)
    raw = read_text(reader, layout)
    if raw is None:
        return InputProblem(**vars(reader.problems[0]), row=row)
    return TextInput(text=raw.text, text_b=raw.text_b, row=row, source=where)
