"""A file is read in one pass if its first rows have all columns, and otherwise in two passes."""

from __future__ import annotations

import json
import random
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from qwen_task_heads.data.pair_readers import read_pairs
from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.data.text_readers import read_texts, texts_of_rows
from qwen_task_heads.data.title_datasets import read_title_sets
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.sources.batches import BATCH_ROWS
from qwen_task_heads.sources.file_options import FileOptions
from qwen_task_heads.sources.hub_datasets import rows_of


class Row(dict[str, object]):
    """A dict with support for weak references."""


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_column_of_late_rows_counts_for_all(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"t{n}", "label": n % 3} for n in range(2 * BATCH_ROWS)]
    rows[7]["label"], rows[-1] = None, {"text": "a", "text_b": "b", "label": 1}
    texts = read_texts(write(tmp_path / "a.jsonl", rows))
    assert (len(texts), texts.rows_read) == (1, len(rows))  # the layout has two texts, which others lack
    assert texts.refused == len(texts.problems) - 1 == len(rows) - 1  # row 8 has two defects
    assert [raw.text_b for raw in texts] == ["b"]
    assert len({(problem.where, problem.problem) for problem in texts.problems}) == len(texts.problems)
    assert texts.rows.places[0] == f"{tmp_path}/a.jsonl:{len(rows)}"


def test_a_late_unknown_column_changes_nothing(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": f"t{n}", "label": n % 3, "weight": 2} for n in range(BATCH_ROWS + 9)
    ]
    plain = read_texts(write(tmp_path / "a.jsonl", rows))
    rows[-1] = rows[-1] | {"note": 1}
    noted = read_texts(write(tmp_path / "b.jsonl", rows))
    assert [raw.text for raw in noted] == [raw.text for raw in plain]
    assert noted.codes.tolist() == plain.codes.tolist()
    assert (noted.targets[0].value, len(noted.targets), noted.unread) == (0, 3, {"note": None})
    assert noted.rows.values("weight").tolist() == [2.0] * len(rows)


def test_preference_signals_of_late_rows_are_counted_once(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"chosen": f"a{n}", "rejected": f"b{n}", "preference": 0.9} for n in range(5000)
    ]
    rows[3]["rejected"] = ["x", "y"]  # two pairs, whose preference signals are refused
    rows[9]["preference"] = 0.1
    rows[-1]["margin"] = 1.0
    data = read_pairs(write(tmp_path / "a.jsonl", rows), bad_rows="skip")
    assert (data.report.rows_read, data.report.used, data.report.refused) == (5000, 4999, 1)
    assert data.report.count("swapped") == 1
    assert data.pairs[-1].margin == 1.0


@pytest.mark.parametrize("limit", [1, BATCH_ROWS, BATCH_ROWS + 1, 9000])
def test_a_limit_of_rows_applies_across_batches(tmp_path: Path, limit: int) -> None:
    rows: list[dict[str, object]] = [{"text": f"t{n}", "label": n % 3} for n in range(9000)]
    texts = read_texts(write(tmp_path / "a.jsonl", rows), max_samples=limit)
    assert (texts.rows_read, len(texts)) == (limit, limit)
    assert texts.cut_at == (limit if limit < 9000 else None)


def test_problems_come_in_the_order_of_the_lines(tmp_path: Path) -> None:
    rng = random.Random(0)
    lines = [json.dumps({"text": f"t{n}", "label": n % 2}) for n in range(9000)]
    bad = sorted(rng.sample(range(9000), 200))
    for place in bad:
        lines[place] = rng.choice(
            ["{", '{"text": "", "label": 0}', '{"text": "t", "label": true}', '{"text": "t"}']
        )
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    texts = read_texts(str(tmp_path / "a.jsonl"))
    assert [int(problem.where.rsplit(":", 1)[1]) - 1 for problem in texts.problems] == bad


def test_arms_of_two_files_are_one_experiment(tmp_path: Path) -> None:
    for name, titles in (("a", ["A", "B"]), ("b", ["C", "a "])):
        arms = [{"title": title, "clicks": 3, "impressions": 90, "test_id": "t"} for title in titles]
        write(tmp_path / f"{name}.jsonl", arms)  # type: ignore[arg-type]
    (group,) = read_pairs(str(tmp_path)).groups
    assert (group.titles, group.clicks) == (("A", "B", "C", "a"), (3, 3, 3, 3))


def test_arms_of_another_prompt_are_refused_by_line(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"title": f"T{n}", "clicks": n, "impressions": 90, "test_id": f"t{n // 3}", "prompt": f"p{n // 3}"}
        for n in range(60)
    ]
    rows[4]["prompt"], rows[31]["prompt"] = "P1", "other"
    with pytest.raises(TaskHeadsError) as caught:
        read_pairs(write(tmp_path / "a.jsonl", rows))
    assert [problem.where.rsplit(":", 1)[1] for problem in caught.value.problems] == ["5", "32"]


def test_a_column_without_a_name_is_not_a_prompt(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"": str(n), "chosen": "A tale", "rejected": "Bee"} for n in range(9)]
    data = read_pairs(write(tmp_path / "a.jsonl", rows))
    assert {pair.prompt for pair in data.pairs} == {""}
    assert data.report.count("duplicate") == 8
    arms: list[dict[str, object]] = [
        {"": str(n), "title": f"T{n}", "clicks": 1, "impressions": 9, "test_id": "t"} for n in range(3)
    ]
    assert len(read_pairs(write(tmp_path / "b.jsonl", arms)).groups[0].titles) == 3


def test_an_arm_without_a_title_is_refused(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"title": f"T{n}", "clicks": n, "impressions": 90, "test_id": "t"} for n in range(4)
    ]
    rows.append({"clicks": 3, "impressions": 10, "test_id": "t"})
    with pytest.raises(TaskHeadsError) as caught:
        read_pairs(write(tmp_path / "a.jsonl", rows))
    assert [problem.where.rsplit(":", 1)[1] for problem in caught.value.problems] == ["5"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_each_row_has_its_own_score(tmp_path: Path, suffix: str) -> None:
    scores = [random.Random(n).choice([1, 2.5, n / 7, -1e5]) for n in range(5000)]
    rows: list[dict[str, object]] = [{"text": f"t{n}", "score": score} for n, score in enumerate(scores)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        write(path, rows)
    else:
        path.write_text("text,score\n" + "".join(f"{row['text']},{row['score']}\n" for row in rows))
    texts = read_texts(str(path))
    assert [raw.target.value for raw in texts] == [(float(score),) for score in scores]
    assert len(texts.targets) == 2
    sets = read_text_sets(str(path), dev=str(path))
    assert [text.target for text in sets.train] == [(float(score),) for score in scores]


def test_equal_scores_and_scores_of_several_lengths_are_refused(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"t{n}", "score": 2.5} for n in range(300)]
    with pytest.raises(TaskHeadsError, match=r"2\.5"):
        read_text_sets(write(tmp_path / "a.jsonl", rows))
    rows[7] = {"text": "", "score": 9.0}
    with pytest.raises(TaskHeadsError) as caught:
        read_text_sets(write(tmp_path / "c.jsonl", rows), bad_rows="skip")
    assert any("2.5" in problem.problem for problem in caught.value.problems)
    rows[200]["score"] = [1.0, 2.0]
    with pytest.raises(TaskHeadsError, match="scores"):
        read_text_sets(write(tmp_path / "b.jsonl", rows))


def test_probabilities_by_name_in_dev_alone_are_read(tmp_path: Path) -> None:
    train: list[dict[str, object]] = [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(30)]
    dev: list[dict[str, object]] = [
        {"text": f"d{n}", "probabilities": {"a": 0.25, "b": 0.75}} for n in range(9)
    ]
    sets = read_text_sets(write(tmp_path / "a.jsonl", train), dev=write(tmp_path / "d.jsonl", dev))
    assert sets.dev[0].soft == (0.25, 0.75)


def test_surrogates_of_rows_in_memory_are_refused_by_row() -> None:
    texts = texts_of_rows(
        [{"text": f"t{n}", "label": n % 2} for n in range(5000)] + [{"text": "\ud800", "label": 1}],
        name="rows",
    )
    assert [problem.where for problem in texts.problems] == ["rows:row 5001"]


def test_a_stream_is_not_kept_in_memory(tmp_path: Path) -> None:
    held = []

    class Rows(Iterable[dict[str, object]]):
        def __iter__(self) -> Iterator[dict[str, object]]:
            for number in range(2000):
                row = Row({"text": f"t{number}", "label": number % 2})
                held.append(weakref.ref(row))
                yield row

    for number, _ in enumerate(rows_of("stream", Rows())):
        if number % 500 == 499:
            assert sum(one() is not None for one in held) < 600


def test_the_lines_of_an_open_quote_are_reported(tmp_path: Path) -> None:
    rows = [f"text {n},{'ab'[n % 2]}\n" for n in range(40)]
    rows[20], rows[22] = '"open quote,a\n', 'the "only" one,zebra\n'
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(rows))
    (problem,) = read_texts(str(path)).problems
    assert (problem.where, problem.code) == (f"{path}:22", "file-format")
    assert "lines 22 to 24" in problem.problem


def test_a_header_equal_to_the_columns_option_is_not_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = "".join(f"t{n},{'ab'[n % 2]}\n" for n in range(9))
    path.write_text(
        "text,label\n" + rows + "text,label\n"
    )  # the last line is a row: only the first may be a header
    texts = read_texts(str(path), options=FileOptions(columns=("text", "label")))
    assert (len(texts), texts.rows_read, texts.rows.places[0]) == (10, 10, f"{path}:2")


def test_labels_that_join_other_labels_are_reported(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": f"t{n}", "label": ["a", "b", "a|b", "x|y"][n % 4]} for n in range(60)
    ]
    lines = read_text_sets(write(tmp_path / "a.jsonl", rows)).lines
    assert [line for line in lines if "joined" in line] == [
        "labels: 1 are others joined by '|' ('a|b'); for several labels in a row, name the column 'labels'"
    ]


def test_experiments_of_dev_that_are_in_train_are_counted(tmp_path: Path) -> None:
    def arms(name: str, tests: range) -> str:
        rows: list[dict[str, object]] = [
            {"title": f"{name} {n} {k}", "clicks": k, "impressions": 90, "test_id": f"t{n}"}
            for n in tests
            for k in range(3)
        ]
        return write(tmp_path / f"{name}.jsonl", rows)

    lines = read_title_sets(arms("train", range(9)), dev=arms("dev", range(7, 12))).lines
    assert (
        "2 experiments of dev with the key of an experiment of train: metrics on dev may be too high" in lines
    )
    lines = read_title_sets(arms("train", range(9)), dev=arms("dev", range(9, 12))).lines
    assert not any("the key of" in line for line in lines)
