"""Row kinds, columns, findings, and the account of every row."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from qwen_task_heads.data.pair_readers import groups_to_pairs, read_pairs
from qwen_task_heads.errors import TaskHeadsError


def write_rows(path: Path, rows: Iterable[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def refusal(path: str, **options: str) -> TaskHeadsError:
    with pytest.raises(TaskHeadsError) as caught:
        read_pairs(path, **options)
    return caught.value


def pair_row(number: int = 0, **more: object) -> dict[str, object]:
    return {"chosen": f"Good title {number}", "rejected": f"Bad title {number}", **more}


def said(content: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": content}


def test_tags_are_stripped_and_inner_text_is_kept(tmp_path: Path) -> None:
    rows = [
        {"chosen": "<title>A &lt; B</title>", "rejected": " <TITLE> C </TITLE> "},
        {"chosen": "<title><title>twice</title></title>", "rejected": "a <title> inside"},
    ]
    pairs = read_pairs(write_rows(tmp_path / "a.jsonl", rows)).pairs
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [
        ("A &lt; B", "C"),
        ("twice", "a <title> inside"),
    ]
    assert [pair.source for pair in pairs] == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:2"]


def test_optional_columns(tmp_path: Path) -> None:
    row = pair_row(prompt=" Write ", margin=-0.5, weight=2, group="g", test_id="t", group_id=7)
    pair = read_pairs(write_rows(tmp_path / "a.jsonl", [row])).pairs[0]
    assert (pair.prompt, pair.margin, pair.weight, pair.group, pair.preference) == (
        "Write",
        -0.5,
        2.0,
        "7",
        None,
    )
    pair = read_pairs(write_rows(tmp_path / "b.jsonl", [pair_row(group="g", test_id="t")])).pairs[0]
    assert pair.group == "t"


def test_votes_and_clicks_set_the_preference(tmp_path: Path) -> None:
    clicks = {
        "chosen_clicks": 68,
        "chosen_impressions": 2629,
        "rejected_clicks": 39,
        "rejected_impressions": 2551,
    }
    rows = [pair_row(votes_chosen=8, votes_rejected=2, votes_skip=0), pair_row(1, **clicks), pair_row(2)]
    pairs = read_pairs(write_rows(tmp_path / "a.jsonl", rows)).pairs
    assert pairs[0].preference == 0.75
    assert pairs[1].preference == pytest.approx(0.9962, abs=2e-4)
    assert pairs[2].preference is None


def test_conversations_explicit_and_implicit(tmp_path: Path) -> None:
    prompt = [said("Be brief", "system"), said("About cats", "user")]
    rows = [
        {"prompt": prompt, "chosen": [said("<title>Cats!</title>")], "rejected": [said("On cats")]},
        {"chosen": [*prompt, said("Cats!!")], "rejected": [*prompt, said("On cats")]},
        {"prompt": "Be brief\nAbout cats", "chosen": [said("Cats!!!")], "rejected": [said("On cats")]},
    ]
    pairs = read_pairs(write_rows(tmp_path / "a.jsonl", rows)).pairs
    assert [pair.prompt for pair in pairs] == ["Be brief\nAbout cats"] * 3
    assert [pair.chosen for pair in pairs] == ["Cats!", "Cats!!", "Cats!!!"]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"chosen": [], "rejected": [said("x")]}, "no message in 'chosen'"),
        ({"chosen": [said("x", "user")], "rejected": [said("y")]}, "last message of 'chosen' is from 'user'"),
        ({"chosen": [{"from": "gpt", "text": "x"}], "rejected": [said("y")]}, "message 1 of 'chosen'"),
        ({"chosen": [said(" ")], "rejected": [said("y")]}, "the title in 'chosen' is empty"),
        ({"chosen": [said("x")], "rejected": ["y"]}, "message 1 of 'rejected'"),
        (
            {"chosen": [said("a", "user"), said("x")], "rejected": [said("b", "user"), said("y")]},
            "different conv",
        ),
        ({"chosen": [said("x")], "rejected": [said("x ")]}, "are equal"),
        (pair_row(prompt=[{"role": "user", "content": 3}]), "message 1 of 'prompt'"),
        (pair_row(votes_chosen=1, votes_rejected=1, preference=0.5), "evidence of several kinds"),
        (pair_row(preference=1.5), "'preference' is 1.5"),
        (pair_row(votes_chosen=1, votes_rejected=1, votes_skip=True), "'votes_skip' is True"),
        (pair_row(weight=10**400), "'weight' is"),
        (pair_row(margin="0.5"), "'margin' is '0.5'"),
        (pair_row(margin=None), "'margin' is null"),
        (pair_row(group_id=1.0), "'group_id' is 1.0"),
        (pair_row(group_id=None), "'group_id' is None"),
        (
            pair_row(chosen_clicks=9, chosen_impressions=8, rejected_clicks=0, rejected_impressions=1),
            "9 clicks of 8 impressions",
        ),
    ],
)
def test_refusals_name_the_line_and_the_value(tmp_path: Path, row: dict[str, object], found: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", [pair_row(), row])
    problems = refusal(path).problems
    assert {problem.where for problem in problems} == {f"{path}:2"}
    assert found in problems[0].problem


def test_a_row_with_three_defects_names_all_three(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [pair_row(), {"chosen": " ", "rejected": 1, "margin": True}])
    assert len(refusal(path).problems) == 3
    report = read_pairs(path, bad_rows="skip").report
    assert (report.rows_read, report.used, report.refused, len(report.refusals)) == (2, 1, 1, 3)
    assert "1 of 2 rows left out" in report.lines()[1]


@pytest.mark.parametrize(
    ("rename", "target"),
    [
        ({"chosen": "chosn"}, "chosen"),
        ({"chosen": "Chosen", "rejected": "Rejected"}, "rejected"),
        ({"rejected": "rejcted"}, "rejected"),
        ({"weight": "wieght"}, "weight"),
        ({"margin": "margins"}, "margin"),
        ({"votes_chosen": "chosen_votes"}, "votes_chosen"),
        ({"test_id": "test-id"}, "test_id"),
        ({"prompt": "promt"}, "prompt"),
    ],
)
@pytest.mark.parametrize("bad_rows", ["raise", "skip"])
def test_misspelt_column_is_named_once_for_the_file(
    tmp_path: Path, rename: dict[str, str], target: str, bad_rows: str
) -> None:
    row = pair_row(weight=1, margin=1, votes_chosen=3, votes_rejected=1, test_id="t", prompt="p")
    row = {rename.get(name, name): value for name, value in row.items()}
    error = refusal(write_rows(tmp_path / "a.jsonl", [row] * 1000), bad_rows=bad_rows)
    assert len(error.problems) == len(rename)
    assert f"did you mean '{target}'" in str(error)
    assert "chosen, rejected, prompt" in str(error)


def test_a_column_misspelt_in_one_row_is_named_there(tmp_path: Path) -> None:
    rows = [pair_row(number, weight=1) for number in range(5)] + [pair_row(9, weigth=2)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    (problem,) = refusal(path).problems
    assert problem.where == f"{path}:6"
    assert "did you mean 'weight'" in problem.fix


def test_missing_and_unknown_columns_are_named_once(tmp_path: Path) -> None:
    error = refusal(write_rows(tmp_path / "a.jsonl", [{"chosen": "x"}] * 500))
    assert len(error.problems) == 1
    assert "no row has 'rejected'" in str(error)
    error = refusal(write_rows(tmp_path / "b.jsonl", [{"text": "x", "label": 1}] * 500))
    assert len(error.problems) == 1
    assert "no known column" in str(error)
    error = refusal(write_rows(tmp_path / "c.jsonl", [pair_row(n, votes_chosen=3) for n in range(9)]))
    assert len(error.problems) == 1
    assert "no row has 'votes_rejected'" in str(error)


def test_foreign_columns_are_left_alone(tmp_path: Path) -> None:
    more = {
        "prompt_id": 3,
        "weight_kg": 4,
        "chosen_ctr": 1,
        "rejected_ctr": None,
        "chosen_image": "x",
        "z": float("nan"),
        "source": "s",
        "writer": 1,
    }
    assert len(read_pairs(write_rows(tmp_path / "a.jsonl", [pair_row(**more)])).pairs) == 1


def seven_kinds() -> list[dict[str, object]]:
    rows = [pair_row(number, votes_chosen=8, votes_rejected=1) for number in range(100)]
    rows[10] = pair_row(10, votes_chosen=1, votes_rejected=8)  # swapped
    rows[20] = {**rows[5]}  # duplicate
    rows[30] = {"chosen": "Bad title 6", "rejected": "Good title 6"}  # contradicts line 7
    rows[40] = {"chosen": "Same", "rejected": " Same "}
    rows[50] = {"chosen": "", "rejected": "x"}
    rows[60] = {"chosen": "x", "rejected": " \n\u3000"}
    rows[70] = {"chosen": "<title></title>", "rejected": "x"}
    return rows


def test_seven_of_seven_kinds_are_found_and_counted(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", seven_kinds())
    assert [problem.where for problem in refusal(path).problems] == [
        f"{path}:{line}" for line in (41, 51, 61, 71)
    ]
    report = read_pairs(path, bad_rows="skip").report
    assert (report.rows_read, report.used, report.refused) == (100, 96, 4)
    found = {finding.kind: finding.sources for finding in report.findings}
    assert found == {
        "duplicate": (f"{path}:21",),
        "contradictory": (f"{path}:31",),
        "swapped": (f"{path}:11",),
    }
    text = "\n".join(report.lines())
    for part in (
        "96 pairs read",
        "4 of 100 rows left out",
        "1 duplicate",
        "(a.jsonl:21)",
        "contradicts",
        "prefer",
    ):
        assert part in text


def test_nearly_equal_titles_are_kept_and_said(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"chosen": "ＡＢＣ", "rejected": "abc"}])
    assert read_pairs(path).report.count("near_equal") == 1


def test_the_same_pair_under_another_prompt_is_no_duplicate(tmp_path: Path) -> None:
    rows = [pair_row(prompt="a"), pair_row(prompt="b"), {"chosen": "Bad title 0", "rejected": "Good title 0"}]
    assert read_pairs(write_rows(tmp_path / "a.jsonl", rows)).report.findings == ()


def test_a_swapped_file_is_refused_by_its_own_evidence(tmp_path: Path) -> None:
    rows = [pair_row(number, votes_chosen=2, votes_rejected=7) for number in range(11)]
    rows += [pair_row(number, votes_chosen=7, votes_rejected=2) for number in range(20, 29)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    for bad_rows in ("raise", "skip"):
        assert "columns look swapped" in str(refusal(path, bad_rows=bad_rows))
    assert "11 of 20" in str(refusal(path))
    path = write_rows(tmp_path / "b.jsonl", rows[1:])  # 10 of 19: too few rows to tell
    assert read_pairs(path).report.count("swapped") == 10
    half = write_rows(tmp_path / "c.jsonl", [*rows, pair_row(99, votes_chosen=7, votes_rejected=2), rows[11]])
    assert read_pairs(half).report.count("swapped") == 11


def test_equal_rates_of_unequal_counts_are_not_called_swapped(tmp_path: Path) -> None:
    clicks = {
        "chosen_clicks": 0,
        "chosen_impressions": 1000,
        "rejected_clicks": 0,
        "rejected_impressions": 500,
    }
    assert read_pairs(write_rows(tmp_path / "a.jsonl", [pair_row(**clicks)])).report.count("swapped") == 0


def arm(test: object, headline: str, impressions: object = 1000, clicks: object = 10, **more: object) -> dict:
    return {"test_id": test, "headline": headline, "impressions": impressions, "clicks": clicks, **more}


def test_arms_become_groups_and_pairs(tmp_path: Path) -> None:
    rows = [
        arm("t1", "A", clicks=10),
        arm("t2", "alone"),
        arm("t1", "<title>B</title>", clicks=90),
        arm("t1", "A", clicks=20),  # pooled with the first
        arm(3, "C", clicks=5),
        arm(3, "D", clicks=5),
        arm("t1", "E", impressions=10, clicks=5),
    ]
    data = read_pairs(write_rows(tmp_path / "a.jsonl", rows))
    first, second = data.groups
    assert (first.titles, first.clicks, first.impressions) == (("A", "B", "E"), (30, 90, 5), (2000, 1000, 10))
    assert first.group == "t1"
    assert second.group == "3"
    report = data.report
    assert (report.rows_read, report.used, report.refused, report.groups) == (7, 6, 1, 2)
    assert (report.count("pooled"), report.count("lone")) == (1, 1)
    assert report.lines()[0].startswith("6 arms of 2 tests read from")
    pairs = groups_to_pairs(data.groups)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("E", "B"), ("E", "A"), ("B", "A")]
    assert all(pair.group == "t1" and pair.preference is not None and pair.preference > 0.5 for pair in pairs)
    assert pairs[2].source == f"{tmp_path}/a.jsonl:3 + {tmp_path}/a.jsonl:1"
    assert len(groups_to_pairs(data.groups, all_pairs=False)) == 2
    assert len(groups_to_pairs(data.groups, min_impressions=100)) == 1
    assert groups_to_pairs(data.groups, max_p_value=0.0) == []


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (arm("t", "A", clicks=1001), "1,001 clicks of 1,000"),
        (arm("t", "A", clicks=True), "'clicks' is True"),
        (arm("t", "A", impressions="9"), "'impressions' is '9'"),
        (arm("t", " "), "'headline' is white space only"),
        (arm("", "A"), "'test_id' is empty"),
        ({"test_id": "t", "headline": "A", "clicks": 1}, "no 'impressions'"),
        ({"headline": "A", "clicks": 1, "impressions": 2}, "no 'test_id'"),
        (arm("t1", "Z", prompt="another"), "test 't1' has another prompt"),
    ],
)
def test_bad_arms_are_refused_by_line(tmp_path: Path, row: dict[str, object], found: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", [arm("t1", "A"), arm("t1", "B"), row])
    (problem,) = refusal(path).problems
    assert problem.where == f"{path}:3"
    assert found in problem.problem


def test_empty_counts_of_arms_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("test_id,title,impressions,clicks\nt,A,9,1\nt,B,9,\nt,C,,1\n,D,9,1\n", encoding="utf-8")
    problems = refusal(str(path)).problems
    assert [problem.problem for problem in problems] == [
        "'clicks' is empty",
        "'impressions' is empty",
        "'test_id' is empty",
    ]


def test_misspelt_arm_column_and_lone_tests(tmp_path: Path) -> None:
    rows = [{"test_id": "t", "headline": str(n), "impressions": 9, "cliks": 1} for n in range(9)]
    error = refusal(write_rows(tmp_path / "a.jsonl", rows))
    assert len(error.problems) == 1
    assert "did you mean 'clicks'" in str(error)
    error = refusal(write_rows(tmp_path / "b.jsonl", [arm(number, "A") for number in range(3)]))
    assert "3 arms stand alone" in str(error)


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [pair_row()])
    assert "raise, skip" in str(refusal(path, bad_rows="ignore"))
    assert "huggingface, modelscope" in str(refusal(path, hub="github"))
    with pytest.raises(TaskHeadsError, match="max_p_value"):
        groups_to_pairs([], max_p_value=2)


def test_nothing_usable_is_an_error_also_when_skipping(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"chosen": "", "rejected": "x"}])
    assert "none of 1 rows can be used" in str(refusal(path, bad_rows="skip"))


def test_conversations_that_lose_their_roles_are_said(tmp_path: Path) -> None:
    turn = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A title?"}]
    rows = [
        {"chosen": [*turn, {"role": "assistant", "content": "A"}],
         "rejected": [*turn, {"role": "assistant", "content": "B"}]},
        {"prompt": turn, "chosen": "C", "rejected": "D"},
        {"prompt": "plain", "chosen": "E", "rejected": "F"},
    ]  # fmt: skip
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = read_pairs(str(path))
    assert [pair.prompt for pair in data.pairs] == ["Be brief.\nA title?"] * 2 + ["plain"]
    (line,) = [line for line in data.report.lines() if "joined" in line]
    assert line.startswith("2 conversations whose earlier messages were joined by line ends, without roles")
    assert "chats.jsonl:1, chats.jsonl:2" in line
