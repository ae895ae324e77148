"""Apply each fix of the problems of texts and labels, and read the data again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixes import refused
from reading import LABELED, Case, Change, Files, follow, inputs, lines, of_row, stated, texts, write

from qwen_task_heads.data.text_datasets import read_text_sets

MULTI = stated("labels", ["a"], ["b"])
SCORES = [{"text": f"Text {number}", "score": number / 2} for number in range(4)]
SOFT = [{"text": f"Text {number}", "probabilities": [0.75, 0.25]} for number in range(4)]
OFFERS = [{"text": f"Text {n}", "category": ["a", "b"], "output": "ab"[n % 2]} for n in range(4)]


def talk(text: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}


CHAT = [talk(f"Text {number}", "ab"[number % 2]) for number in range(4)]
SAID = {"role": "user", "content": "Hi"}


def of_set(
    site: str,
    rows: list[Any],
    ways: dict[str, list[Any] | Change],
    *,
    at: str = "train.jsonl",
    words: str = "",
    **more: str,
) -> Case:
    """Return a case of a whole dataset; a fix is its rows, or a change."""
    changes = {
        way: {"train.jsonl": lines(*done)} if isinstance(done, list) else done for way, done in ways.items()
    }
    beside = {name.replace("_", "."): text for name, text in more.items()}
    return Case(site, {"train.jsonl": lines(*rows), **beside}, at, changes, words=words)


def of_dev(site: str, rows: list[Any], bad: Any, ways: dict[str, Any]) -> Case:
    """Return a case of a row of dev; a fix is a row in its place, or a change."""
    changes = {
        way: {"dev.jsonl": lines(change)} if isinstance(change, dict) else change
        for way, change in ways.items()
    }
    return Case(
        site, {"train.jsonl": lines(*rows), "dev.jsonl": lines(bad)}, "dev.jsonl:1", changes, words=DEV
    )


def of_mix(
    site: str,
    rows: list[Any],
    ways: dict[str, Change],
    *,
    at: str = "more.jsonl",
    words: str = "--mix HERE/in/more.jsonl",
) -> Case:
    """Return a case of a dataset of `--mix`."""
    files = {"train.jsonl": lines(*LABELED), "in/more.jsonl": lines(*rows)}
    return Case(site, files, at, ways, words=words)


def crossed(name: str) -> list[dict[str, Any]]:
    """Return rows with codes, one of which may be the name of another label."""
    codes = [("1a", name), ("2a", "two"), ("1a", name), ("2a", "two"), ("one", "three")]
    return [{"text": f"Text {n}", "label": code, "label_name": name} for n, (code, name) in enumerate(codes)]


def by(*names: str, words: str = "") -> tuple[Files, str]:
    """Return a label file, and the option that names it."""
    text = "".join(f"- {name!r}\n" for name in names)
    return {"in/labels.yaml": text}, f"--labels HERE/in/labels.yaml {words}"


def renamed_values(rows: list[dict[str, Any]], old: str, new: Any) -> list[dict[str, Any]]:
    return [{name: new if value == old else value for name, value in row.items()} for row in rows]


def renamed(rows: list[dict[str, Any]], old: str, new: str) -> list[dict[str, Any]]:
    return [{new if name == old else name: value for name, value in row.items()} for row in rows]


def having(rows: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    return [row | more for row in rows]


COLUMNS, LAYOUT = "data/text_columns.py::", "data/text_layout.py::"
MIXING = "data/mixing.py::"
SCHEMES, TARGETS, VALUES = "data/label_schemes.py::", "data/text_targets.py::", "data/label_values.py::"
ORDINAL = "--problem_type ordinal"
DEV = "--dev_dataset HERE/dev.jsonl"
SETS = "data/text_datasets.py::_check_options"
ALIASED = "- {name: a, aliases: [A]}\n- b\n"
CODED = [row | {"label_name": "ab"[row["label"]]} for row in stated("label", 0, 1)]
NEW = [{"text": f"New {n}", "label": "ab"[n % 2]} for n in range(4)]
FILL = "fill in the text"
GONE = "remove the row"
SPEAK = "data/conversations.py::read_messages::row"
WEIGHTED = having(LABELED, weight=1.0)
CASES = [
    # columns of a file
    of_set(f"{LAYOUT}_text_problem::where#2", renamed(LABELED, "text", "texts"),
           {"rename 'texts' to 'text'": LABELED}, at="train.jsonl:1"),
    of_set(f"{LAYOUT}_text_problem::where#2", renamed(LABELED, "text", "body"),
           {"add": having(LABELED, body=""), "rename the column": LABELED}, at="train.jsonl:1"),
    of_set(f"{LAYOUT}_text_problem::where", having(LABELED, sentence="x"), {"keep one of them": LABELED},
           at="train.jsonl:1"),
    of_set("data/schema.py::unknown_columns::where", having(LABELED, wieght=1.0),
           {"rename it to 'weight'": WEIGHTED, "drop it": LABELED}, at="train.jsonl:1"),
    of_set(f"{LAYOUT}_target_problem::where", having(LABELED, labels=["a", "b"]),
           {"name the problem type, such as --problem_type single_label_classification":
            "--problem_type single_label_classification", "drop the other columns": LABELED},
           at="train.jsonl:1"),
    of_set(f"{LAYOUT}_target_problem::where", having(LABELED, probabilities={"a": 1.0}),
           {"drop the other columns": LABELED}, at="train.jsonl:1",
           words="--problem_type single_label_classification"),
    of_set(f"{LAYOUT}_target_problem::where#2", renamed(LABELED, "label", "lable"),
           {"rename 'lable' to 'label'": LABELED}, at="train.jsonl:1"),
    of_set(f"{LAYOUT}_target_problem::where#2", renamed(LABELED, "label", "class"),
           {"add": [{**row, "label": row["class"]} for row in renamed(LABELED, "label", "class")],
            "rename the column": LABELED}, at="train.jsonl:1"),
    of_set(f"{LAYOUT}_target_problem::where#2", SCORES,
           {"train on 'score' with --problem_type regression": "--problem_type regression",
            "add the column": [{**row, "label": "ab"[place % 2]} for place, row in enumerate(SCORES)]},
           at="train.jsonl:1", words="--problem_type single_label_classification"),
    # texts of a row
    of_row(f"{COLUMNS}_read_content::row", {"text": 3, "label": "a"},
           {"write the text as a string": {"text": "3", "label": "a"}}),
    of_row(f"{COLUMNS}_read_content::row#2", {"text": " ", "label": "a"},
           {FILL: {"text": "x", "label": "a"}, GONE: None}),
    of_row(f"{COLUMNS}_read_content::row#2", {"text": ""}, {FILL: {"text": "x"}, GONE: None}, read=inputs),
    of_row(f"{COLUMNS}_user_text::row", {"messages": [{"role": "assistant", "content": "a"}]},
           {"add the text as a message of the user": talk("Hi", "a")}, base=CHAT),
    of_set(f"{COLUMNS}_last_answer::row", [*CHAT, {"messages": [SAID]}],
           {"add it": [*CHAT, talk("Hi", "a")],
            "a 'label' column": [{**row, "label": "ab"[n % 2]} for n, row in enumerate(CHAT)]},
           at="train.jsonl:5"),
    of_row(f"{SPEAK}", {"messages": []}, {"write a list of messages": talk("Hi", "a")}, base=CHAT),
    of_row(f"{SPEAK}#2", {"messages": [SAID, "a"]}, {"correct the message": talk("Hi", "a")}, base=CHAT),
    # its target
    of_row(f"{COLUMNS}_is_label::row", {"text": "x", "label": None},
           {"write the label as in the other rows": {"text": "x", "label": "a"}}),
    of_row(f"{COLUMNS}_is_label::row", {"text": "x", "label": True},
           {"write the label as in the other rows": {"text": "x", "label": 1}}, base=stated("label", 0, 1)),
    of_row(f"{COLUMNS}_is_label::row", {"text": "x", "label": 0.5},
           {"write whole numbers": {"text": "x", "label": 1},
            "train on scores: --problem_type regression": "--problem_type regression"},
           base=stated("label", 0, 1)),
    of_row(f"{COLUMNS}_is_label::row", {"text": "x", "label": -1},
           {"correct the id": {"text": "x", "label": 1},
            "remove the row (-100 and -1 mark unlabeled rows)": None},
           base=stated("label", 0, 1)),
    of_set(f"{COLUMNS}_is_label::row", stated("label", ["a"], ["b"]),
           {"rename the column to 'labels' for several labels in a row": MULTI}, at="train.jsonl:1"),
    of_row(f"{COLUMNS}_read_list::row", {"text": "x", "labels": 1},
           {"rename the column to 'label' for one label in a row":
            {"train.jsonl": lines(*stated("label", 0, 1), {"text": "x", "label": 1})},
            "write a list ([] for none)": {"text": "x", "labels": []}}, base=stated("labels", [0], [1])),
    of_row(f"{COLUMNS}_read_list::row#2", {"text": "x", "labels": ["a", 1]},
           {"write all of them in one form": {"text": "x", "labels": ["a", "b"]}}, base=MULTI),
    of_row(f"{COLUMNS}_read_list::row#3", {"text": "x", "labels": ["a", "a"]},
           {"write each label once (the ids of the labels, not a row of zeros and ones)":
            {"text": "x", "labels": ["a"]}}, base=MULTI),
    of_row(f"{COLUMNS}_read_scores::row", {"text": "x", "score": "high"},
           {"correct it": {"text": "x", "score": 1}}, base=SCORES),
    of_row(f"{COLUMNS}_read_scores::row#2", {"text": "x", "score": []},
           {"write the score": {"text": "x", "score": 1}}, base=SCORES),
    of_row(f"{COLUMNS}_read_probabilities::row", {"text": "x", "probabilities": 0.5},
           {"write one number per label": {"text": "x", "probabilities": [0.5, 0.5]}}, base=SOFT),
    of_row(f"{COLUMNS}_read_probabilities::row#2", {"text": "x", "probabilities": [1.5, -0.5]},
           {"correct the number": {"text": "x", "probabilities": [1, 0]}}, base=SOFT),
    of_row(f"{COLUMNS}_read_probabilities::row#3", {"text": "x", "probabilities": [1, 1]},
           {"divide them by their sum": {"text": "x", "probabilities": [0.5, 0.5]}}, base=SOFT),
    of_row(f"{COLUMNS}_read_name::row", {"text": "x", "label": 0, "label_name": 7},
           {"write it as text": {"text": "x", "label": 0, "label_name": "7"},
            "drop it": {"text": "x", "label": 0}},
           base=[{**row, "label_name": "78"[row["label"]]} for row in stated("label", 0, 1)]),
    of_row(f"{COLUMNS}read_candidates::row", {**OFFERS[0], "category": ["a", ""]},
           {"write a list of names": {**OFFERS[0], "category": ["a", "b"]}}, base=OFFERS),
    of_row(f"{COLUMNS}read_candidates::row#2", {**OFFERS[0], "category": ["a", "a", "b"]},
           {"write it once": {**OFFERS[0], "category": ["a", "b"]}}, base=OFFERS),
    of_row(f"{COLUMNS}read_candidates::row#3", {**OFFERS[0], "output": "c"},
           {"correct 'output'": {**OFFERS[0], "output": "a"},
            "add it to 'category'": {**OFFERS[0], "output": "c", "category": ["a", "b", "c"]}}, base=OFFERS),
    of_row(f"{COLUMNS}read_candidates::row#4", {**OFFERS[0], "output": 1},
           {"write one of the candidates": {**OFFERS[0], "output": "a"}}, base=OFFERS),
    # values of labels over all rows
    of_row(f"{VALUES}_resolve_floats.resolved::row.where", {"text": "x", "label": 1.0},
           {"write all labels in one form": {"text": "x", "label": 1}}, base=stated("label", 0, 1)),
    of_row(f"{VALUES}_refuse_missing.checked::row.where", {"text": "x", "label": "NA"},
           {"fill it in": {"text": "x", "label": "a"}, GONE: None,
            "name the label in labels.yaml (--labels)": by("a", "b", "NA")}),
    of_set(f"{VALUES}_conversion::texts[text]", stated("label", "0.5", "1.25"),
           {"pass --problem_type regression for scores": "--problem_type regression",
            "for classes, pass --problem_type single_label_classification":
            "--problem_type single_label_classification",
            "name them in labels.yaml (--labels)": by("0.5", "1.25")}, at="train.jsonl:1"),
    of_set(f"{VALUES}_split_labels::where", stated("labels", "Food, drink", "Sport"),
           {"write a|b": stated("labels", "Food|drink", "Sport"),
            "a list for several labels": stated("labels", ["Food", "drink"], ["Sport"]),
            "name all labels in labels.yaml (--labels)": by("Food, drink", "Sport")}, at="train.jsonl:1"),
    of_set(f"{VALUES}_refuse_zeros_and_ones::train.stated[0].where", stated("labels", [0, 1], [1, 0]),
           {"write the ids of the labels, such as [1] for [0, 1]": stated("labels", [1], [0])},
           at="train.jsonl:1"),
    # the labels of a run
    of_set(f"{SCHEMES}derive_scheme::source#2", stated("label", 0, "a"),
           {"write all labels in one form": stated("label", 0, 1),
            "name them in labels.yaml (--labels)": by("b", "a")}),
    of_set(f"{SCHEMES}derive_scheme::source#3", LABELED,
           {"name them in their order in labels.yaml (--labels)": by("b", "a", words=ORDINAL)},
           words=ORDINAL),
    of_set(f"{SCHEMES}derive_scheme::source#4", stated("labels", [], []),
           {"write the labels into the rows": MULTI}),
    of_set(f"{SCHEMES}derive_scheme::source#5",
           [{"text": "ab"[n % 2] * (n + 1), "label": f"Text {n % 13}"} for n in range(24)],
           {"rename the column of the labels to 'label'":
            [{"text": f"Text {n}", "label": "ab"[n % 2]} for n in range(24)],
            "name them in labels.yaml (--labels)": by(*(f"Text {n}" for n in range(13)))}),
    of_row(f"{SCHEMES}in_quotes::raw.where", {"text": "x", "label": "1"},
           {"write it without quotes": {"text": "x", "label": 1}}, base=stated("label", 0, 1)),
    of_set(f"{SCHEMES}_checked::source", stated("label", "a"), {"add rows of other labels": LABELED}),
    of_set(f"{SCHEMES}_checked::source", LABELED,
           {"name the other labels there": {"labels.yaml": "- a\n- b\n"}}, labels_yaml="- a\n"),
    of_set(f"{SCHEMES}_numbers_are_names::source", stated("label", 0, 1, 2),
           {"rename them, as in '1 star'": {"labels.yaml": "- 1 star\n- 2 stars\n- none\n"}},
           labels_yaml="- 1\n- 2\n- 0\n"),
    of_row(f"{SCHEMES}_named_codes_scheme::raw.where", {"text": "x", "label": 0, "label_name": "b"},
           {"correct one of the two": {"text": "x", "label": 0, "label_name": "a"},
            "drop the column of names": {"train.jsonl": lines(*stated("label", 0, 1))}}, base=CODED),
    of_row(f"{SCHEMES}_named_codes_scheme::raw.where#2", {"text": "x", "label": 2, "label_name": "a"},
           {"correct one of the two": {"text": "x", "label": 2, "label_name": "c"},
            "drop the column of names": {"train.jsonl": lines(*stated("label", 0, 1, 2))}}, base=CODED),
    of_row(f"{SCHEMES}_named_codes_scheme::where", {"text": "x", "label": 2},
           {"add its name": {"text": "x", "label": 2, "label_name": "c"}}, base=CODED),
    of_set(f"{SCHEMES}_from_ids::source", stated("label", 0, 3),
           {"number them from 0": stated("label", 0, 1), "name all of them in class.txt":
            {"class.txt": "a\nb\nc\nd\n"}, "labels.yaml": {"labels.yaml": "[a, b, c, d]"}}),
    of_set(f"{SCHEMES}_soft_scheme::source", [*SOFT, {"text": "x", "probabilities": [0.2, 0.3, 0.5]}],
           {"write them in one form": SOFT}),
    of_set(f"{SCHEMES}_scores_scheme::source", [*SCORES, {"text": "x", "score": [1, 2]}],
           {"write as many scores in every row": SCORES}),
    of_set(f"{SCHEMES}_scores_scheme::source#2", SCORES,
           {"write 2 scores in every row": [{**row, "score": [1, row["score"]]} for row in SCORES],
            "correct the label file": {"in/labels.yaml": "- quality\n"}},
           words="--labels HERE/in/labels.yaml", **{"in/labels_yaml": "[a, b]"}),
    of_set(f"{SCHEMES}_scores_scheme::source#3", having(SCORES, score=1),
           {"add rows of other scores": SCORES}),
    of_set("data/label_summary.py::one_class::source", stated("label", "a"),
           {"add rows of other labels": LABELED}, labels_yaml="[a, b]"),
    # targets by these labels
    of_row(f"{TARGETS}_check_candidates::raw.where", {**OFFERS[0], "category": ["a", "A", "b"]},
           {"remove one of the two": {**OFFERS[0], "category": ["a", "b"]}}, base=OFFERS,
           labels_yaml=ALIASED),
    of_row(f"{TARGETS}_resolve_target::raw.where#2", {"text": "x", "labels": ["a", "A"]},
           {"remove one": {"text": "x", "labels": ["a"]}}, base=MULTI, labels_yaml=ALIASED),
    of_dev(f"{TARGETS}_resolve_target::raw.where", SCORES, {"text": "x", "score": [1, 2]},
           {"correct the row": {"text": "x", "score": 1}}),
    of_dev(f"{TARGETS}_resolve_soft::raw.where", SOFT, {"text": "x", "probabilities": [0.2, 0.3, 0.5]},
           {"correct the row": {"text": "x", "probabilities": [0.5, 0.5]}}),
    of_dev(f"{TARGETS}_resolve_label::raw.where", CODED, {"text": "x", "label": 0, "label_name": "b"},
           {"correct one of the two": {"text": "x", "label": 0, "label_name": "a"}}),
    of_dev(f"{TARGETS}_place_of_id::raw.where", LABELED, {"text": "x", "label": 1},
           {"write the name": {"text": "x", "label": "b"},
            "name the labels in their order in labels.yaml (--labels)": by("a", "b", words=DEV),
            "add 'label_name'": {"text": "x", "label": 1, "label_name": "b"}}),
    of_dev(f"{TARGETS}_place_of_id::raw.where#2", stated("label", 0, 1), {"text": "x", "label": 2},
           {"correct it": {"text": "x", "label": 1},
            "name a label file that has it with --labels": by("a", "b", "c", words=DEV)}),
    of_row(f"{TARGETS}_place_of_name::raw.where", crossed("one")[-1],
           {"rename the label": {"train.jsonl": lines(*crossed("first"))}}, base=crossed("one")[:-1]),
    of_dev(f"{TARGETS}_place_of_name::raw.where#2", LABELED, {"text": "x", "label": "c"},
           {"correct it": {"text": "x", "label": "b"},
            "name a label file that has it with --labels": by("a", "b", "c", words=DEV)}),
    of_dev(f"{TARGETS}_place_of_name::raw.where#2", LABELED, {"text": "x", "label": "A"},
           {"write 'a'": {"text": "x", "label": "a"}}),
    # options, and sets as a whole
    of_set("data/text_datasets.py::read_text_sets::streaming", LABELED,
           {"drop it: the data is read from its files": ""}, at="streaming", words="--streaming true"),
    of_set("data/text_datasets.py::_refusals::places[split]", [*LABELED, *[{"text": "", "label": "a"}] * 5],
           {"correct the rows below": [*LABELED, *[{"text": "x", "label": "a"}] * 5]},
           words="--bad_rows skip"),
    of_mix(f"{MIXING}mix_in::name", having(NEW, text="Same"),
           {"correct the labels": {"in/more.jsonl": lines(*NEW)},
           "name another data set with --mix": ({"new.jsonl": lines(*NEW)}, "--mix HERE/new.jsonl")}),
    of_mix(f"{MIXING}mix_in::name#2", LABELED, {"name another data set with --mix":
           ({"new.jsonl": lines(*NEW)}, "--mix HERE/new.jsonl"), "drop it": ""}),
    of_mix(f"{MIXING}check_ratio::mix_ratio", NEW, {"choose such as 2: two own rows to one other":
           "--mix HERE/in/more.jsonl --mix_ratio 2"}, at="mix_ratio",
           words="--mix HERE/in/more.jsonl --mix_ratio 0"),
    of_mix(f"{MIXING}_named::first", renamed_values(renamed_values(NEW, "a", 0), "b", 1),
           {"write 'label_name' next to the ids":
            {"in/more.jsonl": lines(*(
                {**row, "label": "ab".index(row["label"]), "label_name": row["label"]} for row in NEW))},
            "put class.txt": {"in/class.txt": "a\nb\n"}, "labels.yaml next to the file":
            {"in/labels.yaml": "[a, b]"}}, at="in/more.jsonl:1"),
    of_mix(f"{MIXING}_unknown::where[0]", renamed_values(NEW, "a", "c"),
           {"make it an alias in labels.yaml": {"labels.yaml": "- {name: a, aliases: [c]}\n- b\n"},
            "leave these rows out with --bad_rows skip": "--mix HERE/in/more.jsonl --bad_rows skip"},
           at="in/more.jsonl:1"),
    # texts to predict
    Case(f"{LAYOUT}_text_problem::where#2", {"new.jsonl": lines({"body": "x"})}, "new.jsonl:1",
         {"add": {"new.jsonl": lines({"body": "x", "text": "x"})},
          "rename the column": {"new.jsonl": lines({"text": "x"})}}, read=inputs),
    Case("data/text_readers.py::_input::where", {"new.jsonl": lines({"text": "x"}, {"sentence": "y"})},
         "new.jsonl:2", {"write the file in one form": {"new.jsonl": lines({"text": "x"}, {"text": "y"})}},
         read=inputs),
    of_row(f"{COLUMNS}_read_content::row#2", {"text": ""}, {FILL: {"text": "x"}, GONE: None},
           read=inputs),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fixed_data_is_read(case: Case, tmp_path: Path) -> None:
    follow(case, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"problem_type": "classification"}, {"problem_type": "single_label_classification"}),
        ({"bad_rows": "drop"}, {"bad_rows": "raise"}),
    ],
)
def test_option_with_few_values(wrong: dict[str, str], right: dict[str, str], tmp_path: Path) -> None:
    sites = {
        "problem_type": f"{SETS}::problem_type",
        "bad_rows": "data/checks.py::bad_rows_problems::bad_rows",
    }
    [name] = wrong
    source = write(tmp_path / "rows", {"train.jsonl": lines(*LABELED)})
    with refused(sites[name]) as found:
        read_text_sets(source, dev_fraction=0.5, **wrong)
    assert (found[0].where, found[0].fix) == (name, "choose one of them")
    assert found[0].expected.split(", ")[0] == right[name]
    assert read_text_sets(source, dev_fraction=0.5, **right)


def test_a_number_of_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "rows", {"train.jsonl": lines(*LABELED)})
    with refused(f"{SETS}::max_samples") as found:
        texts(source, "--max_samples 0")
    assert (found[0].where, found[0].fix) == ("max_samples", "correct the number")
    assert texts(source, "--max_samples 4")
