"""Files of texts -> rows with unresolved targets, or texts to predict, with an account of every row.

Accepted columns (`weight` and one of `group_id`, `test_id`, `group` are optional; others are left alone):

| text | columns |
|---|---|
| one text | text, or sentence; content where there is neither, and no title |
| two texts | text_a + text_b, sentence1 + sentence2, premise + hypothesis, question1 + question2, |
| | text + text_b, text + text_pair |
| conversation | messages, or conversations of ShareGPT: what the user says, joined by line ends |
| Alpaca | instruction, perhaps input: joined by a line end |

| target | columns | in CSV and TSV |
|---|---|---|
| one label | label: an id, or a name; perhaps label_name, label_text or label_desc beside it | the same |
| | output of Alpaca; the last message of a conversation | the same |
| several labels | labels: list of ids or of names, perhaps empty; or text, `a|b` | `a|b`, a list, `[]` |
| score | score (or label, where regression is asked for): a number, or a list | a number, or a JSON list |
| soft label | probabilities: list by id, or mapping of names, that sums to 1 | JSON |
| candidates | category: names, as list or separated by commas; output: one of them | the same |

A class file (`train.txt`) holds `text<TAB>label` lines, or others of `class_files.py`, with `class.txt` or
`labels.txt` next to it. What the values of labels mean is in `label_values.py`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from qwen_task_heads.data.batches import RowSource
from qwen_task_heads.data.class_files import is_label_first
from qwen_task_heads.data.file_options import PLAIN, FileOptions
from qwen_task_heads.data.hub_datasets import rows_of
from qwen_task_heads.data.json_files import FileProblem
from qwen_task_heads.data.pair_columns import RowReader
from qwen_task_heads.data.raw_texts import RawTexts
from qwen_task_heads.data.scanning import scan_file
from qwen_task_heads.data.sources import TEXT_KINDS, open_source
from qwen_task_heads.data.text_columns import read_text
from qwen_task_heads.data.text_layout import ALPACA, TextLayout, forms_of, read_text_layout
from qwen_task_heads.data.text_scan import TextScan
from qwen_task_heads.errors import Problem


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
    """Read labelled texts from a file, a folder, or a data set id; labels are resolved later.

    Args:
        source: JSONL, JSON, CSV, TSV, Parquet, Arrow, Excel or a class file; a folder of these, or one by
            `save_to_disk`; `owner/name` of a hub, also as `modelscope:owner/name`. An existing path wins.
        split: `train`, `dev` or `test` of a folder or hub data set that holds several.
        hub: where an id without prefix is looked up, `huggingface` or `modelscope`.
        problem_type: what is trained, or None to tell it by the target column.
        max_samples: read no more rows than this, or None for all.
        streaming: read the rows of a hub as they arrive.
        options: encoding of text files, and columns of tables without a header.

    Raises:
        TaskHeadsError: the source, split or hub does not exist or cannot be fetched. Defects of files and
            rows are collected, not raised.
    """
    result = RawTexts(source=source)
    opened = open_source(source, split=split, hub=hub, kinds=TEXT_KINDS, streaming=streaming, options=options)
    for rows in opened:
        left = None if max_samples is None else max_samples - result.rows_read
        if left == 0:
            result.cut_at = max_samples
            break
        if _read_part(rows, result, problem_type=problem_type or result.kind or None, left=left):
            result.cut_at = max_samples
        if rows.name.endswith(".txt") and os.path.isfile(rows.name) and is_label_first(rows.name, options):
            result.notes.append(f"each line of {os.path.basename(rows.name)} begins with its label")
    return result


def texts_of_rows(rows: Any, *, name: str, problem_type: str | None = None) -> RawTexts:
    """Read labelled texts from rows in memory, held against the same rules as those of a file.

    Args:
        rows: a data set of `datasets`, or dicts, with the columns that are listed above.
        name: what the rows are called in messages: `name:row 17`, counted from 1.
        problem_type: what is trained, or None to tell it by the target column.

    Example:
        >>> from qwen_task_heads.data.text_readers import texts_of_rows
        >>> texts_of_rows([{"text": "Cold food.", "label": "bad"}], name="train_dataset").places[0]
        'train_dataset:row 1'
    """
    result = RawTexts(source=name)
    _read_part(rows_of(name, rows), result, problem_type=problem_type, left=None)
    return result


def _read_part(rows: RowSource, result: RawTexts, *, problem_type: str | None, left: int | None) -> bool:
    """One file, at most `left` rows of it; whether there are more."""

    def start(where: str, columns: Collection[str]) -> TextScan:
        layout = read_text_layout(where, columns, problem_type=problem_type)
        return TextScan(result, layout, rows.class_names.get(layout.target, ()))

    scan, more = scan_file(rows, result, start=start, left=left)
    if scan is not None and not scan.layout.problems:
        layout = scan.layout
        result.kind, result.target = result.kind or layout.kind, result.target or layout.target
        result.unread.update(dict.fromkeys(layout.unread))
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
        candidates: names of the labels to choose from, where the caller reads them; () for all.
    """

    text: str
    text_b: str = ""
    row: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputProblem(Problem):
    """A row without a usable text; `row` is that row as it was read, with all its columns."""

    row: dict[str, Any] = field(default_factory=dict, compare=False)


def read_inputs(
    source: str,
    *,
    split: str | None = None,
    hub: str = "huggingface",
    streaming: bool = False,
    options: FileOptions = PLAIN,
) -> Iterator[tuple[str, TextInput | Problem]]:
    """Read texts to predict, as the rows come: JSONL, Parquet and class files in constant memory.

    The first row that has a text decides which columns of a file hold it; where there is no other text, a
    `title` is one. Targets are not looked at.

    Args:
        source: as of `read_texts`.
        split: split of a folder or hub data set that holds several.
        hub: where an id without prefix is looked up.
        streaming: read the rows of a hub as they arrive.
        options: encoding of text files, and columns of tables without a header.

    Returns:
        An iterator of `(where, text)`, or `(where, problem)` for a row without a text (an `InputProblem`
        where the row itself could be read); one item per row, and one with a `FileProblem` for a file that
        cannot be read.

    Raises:
        TaskHeadsError: at once, where the source, split or hub does not exist or cannot be fetched.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "new.jsonl")
        ...     _ = path.write_text('{"text": " fine ", "id": 7}\\n{"id": 8}\\n')
        ...     (_, one), (_, two) = read_inputs(str(path))
        >>> one.text, one.row["id"], two.problem
        ('fine', 7, "no 'text'")
    """
    opened = open_source(source, split=split, hub=hub, kinds=TEXT_KINDS, streaming=streaming, options=options)
    return _inputs(opened)


def _inputs(opened: Iterable[RowSource]) -> Iterator[tuple[str, TextInput | Problem]]:
    for rows in opened:
        layout: TextLayout | None = None
        for where, row in rows:
            if isinstance(row, Problem):
                yield where, row
                continue
            if layout is None:
                told = read_text_layout(where, row, with_target=False)
                if "title" in row and not forms_of(row):  # what a title scorer is given
                    told = replace(told, problems=(), texts=("title",))
                if told.problems:
                    first = told.problems[0]
                    yield where, InputProblem(where, first.problem, first.expected, first.fix, row)
                    continue
                layout = told
            yield where, _input(where, row, layout)


def _input(where: str, row: dict[str, Any], layout: TextLayout) -> TextInput | Problem:
    forms = forms_of(row)
    if forms and forms != [layout.texts] and forms[0][0] != ALPACA:
        found = f"the text stands in {' and '.join(forms[0])}, and above in {' and '.join(layout.texts)}"
        accepted, remedy = "the same columns in all rows", "write the file in one form"
        return InputProblem(where, found, accepted, remedy, row)
    reader = RowReader(where, row)
    raw = read_text(reader, layout)
    if raw is None:
        first = reader.problems[0]
        return InputProblem(first.where, first.problem, first.expected, first.fix, row)
    return TextInput(text=raw.text, text_b=raw.text_b, row=row, source=where)


__all__ = ["FileProblem", "InputProblem", "RawTexts", "TextInput", "read_inputs", "read_texts",
           "texts_of_rows"]  # fmt: skip
