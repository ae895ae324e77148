"""Comparison of engines: paired differences, rules of the advice, baselines and the written page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.text_datasets import TextSets, hash_texts
from qwen_task_heads.data.title_datasets import TitleSets
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.inference.engine_options import EngineSpec, PromptOptions
from qwen_task_heads.inference.engines import open_engine
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.metrics.ranking import ranking_metrics
from qwen_task_heads.metrics.text_baselines import MAJORITY
from qwen_task_heads.reports.comparison import Measured, compare, draw_groups, measure
from qwen_task_heads.reports.comparison_advice import advise, chosen_of, verdicts
from qwen_task_heads.reports.comparison_engines import (
    measure_baselines,
    measure_lookup,
    neighbour_scores,
    trained_on,
)
from qwen_task_heads.reports.comparison_pages import write_comparison
from qwen_task_heads.reports.title_comparison import measure_title_baselines
from qwen_task_heads.tokenization.label_prompts import instruction_for

LABELS = LabelMap(("a", "b"))
ROWS = "the 200 rows of test"


def examples(count: int = 200, *, share: int = 1) -> list[TextExample]:
    return [TextExample(text=f"text {k}", target=k % 2, group=f"g{k // share}") for k in range(count)]


def engine(
    name: str, right: float, *, kind: str = "head", ms: float = 1.0, sure: float = 4.0, rows: Any = None
) -> Measured:
    """Return an engine that predicts the first share of rows correctly."""
    rows = rows or examples()
    place = {row.text: index for index, row in enumerate(rows)}

    def scores(asked: Any) -> Any:
        hit = [place[row.text] < round(right * len(rows)) for row in asked]
        label = [row.target if ok else 1 - row.target for row, ok in zip(asked, hit, strict=True)]
        return sure * np.eye(2)[label]

    found = measure(scores, rows, name=name, kind=kind, labels=LABELS, device="CPU (1 thread)")
    alone = {"median": ms / 1000, "low": ms / 1000, "high": ms / 1000, "n": 3}
    return Measured(**{**vars(found), "seconds_alone": alone})


def advice(*measured: Measured, metric: str = "accuracy") -> str:
    return "\n".join(advise(measured, compare(measured, examples()), metric=metric, rows=ROWS))


def test_the_fastest_of_similar_engines_is_advised() -> None:
    text = advice(engine("slow", 0.90, ms=30), engine("fast", 0.895, ms=10), engine("bad", 0.5, ms=1))
    assert text.startswith("Use fast: ")
    assert "slow (accuracy 0.895 against 0.900; " in text
    assert "3.0 times faster per text." in text
    assert "bad is" in text  # the fastest engine and its loss of accuracy
    assert ROWS in text.splitlines()[-1]


def test_a_significant_difference_is_stated_with_the_latency() -> None:
    text = advice(engine("slow", 0.9, ms=30), engine("fast", 0.5, ms=10))
    assert text.startswith("Use slow: it has the best accuracy, 0.900, 40.0 points (95%: 3")
    assert "above fast, which is significant." in text
    assert "fast is 3.0 times faster per text, with 40.0 points" in text
    assert "not significantly worse" not in text


def test_an_engine_that_is_not_above_a_baseline_is_not_advised() -> None:
    measured = [engine("TF-IDF", 0.9, kind="baseline"), engine("one", 0.9), engine("other", 0.7)]
    text = advice(*measured)
    assert text.startswith("Use TF-IDF: ")
    assert "one, the best engine, is not above it (accuracy 0.900 against 0.900)" in text
    assert "times" not in text
    assert chosen_of(measured, compare(measured, examples())).name == "TF-IDF"
    text = advice(engine("TF-IDF", 0.9, kind="baseline"), engine("one", 0.6))
    assert "is 30.0 points (95%: 2" in text
    assert "below it (accuracy 0.600 against 0.900)" in text
    text = advice(engine("TF-IDF", 0.5, kind="baseline"), engine("one", 0.9))
    assert "Use one, the only engine that was measured (accuracy 0.900)." in text
    assert "one is 40.0 points" in text


def ties(*engines: Measured, tfidf: float = 0.5, metric: str = "accuracy") -> tuple[str, str]:
    """Return the advice with a majority baseline of .5, and the name of the advised engine."""
    measured = [engine("TF-IDF", tfidf, kind="baseline"), engine(MAJORITY, 0.5, kind="baseline"), *engines]
    pairs = compare(measured, examples())
    text = "\n".join(advise(measured, pairs, metric=metric, rows=ROWS))
    return text, chosen_of(measured, pairs, metric=metric).name


def test_the_advice_has_next_steps_if_no_engine_is_above_the_most_frequent_label() -> None:
    next_steps = f"No engine is significantly above {MAJORITY}. Next: "
    for metric in ("accuracy", "macro_f1"):  # all equal; TF-IDF one row above; an engine one row above
        for right, tfidf in ((0.5, 0.5), (0.5, 0.505), (0.505, 0.5), (0.45, 0.5)):
            text, chosen = ties(
                engine("one", right), engine("ask", 0.4, kind="zero_shot"), tfidf=tfidf, metric=metric
            )
            assert chosen == MAJORITY, (right, tfidf)
            assert text.startswith(f"Use {MAJORITY} for now: ")
            assert ", and neither is TF-IDF." in text
            assert next_steps in text
            assert "--learning_rate" in text
            assert "instruction-tuned" in text
            assert ("measure more rows" in text) == (right > 0.5)
            assert ("--figure macro_f1" in text) == (metric == "accuracy")
    text, chosen = ties(engine("ask", 0.5, kind="few_shot"))
    assert "--learning_rate" not in text  # nothing was trained
    # TF-IDF is above the majority and is advised; no engine is.
    text, chosen = ties(engine("one", 0.5), tfidf=0.9)
    assert chosen == "TF-IDF"
    assert text.startswith("Use TF-IDF: ")
    assert next_steps in text
    # One engine is above the majority: no next steps.
    text, chosen = ties(engine("one", 0.9), engine("ask", 0.5, kind="zero_shot"))
    assert chosen == "one"
    assert next_steps not in text


def test_a_fast_engine_that_is_not_above_the_baseline_is_not_advised() -> None:
    """The fastest of three similar engines is not significantly above the baseline."""
    rows = examples(40)
    measured = [
        engine("TF-IDF", 0.60, kind="baseline", rows=rows),
        engine("best", 0.80, ms=30, rows=rows),
        engine("next", 0.78, ms=10, rows=rows),
        engine("ask", 0.67, ms=1, kind="zero_shot", rows=rows),
    ]
    pairs = compare(measured, rows)
    for pair in pairs:  # as with fewer rows
        if {pair["a"], pair["b"]} in ({"TF-IDF", "ask"}, {"best", "ask"}):
            pair["accuracy"] |= {"low": -0.2, "high": 0.2, "differs": False}
        elif {pair["a"], pair["b"]} == {"best", "next"}:
            pair["accuracy"] |= {"low": -0.1, "high": 0.1, "differs": False}
    assert chosen_of(measured, pairs).name == "next"
    text = "\n".join(advise(measured, pairs, rows=ROWS))
    assert text.startswith("Use next: it is not significantly worse than best")
    assert "ask" not in text


def test_more_rows_are_advised_if_an_engine_is_not_significantly_above_the_baseline() -> None:
    rows = examples(16)
    measured = [engine("TF-IDF", 0.625, kind="baseline", rows=rows), engine("one", 0.75, rows=rows)]
    text = "\n".join(advise(measured, compare(measured, rows), rows=ROWS))
    assert text.startswith("Use TF-IDF for now: one is above it by 12.5 points (95%: ")
    assert "(accuracy 0.750 against 0.625), which is not significant. Measure more rows" in text


def test_an_engine_that_is_slower_and_worse_than_another_is_not_advised() -> None:
    """Its difference from the best engine is not significant."""
    rows = examples(40)
    measured = [
        engine("best", 0.90, ms=30, rows=rows),
        engine("slow", 0.80, ms=20, rows=rows),
        engine("quick", 0.85, ms=10, rows=rows),
    ]
    pairs = compare(measured, rows)
    for pair in pairs:
        if {pair["a"], pair["b"]} != {"best", "quick"}:
            pair["accuracy"] |= {"low": -0.2, "high": 0.2, "differs": False}
        else:
            pair["accuracy"] |= {"differs": True}
    assert chosen_of(measured, pairs).name == "best"
    text = "\n".join(advise(measured, pairs, rows=ROWS))
    assert "quick is 3.0 times faster per text, with 5.0 points" in text


def test_training_rows_are_recognized_in_another_order_of_the_labels() -> None:
    rows = examples(20)
    data = dict(dev=[], test=rows, problem_type="single_label_classification", lines=[], dev_was_cut=False)
    turned = LabelMap(LABELS.names[::-1])
    same = [replace(row, target=len(LABELS) - 1 - row.target) for row in rows]  # type: ignore[operator]
    cost = {"labels": list(LABELS.names), "sha256": hash_texts(rows), "rows": 20}
    assert trained_on(cost, TextSets(train=same, labels=turned, **data))  # type: ignore[arg-type]
    assert not trained_on(cost, TextSets(train=rows, labels=turned, **data))  # type: ignore[arg-type]
    assert not trained_on(cost, TextSets(train=rows[1:], labels=LABELS, **data))  # type: ignore[arg-type]
    assert trained_on({}, TextSets(train=rows, labels=LABELS, **data))  # type: ignore[arg-type]


def test_untrained_engines_and_unreliable_probabilities_are_named() -> None:
    text = advice(engine("head", 0.9, ms=1), engine("ask", 0.9, kind="zero_shot", ms=50))
    assert "Not significantly worse, and without training: ask." in text
    assert "unreliable" not in text
    assert "probabilities of one are unreliable: on average they differ by 0.38 from the share" in advice(
        engine("one", 0.9, sure=0.1)
    )
    assert "macro F1" in advice(engine("one", 0.9), engine("other", 0.5), metric="macro_f1")


def test_a_difference_is_paired() -> None:
    """The paired interval is narrower than the separate intervals suggest."""
    a, b = engine("a", 0.60), engine("b", 0.55)
    assert a.metrics["accuracy"]["low"] < b.metrics["accuracy"]["high"]
    [pair] = compare([a, b], examples())
    found = pair["accuracy"]
    assert found["difference"] == pytest.approx(0.05)
    assert found["differs"]
    # ten of two hundred rows differ, all in one direction: the normal interval of a proportion
    assert found["low"] == pytest.approx(0.05 - 1.96 * np.sqrt(0.05 * 0.95 / 200), abs=0.006)
    assert pair["mcnemar"]["a_only"] == 10
    assert pair["mcnemar"]["p"] == pytest.approx(binomtest(10, 10).pvalue)


def test_whole_groups_are_resampled() -> None:
    grouped = examples(share=10)
    a, b = engine("a", 0.60, rows=grouped), engine("b", 0.55, rows=grouped)
    [pair] = compare([a, b], grouped)
    assert not pair["accuracy"]["differs"]  # the differing rows are in one of twenty groups
    assert pair["mcnemar"] is None
    one = examples(share=200)
    [pair] = compare([engine("a", 0.6, rows=one), engine("b", 0.5, rows=one)], one)
    assert pair["accuracy"]["low"] is None
    assert not pair["accuracy"]["differs"]
    sentences = advise([engine("a", 0.6, rows=one), engine("b", 0.5, rows=one)], [pair], rows=ROWS)
    assert sentences[0].startswith("All rows are of one group")
    assert len(sentences) == 2


def test_the_nearest_example_breaks_ties_of_votes() -> None:
    labels = LabelMap(("a", "b", "c"))
    shots = [
        (("1", "a"), ("2", "b"), ("3", "b"), ("4", "a"), ("5", "c")),
        (("1", "b"), ("2", "b"), ("3", "a")),
        (("1", "c"),),
    ]
    assert neighbour_scores(shots, labels).argmax(1).tolist() == [0, 1, 2]
    rows = [TextExample(text=f"x{k}", target=k % 2) for k in range(8)]
    near = {row.text: (("far", "a"), ("near", "b")) for row in rows}
    found = measure_baselines(rows, rows, labels=LABELS, shots=near)
    assert [one.name for one in found] == [
        "TF-IDF, linear",
        "the most frequent label",
        "majority of the nearest",
    ]
    assert found[2].metrics["accuracy"]["value"] == 0.5
    assert [one.training is None for one in found] == [False, True, True]


def test_a_page_escapes_names_and_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = examples()
    sets = TextSets(
        train=rows,
        dev=[],
        test=rows,
        problem_type="single_label_classification",
        labels=LABELS,
        lines=["a | b <script>"],
        dev_was_cut=False,
    )
    measured = [engine("head=x|y<b>", 0.9), engine("TF-IDF", 0.5, kind="baseline")]
    content = write_comparison(tmp_path / "new", measured, sets=sets, examples=rows, split="test")
    page = (tmp_path / "new" / "comparison.md").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "<script>" not in page
    assert r"head=x\|y&lt;b&gt;" in page
    assert json.loads((tmp_path / "new" / "comparison.json").read_text()) == content
    assert "head=x|y<b>" in capsys.readouterr().out
    [row, *_] = (tmp_path / "new" / "answers.jsonl").read_text().splitlines()
    assert json.loads(row)["answers"]["head=x|y<b>"] == {"label": "a", "probability": 0.982014}


def test_few_shot_without_examples_is_refused() -> None:
    with pytest.raises(TaskHeadsError) as caught:
        open_engine(EngineSpec("few_shot", "embedded"), LABELS, asking=PromptOptions())
    assert caught.value.problems[0].where == "few_shot=embedded"


def test_baselines_choose_among_the_candidates_of_a_row() -> None:
    """Engines choose among two of ten labels, so a baseline that chooses among ten is not comparable."""
    labels = LabelMap(tuple("abcdefghij"))
    train = [TextExample(text=f"word{k} {n}", target=k) for k in range(10) for n in range(2 + (k == 3))]
    # The label of the words is not a candidate; of the candidates, label 3 is the most frequent one.
    rows = [
        TextExample(text=f"word{k} x{n}", target=n, candidates=labels.subset([labels.names[n], "j"]).names)
        for k in (0, 1)
        for n in range(3, 8)
    ]
    near = {row.text: (("far", "b"), ("near", "a")) for row in rows}
    for one in measure_baselines(train, rows, labels=labels, shots=near):
        predicted = [labels.names[label] for label in one.scores.argmax(1)]
        assert all(name in row.candidates for name, row in zip(predicted, rows, strict=True)), one.name
    trivial = measure_baselines(train, rows, labels=labels)[1].scores.argmax(1)
    assert trivial[[0, 5]].tolist() == [3, 3]


def test_rows_are_drawn_in_whole_groups() -> None:
    grouped = examples(200, share=10)
    drawn = draw_groups(grouped, rows=57, seed=3)
    assert len(drawn) == 50
    assert all(len([row for row in drawn if row.group == one.group]) == 10 for one in drawn)
    assert drawn == sorted(drawn, key=grouped.index)
    assert drawn != draw_groups(grouped, rows=57, seed=4)
    assert len(draw_groups(grouped, rows=3)) == 10  # one whole group at least
    alone = [TextExample(text=str(k), target=0) for k in range(20)]
    assert len(draw_groups(alone, rows=7)) == 7


def test_the_instruction_has_descriptions_if_there_are_any() -> None:
    described = LabelMap(("a", "b"), ("first", ""))
    for few in (False, True):
        assert "{descriptions}" in instruction_for(described, few_shot=few)
        assert "{descriptions}" not in instruction_for(LABELS, few_shot=few)


def pairs_of_titles(count: int = 120) -> list[PairExample]:
    return [
        PairExample(
            chosen=f"good {k} title", rejected=f"bad {k} text", group=f"g{k // 2}", source="a.jsonl:1"
        )
        for k in range(count)
    ]


def preferring(right: float, rows: list[PairExample], *, name: str, kind: str = "scorer") -> Measured:
    """Return an engine that prefers the chosen title of the first share of pairs."""
    place = {pair: index for index, pair in enumerate(rows)}

    def scores(asked: Any) -> Any:
        hit = np.array([place[pair] < round(right * len(rows)) for pair in asked])
        return np.stack([np.where(hit, 2.0, 0.0), np.where(hit, 0.0, 2.0)], axis=1)

    return measure(scores, rows, name=name, kind=kind, labels=None, device="CPU (1 thread)")


def test_pairs_of_titles_have_the_metrics_of_a_title_run() -> None:
    rows = pairs_of_titles()
    a, b = preferring(0.75, rows, name="a"), preferring(0.6, rows, name="b", kind="baseline")
    expected = ranking_metrics(
        [2.0] * 90 + [0.0] * 30, [0.0] * 90 + [2.0] * 30, groups=[p.group for p in rows]
    )
    assert a.metrics["accuracy"] == expected["pair_accuracy"]
    assert a.metrics["log_loss"] == expected["log_loss"]
    assert a.metrics["ece"]["value"] == pytest.approx(expected["ece"]["value"])
    assert "ece" not in b.metrics
    [pair] = compare([a, b], rows)
    assert pair["accuracy"]["difference"] == pytest.approx(0.15)
    assert pair["accuracy"]["differs"]
    assert "macro_f1" not in pair
    assert pair["mcnemar"] is None  # pairs share groups


def test_ties_of_titles_count_half() -> None:
    rows = pairs_of_titles(4)
    found = measure(
        lambda asked: np.zeros((len(asked), 2)), rows, name="x", kind="baseline", labels=None, device="CPU"
    )
    assert found.metrics["accuracy"]["value"] == 0.5


def test_baselines_of_titles_include_the_lookup_if_it_knows_some_pairs() -> None:
    rows = pairs_of_titles()
    found = measure_title_baselines(rows[:80], rows[80:], messages=(messages := []))
    assert [one.name for one in found] == ["the longer title wins", "TF-IDF Bradley-Terry"]
    assert messages == []
    assert found[1].metrics["accuracy"]["value"] > 0.9
    known = measure_title_baselines(rows[:80], rows[40:], messages=[])
    assert known[2].name == "lookup of train rows"
    assert known[2].metrics["accuracy"]["value"] == 0.75  # half are known, the others are ties


def test_the_lookup_of_texts_is_measured_if_it_knows_some_rows() -> None:
    rows = examples()
    assert measure_lookup(rows[:100], rows[100:], labels=LABELS) == []
    [found] = measure_lookup(rows, rows[100:], labels=LABELS)
    assert (found.kind, found.metrics["accuracy"]["value"]) == ("baseline", 1.0)
    with_candidates = [replace(row, candidates=("b",)) for row in rows[:10]]
    [restricted] = measure_lookup(rows, with_candidates, labels=LABELS)
    assert set(restricted.scores.argmax(1)) == {1}


def test_each_trained_engine_is_compared_with_the_best_untrained_one() -> None:
    measured = [
        engine("TF-IDF, linear", 0.6, kind="baseline"),
        engine("emb", 0.7, kind="embeddings"),
        engine("ask", 0.4, kind="zero_shot"),
        engine("good", 0.9),
        engine("bad", 0.5, kind="sft"),
    ]
    found = verdicts(measured, compare(measured, examples()))
    assert [one["engine"] for one in found] == ["good", "bad"]
    assert {one["baseline"] for one in found} == {"emb"}
    assert [one["word"] for one in found] == ["above", "below"]
    assert found[0]["difference"] == pytest.approx(0.2)
    assert found[0]["low"] < 0.2 < found[0]["high"]
    assert [one["beside"]["baseline"] for one in found] == ["TF-IDF, linear"] * 2
    equal = [engine("TF-IDF, linear", 0.6, kind="baseline"), engine("one", 0.605)]
    [one] = verdicts(equal, compare(equal, examples()))
    assert one["word"] == "level"
    assert "beside" not in one


def test_a_page_of_titles_equals_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pairs_of_titles()
    sets = TitleSets(train=rows, groups=[], dev=[], test=rows, lines=[], dev_was_cut=False)
    measured = [preferring(0.6, rows, name="TF-IDF", kind="baseline"), preferring(0.9, rows, name="scorer=x")]
    content = write_comparison(tmp_path, measured, sets=sets, examples=rows, split="test")
    assert json.loads((tmp_path / "comparison.json").read_text()) == content
    [verdict] = content["verdicts"]
    assert (verdict["engine"], verdict["word"]) == ("scorer=x", "above")
    printed = capsys.readouterr().out
    assert "ms per pair" in printed
    assert "macro F1" not in printed
    line = (
        "The best baseline on test is 'TF-IDF' (accuracy 0.600); this model is above it: +0.300 (95% paired"
    )
    assert line in printed
    assert "this model is above it: +0.300" in (tmp_path / "comparison.md").read_text(encoding="utf-8")
    row = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[-1])
    assert (row["chosen"], row["group"]) == (rows[-1].chosen, "g59")
    assert row["answers"]["TF-IDF"] == {"correct": False}
    assert row["answers"]["scorer=x"] == {"correct": False, "p_preferred": pytest.approx(0.119203)}
