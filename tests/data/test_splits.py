from __future__ import annotations

import random

import pytest
from work import at_most_lines

from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.data.splits import assign_groups, split_by_group, split_texts
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.sources.keys import text_key


def mixed_pairs(count: int = 2000) -> list[PairExample]:
    """Return pairs with groups, with prompts and with neither, some of which share titles."""
    rng = random.Random(0)
    pairs = []
    for number in range(count):
        test = number // 4
        titles = [f"Title {test} {k}" for k in rng.sample(range(5), 2)]
        if rng.random() < 0.05:
            titles[0] = f"TITLE {rng.randrange(test + 1)}  0"  # a title of another experiment
        more = ({"group": f"t{test}"}, {"prompt": f"Prompt {test}"}, {})[test % 3]
        pairs.append(PairExample(chosen=titles[0], rejected=titles[1], source=str(number), **more))
    return pairs


def sides(pairs: list[PairExample], **options: object) -> tuple[set[str], set[str]]:
    train, dev = split_by_group(pairs, **options)  # type: ignore[arg-type]
    return {pair.source for pair in train}, {pair.source for pair in dev}


def test_split_does_not_depend_on_the_order_of_rows() -> None:
    pairs = mixed_pairs()
    expected = sides(pairs, dev_fraction=0.2)
    groups = {pair.source: pair.group for pair in assign_groups(pairs)}
    for seed in range(5):
        shuffled = random.Random(seed).sample(pairs, len(pairs))
        assert sides(shuffled, dev_fraction=0.2) == expected
        assert {pair.source: pair.group for pair in assign_groups(shuffled)} == groups


def test_the_split_is_the_same_in_every_process_and_version() -> None:
    pairs = [PairExample(chosen=f"a{i}", rejected=f"b{i}", group=f"t{i}", source=str(i)) for i in range(40)]
    assert sorted(map(int, sides(pairs)[1])) == [15, 23, 35]


def test_no_group_and_no_title_is_in_both_splits() -> None:
    train, dev = split_by_group(mixed_pairs(), dev_fraction=0.2)
    assert len(train) + len(dev) == 2000
    assert 200 < len(dev) < 600
    assert {pair.group for pair in train}.isdisjoint(pair.group for pair in dev)
    titles = [
        {text_key(text) for pair in side for text in (pair.chosen, pair.rejected)} for side in (train, dev)
    ]
    assert titles[0].isdisjoint(titles[1])
    assert all(pair.group for pair in train + dev)


def test_titles_may_be_shared_on_request() -> None:
    stock = [PairExample(chosen=f"Own {i}", rejected="Stock title", group=f"t{i}") for i in range(50)]
    with pytest.raises(TaskHeadsError, match="titles_apart=False") as caught:
        split_by_group(stock)
    (problem,) = caught.value.problems
    assert (problem.where, problem.code) == ("split", "rows-too-few")
    assert "1 independent groups" in problem.problem
    train, dev = split_by_group(stock, titles_apart=False, dev_fraction=0.3)
    assert {pair.group for pair in train}.isdisjoint(pair.group for pair in dev)


def test_salt_and_fraction() -> None:
    pairs = [PairExample(chosen=f"a{i}", rejected=f"b{i}", group=f"t{i}", source=str(i)) for i in range(4000)]
    assert sides(pairs) != sides(pairs, salt="other")
    for fraction in (0.05, 0.5, 0.9):
        assert len(sides(pairs, dev_fraction=fraction)[1]) == pytest.approx(4000 * fraction, abs=100)
    assert sides(pairs, dev_fraction=0.05)[1] < sides(pairs, dev_fraction=0.5)[1]


def test_large_components_are_not_drawn_to_dev() -> None:
    pairs = [
        PairExample(chosen=f"a{i}-{k}", rejected=f"a{i}-{k + 1}", source=f"{i}-{k}")
        for i in range(400)
        for k in range(20)
    ]
    assert len(sides(pairs, dev_fraction=0.2)[1]) / len(pairs) == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize("fraction", [0, 1, -1, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(TaskHeadsError) as caught:
        split_by_group(mixed_pairs(40), dev_fraction=fraction)
    (problem,) = caught.value.problems
    assert (problem.where, problem.code) == ("dev_fraction", "option-range")


def test_an_empty_split_is_refused() -> None:
    one = [PairExample(chosen="a", rejected="b", group="t")]
    for pairs in (one, []):
        with pytest.raises(TaskHeadsError, match=f"{len(pairs)} pairs") as caught:
            split_by_group(pairs)
        (problem,) = caught.value.problems
        assert (problem.where, problem.code) == ("split", "rows-too-few")


def test_existing_groups_are_kept() -> None:
    pairs = assign_groups([PairExample(chosen="a", rejected="b", group="t", prompt="p")])
    assert pairs[0].group == "t"


def test_a_long_chain_is_one_component_in_linear_time() -> None:
    chain = [PairExample(chosen=f"t{i}", rejected=f"t{i + 1}") for i in range(20_000)]
    with at_most_lines(4_000_000):
        groups = {pair.group for pair in assign_groups(chain)}
    assert len(groups) == 1


def test_split_without_texts_is_refused() -> None:
    with pytest.raises(TaskHeadsError) as caught:
        split_texts([])
    assert caught.value.problems[0].code == "rows-too-few"
