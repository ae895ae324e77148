"""Effects of label schemas on rows: aliases, candidates and fingerprints."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.splits import hash_rows
from qwen_task_heads.data.text_datasets import TextSets, hash_texts, read_text_sets
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.labels.label_map import LabelMap

SCHEMA = "- {name: 体育, aliases: [体育新闻, sport]}\n- {name: 财经}\n- {name: 国际, aliases: [world]}\n"
NAMES = ("体育", "财经", "国际")


def written(path: Path, rows: Iterable[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(tmp_path: Path, rows: Iterable[object], **options: Any) -> TextSets:
    (tmp_path / "labels.yaml").write_text(SCHEMA, encoding="utf-8")
    return read_text_sets(written(tmp_path / "train.jsonl", rows), **options)


def refused(tmp_path: Path, rows: Iterable[object], **options: Any) -> TaskHeadsError:
    with pytest.raises(TaskHeadsError) as caught:
        read(tmp_path, rows, **options)
    return caught.value


def codes(error: TaskHeadsError) -> list[str]:
    return [problem.code for problem in error.problems]


def by_text(sets: TextSets) -> dict[str, TextExample]:
    return {row.text: row for row in (*sets.train, *sets.dev)}


PLAIN = [{"text": f"plain {n}", "label": NAMES[n % 3]} for n in range(30)]


def test_alias_is_resolved_in_every_form_of_target(tmp_path: Path) -> None:
    rows = [
        *PLAIN,
        {"text": "x", "label": "体育新闻"},
        {"text": "y", "label": " world"},
        {"text": "z", "label": 1},
    ]
    found = by_text(read(tmp_path, rows))
    assert [found[text].target for text in "xyz"] == [0, 2, 1]
    rows = [{"text": f"m{n}", "labels": [NAMES[n % 3]]} for n in range(30)]
    found = by_text(read(tmp_path, [*rows, {"text": "x", "labels": ["world", "sport"]}]))
    assert found["x"].target == (0, 2)
    rows = [{"text": f"p{n}", "probabilities": {NAMES[n % 3]: 1.0}} for n in range(30)]
    found = by_text(read(tmp_path, [*rows, {"text": "x", "probabilities": {"sport": 0.25, "财经": 0.75}}]))
    assert found["x"].soft == (0.25, 0.75, 0.0)
    rows = [{"text": f"n{n}", "label": n % 3, "label_name": NAMES[n % 3]} for n in range(30)]
    found = by_text(read(tmp_path, [*rows, {"text": "x", "label": 2, "label_name": "world"}]))
    assert found["x"].target == 2


def test_unknown_label_is_refused_by_line_with_a_similar_label(tmp_path: Path) -> None:
    bad = [
        {"text": "x", "label": "World "},
        {"text": "y", "label": "体育 新闻"},
        {"text": "z", "label": "体 育新闻"},
    ]
    error = refused(tmp_path, [*PLAIN, *bad])
    assert [problem.where.rsplit(":", 1)[1] for problem in error.problems] == ["31", "32", "33"]
    assert codes(error) == ["label-unknown"] * 3
    assert "'国际'" in error.problems[0].fix
    error = refused(tmp_path, [*PLAIN, {"text": "x", "label": 1, "label_name": "world"}])
    assert codes(error) == ["label-conflict"]
    assert all(value in error.problems[0].problem for value in ("label 1", "'财经'", "'world'"))
    rows = [{"text": f"m{n}", "labels": [NAMES[n % 3]]} for n in range(30)]
    error = refused(tmp_path, [*rows, {"text": "x", "labels": ["sport", "体育"]}])
    assert codes(error) == ["value-conflict"]


def test_candidates_are_labels_in_the_order_of_the_map(tmp_path: Path) -> None:
    rows = [
        *[{"text": f"t{n}", "category": "国际, 财经", "output": "财经"} for n in range(20)],
        {"text": "some", "category": ["world", "sport"], "output": "sport"},
        {"text": "all", "category": ["国际", "财经", "体育新闻"], "output": "国际"},
        {"text": "more", "category": ["财经", "天气", "体育"], "output": "财经"},
    ]
    sets = read(tmp_path, rows)
    found = by_text(sets)
    assert found["t0"].candidates == ("财经", "国际")
    assert found["some"].candidates == ("体育", "国际")
    assert found["all"].candidates == ()
    assert found["more"].candidates == ("体育", "财经")
    assert [line for line in sets.lines if "candidates" in line] == [
        "train: 1 row has candidates that are not labels, which are left out (train.jsonl:23)"
    ]


def test_two_spellings_of_one_candidate_are_refused_by_line(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "category": "国际, 财经", "output": "财经"} for n in range(20)]
    rows[4]["category"] = "国际, 财经, world"
    (problem,) = refused(tmp_path, rows).problems
    assert problem.where.endswith("train.jsonl:5")
    assert problem.code == "value-conflict"
    assert "'国际' and 'world'" in problem.problem


def test_candidates_of_many_labels_are_in_the_order_of_the_map(tmp_path: Path) -> None:
    names = [f"n{place:02}" for place in range(40)]
    (tmp_path / "order.yaml").write_text(json.dumps(names))
    rows = [{"text": f"t{n}", "category": names, "output": names[n % 40]} for n in range(80)]
    rows += [{"text": "x", "category": ["n33", "n08", "n39", "n01"], "output": "n08"}]
    train = written(tmp_path / "train.jsonl", rows)
    found = by_text(read_text_sets(train, labels=str(tmp_path / "order.yaml")))
    assert found["x"].candidates == ("n01", "n08", "n33", "n39")


def test_an_output_outside_its_category_is_refused_by_line(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "category": "国际, 财经", "output": ["国际", "财经"][n % 2]} for n in range(20)]
    rows[4]["output"], rows[9]["output"] = "体育", "财 经"
    error = refused(tmp_path, rows)
    assert [problem.where.rsplit(":", 1)[1] for problem in error.problems] == ["5", "10"]
    assert codes(error) == ["value-conflict"] * 2
    sets = read(tmp_path, rows, bad_rows="skip")
    assert len(sets.train) + len(sets.dev) == 18


def test_fingerprints_cover_candidates_and_aliases_and_do_not_change_without_them(tmp_path: Path) -> None:
    row = TextExample(text="A", target=0)
    assert hash_texts([row]) == hash_rows([("A", "", 0, None, 1.0)])
    assert hash_texts([TextExample(text="A", target=0, candidates=("x",))]) != hash_texts([row])
    labels = [
        LabelMap(("a", "b")),
        LabelMap(("a", "b"), aliases=(("A",), ())),
        LabelMap(("a", "b"), parents=("x", "y")),
    ]
    assert labels[0].stated() == (("a", "b"), (), ())
    assert len({hash_rows([one.stated()]) for one in labels}) == 3


def test_class_names_of_a_hub_may_be_aliases() -> None:
    from qwen_task_heads.data.label_schemes import derive_scheme
    from qwen_task_heads.data.raw_texts import RawTarget
    from qwen_task_heads.data.text_targets import resolve

    rows = [RawTarget(value=n % 2, name=("Sport", "World")[n % 2], where=f"r{n}") for n in range(4)]
    given = LabelMap(("体育", "国际"), aliases=(("Sport",), ("World",)))
    options = {
        "problem_type": "single_label_classification",
        "source": "s",
        "class_names": ("Sport", "World"),
        "count": 4,
    }
    scheme = derive_scheme(rows, given=given, **options)
    assert [resolve(row, scheme)[0] for row in rows] == [0, 1, 0, 1]
    swapped = LabelMap(("国际", "体育"), aliases=(("World",), ("Sport",)))
    for other in (given.subset(given.names[:1]), swapped):
        with pytest.raises(TaskHeadsError) as caught:
            derive_scheme(rows, given=other, **options)
        assert codes(caught.value) == ["label-conflict"]
