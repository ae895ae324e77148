"""Distillation: write the answers of a teacher as soft targets, on which any student trains, `qth distill`.

For texts, a row gets `probabilities`: the teacher's at a temperature, mixed with the true label. For pairs,
it gets `preference`: P(chosen preferred) by the teacher's margin, mixed with the label or its votes and
clicks; the student trains on it with `--loss soft`. The teacher is a trained head, a generative classifier,
or a linear model on TF-IDF, which answers each row without having been fitted on it.

Sources: Hinton, Vinyals & Dean 2015, arXiv:1503.02531; out-of-fold answers as in stacking, Wolpert 1992.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from qwen_task_heads.data.example_columns import are_soft
from qwen_task_heads.data.examples import PairExample, TextExample
from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.data.title_datasets import read_title_sets
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.inference.arguments import CommandLineOptions
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.labeling.confident_learning import (
    Floats,
    out_of_fold,
    softmax,
    temperature_of,
    tfidf_pairs,
    tfidf_texts,
)
from qwen_task_heads.labeling.pools import by_classifier, read_unlabeled
from qwen_task_heads.labeling.review import as_columns, write_whole

TFIDF = "tfidf"
TASKS = ("texts", "titles")
SMALLEST = 1e-6  # probability that is kept of each label


@dataclass(kw_only=True)
class DistillationArguments(CommandLineOptions):
    """Options of `distill`.

    Args:
        dataset_name: file, folder or dataset id of the labelled rows.
        teacher: folder or repo id of a trained model, or `tfidf`.
        output_file: JSONL file to write.
        task: `texts` or `titles`.
        unlabeled_dataset: further texts, which get the answers of the teacher alone.
        temperature: by which the teacher's logits are divided; above 1 its answers are softer.
        mix: share of the true label in the target, from 0 to 1.
        dev_dataset, labels, hub, encoding: as in training.
        seed: of the folds of `tfidf`.
    """

    dataset_name: str = field(metadata={"help": "File, folder or data set id of the labelled rows."})
    teacher: str = field(metadata={"help": "Folder or repo id of a trained model, or tfidf."})
    output_file: str = field(metadata={"help": "JSONL file to write."})
    task: str = field(default="texts", metadata={"choices": list(TASKS), "help": "Texts or pairs of titles."})
    unlabeled_dataset: str | None = field(
        default=None, metadata={"help": "Texts without labels, for the answers of the teacher alone."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Divides the logits of the teacher."})
    mix: float = field(default=0.5, metadata={"help": "Share of the true label, from 0 to 1."})
    dev_dataset: str | None = field(default=None, metadata={"help": "Dev set, which is left out."})
    labels: str | None = field(default=None, metadata={"help": "Texts: labels.yaml or class file."})
    hub: str = field(default=HUGGINGFACE, metadata={"choices": list(HUBS), "help": "Hub to load from."})
    encoding: str = field(default="utf-8", metadata={"help": "Encoding of text files, such as gb18030."})
    seed: int = field(default=0, metadata={"help": "Seed of the folds."})


@dataclass(frozen=True, kw_only=True)
class DistillationReport:
    """What was written.

    Args:
        path: JSONL with soft targets.
        rows: labelled rows.
        more: texts without labels.
        agreement: share of the labelled rows on which the teacher agrees with the label.
        next: command to type.
    """

    path: Path
    rows: int
    more: int
    agreement: float
    next: str

    def __str__(self) -> str:
        more = f" and {self.more:,} texts without labels" if self.more else ""
        return (
            f"the teacher agrees with {100 * self.agreement:.1f}% of {self.rows:,} labelled rows\n"
            f"File: {self.path}: soft targets of {self.rows:,} rows{more}\nNext: {self.next}"
        )


def distill(arguments: DistillationArguments) -> DistillationReport:
    """Write the training set with the answers of a teacher as soft targets.

    Raises:
        TaskHeadsError: defects of the data, several labels or scores, options out of range, a teacher of
            another task or other labels, or labels in the unlabelled source.
    """
    problems = []
    if not arguments.temperature > 0:
        found, fix = f"found {arguments.temperature:g}", "choose such as 2"
        problems.append(Problem("--temperature", found, "more than 0", fix, code="option-range"))
    if not 0 <= arguments.mix <= 1:
        found, fix = f"found {arguments.mix:g}", "choose such as 0.5"
        problems.append(Problem("--mix", found, "from 0 to 1", fix, code="option-range"))
    if arguments.task == "titles" and arguments.unlabeled_dataset is not None:
        found, fix = "found it with pairs of titles", "drop it"
        problems.append(Problem("--unlabeled_dataset", found, "texts", fix, code="option-unsupported"))
    if problems:
        raise TaskHeadsError(problems)
    return _pairs(arguments) if arguments.task == "titles" else _texts(arguments)


def _texts(arguments: DistillationArguments) -> DistillationReport:
    options: dict[str, Any] = {"hub": arguments.hub, "encoding": arguments.encoding}
    sets = read_text_sets(
        arguments.dataset_name, dev=arguments.dev_dataset, labels=arguments.labels, **options
    )
    rows = list(sets.train)
    if sets.problem_type != "single_label_classification" or are_soft(rows):
        found, fix = f"found {sets.problem_type}", "use data with one label per row"
        problem = Problem(arguments.dataset_name, found, "one label per row", fix, code="option-unsupported")
        raise TaskHeadsError(problem)
    more: list[TextExample] = []
    if arguments.unlabeled_dataset is not None:
        more, _ = read_unlabeled(arguments.unlabeled_dataset, sets, **options)
    answers = _answers(rows, more, sets, arguments)
    truth = np.array([row.target for row in rows])
    agreement = float((answers[: len(rows)].argmax(1) == truth).mean())
    answers = softmax(np.log(np.clip(answers, SMALLEST, 1)) / arguments.temperature)
    targets = answers.copy()
    targets[: len(rows)] = (1 - arguments.mix) * answers[: len(rows)]
    targets[np.arange(len(rows)), truth] += arguments.mix
    names = sets.labels.names
    lines = []
    for row, soft in zip([*rows, *more], targets, strict=True):
        columns = as_columns(replace(row, target=int(soft.argmax())), names)
        del columns["label"]
        soft = soft / soft.sum()
        lines.append({**columns, "probabilities": dict(zip(names, soft.round(6).tolist(), strict=True))})
    return _written(arguments, lines, rows=len(rows), more=len(more), agreement=agreement)


def _answers(
    rows: Sequence[TextExample], more: Sequence[TextExample], sets: TextSets, arguments: DistillationArguments
) -> Floats:
    """Return the teacher's probabilities (N + M, L)."""
    if arguments.teacher != TFIDF:
        return by_classifier(arguments.teacher, [*rows, *more], sets, hub=arguments.hub, where="--teacher")
    every, count = [*rows, *more], len(sets.labels)
    engine = tfidf_texts(every, sets.problem_type, count)
    logits = out_of_fold(rows, engine, width=count, seed=arguments.seed)
    temperature = temperature_of(logits, np.array([row.target for row in rows]))
    if more:
        fitted, asked = np.arange(len(rows)), np.arange(len(rows), len(every))
        logits = np.concatenate([logits, engine(fitted, asked)])
    return softmax(logits / temperature)


def _pairs(arguments: DistillationArguments) -> DistillationReport:
    sets = read_title_sets(
        arguments.dataset_name,
        dev=arguments.dev_dataset,
        hub=arguments.hub,
        encoding=arguments.encoding,
    )
    rows = list(sets.train)
    margins = _margins(rows, arguments)
    agreement = float((margins > 0).mean() + (margins == 0).mean() / 2)
    soft = 1 / (1 + np.exp(-margins / arguments.temperature))
    lines = []
    for row, answer in zip(rows, soft.tolist(), strict=True):
        own = 1.0 if row.preference is None else row.preference
        mixed = arguments.mix * own + (1 - arguments.mix) * answer
        lines.append(as_columns(replace(row, preference=round(mixed, 6)), ()))
    return _written(arguments, lines, rows=len(rows), more=0, agreement=agreement)


def _margins(rows: Sequence[PairExample], arguments: DistillationArguments) -> Floats:
    """Return the teacher's margins (N,), chosen minus rejected."""
    if arguments.teacher == TFIDF:
        margins = out_of_fold(rows, tfidf_pairs(rows), width=0, seed=arguments.seed)
        ones = np.ones(len(rows), np.int64)
        return margins / temperature_of(np.stack([-margins, margins], 1) / 2, ones)
    scorer = Scorer(arguments.teacher, hub=arguments.hub, device="auto", progress=True)
    if not scorer.is_title_scorer:
        found, fix = "found a classifier", "name a title scorer, or give --task texts"
        raise TaskHeadsError(Problem("--teacher", found, "a title scorer", fix, code="model-type"))
    prompts = [row.prompt for row in rows]
    scores = [
        np.asarray(scorer.score([vars(row)[side] for row in rows], prompts=prompts))
        for side in ("chosen", "rejected")
    ]
    return np.asarray(scores[0] - scores[1], np.float64)


def _written(
    arguments: DistillationArguments, lines: Sequence[Any], *, rows: int, more: int, agreement: float
) -> DistillationReport:
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path = write_whole(arguments.output_file, content.encode("utf-8"))
    command = "titles --loss soft" if arguments.task == "titles" else "classify"
    dev = f" --dev_dataset {arguments.dev_dataset}" if arguments.dev_dataset else ""
    following = f"qth {command} --dataset_name {path}{dev}"
    return DistillationReport(path=path, rows=rows, more=more, agreement=agreement, next=following)
