"""Define the types of validated examples. All code after the readers relies on them.

Texts have no tags, control tokens or template. `source` names the file and line, and is copied to
`predictions.jsonl`, so that every metric can be traced to its rows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PairExample:
    """One preference: `chosen` is preferred to `rejected`, optionally for a `prompt`.

    Args:
        chosen: the preferred title, without tags, stripped, not empty.
        rejected: the other title, different from `chosen`.
        prompt: shared context (an article, a brief), or "".
        margin: difference of the two titles in score units, or None.
        preference: P(chosen preferred) in [0, 1] from votes or clicks, or None (a hard preference).
        weight: weight of the row in the loss, positive.
        group: key of the group of the pair (experiment, prompt), for splits and intervals.
        source: place in the data, `train.jsonl:17`.
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
    """Several titles of one experiment or prompt, with the clicks or votes for each.

    Args:
        titles: k >= 2 different titles.
        clicks: clicks (or votes) per title.
        impressions: impressions (or votes cast) per title; 0 <= clicks <= impressions.
        prompt: shared context, or "".
        group: key of the experiment.
        sources: place of each title in the data.
    """

    titles: tuple[str, ...]
    clicks: tuple[int, ...]
    impressions: tuple[int, ...]
    prompt: str = ""
    group: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TextExample:
    """One labelled text, or pair of texts, with labels resolved by the `LabelMap` of the run.

    Args:
        text: stripped, not empty.
        text_b: the second text of a pair, "" for single texts.
        target: by problem type. `single_label_classification`, `ordinal`: the id of the label.
            `multi_label_classification`: the sorted ids, or (). `regression`: one or more scores.
        soft: P(label) for every label, summing to 1, if annotators disagreed; `target` is then the most
            probable label. None for a hard label.
        candidates: names of the candidate labels of the row, in the order of the map; () for all labels.
        weight: weight of the row in the loss, positive.
        group: key of the group of the row (a document, a user), for splits and intervals.
        source: place in the data, `train.jsonl:17`.
    """

    text: str
    text_b: str = ""
    target: int | tuple[int, ...] | tuple[float, ...]
    soft: tuple[float, ...] | None = None
    candidates: tuple[str, ...] = ()
    weight: float = 1.0
    group: str = ""
    source: str = ""


def full_text(row: TextExample) -> str:
    """Return the texts of a row, one below the other."""
    return f"{row.text}\n{row.text_b}" if row.text_b else row.text


def one_text(row: PairExample | TextExample) -> str:
    """Return the texts of a row, or the titles of a pair, one below the other."""
    return f"{row.chosen}\n{row.rejected}" if isinstance(row, PairExample) else full_text(row)
