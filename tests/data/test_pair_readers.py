"""Row kinds, columns, findings, and the report on every row."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from qwen_task_heads.data.pair_readers import read_pairs
from qwen_task_heads.data.preferences import groups_to_pairs
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


def message(content: str, role: str = "assistant") -> dict[str, str]:
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
    prompt = [message("Be brief", "system"), message("About cats", "user")]
    rows = [
        {"prompt": prompt, "chosen": [message("<title>Cats!</title>")], "rejected": [message("On cats")]},
        {"chosen": [*prompt, message("Cats!!")], "rejected": [*prompt, message("On cats")]},
        {"prompt": "Be brief\nAbout cats", "chosen": [message("Cats!!!")], "rejected": [message("On cats")]},
    ]
    pairs = read_pairs(write_rows(tmp_path / "a.jsonl", rows)).pairs
    assert [pair.prompt for pair in pairs] == ["Be brief\nAbout cats"] * 3
    assert [pair.chosen for pair in pairs] == ["Cats!", "Cats!!", "Cats!!!"]


@pytest.mark.parametrize(
    ("row", "code", "value"),
    [
        ({"chosen": [], "rejected": [message("x")]}, "value-missing", "'chosen'"),
        ({"chosen": [message("x", "user")], "rejected": [message("y")]}, "value-conflict", "'user'"),
        ({"chosen": [{"from": "gpt", "text": "x"}], "rejected": [message("y")]}, "value-type", "message 1"),
        ({"chosen": [message(" ")], "rejected": [message("y")]}, "text-empty", "'chosen'"),
        ({"chosen": [message("x")], "rejected": ["y"]}, "value-type", "message 1 of 'rejected'"),
        (
            {
                "chosen": [message("a", "user"), message("x")],
                "rejected": [message("b", "user"), message("y")],
            },
            "value-conflict",
            "conversations",
        ),
        ({"chosen": [message("x")], "rejected": [message("x ")]}, "value-conflict", "'x'"),
        (pair_row(prompt=[{"role": "user", "content": 3}]), "value-type", "message 1 of 'prompt'"),
        (
            pair_row(votes_chosen=1, votes_rejected=1, preference=0.5),
            "column-ambiguous",
            "votes_chosen, preference",
        ),
        (pair_row(preference=1.5), "value-range", "'preference' is 1.5"),
        (pair_row(votes_chosen=1, votes_rejected=1, votes_skip=True), "value-type", "'votes_skip' is True"),
        (pair_row(votes_chosen=10**400, votes_rejected=1), "value-range", "'votes_chosen'"),
        (pair_row(weight=10**400), "value-range", "'weight'"),
        (pair_row(margin="0.5"), "value-type", "'margin' is '0.5'"),
        (pair_row(margin=None), "value-missing", "'margin' is null"),
        (pair_row(group_id=1.0), "value-type", "'group_id' is 1.0"),
        (pair_row(group_id=None), "value-missing", "'group_id' is None"),
        (
            pair_row(chosen_clicks=9, chosen_impressions=8, rejected_clicks=0, rejected_impressions=1),
            "value-conflict",
            "9 clicks of 8 impressions",
        ),
    ],
)
def test_bad_row_is_refused_with_its_line_and_value(
    tmp_path: Path, row: dict[str, object], code: str, value: str
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [pair_row(), row])
    problems = refusal(path).problems
    assert {problem.where for problem in problems} == {f"{path}:2"}
    assert problems[0].code == code
    assert value in problems[0].problem


def test_all_defects_of_a_row_are_reported(tmp_path: Path) -> None:
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
    assert {problem.code for problem in error.problems} <= {"column-missing", "column-unknown"}
    assert any(
        problem.fix.startswith("rename") and f"'{target}'" in problem.fix for problem in error.problems
    )
    assert all("chosen, rejected, prompt" in problem.expected for problem in error.problems)


def test_a_column_misspelt_in_one_row_is_named_there(tmp_path: Path) -> None:
    rows = [pair_row(number, weight=1) for number in range(5)] + [pair_row(9, weigth=2)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    (problem,) = refusal(path).problems
    assert (problem.where, problem.code) == (f"{path}:6", "column-unknown")
    assert "'weight'" in problem.fix


def test_missing_and_unknown_columns_are_reported_once(tmp_path: Path) -> None:
    for rows, column in (
        ([{"chosen": "x"}] * 500, "'rejected'"),
        ([{"text": "x", "label": 1}] * 500, "label, text"),
        ([pair_row(n, votes_chosen=3) for n in range(9)], "'votes_rejected'"),
    ):
        (problem,) = refusal(write_rows(tmp_path / "a.jsonl", rows)).problems
        assert problem.code == "column-missing"
        assert column in problem.problem


def test_other_columns_are_ignored(tmp_path: Path) -> None:
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


def test_nearly_equal_titles_are_kept_and_reported(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"chosen": "ＡＢＣ", "rejected": "abc"}])
    assert read_pairs(path).report.count("near_equal") == 1


def test_the_same_pair_under_another_prompt_is_no_duplicate(tmp_path: Path) -> None:
    rows = [pair_row(prompt="a"), pair_row(prompt="b"), {"chosen": "Bad title 0", "rejected": "Good title 0"}]
    assert read_pairs(write_rows(tmp_path / "a.jsonl", rows)).report.findings == ()


def test_swapped_file_is_refused_by_its_own_votes(tmp_path: Path) -> None:
    rows = [pair_row(number, votes_chosen=2, votes_rejected=7) for number in range(11)]
    rows += [pair_row(number, votes_chosen=7, votes_rejected=2) for number in range(20, 29)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    for bad_rows in ("raise", "skip"):
        (problem,) = refusal(path, bad_rows=bad_rows).problems
        assert (problem.where, problem.code) == (path, "pairs-swapped")
        assert "11 of 20" in problem.problem
    path = write_rows(tmp_path / "b.jsonl", rows[1:])  # 10 of 19 rows are too few
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
    assert report.lines()[0].startswith("6 arms of 2 experiments read from")
    pairs = groups_to_pairs(data.groups)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("E", "B"), ("E", "A"), ("B", "A")]
    assert all(pair.group == "t1" and pair.preference is not None and pair.preference > 0.5 for pair in pairs)
    assert pairs[2].source == f"{tmp_path}/a.jsonl:3 + {tmp_path}/a.jsonl:1"
    assert len(groups_to_pairs(data.groups, all_pairs=False)) == 2
    assert len(groups_to_pairs(data.groups, min_impressions=100)) == 1
    assert groups_to_pairs(data.groups, max_p_value=0.0) == []


@pytest.mark.parametrize(
    ("row", "code", "value"),
    [
        (arm("t", "A", clicks=1001), "value-conflict", "1,001 clicks of 1,000"),
        (arm("t", "A", clicks=True), "value-type", "'clicks' is True"),
        (arm("t", "A", impressions="9"), "value-type", "'impressions' is '9'"),
        (arm("t", " "), "text-empty", "'headline'"),
        (arm("", "A"), "value-missing", "'test_id'"),
        ({"test_id": "t", "headline": "A", "clicks": 1}, "column-missing", "'impressions'"),
        ({"headline": "A", "clicks": 1, "impressions": 2}, "column-missing", "'test_id'"),
        (arm("t1", "Z", prompt="another"), "rows-conflict", "'t1'"),
    ],
)
def test_bad_arms_are_refused_by_line(tmp_path: Path, row: dict[str, object], code: str, value: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", [arm("t1", "A"), arm("t1", "B"), row])
    (problem,) = refusal(path).problems
    assert (problem.where, problem.code) == (f"{path}:3", code)
    assert value in problem.problem


def test_empty_counts_of_arms_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("test_id,title,impressions,clicks\nt,A,9,1\nt,B,9,\nt,C,,1\n,D,9,1\n", encoding="utf-8")
    problems = refusal(str(path)).problems
    assert [problem.where for problem in problems] == [f"{path}:{line}" for line in (3, 4, 5)]
    assert [problem.code for problem in problems] == ["value-missing"] * 3


def test_misspelt_arm_column_and_lone_arms(tmp_path: Path) -> None:
    rows = [{"test_id": "t", "headline": str(n), "impressions": 9, "cliks": 1} for n in range(9)]
    (problem,) = refusal(write_rows(tmp_path / "a.jsonl", rows)).problems
    assert problem.code == "column-missing"
    assert "'clicks'" in problem.fix
    (problem,) = refusal(write_rows(tmp_path / "b.jsonl", [arm(n, "A") for n in range(3)])).problems
    assert problem.code == "rows-too-few"
    assert "3 arms" in problem.problem


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [pair_row()])
    (problem,) = refusal(path, bad_rows="ignore").problems
    assert (problem.where, problem.code, problem.expected) == ("bad_rows", "option-value", "raise, skip")
    assert refusal(path, hub="github").problems[0].where == "--hub"
    with pytest.raises(TaskHeadsError, match="max_p_value"):
        groups_to_pairs([], max_p_value=2)


def test_file_without_usable_rows_is_refused_with_skip(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"chosen": "", "rejected": "x"}])
    problem = refusal(path, bad_rows="skip").problems[0]
    assert (problem.where, problem.code) == (path, "rows-too-few")


def test_conversations_without_roles_are_reported(tmp_path: Path) -> None:
    turn = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A title?"}]
    rows = [
        {
            "chosen": [*turn, {"role": "assistant", "content": "A"}],
            "rejected": [*turn, {"role": "assistant", "content": "B"}],
        },
        {"prompt": turn, "chosen": "C", "rejected": "D"},
        {"prompt": "plain", "chosen": "E", "rejected": "F"},
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = read_pairs(str(path))
    assert [pair.prompt for pair in data.pairs] == ["Be brief.\nA title?"] * 2 + ["plain"]
    (line,) = [line for line in data.report.lines() if "joined" in line]
    assert line.startswith("2 conversations whose earlier messages were joined by newlines, without roles")
    assert "chats.jsonl:1, chats.jsonl:2" in line
