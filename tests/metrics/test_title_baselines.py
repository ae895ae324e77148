"""Tests of the title baselines on generated pairs: accuracy, limits, amount of work and errors."""

import ast
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from problem_assertions import raises_problem
from work import at_most

from qwen_task_heads.data.examples import PairExample
from qwen_task_heads.metrics import title_baselines
from qwen_task_heads.metrics.title_baselines import TfidfBradleyTerry, longer_title, writes_without_spaces

WORDS = [
    f"{a}{b}{c}" for a in ("bra", "cli", "dro", "fle") for b in "aeiou" for c in ("mp", "nk", "st", "ld")
]


def planted(n: int, seed: int, *, words: list[str] = WORDS, glue: str = " ") -> list[PairExample]:
    """Return titles of ten words; the last five words of the list win over the first five."""
    rng = random.Random(seed)
    out = []
    for i in range(n):
        good, bad = (
            [*(rng.choice(words[5:-5]) for _ in range(9)), rng.choice(end)] for end in (words[-5:], words[:5])
        )
        rng.shuffle(good)
        rng.shuffle(bad)
        out.append(PairExample(chosen=glue.join(good), rejected=glue.join(bad), group=f"g{i}"))
    return out


def accuracy(baseline: TfidfBradleyTerry, pairs: list[PairExample]) -> float:
    gap = baseline.score([p.chosen for p in pairs]) - baseline.score([p.rejected for p in pairs])
    return float((gap > 0).mean())


def test_longer_title_counts_characters_and_ties_half():
    pairs = [
        PairExample(chosen="a longer title", rejected="short"),
        PairExample(chosen="short", rejected="a longer title"),
        PairExample(chosen="abc", rejected="xyz"),
        PairExample(
            chosen="標題党", rejected="abc"
        ),  # three characters each, with different numbers of bytes
    ]
    assert longer_title(pairs).tolist() == [1.0, 0.0, 0.5, 0.5]
    assert longer_title([]).shape == (0,)


def test_tfidf_finds_a_planted_word_and_nothing_in_noise():
    baseline = TfidfBradleyTerry().fit(planted(300, 0))
    assert accuracy(baseline, planted(200, 1)) > 0.95
    rng = random.Random(2)
    turned = [
        PairExample(chosen=p.rejected, rejected=p.chosen) if rng.random() < 0.5 else p
        for p in planted(200, 1)
    ]
    noise = [
        PairExample(chosen=p.rejected, rejected=p.chosen) if rng.random() < 0.5 else p
        for p in planted(300, 0)
    ]
    assert 0.3 < accuracy(TfidfBradleyTerry().fit(noise), turned) < 0.7


def test_tfidf_reads_scripts_without_spaces():
    signs = [chr(c) for c in range(0x4E00, 0x4E00 + 60)]
    baseline = TfidfBradleyTerry().fit(planted(300, 0, words=signs, glue=""))
    assert accuracy(baseline, planted(200, 1, words=signs, glue="")) > 0.95


def test_reversing_every_second_pair_equals_adding_all_reversed():
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    pairs = planted(60, 3)
    baseline = TfidfBradleyTerry(C=2.0).fit(pairs)
    titles = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    features = sparse.hstack([v.transform(titles) for v in baseline._vectorizers]).tocsr()
    rows = features[:60] - features[60:]
    # Twice the rows, half the C; the solver stops at its tolerance in both cases.
    mirrored = LogisticRegression(C=1.0, fit_intercept=False, max_iter=1000)
    mirrored.fit(sparse.vstack([rows, -rows]), np.repeat([1, -1], 60))
    np.testing.assert_allclose(baseline.score(titles), features @ mirrored.coef_[0], atol=0.05)


def test_the_penalty_is_chosen_by_groups_of_the_training_pairs():
    def chosen(pairs: list[PairExample]) -> float | None:
        return TfidfBradleyTerry().fit(pairs).C

    pairs = planted(90, 8)
    assert chosen(pairs) in title_baselines.GRID
    # On noise a weak penalty overfits, which raises the log loss on held-out groups.
    rng = random.Random(0)
    noise = [replace(p, chosen=p.rejected, rejected=p.chosen) if rng.random() < 0.5 else p for p in pairs]
    strongest = min(title_baselines.GRID)
    assert chosen(noise) == strongest
    # Copies stay in the fold of their group. Without groups they would be in training and held-out rows.
    assert chosen(noise * 3) == strongest
    assert chosen([replace(p, group="") for p in noise * 3]) != strongest
    few = chosen(planted(29, 8))
    assert few == title_baselines.GRID[1]


def test_the_baseline_is_deterministic():
    pairs = planted(50, 4)
    titles = [p.chosen for p in pairs]
    first, second = (TfidfBradleyTerry().fit(pairs).score(titles) for _ in range(2))
    assert np.array_equal(first, second)


def test_an_unseen_title_scores_zero():
    assert TfidfBradleyTerry().fit(planted(50, 5)).score(["ЖЖЖЖ ШШШШ"]).tolist() == [0.0]


def test_scripts_are_distinguished():
    assert writes_without_spaces(["新闻标题很短", "第二个"])
    assert writes_without_spaces(["ネットで簡単カードローン"])
    assert writes_without_spaces(["ข่าววันนี้"])
    assert not writes_without_spaces(["A plain title", "Übergröße"])
    assert not writes_without_spaces(["뉴스 제목은 띄어 씁니다"])  # Korean has spaces
    assert not writes_without_spaces(["Why 春 is a word", "123"])
    assert not writes_without_spaces([])


@pytest.mark.slow  # thousands of titles
def test_work_grows_no_faster_than_the_pairs():
    calls = []
    for count in (675, 2700):
        with at_most(10**8) as work:
            TfidfBradleyTerry().fit(planted(count, 6)).score([p.chosen for p in planted(count // 3, 7)])
        calls.append(work.calls)
    assert calls[1] <= 5 * calls[0]


def test_invalid_input_raises_errors():
    with raises_problem("rows-too-few", "TF-IDF baseline", match="1 training pairs"):
        TfidfBradleyTerry().fit(planted(1, 0))
    with raises_problem("argument-type", "TF-IDF baseline"):
        TfidfBradleyTerry().score(["a"])
    with raises_problem("text-empty", "TF-IDF baseline"):
        TfidfBradleyTerry().fit([PairExample(chosen="  ", rejected="\t")] * 3)


def test_scikit_learn_is_imported_inside_functions_only():
    tree = ast.parse(Path(title_baselines.__file__).read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not {"sklearn", "scipy"} & {name.split(".")[0] for node in top for name in _modules(node)}


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
