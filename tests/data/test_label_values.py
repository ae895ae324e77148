"""One meaning of a label value, over spellings, files, formats and splits; no value changes silently."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.errors import TaskHeadsError

WORDS = tuple(f"{word} {kind}" for word in ("late", "new", "old", "lost") for kind in ("card", "bill", "pin"))
CODES = ("2", "2.1", "2.21", "V15", "10", "2.3", "X1", "3", "3.1", "4.7", "9", "A9")
ZEROS = tuple(f"{number:02}" for number in range(1, 13))
FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow")
SPELLINGS = ("int", "text", "float")
Rows = list[dict[str, Any]]


def write(folder: Path, name: str, rows: Rows, form: str) -> str:
    """Write rows as a file (or a folder of `save_to_disk`) and return its path."""
    path = folder / f"{name}.{form}"
    if form in ("jsonl", "json"):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "\n".join(lines) + "\n" if form == "jsonl" else f"[{', '.join(lines)}]"
        path.write_text(text, encoding="utf-8")
    elif form in ("csv", "tsv"):
        stream = io.StringIO()
        mark = "," if form == "csv" else "\t"
        writer = csv.DictWriter(stream, [*rows[0]], delimiter=mark, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(stream.getvalue(), encoding="utf-8")
    else:
        from datasets import Dataset, disable_progress_bars, enable_progress_bars

        disable_progress_bars()
        data = Dataset.from_list(rows)
        data.to_parquet(str(path)) if form == "parquet" else data.save_to_disk(str(path))
        enable_progress_bars()
    return str(path)


def spelled(number: int, spelling: str) -> Any:
    return {"int": number, "text": str(number), "float": float(number)}[spelling]


def rows_of(values: list[Any], what: str, column: str = "label", copies: int = 3, **more: Any) -> Rows:
    """Return rows whose text contains the index of their value."""
    return [
        {"text": f"{what} {copy} of {place}.", column: value}
        | {name: names[place] for name, names in more.items()}
        for copy in range(copies)
        for place, value in enumerate(values)
    ]


def meanings(sets: TextSets) -> dict[int, set[str]]:
    """Map the index of a value to the labels of its rows in all splits."""
    found: dict[int, set[str]] = {}
    for row in (*sets.train, *sets.dev, *sets.test):
        place = int(row.text.rstrip(".").rsplit(" ", 1)[1])
        (label,) = row.target if isinstance(row.target, tuple) else (row.target,)
        found.setdefault(place, set()).add(sets.labels.names[int(label)])
    return found


def read(train: str, test: str) -> TextSets | str:
    try:
        return read_text_sets(train, test=test)
    except TaskHeadsError as error:
        return str(error)


def scenarios() -> Iterator[tuple[str, Any, Any, tuple[str, ...] | None, str, str, str]]:
    """Yield (kind, train values, test values, names or None if refused, class file, formats of both)."""
    forms = [*product(FORMATS, FORMATS)]
    for first, classes in product((0, 1), ("", "\n".join(WORDS))):
        names = WORDS if classes else tuple(str(first + place) for place in range(12))
        for (form, other), one, two in product(forms, SPELLINGS, SPELLINGS):
            train, test = ([spelled(first + n, how) for n in range(12)] for how in (one, two))
            yield f"ids from {first}", train, test, names, classes, form, other
    for (form, other), two in product(forms, SPELLINGS):
        ids = [spelled(n, two) for n in range(12)]
        yield "names and ids", [*WORDS], ids, None, "", form, other
        yield "ids and names", ids, [*WORDS], None, "", form, other
        yield "names and ids, by a file", [*WORDS], ids, WORDS, "\n".join(WORDS), form, other
    for (form, other), names in product(forms, (WORDS, CODES, ZEROS)):
        yield "names", [*names], [*names], names, "", form, other
        yield "names of a file", [*names], [*names], names, "\n".join(reversed(names)), form, other
    for (form, other), one, two in product(forms, SPELLINGS[:2], SPELLINGS[:2]):  # `labels`, one in each list
        train, test = ([[spelled(n, how)] for n in range(12)] for how in (one, two))
        yield "lists of ids", train, test, tuple(map(str, range(12))), "", form, other
    for form, other in forms:
        yield (
            "lists of names and ids",
            [[word] for word in WORDS],
            [[n] for n in range(12)],
            None,
            "",
            form,
            other,
        )


def check(folder: Path, scenario: tuple[str, Any, Any, tuple[str, ...] | None, str, str, str]) -> str:
    """Return a description of a scenario that fails, "" if it passes."""
    kind, train, test, names, classes, form, other = scenario
    folder.mkdir()
    if classes:
        (folder / "class.txt").write_text(classes, encoding="utf-8")
    column = "labels" if isinstance(train[0], list) else "label"
    place = write(folder, "train", rows_of(train, "train", column), form)
    found = read(place, write(folder, "test", rows_of(test, "test", column, copies=1), other))
    description = f"{kind}: {train[:3]} in {form}, {test[:3]} in {other}, {bool(classes)}"
    if names is None or isinstance(found, str):
        return "" if names is None and isinstance(found, str) else f"{description}: {found}"
    wanted = {place: {name} for place, name in enumerate(names)}
    return "" if meanings(found) == wanted else f"{description}: {meanings(found)}"


ALL = list(scenarios())


def test_a_sample_of_all_combinations(tmp_path: Path) -> None:
    chosen = ALL[::19]
    assert {scenario[0] for scenario in chosen} == {scenario[0] for scenario in ALL}
    assert [wrong for n, one in enumerate(chosen) if (wrong := check(tmp_path / str(n), one))] == []


@pytest.mark.slow
def test_no_combination_changes_a_meaning_silently(tmp_path: Path) -> None:
    """Cover class files in another order, ids from 0 and 1, floats of pandas, codes, six formats."""
    assert len(ALL) >= 2000
    assert [wrong for n, one in enumerate(ALL) if (wrong := check(tmp_path / str(n), one))][:10] == []


# Several labels

SETS = [["joy"], ["joy", "love"], ["love"], ["fear", "joy"], ["fear"], ["fear", "love"]] * 4
CELLS = {
    "bar": "|".join,
    "comma": ", ".join,
    "semicolon": ";".join,
    "wide comma": "，".join,
    "python": str,
    "json": json.dumps,
    "numpy": lambda labels: "[" + " ".join(map(repr, labels)) + "]",
    "list": list,
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("cell", CELLS)
def test_several_labels_in_every_spelling(tmp_path: Path, cell: str, form: str) -> None:
    if cell == "list" and form in ("csv", "tsv"):
        cell = "python"  # tables contain lists as text
    rows = [{"text": f"text {n}", "labels": CELLS[cell](labels)} for n, labels in enumerate(SETS)]
    sets = read_text_sets(write(tmp_path, "train", rows, form))
    assert sets.labels.names == ("fear", "joy", "love")
    for row in (*sets.train, *sets.dev):
        assert isinstance(row.target, tuple)
        wanted = SETS[int(row.text.split()[1])]
        assert sorted(sets.labels.names[int(label)] for label in row.target) == wanted


@pytest.mark.parametrize(
    ("cells", "mark"),
    [
        (["Food, drink", "Sport, play", "Arts, news"], ","),  # may be three names
        (["Arts", "Arts, culture", "News"], ","),
        (["a;b", "c;d"], ";"),
        (["a, b|c", "a|b", "b, c"], ","),
    ],
)
def test_ambiguous_separator_is_refused(tmp_path: Path, cells: list[str], mark: str) -> None:
    rows = [{"text": f"text {n}", "labels": cell} for n, cell in enumerate(cells * 9)]
    path = write(tmp_path, "train", rows, "jsonl")
    with pytest.raises(TaskHeadsError) as caught:
        read_text_sets(path)
    (problem,) = caught.value.problems
    assert problem.where.startswith(f"{path}:")
    assert problem.code == "label-invalid"
    assert repr(mark) in problem.problem
    # the fix in the message
    names = sorted({part.strip() for cell in cells for part in cell.split("|")})
    (tmp_path / "labels.yaml").write_text("".join(f"- '{name}'\n" for name in names), encoding="utf-8")
    assert read_text_sets(path, labels=str(tmp_path / "labels.yaml")).labels.names == tuple(names)


def test_names_with_commas_are_not_split_if_a_bar_separates_labels(tmp_path: Path) -> None:
    cells = ["Food, drink|Sport", "Sport", "News|Food, drink"] * 9
    rows = [{"text": f"text {n}", "labels": cell} for n, cell in enumerate(cells)]
    names = read_text_sets(write(tmp_path, "train", rows, "csv")).labels.names
    assert names == ("Food, drink", "News", "Sport")


@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize("word", ["nan", "NaN", "<NA>", "None", "NULL", "null", "NA", "N/A", ""])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_word_for_a_missing_value_is_refused(tmp_path: Path, column: str, word: str, form: str) -> None:
    rows = [{"text": f"text {n}", column: "yes" if n % 2 else "no"} for n in range(30)]
    rows[7][column] = word
    path = write(tmp_path, "train", rows, form)
    with pytest.raises(TaskHeadsError) as caught:
        read_text_sets(path)
    (problem,) = caught.value.problems
    assert (problem.where, problem.code) == (f"{path}:{9 if form == 'csv' else 8}", "value-missing")
    assert len(read_text_sets(path, bad_rows="skip").labels) == 2
    if word not in ("", "nan", "NaN"):  # the fix in the message
        (tmp_path / "labels.yaml").write_text(f"- 'no'\n- 'yes'\n- '{word}'\n")
        assert read_text_sets(path).labels.names[2] == word


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("text", [True, False])
def test_scores_in_the_label_column_need_a_problem_type(tmp_path: Path, form: str, text: bool) -> None:
    values = [round(0.4 + 0.21 * n, 2) for n in range(20)]
    rows = [{"text": f"text {n}", "label": str(value) if text else value} for n, value in enumerate(values)]
    path = write(tmp_path, "train", rows, form)
    with pytest.raises(TaskHeadsError, match="regression") as caught:
        read_text_sets(path)
    assert "value-type" in {problem.code for problem in caught.value.problems}
    sets = read_text_sets(path, problem_type="regression")
    assert {row.target for row in (*sets.train, *sets.dev)} == {(value,) for value in values}


@pytest.mark.parametrize("column", ["label_name", "label_text", "label_desc"])
@pytest.mark.parametrize("codes", [range(4), range(100, 104), ["a1", "b2", "c3", "d4"]], ids=str)
def test_names_of_codes(tmp_path: Path, column: str, codes: Any) -> None:
    train = write(tmp_path, "train", rows_of([*codes], "train", copies=5, **{column: WORDS[:4]}), "csv")
    for number, test in enumerate((rows_of([*codes], "test"), rows_of([*WORDS[:4]], "test"))):
        sets = read(train, write(tmp_path, f"test{number}", test, "jsonl"))
        assert isinstance(sets, TextSets), sets
        assert meanings(sets) == {place: {WORDS[place]} for place in range(4)}


def test_names_alone_are_labels(tmp_path: Path) -> None:
    rows = rows_of([*WORDS[:3]], "train", "label_text", copies=5)
    assert read_text_sets(write(tmp_path, "train", rows, "jsonl")).labels.names == tuple(sorted(WORDS[:3]))


def test_ids_count_from_one_only_if_all_of_them_occur(tmp_path: Path) -> None:
    (tmp_path / "class.txt").write_text("\n".join(WORDS[:4]))
    path = write(tmp_path, "train", rows_of([1, 2, 4], "train", copies=5), "jsonl")
    with pytest.raises(TaskHeadsError, match="label 4") as caught:
        read_text_sets(path)
    assert {problem.code for problem in caught.value.problems} == {"label-unknown"}
    path = write(tmp_path, "train", rows_of([1, 2, 3, 4], "train", copies=5), "jsonl")
    assert any("ids from 1" in line for line in read_text_sets(path).lines)


@pytest.mark.parametrize("rows", [[[0, 1], [1, 0]], [[0, 1], [0, 1]], [[0, 0, 1], [1, 0, 0]]], ids=str)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_rows_of_zeros_and_ones_are_refused(tmp_path: Path, rows: list[list[int]], form: str) -> None:
    written = [{"text": f"text {n}", "labels": row} for n, row in enumerate(rows * 9)]
    with pytest.raises(TaskHeadsError, match="zeros and ones") as caught:
        read_text_sets(write(tmp_path, "train", written, form))
    codes = {problem.code for problem in caught.value.problems}
    assert "label-invalid" in codes or "value-conflict" in codes
