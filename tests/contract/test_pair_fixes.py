"""Apply each fix of the problems of preferences and splits, and read the data again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixes import refused
from reading import LABELED, PAIRS, Case, Change, Row, follow, lines, of_row, titles, ways_of, write

from qwen_task_heads.data.click_rates import preference_from_clicks
from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.data.pair_readers import read_pairs
from qwen_task_heads.data.preferences import preference_from_votes
from qwen_task_heads.data.splits import split_by_group

Cells = list[tuple[str, str, str, str]]


def row(site: str, bad: Row, ways: dict[str, Any], *, base: list[Row] = PAIRS) -> Case:
    """Return a case of a bad pair after good pairs; a fix is its changes, or None to remove it."""
    changed = {way: change if change is None else bad | change for way, change in ways.items()}
    kept = {
        way: change and {name: value for name, value in change.items() if value != "gone"}
        for way, change in changed.items()
    }
    return of_row(site, bad, kept, base=base, read=titles)


def whole(
    site: str,
    rows: list[Row],
    ways: dict[str, list[Row] | str],
    *,
    at: str = "train.jsonl:1",
    words: str = "",
) -> Case:
    """Return a case of a whole file; a fix is its rows, or command-line options."""
    changes: dict[str, Change] = {
        way: done if isinstance(done, str) else {"train.jsonl": lines(*done)} for way, done in ways.items()
    }
    return Case(site, {"train.jsonl": lines(*rows)}, at, changes, titles, words)


def table(*cells: tuple[object, ...]) -> str:
    """Return a table of arms."""
    return "headline,clicks,impressions,test_id\n" + "".join(",".join(map(str, row)) + "\n" for row in cells)


def arm(
    site: str,
    bad: tuple[object, ...],
    ways: dict[str, tuple[object, ...] | str],
    *,
    at: str = "train.csv:6",
    base: list[tuple[object, ...]] | None = None,
    words: str = "",
) -> Case:
    """Return a case of a bad arm after good arms; a fix is an arm in its place, or command-line options."""
    good = ARMS if base is None else base
    changes: dict[str, Change] = {
        way: done if isinstance(done, str) else {"train.csv": table(*good, done)}
        for way, done in ways.items()
    }
    return Case(site, {"train.csv": table(*good, bad)}, at, changes, titles, words)


def having(rows: list[Row], **more: Any) -> list[Row]:
    return [one | more for one in rows]


def renamed(rows: list[Row], **names: str) -> list[Row]:
    return [{names.get(name, name): value for name, value in one.items()} for one in rows]


def talk(title: str, asked: str = "A title?", by: str = "assistant") -> list[Row]:
    return [{"role": "user", "content": asked}, {"role": by, "content": title}]


ARMS: list[tuple[object, ...]] = [
    (f"Title {n} of {test}", 5 + n, 100, f"t{test}") for test in range(2) for n in range(2)
]
TALKS = [{name: talk(text, f"Title {n}?") for name, text in pair.items()} for n, pair in enumerate(PAIRS)]
VOTED = having(PAIRS, votes_chosen=3, votes_rejected=1)
CLICKED = having(PAIRS, chosen_clicks=9, chosen_impressions=90, rejected_clicks=5, rejected_impressions=90)
AGAINST = [
    {"chosen": f"Title {n}", "rejected": f"Other {n}", "votes_chosen": 1, "votes_rejected": 9}
    for n in range(20)
]
COUNTS = {"votes_chosen": "votes_rejected", "votes_rejected": "votes_chosen"}
NEW: Row = {"chosen": "A new title", "rejected": "Another one"}
RENAME = "rename 'rejectd' to 'rejected'"
GONE, DROP = "remove the row", "drop it"
MORE = "add experiments whose click rates differ"
COLUMNS, TEXTS, READERS = "data/row_reader.py::RowReader.", "data/pair_texts.py::", "data/pair_readers.py::"
ROWS = "data/pair_rows.py::"
CASES = [
    # columns of a file
    whole("data/pair_layout.py::read_layout::where", renamed(PAIRS, chosen="good", rejected="bad"),
          {"rename the columns": PAIRS}),
    whole("data/pair_layout.py::read_layout::where#2", renamed(PAIRS, rejected="bad"),
          {"add": [{**one, "bad": one["rejected"]} for one in PAIRS], "rename the column": PAIRS}),
    whole("data/pair_layout.py::read_layout::where#2", renamed(PAIRS, rejected="rejectd"), {RENAME: PAIRS}),
    whole("data/schema.py::unknown_columns::where", having(PAIRS, wieght=1.0),
          {"rename it to 'weight'": having(PAIRS, weight=1.0), DROP: PAIRS}),
    # of a row
    row(f"{COLUMNS}require::row", {"chosen": "x"}, {"add the column": {"rejected": "y"}, GONE: None}),
    row(f"{COLUMNS}require::row", {"chosen": "x", "rejectd": "y"},
        {RENAME: {"rejectd": "gone", "rejected": "y"}}),
    row(f"{COLUMNS}refuse_misspelt::row", {**NEW, "wieght": 1},
        {"rename it to 'weight'": {"wieght": "gone", "weight": 1}, DROP: {"wieght": "gone"}},
        base=having(PAIRS, weight=1.0)),
    row(f"{TEXTS}read_title::row", {**NEW, "chosen": 3},
        {"write the title as a string": {"chosen": "3"}}),
    row(f"{TEXTS}read_title::row#2", {**NEW, "chosen": " "},
        {"fill in the title": {"chosen": "x"}, GONE: None}),
    row(f"{COLUMNS}number::row", {**NEW, "weight": 0}, {"correct the number": {"weight": 2}}),
    row(f"{COLUMNS}count::row", {**NEW, "votes_chosen": 1.5, "votes_rejected": 1},
        {"correct the count": {"votes_chosen": 2}}, base=VOTED),
    row(f"{COLUMNS}_filled::row", {**NEW, "weight": None},
        {"write the number": {"weight": 2}, "leave the key out": {"weight": "gone"}}),
    row(f"{COLUMNS}group::row", {**NEW, "group_id": ["t"]},
        {"write the key as a string": {"group_id": "t"}}),
    row(f"{ROWS}_read_signals::row", {**VOTED[0], **NEW, "preference": 0.9},
        {"keep one of them": {"preference": "gone"}}, base=VOTED),
    row(f"{ROWS}_read_signals::row#2", {**NEW, "votes_chosen": 3},
        {"add it": {"votes_rejected": 1}, "leave all of them out": {"votes_chosen": "gone"}}, base=VOTED),
    row(f"{ROWS}_read_signals::row#3", {**CLICKED[0], **NEW, "chosen_clicks": 91},
        {"correct the counts": {"chosen_clicks": 19}}, base=CLICKED),
    # texts of a row
    row(f"{TEXTS}read_texts::row", {**NEW, "chosen": talk("x")},
        {"write both in one form": {"rejected": talk("y")}}),
    row(f"{TEXTS}read_texts::row#2", {"chosen": talk("x"), "rejected": talk("y", "Another?")},
        {"correct": {"rejected": talk("y")}, GONE: None}, base=TALKS),
    row(f"{TEXTS}read_texts::row#3", {"chosen": "x", "rejected": " x "}, {GONE: None}),
    row(f"{TEXTS}read_prompt::row", {**NEW, "prompt": 3},
        {"write a string": {"prompt": "3"}, "leave the key out": {"prompt": "gone"}}),
    row(f"{TEXTS}_conversation::row", {"chosen": [], "rejected": talk("y")},
        {"end with the title": {"chosen": talk("x")}}, base=TALKS),
    row(f"{TEXTS}_conversation::row#2", {"chosen": talk("x", by="user"), "rejected": talk("y")},
        {"end with the title": {"chosen": talk("x")}}, base=TALKS),
    row(f"{TEXTS}_conversation::row#3", {"chosen": talk(" "), "rejected": talk("y")},
        {"fill in the title": {"chosen": talk("x")}}, base=TALKS),
    row(f"{ROWS}read_pair::row", {**NEW, "rejected": ["x", "y"], "preference": 0.9},
        {"write one pair per row": {"rejected": "x"}}),
    # arms
    arm(f"{ROWS}read_arm::row", ("New", "", 100, "t1"), {"fill in the count": ("New", 5, 100, "t1")}),
    arm(f"{ROWS}read_arm::row#2", ("New", 5, 100, ""), {"fill in the key": ("New", 5, 100, "t1")}),
    arm(f"{ROWS}read_arm::row#3", ("New", 101, 100, "t1"),
        {"correct the counts": ("New", 10, 100, "t1")}),
    whole("data/raw_pairs.py::ArmRows._check_prompts::self.places[row]",
          [{"headline": f"Title {n}", "clicks": n, "impressions": 9, "test_id": 0, "prompt": f"About {n}"}
           for n in range(2)],
          {"give the experiments different keys":
           [{"headline": f"Title {n}", "clicks": n, "impressions": 9, "test_id": n % 2,
             "prompt": f"About {n % 2}"} for n in range(4)]}, at="train.jsonl:2"),
    arm(f"{READERS}_finish::raw.source", ("Alone", 5, 100, "t"),
        {"add the other headlines of an experiment": ("A,6,100,t\nB,9,100,t\nC,7,100,s\nD", 8, 100, "s")},
        at="train.csv", base=[]),
    # a file as a whole
    whole(f"{READERS}_finish::raw.source", [{**NEW, "chosen": ""}], {"correct the rows below": PAIRS},
          at="train.jsonl", words="--bad_rows skip"),
    whole("data/title_datasets.py::_check_refused::place", [*PAIRS, *[{**NEW, "chosen": ""}] * 5],
          {"correct the rows below": [*PAIRS, *[NEW] * 5]}, at="train.jsonl", words="--bad_rows skip"),
    whole("data/checks.py::swapped_problem::source", AGAINST,
          {"exchange 'chosen' and 'rejected' in the names of all columns":
           renamed(AGAINST, **COUNTS, chosen="rejected", rejected="chosen"),
           "of the counts alone": renamed(AGAINST, **COUNTS)}, at="train.jsonl"),
    arm("data/title_datasets.py::read_title_sets::places[split]", ("New", 9, 100, "t1"),
        {"lower --min_impressions": "--min_impressions 100",
         MORE: ("A,9,1000,t8\nB,99,1000,t8\nC,9,1000,t9\nD", 99, 1000, "t9")},
        at="train.csv", words="--min_impressions 101"),
    arm("data/title_datasets.py::read_title_sets::places[split]", ("New", 9, 100, "t1"),
        {"raise --max_p_value": "--max_p_value 0.9",
         MORE: ("A,9,1000,t8\nB,99,1000,t8\nC,9,1000,t9\nD", 99, 1000, "t9")},
        at="train.csv", words="--max_p_value 0.01"),
    arm("data/preferences.py::groups_to_pairs::groups_to_pairs", ("New", 9, 100, "t1"),
        {"correct the option": "--min_impressions 1"}, at="groups_to_pairs", words="--min_impressions -1"),
    # splits
    whole("data/splits.py::check_fraction::where", PAIRS, {"choose such as 0.1": "--dev_fraction 0.1"},
          at="dev_fraction", words="--dev_fraction 1.5"),
    Case("data/splits.py::split_by_group::split",
         {"train.jsonl": lines(PAIRS[0]), "in/dev.jsonl": lines(PAIRS[1])}, "split",
         {"give a dev file (--dev_dataset)": "--dev_dataset HERE/in/dev.jsonl",
          "add pairs of other titles": {"train.jsonl": lines(*PAIRS)}}, titles),
    *(Case("data/splits.py::split_texts::split",
           {"train.jsonl": lines(*rows), "in/dev.jsonl": lines(*LABELED)}, "split",
           {"give a dev file (--dev_dataset)": f"{words} --dev_dataset HERE/in/dev.jsonl",
            "add rows": {"train.jsonl": lines(*(one | {"text": f"{one['text']} {n}"}
                                                for n in range(60) for one in LABELED))},
            **({"raise dev_fraction": "--dev_fraction 0.5"} if words else {})}, words=words)
      for rows, words in ((LABELED[:2], ""), (LABELED, "--dev_fraction 0.01"))),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fixed_data_is_read(case: Case, tmp_path: Path) -> None:
    follow(case, tmp_path)


def test_values_of_bad_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "rows", {"train.jsonl": lines(*PAIRS)})
    with refused("data/checks.py::bad_rows_problems::bad_rows") as found:
        read_pairs(source, bad_rows="drop")
    assert (found[0].where, found[0].fix) == ("bad_rows", "choose one of them")
    first = found[0].expected.split(", ")[0]
    assert read_pairs(source, bad_rows=first).pairs


@pytest.mark.parametrize(
    ("measure", "wrong", "right"),
    [
        (preference_from_votes, (-1, 2), (1, 2)),
        (preference_from_clicks, (3, 2, 1, 2), (1, 2, 1, 2)),
    ],
)
def test_counts(measure: Callable[..., float], wrong: tuple[int, ...], right: tuple[int, ...]) -> None:
    with refused("data/click_rates.py::bad_counts::counts") as found:
        measure(*wrong)
    assert (found[0].where, found[0].fix) == ("counts", "correct the counts")
    assert measure(*right) > 0


def test_titles_that_connect_all_groups() -> None:
    """The fix for callers of the function is to keep only groups apart."""
    pairs = [PairExample(chosen="Stock", rejected=f"Title {n}", group=f"t{n}") for n in range(4)]
    with refused("data/splits.py::split_by_group::split") as found:
        split_by_group(pairs, dev_fraction=0.5)
    *_, last = ways_of(found[0].fix)
    assert last == "pass titles_apart=False, as stock titles connect the groups"
    assert all(split_by_group(pairs, dev_fraction=0.5, titles_apart=False))
