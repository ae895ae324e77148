"""What a validated datum is, once reading is over. Everything downstream trusts these types.

Texts are plain here: no tags, no control tokens, no template. `source` points back to the file and
line, and travels as far as `predictions.jsonl`, so that every figure can be traced.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PairExample:
    """One preference: `chosen` beat `rejected`, perhaps for a `prompt`.

    Args:
        chosen: the preferred title, without tags, stripped, not empty.
        rejected: the other title, different from `chosen`.
        prompt: shared context (an article, a brief), "" when there is none.
        margin: how much better, in score units, or None.
        preference: P(chosen preferred) in [0, 1] from votes or clicks, or None (a hard preference).
        weight: weight of the row in the loss, positive.
        group: key of the group the pair belongs to (A/B test, prompt); splits and intervals use it.
        source: where it was read, `train.jsonl:17`.
    """

    chosen: str
    rejected: str
    prompt: str = ""
    margin: float | None = None
    preference: float | None = None
    weight: float = 1.0
    group: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class GroupExample:
    """Several titles of one test or prompt, with the evidence for each.

    Args:
        titles: k >= 2 different titles.
        clicks: clicks (or votes) per title.
        impressions: impressions (or votes cast) per title; 0 <= clicks <= impressions.
        prompt: shared context, "" when there is none.
        group: key of the test.
        sources: where each title was read.
    """

    titles: tuple[str, ...]
    clicks: tuple[int, ...]
    impressions: tuple[int, ...]
    prompt: str = ""
    group: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TextExample:
    """One labelled text, or pair of texts, with its labels already resolved by the run's `LabelMap`.

    Args:
        text: stripped, not empty.
        text_b: the second text of a pair, "" for single texts.
        target: by problem type. `single_label_classification`, `ordinal`: the id of the label.
            `multi_label_classification`: the ids, sorted, perhaps none. `regression`: one or more scores.
        soft: P(label) for every label, summing to 1, where annotators disagreed; None for a hard label.
            `target` is then the most probable label.
        candidates: names of the labels that the row offers, in the order of the map; () for all of them.
        weight: weight of the row in the loss, positive.
        group: key of what belongs together (a document, a user); splits and intervals use it.
        source: where it was read, `train.jsonl:17`.
    """

    text: str
    text_b: str = ""
    target: int | tuple[int, ...] | tuple[float, ...]
    soft: tuple[float, ...] | None = None
    candidates: tuple[str, ...] = ()
    weight: float = 1.0
    group: str = ""
    source: str = ""
