"""Planted defects are found by their code and rows; clean data give no warning."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.data_checks.arguments import DataCheckArguments
from qwen_task_heads.data_checks.findings import CODES
from qwen_task_heads.data_checks.inspection import DataInspection, check_sets, inspect_data, worst_line

LABELS = ("sport", "money", "health")
Rows = dict[str, list[dict[str, Any]]]


def vocabulary(seed: int, count: int) -> list[str]:
    """Return invented words."""
    draw = random.Random(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    return ["".join(draw.choices(syllables, k=3)) for _ in range(count)]


COMMON = vocabulary(0, 400)
OWN = {label: vocabulary(1 + number, 40) for number, label in enumerate(LABELS)}


def text_of(draw: random.Random, label: str) -> str:
    words = draw.sample(COMMON, 7) + draw.sample(OWN[label], 4)
    draw.shuffle(words)
    return " ".join(words)


def texts(seed: int = 0) -> Rows:
    draw = random.Random(seed)
    sizes = {"train": 300, "dev": 90, "test": 90}
    labels = {split: draw.choices(LABELS, k=size) for split, size in sizes.items()}
    return {
        split: [{"text": text_of(draw, label), "label": label} for label in own]
        for split, own in labels.items()
    }


def pairs(seed: int = 0) -> Rows:
    draw = random.Random(seed)

    def pair(number: int) -> dict[str, Any]:
        sides = [draw.sample(COMMON, 6) + draw.sample(OWN[label], 2) for label in ("sport", "money")]
        chosen, rejected = (" ".join(draw.sample(words, 8)) for words in sides)
        return {"chosen": chosen, "rejected": rejected, "group_id": f"g{number}"}

    numbers = iter(range(1000))
    sizes = {"train": 300, "dev": 90, "test": 90}
    return {split: [pair(next(numbers)) for _ in range(size)] for split, size in sizes.items()}


def inspected(folder: Path, rows: Rows, **options: Any) -> DataInspection:
    for split, own in rows.items():
        content = "".join(json.dumps(row) + "\n" for row in own)
        (folder / f"{split}.jsonl").write_text(content, encoding="utf-8")
    return inspect_data(str(folder), DataCheckArguments(**options))


def lines(places: Iterable[str]) -> set[tuple[str, int]]:
    return {(Path(place).name.split(".")[0], int(place.rsplit(":", 1)[1])) for place in places}


def duplicate(rows: Rows) -> set[tuple[str, int]]:
    rows["train"][100:110] = rows["train"][:10]
    return {("train", number) for number in range(101, 111)}


def contradiction(rows: Rows) -> set[tuple[str, int]]:
    for number in range(10):
        other = LABELS[(LABELS.index(rows["train"][number]["label"]) + 1) % 3]
        rows["train"][100 + number] = {"text": rows["train"][number]["text"], "label": other}
    return {("train", number) for number in range(101, 111)}


def reversed_pairs(rows: Rows) -> set[tuple[str, int]]:
    for number in range(10):
        row = rows["train"][number]
        rows["train"][100 + number] = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
    return {("train", number) for number in range(101, 111)}


def cycles(rows: Rows) -> set[tuple[str, int]]:
    for start in range(0, 15, 3):
        titles = [row["chosen"] for row in rows["train"][start : start + 3]]
        for number in range(3):
            chosen, rejected = titles[number], titles[(number + 1) % 3]
            rows["train"][start + number] = {"chosen": chosen, "rejected": rejected, "group_id": f"g{start}"}
    return {("train", number) for number in range(1, 16)}


def exact_overlap(rows: Rows) -> set[tuple[str, int]]:
    rows["test"][:9] = rows["train"][:9]
    return {("test", number) for number in range(1, 10)}


def normalised_overlap(rows: Rows) -> set[tuple[str, int]]:
    for number in range(9):
        row = rows["train"][number]
        rows["test"][number] = {**row, "text": row["text"].upper().replace(" ", "  ")}
    return {("test", number) for number in range(1, 10)}


def near_overlap(rows: Rows) -> set[tuple[str, int]]:
    for number in range(12):
        row = rows["train"][number]
        words = row["text"].split()
        rows["dev"][number] = {**row, "text": " ".join([*words[:5], "zzz", *words[6:]])}
    return {("dev", number) for number in range(1, 13)}


def leak(rows: Rows) -> None:
    """Pairs of the same titles in train and test, as a random split of pairs has them."""
    for number in range(60):
        rows["test"][number]["chosen"] = rows["train"][number]["chosen"]


def swapped_split(rows: Rows) -> None:
    for row in rows["dev"]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]


def swapped_texts(rows: Rows) -> None:
    for own in rows.values():
        own[:] = [{"text": row["label"], "label": row["text"]} for row in own]


def longer_wins(rows: Rows) -> None:
    for number, row in enumerate(rows["train"]):
        side = "chosen" if number % 10 else "rejected"
        row[side] += " lorem ipsum"


def long_is_sport(rows: Rows) -> None:
    for own in rows.values():
        for row in own:
            if row["label"] == "sport":
                row["text"] += " " + " ".join(COMMON[:6])


def dominant(rows: Rows) -> None:
    draw = random.Random(3)
    for number, row in enumerate(rows["train"]):
        if number % 12:
            row.update(text=text_of(draw, "sport"), label="sport")


def no_rows(rows: Rows) -> None:
    rows["train"] = [row for row in rows["train"] if row["label"] != "health"]
    rows["train"].append({"text": text_of(random.Random(5), "health"), "label": "health"})


def noise(rows: Rows) -> set[tuple[str, int]]:
    for number in range(0, 300, 10):
        row = rows["train"][number]
        row["label"] = LABELS[(LABELS.index(row["label"]) + 1) % 3]
    return {("train", number + 1) for number in range(0, 300, 10)}


def damaged(rows: Rows) -> set[tuple[str, int]]:
    for row in rows["train"][:20]:
        row["text"] += " cafÃ© â€™"
    return {("train", number) for number in range(1, 21)}


def placeholder(rows: Rows) -> None:
    for row in rows["train"][:12]:
        row["text"] = "no text"


def chance_clicks(rows: Rows) -> None:
    draw = random.Random(7)
    for own in rows.values():
        for row in own:
            clicks = sorted(draw.randint(40, 60) for _ in range(2))
            row.update(chosen_clicks=clicks[1], rejected_clicks=clicks[0])
            row.update(chosen_impressions=1000, rejected_impressions=1000)


def original_wins(rows: Rows) -> None:
    for number, row in enumerate(rows["train"]):
        row["chosen_is_original"] = number % 10 < 7


DISEASES: list[tuple[Callable[[], Rows], Callable[[Rows], Any], str, str]] = [
    (texts, duplicate, "duplicate", "warning"),
    (texts, contradiction, "contradiction", "warning"),
    (pairs, reversed_pairs, "contradiction", "warning"),
    (pairs, cycles, "preference-cycle", "warning"),
    (texts, exact_overlap, "overlap-exact", "error"),
    (texts, normalised_overlap, "overlap-normalised", "error"),
    (texts, near_overlap, "overlap-near", "warning"),
    (pairs, leak, "leak", "error"),
    (pairs, swapped_split, "swapped-columns", "error"),
    (pairs, longer_wins, "length-shortcut", "warning"),
    (texts, long_is_sport, "length-shortcut", "warning"),
    (texts, dominant, "dominant-label", "warning"),
    (texts, no_rows, "rare-labels", "warning"),
    (texts, noise, "label-noise", "warning"),
    (texts, damaged, "damaged-text", "warning"),
    (texts, placeholder, "frequent-text", "warning"),
    (pairs, chance_clicks, "click-noise", "warning"),
    (pairs, original_wins, "column-shortcut", "warning"),
]


ESTIMATED = ("label-noise", "overlap-near")  # by models and hashes, so that a few rows may be missed


@pytest.mark.parametrize(
    ("clean", "plant", "code", "severity"), DISEASES, ids=[one[1].__name__ for one in DISEASES]
)
def test_a_planted_defect_is_found(tmp_path: Path, clean: Any, plant: Any, code: str, severity: str) -> None:
    rows = clean()
    planted = plant(rows)
    report = inspected(tmp_path, rows)
    assert report.problems == ()
    assert {one.code for one in report.findings} <= CODES.keys()
    [found, *more] = [one for one in report.findings if one.code == code]
    assert found.severity == severity
    assert report.exit_code == {"warning": 3, "error": 1}[severity]
    if planted:
        named = {place for one in (found, *more) for place in lines(one.places)}
        found_of = len(planted & named) / len(planted)
        assert (found_of >= 0.8 and named <= planted) if code in ESTIMATED else planted == named


def test_exchanged_columns_of_texts_are_refused(tmp_path: Path) -> None:
    rows = texts()
    swapped_texts(rows)
    report = inspected(tmp_path, rows)
    assert [problem.code for problem in report.problems] == ["label-invalid"]
    assert report.exit_code == 1


@pytest.mark.parametrize("clean", [texts, pairs])
@pytest.mark.parametrize("seed", range(3))
def test_clean_data_give_no_warning(tmp_path: Path, clean: Any, seed: int) -> None:
    report = inspected(tmp_path, clean(seed))
    assert [str(one) for one in report.findings if one.severity != "note"] == []
    assert report.exit_code == 0


def test_training_names_the_worst_finding(tmp_path: Path) -> None:
    rows = texts()
    exact_overlap(rows)
    dominant(rows)
    inspected(tmp_path, rows, quick=True)
    findings = check_sets(read_text_sets(str(tmp_path)))
    line = worst_line(findings, str(tmp_path))
    assert findings[0].code in line
    assert findings[0].severity == "error"
    assert line.endswith(f"qth data {tmp_path}")
    assert worst_line(check_sets(read_text_sets("embedded")), "embedded") == ""


def test_tokens_and_cost_of_a_model(tmp_path: Path) -> None:
    report = inspected(tmp_path, texts(), model_name_or_path="embedded", max_length=12)
    found = {one.code: one for one in report.findings}
    assert found["tokens"].severity == "warning"
    assert found["tokens"].values["cut"] == 1
    cost = found["cost"].values
    assert 0 < cost["score"]["seconds"] < cost["lora"]["seconds"] < cost["full"]["seconds"] * 2
    assert cost["full"]["memory"] > cost["lora"]["memory"]


def test_the_page_shows_findings_and_escapes_the_data(tmp_path: Path) -> None:
    rows = texts()
    for own in rows.values():
        for row in own:
            row["label"] = f"<script>alert('{row['label']}')</script>"
    out = tmp_path / "report"
    report = inspected(tmp_path, rows, output_dir=str(out))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert all(one.code in page for one in report.findings)
    assert page.count("data:image/png") == 2
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [one["code"] for one in content["findings"]] == [one.code for one in report.findings]
