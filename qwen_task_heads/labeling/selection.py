"""Active learning: choose which unlabelled texts to label next, `qth select`.

A text is worth a label if the engines are unsure of it, if they disagree, and if it differs from the other
chosen ones. The texts with the highest scores are clustered, and the best one of each cluster is taken
(Zhdanov 2019, arXiv:1901.05954).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen_task_heads.data.examples import TextExample, full_text
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.labeling.confident_learning import Floats
from qwen_task_heads.labeling.pools import Engines, PoolArguments, pool_columns, read_pool
from qwen_task_heads.labeling.review import cell, write_whole
from qwen_task_heads.metrics.title_baselines import tfidf_vectorizers

STRATEGIES = ("margin", "entropy", "disagreement", "random")
SHORTLIST = 10  # texts per text that is chosen, among which the clusters are
DIMENSIONS = 64  # of the vectors that are clustered


@dataclass(kw_only=True)
class SelectionArguments(PoolArguments):
    """Options of `select_rows`.

    Args:
        count: number of texts to choose.
        strategy: `margin` or `entropy` of the mean probabilities, `disagreement` of the engines
            (Jensen-Shannon divergence), or `random`.
        diverse: whether to take one text per cluster of the shortlist.
    """

    count: int = field(default=100, metadata={"help": "Number of texts to choose."})
    strategy: str = field(
        default="margin",
        metadata={"choices": list(STRATEGIES), "help": "Score of a text; disagreement needs two engines."},
    )
    diverse: bool = field(default=True, metadata={"help": "Take one text per cluster of similar ones."})


@dataclass(frozen=True, kw_only=True)
class SelectionReport:
    """What was chosen.

    Args:
        path: CSV file with the columns row, text, suggested, confidence, and label, which is to be filled in.
        count: number of texts.
        pool: number of unlabelled texts.
        left_out: texts of the pool that are labelled already, or repeat another one.
    """

    path: Path
    count: int
    pool: int
    left_out: int

    def __str__(self) -> str:
        left_out = f", {self.left_out:,} more were labelled already or repeated" if self.left_out else ""
        return (
            f"{self.count:,} of {self.pool:,} texts chosen{left_out}\n"
            f"File: {self.path}\nNext: fill in the column label, and add the rows to the training set"
        )


def select_rows(arguments: SelectionArguments) -> SelectionReport:
    """Choose texts to label next, and write them as CSV.

    Raises:
        TaskHeadsError: see `read_pool`; a count below 1, or disagreement of a single engine.
    """
    problems = []
    if arguments.count < 1:
        fix = "choose such as 100"
        problems.append(Problem("--count", f"found {arguments.count}", "1 or more", fix, code="option-range"))
    if arguments.strategy == "disagreement" and (arguments.model or not arguments.model_name_or_path):
        found, fix = "found one engine", "add --model_name_or_path, without --model"
        problems.append(Problem("--strategy", found, "two engines", fix, code="option-conflict"))
    if problems:
        raise TaskHeadsError(problems)
    pool = read_pool(arguments)
    train = list(pool.sets.train)
    engines = Engines.of([*train, *pool.texts], pool.sets, arguments).probabilities(train, pool.texts)
    chosen = choose(
        pool.texts,
        engines,
        count=arguments.count,
        strategy=arguments.strategy,
        diverse=arguments.diverse,
        seed=arguments.seed,
    )
    mean, names = np.mean(engines, axis=0), pool.sets.labels.names
    text = io.StringIO(newline="")
    columns = ["row", *pool_columns(pool.texts[0]), "suggested", "confidence", "label"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    for number in chosen.tolist():
        row, best = pool.texts[number], int(mean[number].argmax())
        cells = {name: cell(value) for name, value in pool_columns(row).items()}
        answer = {"suggested": names[best], "confidence": f"{mean[number, best]:.4f}", "label": ""}
        writer.writerow({"row": row.source, **cells, **answer})
    path = write_whole(arguments.output_file, text.getvalue().encode("utf-8-sig"))
    return SelectionReport(path=path, count=len(chosen), pool=len(pool.texts), left_out=pool.left_out)


def choose(
    texts: Sequence[TextExample],
    engines: Sequence[Floats],
    *,
    count: int,
    strategy: str = "margin",
    diverse: bool = True,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return the numbers of the chosen texts, highest score first.

    Args:
        texts: M unlabelled texts.
        engines: probabilities (M, L) of each engine.
        count: number of texts; all if there are fewer.
        strategy: one of `STRATEGIES`.
        diverse: see `SelectionArguments`.
        seed: of the clusters, and of `random`.

    Example:
        >>> texts = [TextExample(text=text, target=0) for text in ("a cat", "a dog", "a cat sat")]
        >>> choose(texts, [np.array([[0.9, 0.1], [0.5, 0.5], [0.6, 0.4]])], count=1, diverse=False).tolist()
        [1]
    """
    scores = score(engines, strategy=strategy, seed=seed)
    order = np.argsort(-scores, kind="stable")
    if not diverse or strategy == "random" or count >= len(texts):
        return order[:count]
    shortlist = order[: SHORTLIST * count]
    clusters = _clusters([full_text(texts[row]) for row in shortlist], count=count, seed=seed)
    firsts = sorted({int(cluster): place for place, cluster in reversed([*enumerate(clusters)])}.values())
    rest = [place for place in range(len(shortlist)) if place not in set(firsts)]
    return shortlist[sorted([*firsts, *rest[: count - len(firsts)]])]


def score(engines: Sequence[Floats], *, strategy: str, seed: int = 0) -> Floats:
    """Return the worth (M,) of a label of each text.

    Example:
        >>> score([np.array([[0.9, 0.1], [0.5, 0.5]])], strategy="margin").round(1).tolist()
        [0.2, 1.0]
    """
    mean = np.mean(engines, axis=0)
    if strategy == "random":
        return np.random.default_rng(seed).random(len(mean))
    if strategy == "margin":
        second, first = np.sort(mean, axis=1)[:, -2:].T
        return np.asarray(1 - (first - second))
    if strategy == "entropy":
        return _entropy(mean)
    return np.asarray(_entropy(mean) - np.mean([_entropy(one) for one in engines], axis=0))


def _entropy(values: Floats) -> Floats:
    return np.asarray(-(values * np.log(np.clip(values, 1e-12, 1))).sum(1))


def _clusters(texts: Sequence[str], *, count: int, seed: int) -> NDArray[np.int64]:
    """Return the cluster (S,) of each text, by k-means on the leading components of TF-IDF."""
    from scipy import sparse
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import TruncatedSVD

    vectorizers = tfidf_vectorizers(texts, longest=3)
    features = sparse.hstack([one.fit_transform(texts) for one in vectorizers]).tocsr()
    width = min(DIMENSIONS, features.shape[1] - 1, len(texts) - 1)
    if width >= 2:
        features = TruncatedSVD(width, random_state=seed).fit_transform(features)
    return np.asarray(MiniBatchKMeans(count, random_state=seed, n_init=1).fit_predict(features))
