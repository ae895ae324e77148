"""One Excel workbook -> rows. Cells keep their types; the first row that is filled is the header."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from qwen_task_heads.data.batches import Row
from qwen_task_heads.data.file_options import PLAIN, FileOptions
from qwen_task_heads.data.json_files import FileProblem
from qwen_task_heads.data.table_files import bad_header
from qwen_task_heads.errors import shorten


def read_excel(path: str, options: FileOptions = PLAIN) -> Iterator[Row]:
    """Rows of the sheet of a workbook, each named by its number in the sheet."""
    accepted = "an Excel workbook (.xlsx) of one sheet"
    try:
        import openpyxl
    except ImportError:
        remedy = "pip install openpyxl, or save the sheet as CSV"
        yield path, FileProblem(path, "openpyxl is not installed", accepted, remedy)
        return
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        found = f"no workbook that can be read ({shorten(str(error), 80)})"
        yield path, FileProblem(path, found, accepted, "save it again, or as CSV")
        return
    with closing(book):
        full = [sheet for sheet in book.worksheets if any(map(_filled, sheet.iter_rows(values_only=True)))]
        if len(full) != 1:
            names = ", ".join(repr(sheet.title) for sheet in full)
            found = f"several sheets with rows ({names})" if full else "no rows"
            remedy = "save the sheet that is meant as a file of its own" if full else "add rows"
            yield path, FileProblem(path, found, accepted, remedy)
            return
        yield from _sheet_rows(path, full[0], [*options.columns])


def _sheet_rows(path: str, sheet: Any, header: list[str]) -> Iterator[Row]:
    for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
        if not _filled(row):
            continue
        if header:
            cells = zip(header, map(_plain, row), strict=False)
            yield f"{path}:row {number}", {name: cell for name, cell in cells if name and cell is not None}
            continue
        header = ["" if name is None else str(name).strip() for name in row]
        if problem := bad_header(path, header, ""):
            yield path, problem
            return


def _filled(row: Sequence[Any]) -> bool:
    return any(cell is not None for cell in row)


def _plain(cell: Any) -> Any:
    """Dates and times as text."""
    return cell if cell is None or isinstance(cell, str | int | float) else str(cell)
