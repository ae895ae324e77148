"""Audit the labels of a training set: `qth audit` writes a review file, and applies it once it is edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_task_heads.data.example_columns import are_soft
from qwen_task_heads.data.examples import full_text
from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.data.title_datasets import TitleSets, read_title_sets
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.inference.arguments import CommandLineOptions
from qwen_task_heads.labeling.confident_learning import (
    FOLDS,
    FitAndScore,
    Floats,
    LabelAudit,
    audit_labels,
    audit_pairs,
    features_pairs,
    features_texts,
    multi_hot,
    tfidf_pairs,
    tfidf_texts,
)
from qwen_task_heads.labeling.review import apply_review, read_review, write_review, write_rows
from qwen_task_heads.metrics.classification import MULTI
from qwen_task_heads.metrics.ranking import pair_credit
from qwen_task_heads.metrics.shares import Share, share_of_rows
from qwen_task_heads.metrics.text_baselines import TfidfBaseline
from qwen_task_heads.metrics.title_baselines import TfidfBradleyTerry
from qwen_task_heads.models import build, load_tokenizer
from qwen_task_heads.training.features import extract_features

TASKS = ("texts", "titles")
DEPTHS = (1 / 2, 3 / 4)  # layers whose mean-pooled states are the features, as shares of the depth
MAX_TOKENS = 512
LEAST = 50  # rows of an audit
REVIEW, CLEANED = "review.csv", "train.jsonl"


@dataclass(kw_only=True)
class AuditArguments(CommandLineOptions):
    """Options of `audit_dataset`.

    Args:
        dataset_name: file, folder or dataset id of the training set.
        output_dir: folder of `review.csv`, or of the cleaned `train.jsonl`.
        review: an edited review file, which is applied.
        task: `texts` or `titles`.
        model_name_or_path: backbone whose frozen features are a second opinion next to TF-IDF.
        dev_dataset, labels, hub, encoding: as in training.
        max_rows: rows of the review file; 0 for twice the estimated number of wrong labels.
        seed: of the folds.
    """

    dataset_name: str = field(metadata={"help": "File, folder or data set id of the training set."})
    output_dir: str = field(metadata={"help": "Folder of review.csv, or of the cleaned train.jsonl."})
    review: str | None = field(default=None, metadata={"help": "Edited review.csv, which is applied."})
    task: str = field(default="texts", metadata={"choices": list(TASKS), "help": "Texts or pairs of titles."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Backbone whose frozen features are added to TF-IDF."}
    )
    dev_dataset: str | None = field(
        default=None, metadata={"help": "Dev set, on which a review is measured; split off if None."}
    )
    labels: str | None = field(default=None, metadata={"help": "Texts: labels.yaml or class file."})
    hub: str = field(default=HUGGINGFACE, metadata={"choices": list(HUBS), "help": "Hub to load from."})
    encoding: str = field(default="utf-8", metadata={"help": "Encoding of text files, such as gb18030."})
    max_rows: int = field(
        default=0,
        metadata={"help": "Rows of the review file; 0: twice the estimated number of wrong labels."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the folds."})


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What an audit wrote.

    Args:
        path: review file, or cleaned training set.
        rows: rows that were audited.
        wrong: estimated number of wrong labels; for a review, rows that were changed or dropped.
        accuracy: out-of-fold accuracy of the audit; None for a review.
        before, after: accuracy of TF-IDF on dev without and with the review.
        next: command to type.
    """

    path: Path
    rows: int
    wrong: int
    accuracy: float | None = None
    before: Share | None = None
    after: Share | None = None
    next: str = ""

    def __str__(self) -> str:
        share = 100 * self.wrong / max(1, self.rows)
        if self.before is None or self.after is None:
            return (
                f"about {self.wrong:,} of {self.rows:,} labels ({share:.1f}%) look wrong to models of the "
                f"other rows, which are right on {100 * (self.accuracy or 0):.0f}%\n"
                f"Review: {self.path}: fill in the column decision\nNext: {self.next}"
            )
        return (
            f"{self.wrong:,} of {self.rows:,} rows ({share:.1f}%) changed by the review: {self.path}\n"
            f"TF-IDF on dev: {self.before} before, {self.after} after\nNext: {self.next}"
        )


def audit_dataset(arguments: AuditArguments) -> AuditReport:
    """Write a review file, or apply an edited one.

    Args:
        arguments: see `AuditArguments`.

    Raises:
        TaskHeadsError: defects of the data, scores or soft labels, too few rows, or a review file that was
            edited against other data.
    """
    sets = _read(arguments)
    rows, names = list(sets.train), sets.labels.names if isinstance(sets, TextSets) else ()
    _check(sets, rows, arguments)
    folder = Path(arguments.output_dir)
    command = "classify" if names else "titles"
    if arguments.review is None:
        audit = _audit(sets, rows, arguments)
        count = arguments.max_rows or max(20, 2 * audit.wrong)
        path = write_review(folder / REVIEW, rows, audit, labels=names, count=count)
        words = f"qth audit --dataset_name {arguments.dataset_name} --task {arguments.task} --review {path}"
        return AuditReport(
            path=path,
            rows=len(rows),
            wrong=audit.wrong,
            accuracy=audit.accuracy,
            next=f"{words} --output_dir {folder}",
        )
    decisions = read_review(arguments.review, rows, labels=names)
    cleaned = apply_review(rows, decisions, labels=names)
    path = write_rows(folder / CLEANED, cleaned, labels=names)
    return AuditReport(
        path=path,
        rows=len(rows),
        wrong=len(decisions),
        before=_accuracy(sets, rows),
        after=_accuracy(sets, cleaned),
        next=f"qth {command} --dataset_name {path}",
    )


def _read(arguments: AuditArguments) -> TextSets | TitleSets:
    options: dict[str, Any] = {
        "dev": arguments.dev_dataset,
        "hub": arguments.hub,
        "encoding": arguments.encoding,
    }
    if arguments.task == "titles":
        return read_title_sets(arguments.dataset_name, **options)
    return read_text_sets(arguments.dataset_name, labels=arguments.labels, **options)


def _check(sets: TextSets | TitleSets, rows: Sequence[Any], arguments: AuditArguments) -> None:
    where, problems = arguments.dataset_name, []
    kind = sets.problem_type if isinstance(sets, TextSets) else ""
    if kind in ("regression", QUESTIONS) or (kind and are_soft(rows)):
        found = "several questions" if kind == QUESTIONS else "scores or soft labels"
        problem, expected = f"found {found}", "labels, which can be wrong or right"
        fix = "audit a data set with one label per row, or labels"
        problems.append(Problem(where, problem, expected, fix, code="option-unsupported"))
    if isinstance(sets, TitleSets) and len(sets.groups):
        problem, expected = "found arms of experiments", "pairs of titles"
        fix = "leave unclear pairs out instead: qth titles --max_p_value 0.05"
        problems.append(Problem(where, problem, expected, fix, code="option-unsupported"))
    if len(rows) < LEAST:
        problem, expected = f"found {len(rows)} rows for {FOLDS} folds", f"{LEAST} or more"
        problems.append(Problem(where, problem, expected, "label more rows first", code="rows-too-few"))
    if problems:
        raise TaskHeadsError(problems)


def _audit(sets: TextSets | TitleSets, rows: Sequence[Any], arguments: AuditArguments) -> LabelAudit:
    name = arguments.model_name_or_path
    if isinstance(sets, TitleSets):
        engines = [tfidf_pairs(rows)]
        if name:
            titles = [title for row in rows for title in (row.chosen, row.rejected)]
            states = backbone_features(titles, name, arguments.hub)
            engines.append(features_pairs(states[0::2], states[1::2]))
        return audit_pairs(rows, engines=engines, seed=arguments.seed)
    kind, count = sets.problem_type, len(sets.labels)
    texts: list[FitAndScore] = [tfidf_texts(rows, kind, count)]
    if name:
        states = backbone_features([full_text(row) for row in rows], name, arguments.hub)
        texts.append(features_texts(states, [row.target for row in rows], count))
    return audit_labels(rows, num_labels=count, problem_type=kind, engines=texts, seed=arguments.seed)


def backbone_features(texts: Sequence[str], name: str, hub: str) -> Floats:
    """Return mean-pooled states (N, 2H) of two middle layers of a frozen backbone, in fp32.

    Args:
        texts: N texts, cut to `MAX_TOKENS` tokens.
        name: of the backbone, as in `build`.
        hub: of an id.
    """
    tokenizer, model = load_tokenizer(name, hub=hub), build(name, hub=hub)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    depth = model.model.config.num_hidden_layers
    layers = sorted({max(1, round(share * depth)) for share in DEPTHS})
    # A text without a token, such as one control character, gets the pad token.
    rows = [ids[:MAX_TOKENS] or [tokenizer.pad_token_id] for ids in encoded]
    features = extract_features(model, rows, layers=layers, poolings=["mean"])
    return np.concatenate([features[layer, "mean"].float().numpy() for layer in layers], 1)


def _accuracy(sets: TextSets | TitleSets, rows: Sequence[Any]) -> Share:
    """Return the accuracy on dev of TF-IDF fitted on rows; for several labels, the share of right ones."""
    if isinstance(sets, TitleSets):
        pairs, model = list(sets.dev), TfidfBradleyTerry().fit(rows)
        chosen, rejected = (
            model.score([vars(row)[side] for row in pairs]) for side in ("chosen", "rejected")
        )
        return share_of_rows(pair_credit(chosen, rejected), pairs)
    dev = list(sets.dev)
    scores = TfidfBaseline(sets.problem_type, len(sets.labels)).fit(rows).predict(dev)
    if sets.problem_type == MULTI:
        truth = multi_hot([row.target for row in dev], len(sets.labels))
        return share_of_rows(((scores > 0) == (truth > 0)).mean(1), dev)
    return share_of_rows(scores.argmax(1) == np.array([row.target for row in dev]), dev)
