"""Apply each fix of the problems of label files, maps of labels and few-shot examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from fixes import refused
from reading import LABELED, Case, Change, follow, labels, lines, stated, texts, ways_of, write
from transformers import Qwen2Config

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.few_shot import choose_shots
from qwen_task_heads.labels import label_files
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.training.added_labels import read_datasets_for
from qwen_task_heads.training.classifier_arguments import parse_classifier_arguments

FILES, MAP, SHOTS = "labels/label_files.py::", "labels/label_map.py::LabelMap.", "data/few_shot.py::"


def of_file(site: str, bad: str, at: str, ways: dict[str, str]) -> Case:
    """Return a case of labels.yaml; a fix is its content."""
    changes: dict[str, Change] = {way: {"labels.yaml": text} for way, text in ways.items()}
    return Case(site, {"labels.yaml": bad}, f"labels.yaml{at}", changes, read=labels)


def named(bad: str | bytes, site: str, at: str, way: str, name: str = "names.txt") -> Case:
    """Return a case of the file of `--labels`; the fix names another file."""
    files = {"train.jsonl": lines(*LABELED), name: bad, "in/labels.yaml": "[a, b]"}
    change = "--labels HERE/in/labels.yaml"
    return Case(site, files, at, {way: change}, words=f"--labels HERE/{at.split(':')[0]}")


CASES = [
    Case(f"{FILES}find_label_file::str(folder)",
         {"train.jsonl": lines(*LABELED), "class.txt": "a\nb\n", "labels.yaml": "[b, a]"}, "",
         {"remove the others": {"class.txt": None}}),
    of_file(f"{FILES}_spelling_problems::where#2", "- a\n- a\n", ":label 2",
            {"rename": "- a\n- b\n", "remove one of the two": "- a\n"}),
    of_file(f"{FILES}_spelling_problems::where", "- {name: a, aliases: [7]}\n- b\n", ":label 1",
            {"remove it": "- a\n- b\n", "make it the name": "- 7\n- b\n"}),
    of_file(f"{FILES}_spelling_problems::where#2", "- {name: a, aliases: [b]}\n- b\n", ":label 1",
            {"remove one of the two": "- a\n- b\n"}),
    of_file(f"{FILES}_text_problem::where", "- {name: [a]}\n", ":label 1",
            {"write the name as text": "- a\n"}),
    of_file(f"{FILES}_text_problem::where#2", "- ''\n- b\n", ":label 1",
            {"write a visible name": "- a\n- b\n"}),
    of_file(f"{FILES}_text_problem::where#3", f"- {'a' * 1001}\n", ":label 1",
            {"shorten the name": "- a\n"}),
    of_file(f"{FILES}_from_yaml::where", "- {name: a, descripton: x}\n", ":label 1",
            {"correct its name": "- {name: a, description: x}\n"}),
    of_file(f"{FILES}_from_yaml::where#2", "- {name: a, description: [x]}\n", ":label 1",
            {"write a string": "- {name: a, description: x}\n"}),
    of_file(f"{FILES}_from_yaml::where#3", "- {name: a, examples: x}\n", ":label 1",
            {"write one text per entry": "- {name: a, examples: [x]}\n"}),
    of_file(f"{FILES}_from_yaml::where#4", "- {name: a, aliases: x}\n", ":label 1",
            {"write - before each": "- name: a\n  aliases:\n  - x\n"}),
    of_file(f"{FILES}_entries::path", "7", "", {"write one entry per label": "- a\n- b\n"}),
    of_file(f"{FILES}_parse_yaml::where", "- a\n- b: c: d\n", ":2",
            {"correct the syntax": "- a\n- b\n", "quote names that contain :": "- a\n- 'b: c: d'\n",
             "#": "- a\n- 'b#'\n"}),
    of_file(f"{FILES}_parse_yaml::where", "a: x\na: y\n", ":2",
            {"correct the syntax": "a: x\nb: y\n", "quote names that contain :": "'a:': x\na: y\n",
             "#": "'a#': x\na: y\n"}),
    named("a\nb\n", f"{FILES}_read_file::path#2", "nmaes.txt", "check the path"),
    named("a\nb\0", f"{FILES}_read_file::path#3", "names.txt", "name the file of the labels"),
    Case(f"{FILES}_read_file::f'{{path}}:{{line}}'", {"class.txt": "体育\n财经\n".encode("gbk")},
         "class.txt:1", {"save the file as UTF-8": {"class.txt": "体育\n财经\n"}}, read=labels),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fixed_file_is_read(case: Case, tmp_path: Path) -> None:
    follow(case, tmp_path)


def test_label_file_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_files, "MAX_LABEL_FILE", 100)
    source = write(tmp_path / "rows", {"train.jsonl": lines(*LABELED), "class.txt": "a\nb\n"})
    with refused(f"{FILES}_read_file::path") as found:
        texts(source, f"--labels {source}")
    assert (found[0].where, found[0].fix) == (source, "name the file of the labels")
    assert texts(source, f"--labels {tmp_path / 'rows' / 'class.txt'}")


def test_a_map_of_labels() -> None:
    with refused(f"{MAP}__post_init__::labels") as found:
        LabelMap(("a", "b"), descriptions=("first",))
    assert found[0].fix == "add the others"
    assert LabelMap(("a", "b"), descriptions=("first", "second"))
    with refused(f"{MAP}__post_init__::labels#2") as found:
        LabelMap(())
    assert found[0].fix == "name the labels"
    assert LabelMap(("a",))


def test_names_of_a_map() -> None:
    known = LabelMap(("a", "b", "c"))
    with refused(f"{MAP}subset::where") as found:
        known.subset(["b", "x"])
    assert (found[0].where, found[0].fix) == ("candidates", "name labels of the schema")
    assert known.subset(found[0].expected.split(", ")[:2])


@pytest.mark.parametrize(
    ("site", "wrong", "remedies"),
    [
        (
            f"{MAP}of_config::config.id2label",
            {"id2label": {0: "a", 2: "b"}},
            [{"id2label": {0: "a", 1: "b"}}],
        ),
        (
            f"{MAP}of_config::config.label2id",
            {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}},
            [{"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}, {"id2label": {0: "a", 1: "b"}}],
        ),
    ],
)
def test_the_labels_of_a_config(site: str, wrong: dict[str, Any], remedies: list[dict[str, Any]]) -> None:
    with refused(site) as found:
        LabelMap.of_config(Qwen2Config(**wrong))
    assert found[0].where == site.rsplit("::", 1)[1]
    ways = ways_of(found[0].fix)
    assert ways == ["correct it in config.json", "remove it there"][: len(remedies)]
    for right in remedies:
        assert LabelMap.of_config(Qwen2Config(**right)).names == ("a", "b")


ROWS = [TextExample(text=f"text {number}", target=number % 2) for number in range(6)]
KNOWN = LabelMap(("a", "b"))


@pytest.mark.parametrize(
    ("site", "where", "wrong", "ways"),
    [
        (f"{SHOTS}_check::name", "k", {"k": 0}, {"choose such as 2": {"k": 2}}),
        (f"{SHOTS}_check::by", "by", {"by": "chance"}, {"choose one of them": {"by": "balance"}}),
        (f"{SHOTS}_check::texts", "texts", {"by": "similarity"},
         {"give them": {"by": "similarity", "texts": ["text"]}, "choose by balance": {"by": "balance"}}),
        (f"{SHOTS}_usable::where", "few-shot", {"train": [TextExample(text="x", target=(0, 1))]},
         {"give rows with one label each": {}}),
        (f"{SHOTS}choose_shots::few-shot", "few-shot", {"train": []},
         {"give other training rows": {}, "no shots": None}),
        (f"{SHOTS}choose_shots::f'texts[{{place}}]'", "texts[0]",
         {"train": ROWS[:1], "by": "similarity", "texts": ["text 0", "other"]},
         {"give more training rows": {"by": "similarity", "texts": ["text 0", "other"]}, "no shots": None}),
    ],
)  # fmt: skip
def test_examples(site: str, where: str, wrong: dict[str, Any], ways: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"train": ROWS, "k": 1}
    with refused(site) as found:
        choose_shots(**(usual | wrong), labels=KNOWN)
    assert found[0].where == where
    assert ways_of(found[0].fix) == [*ways]
    for right in ways.values():
        assert right is None or choose_shots(**(usual | right), labels=KNOWN)


def test_class_names_that_a_label_file_contradicts(tmp_path: Path) -> None:
    site = "data/label_schemes.py::derive_scheme::source"
    classes = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    source = str(tmp_path / "train.parquet")
    Dataset.from_list(LABELED, features=classes).to_parquet(source)
    (tmp_path / "labels.yaml").write_text("[b, a]")
    with refused(site) as found:
        texts(source)
    assert found[0].where == source
    assert ways_of(found[0].fix) == ["write names in place of the ids", "correct the label file"]
    (tmp_path / "labels.yaml").write_text("[a, b]")
    assert texts(source)
    (tmp_path / "labels.yaml").write_text("[b, a]")
    Dataset.from_list(LABELED).to_parquet(source)
    assert texts(source).labels.names == ("b", "a")


SAVED = {"labels": LabelMap(("a", "b")), "problem_type": "single_label_classification"}


def test_class_names_that_a_saved_model_contradicts(tmp_path: Path) -> None:
    classes = Features({"text": Value("string"), "label": ClassLabel(names=["b", "a"])})
    source = str(tmp_path / "train.parquet")
    Dataset.from_list(LABELED, features=classes).to_parquet(source)
    with refused("data/label_schemes.py::derive_scheme::source") as found:
        read_datasets_for(source, SAVED, dev_fraction=0.5)
    first, second = ways_of(found[0].fix)
    assert first == "write names in place of the ids"
    assert second == "train a new model: give a plain backbone as --model_name_or_path"
    assert read_datasets_for(source, {}, dev_fraction=0.5).labels.names == ("b", "a")
    Dataset.from_list(LABELED).to_parquet(source)
    assert read_datasets_for(source, SAVED, dev_fraction=0.5).labels.names == ("a", "b")


@pytest.mark.parametrize("names", [("b", "a"), ("c", "b")])
def test_a_label_file_of_another_model(names: tuple[str, str], tmp_path: Path) -> None:
    """Ids of rows refer to the label file next to the data, also if the model has another order."""
    named = stated("label", *names)
    rows = [{**row, "label": names.index(row["label"])} for row in named]
    folder = tmp_path / "rows"
    source = write(folder, {"train.jsonl": lines(*rows), "class.txt": "".join(f"{name}\n" for name in names)})
    with refused("labels/label_map.py::check_same::where") as found:
        read_datasets_for(source, SAVED, dev_fraction=0.5)
    assert found[0].where == str(folder / "class.txt")
    ways = ways_of(found[0].fix)
    assert ways[0] == "write names in place of the ids"
    assert ways[-1] == "train a new model: give a plain backbone as --model_name_or_path"
    assert read_datasets_for(source, {}, dev_fraction=0.5).labels.names == names
    wanted = [row["label"] for row in named]
    if len(ways) == 3:
        assert ways[1] == "name by --labels a file of these labels, followed by the other labels of the model"
        (tmp_path / "all.yaml").write_text(f"[{', '.join(names)}, a]")
        options = parse_classifier_arguments(
            ["--dev_fraction", "0.5", "--labels", str(tmp_path / "all.yaml")]
        )[0]
        sets = read_datasets_for(source, SAVED, **options.data_options())
        assert sorted(sets.labels.names[one.target] for one in [*sets.train, *sets.dev]) == sorted(wanted)
    else:
        assert sorted(names) == ["a", "b"]  # a list in another order is refused as `--labels` too
    (folder / "train.jsonl").write_text(lines(*named))
    sets = read_datasets_for(source, SAVED, dev_fraction=0.5)
    assert sorted(sets.labels.names[one.target] for one in [*sets.train, *sets.dev]) == sorted(wanted)
