"""Choose few-shot examples for a prompt from the training rows.

Two methods, for rows with one label each:
- `balance`: the same examples for all texts, with an equal number per label. Per label, up to `POOL` rows are
  drawn by a hash from its shorter half, and the rows nearest to the centre of the drawn rows are chosen.
  Short rows save tokens, because the model reads every example with every text. Central rows are typical of
  their label.
- `similarity`: for each text the training rows nearest to it, which is usually more accurate than a fixed
  choice (Liu et al. 2022, "What Makes Good In-Context Examples for GPT-3?",
  https://arxiv.org/abs/2101.06804). The nearest row comes last, next to the text. The similarity is the
  cosine of TF-IDF vectors over character n-grams of length one to three, which needs no model and no word
  boundaries. The paper embeds sentences with a second model.

Two kinds of rows are excluded: rows whose text (up to case, width and spacing) is the text to classify, and
rows whose text has several labels in train. Dev and test rows are never used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.splits import hash_rows
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.hubcode.encoding_task_heads import as_list
from qwen_task_heads.labels.label_map import LabelMap, few_names
from qwen_task_heads.sources.keys import text_key

Shots = tuple[tuple[str, str], ...]  # (text, label name)

WAYS = ("balance", "similarity")
MAX_CHARS = 200  # of an example in a prompt
COMPARED = 2000  # first characters of a text that are compared
POOL = 64  # rows of a label that are compared for how typical they are
NGRAMS = (1, 3)  # characters
FEATURES = 2**18
BATCH = 256  # texts that are compared with all rows at a time


@dataclass(frozen=True)
class _Row:
    text: str
    key: str
    label: int


def choose_shots(
    train: Sequence[TextExample],
    labels: LabelMap,
    *,
    k: int,
    by: str = "balance",
    each: bool = True,
    seed: int = 0,
    texts: Iterable[str] | None = None,
    max_chars: int = MAX_CHARS,
) -> tuple[Shots, ...]:
    """Choose examples for the prompts of n texts.

    Args:
        train: training rows with one label each; a row with probabilities has its most probable label.
        labels: the map of their targets.
        k: examples per label; in total with `each=False`, and for `similarity`.
        by: `balance` or `similarity`.
        each: for `balance`, False distributes k examples over the labels as evenly as possible.
        seed: of the draw for `balance`; `similarity` draws nothing.
        texts: n texts to classify (the two texts of a pair are joined by a line end); required for
            `similarity`. For `balance`, rows equal to any of them are excluded.
        max_chars: longer examples are cut to this length and end in "…"; the removed text may have decided
            their label.

    Returns:
        `((text, label name), ...)` for each of the n texts, with the nearest example last. For `balance` all
        n entries are equal, and there is one entry if `texts` is None. There are fewer than k examples if
        train has no more.

    Raises:
        TaskHeadsError: a number is out of range, `by` is unknown, `similarity` has no `texts`, a target is
            not one label, or no row is left: for all texts, or for a text that is itself the only row.

    Cost on one core, over 50,000 rows of 20 characters with 119 labels: by balance 6 seconds, by similarity
    10 seconds for 1,000 texts, in 0.8 GB.

    Example:
        >>> rows = [("a lost match", 0), ("a won match", 0), ("a ship sails", 1), ("a ship sinks", 1)]
        >>> train = [TextExample(text=text, target=label) for text, label in rows]
        >>> labels = LabelMap(("sport", "trade"))
        >>> choose_shots(train, labels, k=1, by="similarity", texts=["the match was won", "A ship  sinks"])
        ((('a won match', 'sport'),), (('a ship sails', 'trade'),))
        >>> [label for _, label in choose_shots(train, labels, k=2)[0]]
        ['sport', 'trade', 'sport', 'trade']
    """
    texts = as_list(texts)
    _check(k=k, by=by, texts=texts, max_chars=max_chars)
    rows = _usable(train, labels)
    if by == "balance":
        asked = {text_key(text) for text in texts or ()}
        rows = [row for row in rows if row.key not in asked]
        chosen = [_balanced(rows, labels, k=k, each=each, seed=seed)] * (1 if texts is None else len(texts))
    else:
        chosen = list(_similar(rows, texts or (), k=k))
    if not rows or (chosen and not any(chosen)):
        problem = f"found no example in {len(train):,} rows"
        expected = "rows with one label each, and with other texts than those to classify"
        fix = "give other training rows, or no shots"
        raise error_at("few-shot", problem, expected, fix, code="rows-too-few")
    alone = [place for place, shots in enumerate(chosen) if not shots]  # the only row is the text itself
    if alone:
        problem, expected = "the only training row is the text itself", "rows with other texts"
        fix = "give more training rows, or no shots"
        raise TaskHeadsError(
            [Problem(f"texts[{place}]", problem, expected, fix, code="rows-too-few") for place in alone]
        )
    return tuple(
        tuple((_cut(row.text, max_chars), labels.names[row.label]) for row in shots) for shots in chosen
    )


def with_shots(labels: LabelMap, shots: Shots) -> LabelMap:
    """Return a label map with the shots as examples of its labels, for `{examples}` of an instruction.

    Example:
        >>> with_shots(LabelMap(("a", "b")), (("one", "b"), ("two", "a"), ("three", "b"))).examples
        (('two',), ('one', 'three'))
    """
    examples = tuple(tuple(text for text, label in shots if label == name) for name in labels.names)
    return replace(labels, examples=examples)


def shots_line(labels: LabelMap, shots: Shots) -> str:
    """Return a summary: the number of examples, and the labels without one.

    Example:
        >>> shots_line(LabelMap(("a", "b")), (("one", "b"), ("two", "b")))
        "few-shot: 2 examples from train; 1 of 2 labels without one ('a')"
    """
    shown = {label for _, label in shots}
    without = [name for name in labels.names if name not in shown]
    line = f"few-shot: {len(shots):,} example{'' if len(shots) == 1 else 's'} from train"
    if not without:
        return line
    return f"{line}; {len(without):,} of {len(labels):,} labels without one ({few_names(without)})"


def _check(*, k: int, by: str, texts: Sequence[str] | None, max_chars: int) -> None:
    problems = [
        Problem(name, f"found {value}", "1 or more", "choose such as 2", code="option-range")
        for name, value in (("k", k), ("max_chars", max_chars))
        if value < 1
    ]
    if by not in WAYS:
        problems.append(
            Problem("by", f"found {by!r}", ", ".join(WAYS), "choose one of them", code="option-value")
        )
    if by == "similarity" and texts is None:
        fix = "give them, or choose by balance"
        problems.append(Problem("texts", "found None", "the texts to classify", fix, code="option-missing"))
    if problems:
        raise TaskHeadsError(problems)


def _usable(train: Sequence[TextExample], labels: LabelMap) -> list[_Row]:
    """Return distinct texts with one label each; sorted, so that the order of rows has no effect."""
    rows: dict[str, _Row] = {}
    contradicted = set()
    for example in train:
        if not isinstance(example.target, int) or example.target >= len(labels):
            where, problem = example.source or "few-shot", f"found the target {shorten(example.target)}"
            expected, fix = f"the id of one of the {len(labels):,} labels", "give rows with one label each"
            raise error_at(where, problem, expected, fix, code="value-type")
        text = f"{example.text}\n{example.text_b}" if example.text_b else example.text
        key = text_key(text)
        row = _Row(text, key, example.target)
        other = rows.setdefault(key, row)
        if other.label != row.label:
            contradicted.add(key)
        elif row.text < other.text:  # of several spellings, choose the same in any order of rows
            rows[key] = row
    return [rows[key] for key in sorted(rows) if key not in contradicted]


def _balanced(rows: Sequence[_Row], labels: LabelMap, *, k: int, each: bool, seed: int) -> list[_Row]:
    """Return the most typical rows of every label, one of each in turn."""
    groups: list[list[_Row]] = [[] for _ in labels.names]
    for row in rows:
        groups[row.label].append(row)
    ranked = []
    for own in groups:
        own.sort(key=lambda row: (len(row.text), row.key))
        shorter = own[: (len(own) + 1) // 2]
        drawn = sorted(shorter, key=lambda row: _order(seed, row.key))[: max(POOL, k)]
        # If the shorter half is too small, the longer rows follow, the shortest first.
        ranked.append([*_typical(drawn), *own[len(shorter) :]])
    # With fewer examples than labels, the labels that get one are drawn too.
    turns = sorted(range(len(labels)), key=lambda label: _order(seed, labels.names[label]))
    rounds = range(max(map(len, ranked), default=0))
    if each:
        return [
            ranked[label][turn]
            for turn in rounds[:k]
            for label in range(len(labels))
            if turn < len(ranked[label])
        ]
    spread = [(turn, label) for turn in rounds for label in turns if turn < len(ranked[label])][:k]
    return [ranked[label][turn] for turn, label in sorted(spread)]


def _typical(rows: list[_Row]) -> list[_Row]:
    """Return the rows sorted by similarity to their centre."""
    if len(rows) < 3:  # two rows are equally near
        return rows
    vectors = _vectorizer().fit_transform([row.text[:COMPARED] for row in rows])
    near = np.round(vectors @ np.asarray(vectors.mean(axis=0)).ravel(), 6)
    return [rows[place] for place in np.argsort(-near, kind="stable")]


def _similar(rows: Sequence[_Row], texts: Sequence[str], *, k: int) -> Iterator[list[_Row]]:
    """Yield the k rows nearest to each text, the nearest last; ties are resolved by the text of the row."""
    if not rows:
        yield from ([] for _ in texts)
        return
    vectorizer = _vectorizer()
    known = vectorizer.fit_transform([row.text[:COMPARED] for row in rows])  # (N, F)
    place_of = {row.key: place for place, row in enumerate(rows)}
    for start in range(0, len(texts), BATCH):
        asked = texts[start : start + BATCH]
        near = (vectorizer.transform([text[:COMPARED] for text in asked]) @ known.T).toarray()  # (B, N)
        for text, row in zip(asked, near, strict=True):
            itself = place_of.get(text_key(text))
            if itself is not None:
                row[itself] = -1.0
            row = np.round(row, 6)  # so that the order of summation has no effect
            least = np.partition(row, -min(k, len(row)))[-min(k, len(row))]
            places = np.flatnonzero(row >= max(least, 0.0))
            best = places[np.argsort(-row[places], kind="stable")][:k]
            yield [rows[place] for place in best[::-1]]


def _vectorizer() -> Any:
    """Return a vectorizer with rows of unit length, so that a product is a cosine."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # the import takes half a second

    return TfidfVectorizer(
        analyzer="char", ngram_range=NGRAMS, max_features=FEATURES, sublinear_tf=True, dtype=np.float32
    )


def _order(seed: int, name: str) -> str:
    return hash_rows([(seed, name)])


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
