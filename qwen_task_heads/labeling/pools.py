"""Labelled rows with a pool of unlabelled texts, and the probabilities that engines give to the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen_task_heads.data.example_columns import are_soft
from qwen_task_heads.data.examples import TextExample, full_text
from qwen_task_heads.data.schema import NAMES, TARGETS
from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.data.text_readers import TextInput, read_inputs
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.inference.arguments import CommandLineOptions
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.inference.loading import open_scorer
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.labeling.audits import backbone_features
from qwen_task_heads.labeling.confident_learning import (
    FitAndScore,
    Floats,
    features_texts,
    out_of_fold,
    softmax,
    temperature_of,
    tfidf_texts,
)
from qwen_task_heads.sources.file_options import options_of
from qwen_task_heads.sources.keys import text_key

LEAST = 20  # labelled rows


@dataclass(kw_only=True)
class PoolArguments(CommandLineOptions):
    """Options of a data set with a pool of unlabelled texts.

    Args:
        dataset_name: file, folder or dataset id of the labelled rows.
        unlabeled_dataset: file, folder or dataset id of texts without labels.
        output_file: file to write.
        model: trained classifier that labels the pool; None fits TF-IDF on the labelled rows.
        model_name_or_path: backbone whose frozen features are a second engine next to TF-IDF.
        dev_dataset, labels, hub, encoding: as in training.
        seed: of draws and folds.
    """

    dataset_name: str = field(metadata={"help": "File, folder or data set id of the labelled rows."})
    unlabeled_dataset: str = field(metadata={"help": "File, folder or data set id of unlabelled texts."})
    output_file: str = field(metadata={"help": "File to write."})
    model: str | None = field(
        default=None, metadata={"help": "Trained classifier; without one, TF-IDF is fitted."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Backbone whose frozen features are added to TF-IDF."}
    )
    dev_dataset: str | None = field(default=None, metadata={"help": "Dev set; split off if None."})
    labels: str | None = field(default=None, metadata={"help": "labels.yaml or class file."})
    hub: str = field(default=HUGGINGFACE, metadata={"choices": list(HUBS), "help": "Hub to load from."})
    encoding: str = field(default="utf-8", metadata={"help": "Encoding of text files, such as gb18030."})
    seed: int = field(default=0, metadata={"help": "Seed of draws and folds."})


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Labelled splits and unlabelled texts.

    Args:
        sets: labelled splits with one label per row.
        texts: unlabelled texts, with target 0, without those of a labelled row and without repeats.
        left_out: texts that were left out for that.
    """

    sets: TextSets
    texts: Sequence[TextExample]
    left_out: int


def read_pool(arguments: PoolArguments) -> Pool:
    """Read the labelled rows and the unlabelled texts.

    Raises:
        TaskHeadsError: defects of either source, several labels or scores, too few rows, or labels in the
            unlabelled source.
    """
    where = arguments.dataset_name
    sets = read_text_sets(
        where,
        dev=arguments.dev_dataset,
        labels=arguments.labels,
        hub=arguments.hub,
        encoding=arguments.encoding,
    )
    problems: list[Problem] = []
    if sets.problem_type not in ("single_label_classification", "ordinal") or are_soft(sets.train):
        found, fix = f"found {sets.problem_type}", "use data with one label per row"
        problems.append(Problem(where, found, "one label per row", fix, code="option-unsupported"))
    if len(sets.train) < LEAST:
        found, fix = f"found {len(sets.train)} labelled rows", "label more rows first"
        problems.append(Problem(where, found, f"{LEAST} or more", fix, code="rows-too-few"))
    if problems:
        raise TaskHeadsError(problems)
    options = {"hub": arguments.hub, "encoding": arguments.encoding}
    texts, left_out = read_unlabeled(arguments.unlabeled_dataset, sets, **options)
    return Pool(sets=sets, texts=texts, left_out=left_out)


def read_unlabeled(source: str, sets: TextSets, *, hub: str, encoding: str) -> tuple[list[TextExample], int]:
    """Read texts without labels.

    Args:
        source: file, folder or dataset id.
        sets: labelled rows, whose texts are left out.
        hub: of an id.
        encoding: of text files.

    Returns:
        The texts, with target 0, without repeats; and the number of those that were left out.

    Raises:
        TaskHeadsError: rows that cannot be read, rows with labels, or no text that is not labelled already.
    """
    problems: list[Problem] = []
    rows: list[TextInput] = []
    for _, item in read_inputs(source, hub=hub, options=options_of(encoding, ())):
        if isinstance(item, Problem):
            problems.append(item)
        else:
            rows.append(item)
    problems += _label_problems(source, rows)
    if problems:
        raise TaskHeadsError(problems)
    known = {text_key(full_text(row)) for part in (sets.train, sets.dev, sets.test) for row in part}
    texts: list[TextExample] = []
    for row in rows:
        example = TextExample(text=row.text, text_b=row.text_b, target=0, source=row.source)
        key = text_key(full_text(example))
        if key not in known:
            known.add(key)
            texts.append(example)
    if not texts:
        found, fix = f"found no text in {len(rows):,} rows that is not labelled already", "give other texts"
        raise TaskHeadsError(Problem(source, found, "unlabelled texts", fix, code="file-empty"))
    return texts, len(rows) - len(texts)


def _label_problems(where: str, rows: Sequence[TextInput]) -> list[Problem]:
    """Return the problem of a source whose rows have labels, if any."""
    for row in rows:
        for name in (*TARGETS, *NAMES):
            if row.row.get(name) not in (None, "", [], -1, "-1") and name != "output":
                found = f"found the label {shorten(str(row.row[name]))} in the column {name!r}"
                fix = f"give it by --dataset_name, or drop the column {name!r}"
                return [
                    Problem(row.source or where, found, "texts without labels", fix, code="label-conflict")
                ]
    return []


@dataclass(frozen=True, kw_only=True)
class Engines:
    """What gives probabilities to texts; a model runs once over each text, not once a round.

    Args:
        problem_type: of the labels.
        num_labels: L.
        seed: of the folds.
        answers: text -> probabilities (L,) of a trained classifier; {} without one.
        states: text -> features of a frozen backbone; {} without one.
    """

    problem_type: str
    num_labels: int
    seed: int
    answers: Mapping[str, Floats]
    states: Mapping[str, Floats]

    @classmethod
    def of(cls, rows: Sequence[TextExample], sets: TextSets, arguments: PoolArguments) -> Engines:
        """Run the classifier or the backbone of the options over all rows, labelled or not."""
        texts = [full_text(row) for row in rows]
        answers: dict[str, Floats] = {}
        states: dict[str, Floats] = {}
        if arguments.model is not None:
            found = by_classifier(arguments.model, rows, sets, hub=arguments.hub)
            answers = dict(zip(texts, found, strict=True))
        elif arguments.model_name_or_path is not None:
            features = backbone_features(texts, arguments.model_name_or_path, arguments.hub)
            states = dict(zip(texts, features, strict=True))
        return cls(
            problem_type=sets.problem_type,
            num_labels=len(sets.labels),
            seed=arguments.seed,
            answers=answers,
            states=states,
        )

    def probabilities(self, rows: Sequence[TextExample], texts: Sequence[TextExample]) -> list[Floats]:
        """Return the probabilities (M, L) of texts by each engine.

        Args:
            rows: N labelled rows, on which the engines are fitted; a trained classifier does not read them.
            texts: M texts.
        """
        if self.answers:
            return [np.array([self.answers[full_text(row)] for row in texts]).reshape(-1, self.num_labels)]
        every, targets = [*rows, *texts], [row.target for row in rows]
        engines: list[FitAndScore] = [tfidf_texts(every, self.problem_type, self.num_labels)]
        if self.states:
            states = np.array([self.states[full_text(row)] for row in every])
            engines.append(features_texts(states, targets, self.num_labels))
        fitted, asked = np.arange(len(rows)), np.arange(len(rows), len(every))
        found = []
        for engine in engines:
            # The temperature is that of rows which the engine did not see.
            unseen = out_of_fold(rows, engine, width=self.num_labels, seed=self.seed)
            found.append(softmax(engine(fitted, asked) / temperature_of(unseen, np.array(targets))))
        return found


def by_classifier(
    model: str, texts: Sequence[TextExample], sets: TextSets, *, hub: str, where: str = "--model"
) -> Floats:
    """Return the calibrated probabilities (M, L) of a trained classifier, with a head or generative.

    Raises:
        TaskHeadsError: a title scorer, a model of another problem type, or of other labels.
    """
    scorer = open_scorer(model, hub=hub, device="auto", progress=True)
    names = [] if scorer.is_title_scorer else labels_of(scorer)
    if set(names) != set(sets.labels.names):
        others = sorted(set(names) ^ set(sets.labels.names))
        found = f"found a model of other labels ({', '.join(map(shorten, others[:3]))})"
        fix = "name a classifier that was trained on these labels"
        raise TaskHeadsError(Problem(where, found, "the labels of the data", fix, code="label-conflict"))
    asked = [row.text for row in texts]
    if isinstance(scorer, Scorer):
        answers = scorer.predict(asked, text_pairs=[row.text_b for row in texts] if sets.have_pairs else None)
    else:
        answers = scorer.predict(asked)
    return np.array([[one.probabilities[name] for name in sets.labels.names] for one in answers])


def labels_of(scorer: Scorer | LabelScorer) -> list[str]:
    """Return the names of the labels of a classifier."""
    if isinstance(scorer, Scorer):
        return list(scorer.model.config.label2id)
    return list(scorer.prompts.labels.names)


def pool_columns(row: TextExample) -> dict[str, Any]:
    """Return the texts of a row as columns."""
    return {"text": row.text, **({"text_b": row.text_b} if row.text_b else {})}
