"""Maps of labels: label files, configs of models, and inputs that are refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from transformers import Qwen2Config

from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig
from qwen_task_heads.labels.label_files import find_label_file, is_whole
from qwen_task_heads.labels.label_map import LabelMap, check_same


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path) -> TaskHeadsError:
    with pytest.raises(TaskHeadsError) as caught:
        LabelMap.read(path)
    assert all(problem.where.startswith(str(path)) for problem in caught.value.problems)
    return caught.value


def config_of(*names: str) -> Qwen2Config:
    return Qwen2Config(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})


@pytest.mark.parametrize(
    "content",
    [
        "- sport\n- politics\n",
        "[sport, politics]",
        "sport:\npolitics:\n",
        "- name: sport\n- {name: politics}\n",
        "- sport\n- name: politics\n",
        "\ufeff- ' sport'\n- politics\n".replace("' sport'", "sport"),
    ],
)
def test_every_form_of_a_label_file_gives_the_same_names(tmp_path: Path, content: str) -> None:
    assert LabelMap.read(written(tmp_path / "labels.yaml", content)).names == ("sport", "politics")


def test_descriptions_and_examples_follow_their_names(tmp_path: Path) -> None:
    content = "- {name: a, description: The first, examples: [one text, another]}\n- name: b\n"
    labels = LabelMap.read(written(tmp_path / "labels.yaml", content))
    assert labels.descriptions == ("The first", "")
    assert labels.examples == (("one text", "another"), ())
    assert LabelMap.read(written(tmp_path / "labels.yml", "b: Second\na: First\n")) == LabelMap(
        ("b", "a"), ("Second", "First")
    )


def test_scalars_of_yaml_are_text(tmp_path: Path) -> None:
    names = LabelMap.read(written(tmp_path / "labels.yaml", "[no, yes, 1, 2020-01-01, null, 1e3]")).names
    assert names == ("no", "yes", "1", "2020-01-01", "null", "1e3")


def test_a_class_file_has_a_name_per_line(tmp_path: Path) -> None:
    path = written(tmp_path / "class.txt", "\ufefffinance\r\nreal estate \n体育\n\n\n")
    assert LabelMap.read(path).names == ("finance", "real estate", "体育")


@pytest.mark.parametrize(
    ("name", "content", "code", "value"),
    [
        ("labels.yaml", "a: x\na: y\n", "file-format", "'a'"),
        ("labels.yaml", "- a\n- b\n- a\n", "label-invalid", "'a'"),
        ("labels.yaml", "- a\n- \n", "label-invalid", "''"),
        ("labels.yaml", "- a\n- [b]\n", "label-invalid", "['b']"),
        ("labels.yaml", "- {name: a, describtion: x}\n", "label-invalid", "'describtion'"),
        ("labels.yaml", "- {name: a, examples: x}\n", "label-invalid", "'x'"),
        ("labels.yaml", "- {description: a}\n", "label-invalid", "None"),
        ("labels.yaml", "- {name: a, aliases: x}\n", "label-invalid", "'x'"),
        ("labels.yaml", "- {name: a, aliases: [x, [y]]}\n", "label-invalid", "['y']"),
        ("labels.yaml", "- {name: a, aliases: ['x ']}\n", "label-invalid", "'x '"),
        ("labels.yaml", "- {name: a, aliases: [a]}\n", "label-invalid", "alias 'a'"),
        ("labels.yaml", "- {name: a, aliases: [1]}\n", "label-invalid", "alias '1'"),
        ("labels.yaml", "- {name: a, parent: [x]}\n", "label-invalid", "['x']"),
        ("labels.yaml", "- {name: a, parents: x}\n", "label-invalid", "'parents'"),
        ("labels.yaml", "", "label-invalid", "None"),
        ("labels.yaml", "one name", "label-invalid", "'one name'"),
        ("labels.yaml", "- a\n--- \n- b\n", "file-format", "documents"),
        ("labels.yaml", "- &x a\n- *x\n", "file-format", "'x'"),
        ("labels.yaml", "[" * 100_000, "file-format", "nested"),
        ("labels.yaml", "- a\n b: {", "file-format", "YAML"),
        ("labels.yaml", "[a]: b\n", "file-format", "key"),
        ("labels.yaml", "- !!python/object:os.system {}\n", "label-invalid", "None"),
        ("class.txt", "a\n\nb\n", "label-invalid", "''"),
        ("class.txt", "a\nb\na\n", "label-invalid", "'a'"),
        ("class.txt", "", "label-invalid", "''"),
        ("class.txt", b"caf\xe9\n", "file-encoding", "0xe9"),
        ("class.txt", "a\nb\0\n", "file-format", "binary"),
        ("class.txt", "x" * 1001, "label-invalid", "1,001"),
        ("class.txt", "a\tb\n", "label-invalid", "'a\\tb'"),
    ],
)
def test_defective_label_file_is_refused(
    tmp_path: Path, name: str, content: str | bytes, code: str, value: str
) -> None:
    problem = refusal(written(tmp_path / name, content)).problems[0]
    assert problem.code == code
    assert value in problem.problem


def test_all_problems_of_a_label_file_in_one_run(tmp_path: Path) -> None:
    problems = refusal(written(tmp_path / "class.txt", "a\n\na\nb\na\n")).problems
    assert [problem.where.rsplit(":", 1)[1] for problem in problems] == ["2", "3", "5"]


def test_an_alias_belongs_to_one_label(tmp_path: Path) -> None:
    content = (
        "- {name: sport, aliases: [games, trade]}\n"
        "- {name: trade, aliases: [games, '7', goods]}\n"
        "- {name: sport}\n- {name: war, aliases: [goods, ' ']}\n"
    )
    path = written(tmp_path / "labels.yaml", content)
    problems = refusal(path).problems
    places = [(problem.where.rsplit(" ", 1)[1], problem.problem.split(" is ")[0]) for problem in problems]
    assert places == [
        ("3", "the label 'sport'"),
        ("1", "the alias 'trade'"),
        ("2", "the alias 'games'"),
        ("2", "the alias '7'"),
        ("4", "the alias 'goods'"),
        ("4", "the alias ' '"),
    ]
    assert {problem.code for problem in problems} == {"label-invalid"}
    assert problems[2].problem.endswith(f"(first at {path}:label 1)")


def test_aliases_and_parents_follow_their_names(tmp_path: Path) -> None:
    content = "- {name: 体育, aliases: [体育新闻, sport], parent: 休闲}\n"
    content += "- name: 财经\n- {name: 股票, parent: 财经}\n"
    labels = LabelMap.read(written(tmp_path / "labels.yaml", content))
    assert labels.aliases == (("体育新闻", "sport"), (), ())
    assert labels.parents == ("休闲", "", "财经")
    assert labels.parent_of == {"体育": "休闲", "股票": "财经"}
    assert labels.spelled == {"体育新闻": 0, "sport": 0, "体育": 0, "财经": 1, "股票": 2}
    assert [labels.near(text) for text in ("Ｓｐｏｒｔ", "股票 ", "x")] == ["体育", "股票", None]


def test_a_subset_keeps_the_order_and_all_fields() -> None:
    labels = LabelMap(
        ("a", "b", "c"), ("x", "y", "z"), (("1",), (), ("3",)), (("A",), (), ("C", "D")), ("p", "q", "")
    )
    assert labels.subset(["c", "a", "c"]) == LabelMap(
        ("a", "c"), ("x", "z"), (("1",), ("3",)), (("A",), ("C", "D")), ("p", "")
    )
    assert labels.subset(labels.names) == labels
    with pytest.raises(TaskHeadsError) as caught:
        labels.subset(["A", "a", "d"])
    assert [(problem.where, problem.code) for problem in caught.value.problems] == [
        ("candidates", "label-unknown")
    ] * 2
    assert "'A'" in caught.value.problems[0].problem
    with pytest.raises(TaskHeadsError) as caught:
        labels.subset([])
    assert caught.value.problems[0].code == "label-invalid"


def test_a_saved_model_keeps_all_of_its_map(tmp_path: Path) -> None:
    labels = LabelMap(("a", "b"), ("x", ""), ((), ("t",)), (("A",), ()), ("p", "q"))
    PooledClassifierConfig(
        id2label=labels.id2label, label2id=labels.label2id, **labels.described()
    ).save_pretrained(tmp_path)
    assert LabelMap.of_config(PooledClassifierConfig.from_pretrained(tmp_path)) == labels


def test_missing_label_file_is_refused(tmp_path: Path) -> None:
    (problem,) = refusal(tmp_path / "labels.yaml").problems
    assert problem.code == "path-not-found"


def test_invalid_maps_are_refused() -> None:
    for arguments in (((),), (("a", "a"),), ((" a",),), (("a", "b"), ("only one",)), (("a",), (), ((), ()))):
        with pytest.raises(TaskHeadsError) as caught:
            LabelMap(*arguments)
        assert caught.value.problems[0].code == "label-invalid"
    for fields in (
        {"aliases": (("x",),)},
        {"aliases": (("b",), ())},
        {"parents": ("x",)},
        {"parents": (" ", "")},
    ):
        with pytest.raises(TaskHeadsError) as caught:
            LabelMap(("a", "b"), **fields)
        assert caught.value.problems[0].code == "label-invalid"


def test_labels_are_read_from_a_config() -> None:
    config = config_of("b", "a")
    assert LabelMap.of_config(config).names == ("b", "a")
    config.label_descriptions, config.label_examples = ["x", "y"], [["one"], []]
    assert LabelMap.of_config(config) == LabelMap(("b", "a"), ("x", "y"), (("one",), ()))
    assert LabelMap.of_config(Qwen2Config(num_labels=3)).names == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_a_config_that_contradicts_itself_is_refused() -> None:
    for id2label, label2id in (({0: "a", 2: "b"}, {}), ({0: "a", 1: "b"}, {"a": 1, "b": 0})):
        config = Qwen2Config()
        config.id2label, config.label2id = id2label, label2id
        with pytest.raises(TaskHeadsError) as caught:
            LabelMap.of_config(config)
        (problem,) = caught.value.problems
        assert problem.where == ("config.label2id" if label2id else "config.id2label")
        assert problem.code == "config-invalid"


def test_check_5_two_hundred_permuted_maps_are_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    names = [f"label {number}" for number in range(12)]
    model = LabelMap.of_config(config_of(*names))
    check_same(LabelMap(tuple(names)), model)
    for _ in range(200):
        permuted = rng.sample(names, len(names))
        assert permuted != names
        path = written(tmp_path / "labels.yaml", json.dumps(permuted))
        with pytest.raises(TaskHeadsError, match="another order") as caught:
            check_same(LabelMap.read(path), model, where=str(path))
        (problem,) = caught.value.problems
        assert (problem.where, problem.code) == (str(path), "label-conflict")
    with pytest.raises(TaskHeadsError, match="11 labels, and 12 in the model"):
        check_same(LabelMap(tuple(names[:-1])), model)
    with pytest.raises(TaskHeadsError, match="label 11 is 'other', and 'label 11' in the model"):
        check_same(LabelMap((*names[:-1], "other")), model)


@pytest.mark.parametrize("kind", ["ids", "names", "named ids", "multi"])
def test_check_5_two_hundred_shuffles_give_one_map(tmp_path: Path, kind: str) -> None:
    rng = random.Random(1)
    rows = []
    for number in range(40):
        label = number % 7
        rows.append(
            {"text": f"text {number}"}
            | {
                "ids": {"label": label},
                "names": {"label": f"name {(label * 3) % 7}"},
                "named ids": {"label": label, "label_name": f"name {(label * 3) % 7}"},
                "multi": {"labels": [f"name {label}", f"name {(label + 1) % 7}"]},
            }[kind]
        )
    path, seen = tmp_path / "train.jsonl", set()
    for _ in range(50 if kind != "names" else 200):
        rng.shuffle(rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        sets = read_text_sets(str(path))
        of_text = {row.text: row.target for row in (*sets.train, *sets.dev)}
        seen.add((sets.labels.names, tuple(sorted(of_text.items())), tuple(sorted(r.text for r in sets.dev))))
    assert len(seen) == 1


def test_a_label_file_is_found_next_to_the_data(tmp_path: Path) -> None:
    data = written(tmp_path / "train.jsonl", "{}")
    assert find_label_file(str(tmp_path)) is None
    written(tmp_path / "class.txt", "a\nb\n")
    assert find_label_file(str(tmp_path)) == find_label_file(str(data)) == str(tmp_path / "class.txt")
    assert find_label_file("owner/name") is None
    written(tmp_path / "labels.yaml", "- {name: a, description: First}\n- b\n")
    assert find_label_file(str(tmp_path)) == str(tmp_path / "labels.yaml")
    written(tmp_path / "labels.txt", "b\na\n")
    with pytest.raises(TaskHeadsError, match=r"labels\.yaml and class\.txt and labels\.txt") as caught:
        find_label_file(str(tmp_path))
    assert caught.value.problems[0].code == "label-conflict"


def test_whole_numbers() -> None:
    assert [is_whole(text) for text in ("7", "+7", "-100", "", "-", "1.0", "²", "１", "7 ")] == [
        *(True, True, True),
        *[False] * 6,
    ]
