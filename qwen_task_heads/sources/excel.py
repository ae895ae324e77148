"""Read the rows of an Excel workbook. Cells keep their types; the first row with a value is the header."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from qwen_task_heads.errors import shorten
from qwen_task_heads.sources.batches import Row
from qwen_task_heads.sources.file_options import PLAIN, FileOptions
from qwen_task_heads.sources.json_files import FileProblem
from qwen_task_heads.sources.table_files import bad_header


def read_excel(path: str, options: FileOptions = PLAIN) -> Iterator[Row]:
    """Yield the rows of the only sheet of a workbook, each named by its number in the sheet."""
    expected = "an Excel workbook (.xlsx) of one sheet"
    try:
        import openpyxl
    except ImportError:
        problem, needed = "openpyxl is not installed", "openpyxl, which reads Excel workbooks"
        fix = "pip install openpyxl, or save the sheet as CSV"
        yield path, FileProblem(path, problem, needed, fix, code="package-missing")
        return
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        problem = f"the workbook cannot be read ({shorten(str(error), 80)})"
        yield path, FileProblem(path, problem, expected, "save it again, or as CSV", code="file-format")
        return
    with closing(book):
        sheets = [sheet for sheet in book.worksheets if any(map(_filled, sheet.iter_rows(values_only=True)))]
        if len(sheets) != 1:
            names = ", ".join(repr(sheet.title) for sheet in sheets)
            problem, fix, code = "found no rows", "add rows", "file-empty"
            if sheets:
                problem, code = f"found several sheets with rows ({names})", "file-format"
                fix = "save the sheet that is meant as a file of its own"
            yield path, FileProblem(path, problem, expected, fix, code=code)
            return
        yield from _sheet_rows(path, sheets[0], [*options.columns])


def _sheet_rows(path: str, sheet: Any, header: list[str]) -> Iterator[Row]:
    for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
        if not _filled(row):
            continue
        if header:
            cells = zip(header, map(_cell_value, row), strict=False)
            yield f"{path}:row {number}", {name: cell for name, cell in cells if name and cell is not None}
            continue
        header = ["" if name is None else str(name).strip() for name in row]
        if problem := bad_header(path, header, ""):
            yield path, problem
            return


def _filled(row: Sequence[Any]) -> bool:
    return any(cell is not None for cell in row)


def _cell_value(cell: Any) -> Any:
    """Return the value of a cell, with dates and times as text."""
    return cell if cell is None or isinstance(cell, str | int | float) else str(cell)
