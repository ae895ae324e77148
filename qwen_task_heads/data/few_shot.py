"""Few-shot examples for a prompt, chosen from the training rows alone.

Two ways, for rows of one label each:
- `balance`: the same examples for all texts, as many of each label. Per label, up to `POOL` rows are drawn by
  a hash from its shorter half, and the most typical of them are taken: nearest to the centre of the drawn
  ones. Short ones, because every example is read again with every text; typical ones, because a row on the
  edge of its label teaches the edge.
- `similarity`: for each text the training rows nearest to it, which mostly beats a fixed choice (Liu et al.
  2022, "What Makes Good In-Context Examples for GPT-3?", https://arxiv.org/abs/2101.06804). The nearest
  stands last, next to the text. Here nearness is the cosine of TF-IDF over characters, one to three at a
  time, which needs no model and no word boundaries; the paper embeds sentences with a second model.

What is never shown: a row whose text (up to case, width and spacing) is the text that is asked, or that
stands in train with several labels. Dev and test rows are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.keys import text_key
from qwen_task_heads.data.labels import LabelMap
from qwen_task_heads.data.splits import hash_rows
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.encoding_task_heads import as_list

Shots = tuple[tuple[str, str], ...]  # (text, label name)

WAYS = ("balance", "similarity")
MAX_CHARS = 200  # of an example in a prompt
COMPARED = 2000  # first characters of a text that are compared
POOL = 64  # rows of a label that are compared for how typical they are
NGRAMS = (1, 3)  # characters
FEATURES = 2**18
BATCH = 256  # texts that are compared with all rows at once


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
        train: training rows of one label each; a row of probabilities counts as its most probable label.
        labels: the map that their targets count in.
        k: examples of each label; in all with `each=False`, and for `similarity`.
        by: `balance` or `similarity`.
        each: for `balance`, False spreads k over the labels as evenly as they go.
        seed: another one draws other rows (`balance`); by similarity nothing is drawn.
        texts: n texts that will be asked (of pairs, both with a line end between); needed for `similarity`.
            By balance, rows equal to any of them are not shown.
        max_chars: longer examples are cut there, and end in "…"; their labels may hang on the rest.

    Returns:
        `((text, label name), ...)` for each of the n texts, the last one nearest to the question; by balance
        the same for all of them, and one entry where `texts` is None. Fewer than k where there are no more.

    Raises:
        TaskHeadsError: numbers out of range, an unknown way, no `texts` for `similarity`, targets that are
            not one label, or no row to show: none at all, or none for a text that only its own row is like.

    Cost on one core, over 50,000 rows of 20 characters with 119 labels: by balance 6 seconds, by similarity
    10 seconds for 1,000 texts, in 0.8 GB.

    Example:
        >>> from qwen_task_heads.data.few_shot import choose_shots
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
        found = f"no example among {len(train):,} rows"
        accepted = "rows of one label each, whose texts are not those asked"
        raise TaskHeadsError(Problem("few-shot", found, accepted, "give other training rows, or no shots"))
    alone = [place for place, shots in enumerate(chosen) if not shots]  # the only row is the text itself
    if alone:
        found, accepted = "found no training row but the text itself", "other rows beside it"
        remedy = "give more training rows, or no shots"
        raise TaskHeadsError([Problem(f"texts[{place}]", found, accepted, remedy) for place in alone])
    return tuple(
        tuple((_cut(row.text, max_chars), labels.names[row.label]) for row in shots) for shots in chosen
    )


def with_shots(labels: LabelMap, shots: Shots) -> LabelMap:
    """The map with the texts of its labels as its examples, for `{examples}` of an instruction.

    Example:
        >>> with_shots(LabelMap(("a", "b")), (("one", "b"), ("two", "a"), ("three", "b"))).examples
        (('two',), ('one', 'three'))
    """
    examples = tuple(tuple(text for text, label in shots if label == name) for name in labels.names)
    return replace(labels, examples=examples)


def shots_line(labels: LabelMap, shots: Shots) -> str:
    """What is shown, and which labels are not, in plain words.

    Example:
        >>> shots_line(LabelMap(("a", "b")), (("one", "b"), ("two", "b")))
        "few-shot: 2 examples from train; 1 of 2 labels without one ('a')"
    """
    shown = {label for _, label in shots}
    without = [name for name in labels.names if name not in shown]
    line = f"few-shot: {len(shots):,} example{'' if len(shots) == 1 else 's'} from train"
    if not without:
        return line
    names = ", ".join(shorten(name, 40) for name in without[:8]) + (", …" if len(without) > 8 else "")
    return f"{line}; {len(without):,} of {len(labels):,} labels without one ({names})"


def _check(*, k: int, by: str, texts: Sequence[str] | None, max_chars: int) -> None:
    problems = []
    for name, value in (("k", k), ("max_chars", max_chars)):
        if value < 1:
            problems.append(Problem(name, f"found {value}", "1 or more", "choose such as 2"))
    if by not in WAYS:
        problems.append(Problem("by", f"found {by!r}", f"{', '.join(WAYS)}", "choose one of them"))
    if by == "similarity" and texts is None:
        found, accepted = "found None", "the texts that will be asked"
        problems.append(Problem("texts", found, accepted, "give them, or choose by balance"))
    if problems:
        raise TaskHeadsError(problems)


def _usable(train: Sequence[TextExample], labels: LabelMap) -> list[_Row]:
    """Different texts, each of one label; sorted, so that no order of rows matters."""
    rows: dict[str, _Row] = {}
    contradicted = set()
    for example in train:
        if not isinstance(example.target, int) or example.target >= len(labels):
            found = f"the target {shorten(example.target)}"
            accepted = f"the id of one of the {len(labels):,} labels"
            where = example.source or "few-shot"
            raise TaskHeadsError(Problem(where, found, accepted, "give rows of one label each"))
        text = f"{example.text}\n{example.text_b}" if example.text_b else example.text
        key = text_key(text)
        row = _Row(text, key, example.target)
        other = rows.setdefault(key, row)
        if other.label != row.label:
            contradicted.add(key)
        elif row.text < other.text:  # spellings of one text: the same one in any order of rows
            rows[key] = row
    return [rows[key] for key in sorted(rows) if key not in contradicted]


def _balanced(rows: Sequence[_Row], labels: LabelMap, *, k: int, each: bool, seed: int) -> list[_Row]:
    """The most typical rows of every label, one of each in turn."""
    groups: list[list[_Row]] = [[] for _ in labels.names]
    for row in rows:
        groups[row.label].append(row)
    ranked = []
    for own in groups:
        own.sort(key=lambda row: (len(row.text), row.key))
        shorter = own[: (len(own) + 1) // 2]
        drawn = sorted(shorter, key=lambda row: _order(seed, row.key))[: max(POOL, k)]
        # Where the shorter half is too small, the longer ones follow, the shortest first.
        ranked.append([*_typical(drawn), *own[len(shorter) :]])
    # With fewer examples than labels, which labels have one is drawn too.
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
    """Rows by their nearness to the centre of all of them."""
    if len(rows) < 3:  # both are as near
        return rows
    vectors = _vectors([row.text for row in rows])
    near = np.round(vectors @ np.asarray(vectors.mean(axis=0)).ravel(), 6)
    return [rows[place] for place in np.argsort(-near, kind="stable")]


def _similar(rows: Sequence[_Row], texts: Sequence[str], *, k: int) -> Iterator[list[_Row]]:
    """The k rows nearest to each text, the nearest last; ties by the text of the row."""
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
            row = np.round(row, 6)  # sums in another order are no other nearness
            least = np.partition(row, -min(k, len(row)))[-min(k, len(row))]
            places = np.flatnonzero(row >= max(least, 0.0))
            best = places[np.argsort(-row[places], kind="stable")][:k]
            yield [rows[place] for place in best[::-1]]


def _vectors(texts: Sequence[str]) -> Any:
    return _vectorizer().fit_transform([text[:COMPARED] for text in texts])


def _vectorizer() -> Any:
    """Rows of unit length, so that a product is a cosine."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # half a second to import

    return TfidfVectorizer(
        analyzer="char", ngram_range=NGRAMS, max_features=FEATURES, sublinear_tf=True, dtype=np.float32
    )


def _order(seed: int, name: str) -> str:
    return hash_rows([(seed, name)])


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
