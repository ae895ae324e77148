"""Sweep over layers, poolings, heads and losses: every combination is fitted on cached features.

Design decisions:

- A linear head is solved once, for a path of penalties: it has one value and no spread. An MLP is trained
  with every seed and ranked by the mean over the seeds. Differences between combinations are often smaller
  than those between seeds, so that the table also shows the spread.
- Only dev selects the best combination. Its dev metric is therefore biased upwards, more so with more
  combinations. The test split is not used here.
- The best combination has the best mean or, with a tolerance, the fewest layers within it: a head on half of
  the layers takes half the time per prediction. Of an MLP's seeds, the best one on dev is kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from tqdm.auto import tqdm

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.losses.class_balance import count_labels
from qwen_task_heads.losses.registry import resolve_text_loss
from qwen_task_heads.training.convex_heads import PENALTIES, fit_path
from qwen_task_heads.training.feature_cache import Features
from qwen_task_heads.training.feature_rows import FeatureRows, TextRows
from qwen_task_heads.training.frozen_heads import FittedHead, HeadTraining, fit_head, fresh_head, head_config

# Maps features (N, H) and the name of a loss to rows of train and of dev.
MakeRows = Callable[[torch.Tensor, str], tuple[FeatureRows, FeatureRows]]


@dataclass(frozen=True, kw_only=True, order=True)
class Combination:
    """Layers, pooling, head and loss of one entry of a sweep.

    Args:
        layers: layers whose states the head reads, from 1; the states of several layers are concatenated.
        pooling: `last`, `mean`, `max`.
        head_sizes: widths of an MLP; () for the linear head.
        loss: name of the loss.
    """

    layers: tuple[int, ...]
    pooling: str
    head_sizes: tuple[int, ...]
    loss: str

    @property
    def layer(self) -> int:
        """The deepest layer, which is the number of layers that the model keeps."""
        return max(self.layers)

    @property
    def read(self) -> str:
        """The layers in the format of `parse_layers`: `20`, `15+20`."""
        return "+".join(map(str, self.layers))

    @property
    def head(self) -> str:
        """The head in the format of `parse_head`: `linear`, `mlp:256`."""
        return "mlp:" + ",".join(map(str, self.head_sizes)) if self.head_sizes else "linear"

    def head_options(self) -> dict[str, Any]:
        """Return the arguments of `models.build`."""
        options: dict[str, Any] = {"backbone_layers": self.layer, "pooling": self.pooling}
        if len(self.layers) > 1:
            options["head_layers"] = list(self.layers)
        if not self.head_sizes:
            return {**options, "head": "linear"}
        return {**options, "head": "mlp", "head_sizes": list(self.head_sizes)}


@dataclass(frozen=True, kw_only=True)
class Result:
    """A combination, solved once or trained with every seed.

    Args:
        combination: layers, pooling, head and loss.
        values: dev metric by seed; a linear head has one value, at the first seed.
        seed: seed with the best value.
        fitted: head of that seed.
    """

    combination: Combination
    values: Mapping[int, float]
    seed: int
    fitted: FittedHead

    @property
    def mean(self) -> float:
        """Mean dev metric over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 for a single seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else 0.0


def parse_head(text: str) -> tuple[int, ...]:
    """Parse `linear` or `mlp:WIDTHS`.

    Raises:
        TaskHeadsError: the text is neither.

    Example:
        >>> from qwen_task_heads.training.head_sweep import parse_head
        >>> parse_head("linear"), parse_head("mlp:1024,512")
        ((), (1024, 512))
    """
    kind, _, widths = text.partition(":")
    sizes = [width.strip() for width in widths.split(",")] if widths else []
    if (kind == "linear" and not sizes) or (kind == "mlp" and sizes and all(_is_width(w) for w in sizes)):
        return tuple(map(int, sizes))
    problem, expected = f"found {text!r}", "linear, or mlp with its widths, such as mlp:256 or mlp:1024,512"
    raise TaskHeadsError(Problem("--heads", problem, expected, "choose such as mlp:256", code="option-value"))


def parse_layers(text: str | int) -> tuple[int, ...]:
    """Parse a layer such as `20`, or several layers whose states are concatenated, such as `15+20`.

    Raises:
        TaskHeadsError: the text is neither.

    Example:
        >>> from qwen_task_heads.training.head_sweep import parse_layers
        >>> parse_layers("20"), parse_layers("20+15")
        ((20,), (15, 20))
    """
    numbers = str(text).split("+")  # a YAML file may contain a number
    if not all(map(_is_width, numbers)):
        problem, expected = f"found {text!r}", "a layer from 1, or several joined by +, such as 20 or 15+20"
        raise TaskHeadsError(Problem("--layers", problem, expected, "choose such as 2", code="option-value"))
    return tuple(sorted(set(map(int, numbers))))


def _is_width(text: str) -> bool:
    return text.isdecimal() and int(text) > 0


def text_rows(
    train: Any, dev: Any, *, config: PooledClassifierConfig, options: Mapping[str, Mapping[str, Any]]
) -> MakeRows:
    """Return the argument `rows` of `sweep_heads`, for features of the rows of train, then of dev.

    Args:
        train: a data set of `tokenization.collators.text_dataset`.
        dev: another data set.
        config: of the classifier.
        options: of each loss by its name, as `resolve_text_loss` takes them.

    Raises:
        TaskHeadsError: labels out of range, options that a loss does not take, or soft labels that a loss
            does not use.
    """
    kind, labels = str(config.problem_type), config.num_labels
    counts = count_labels(list(train["labels"]), problem_type=kind, num_labels=labels)
    losses = {
        name: resolve_text_loss(
            name, problem_type=kind, num_labels=labels, options=given, class_counts=counts, rows=len(train)
        )
        for name, given in options.items()
    }
    for loss in losses.values():
        for table in (train, dev):
            loss.check_soft(table, where="--losses")

    def make(features: torch.Tensor, loss: str) -> tuple[FeatureRows, FeatureRows]:
        train_features, dev_features = features.split([len(train), len(dev)])
        return (
            TextRows.of_table(train_features, train, loss=losses[loss], problem_type=kind),
            TextRows.of_table(dev_features, dev, loss=losses[loss], problem_type=kind),
        )

    return make


def sweep_heads(
    model: TaskHeadModel,
    features: Features,
    rows: MakeRows,
    *,
    layers: Sequence[tuple[int, ...]] | None = None,
    heads: Sequence[tuple[int, ...]] = ((),),
    losses: Sequence[str],
    seeds: Sequence[int] = (0,),
    settings: HeadTraining | None = None,
    penalties: Sequence[float] = PENALTIES,
    progress: bool = True,
) -> list[Result]:
    """Fit every combination of layers, pooling, head and loss; return the results, best first.

    A linear head is the solution of a convex problem, the same for each seed (`convex_heads.fit_path`). An
    MLP is trained by gradient steps from each seed (`frozen_heads.fit_head`).

    Args:
        model: defines the task, the labels and the initialisation of heads.
        features: from `extract_features`, of the rows of train and dev in the order that `rows` expects.
        rows: maps features and the name of a loss to rows of train and dev.
        layers: each a layer of `features`, or several that are concatenated; None for each layer by itself.
        heads: widths of each head, see `parse_head`.
        losses: names that `rows` accepts.
        seeds: of MLPs; each seed gives another initialisation and another order of rows.
        settings: of the training of MLPs.
        penalties: of the path of linear heads.
        progress: show a bar.

    Raises:
        TaskHeadsError: there is no combination, or a loss is not finite.
    """
    states = _states(features, layers)
    grid = list(product(states, dict.fromkeys(losses), dict.fromkeys(heads)))
    if not grid or not seeds:
        expected, fix = "at least one layer, pooling, head, loss and seed", "pass at least one of each"
        raise TaskHeadsError(Problem("sweep", "found no combination", expected, fix, code="option-missing"))
    cached: dict[Any, tuple[FeatureRows, FeatureRows]] = {}  # rows of the current layers, pooling and loss
    results = []
    for (read, pooling), loss, sizes in tqdm(
        grid, desc="Heads", unit="head", disable=not progress or len(grid) < 2
    ):
        if (read, pooling, loss) not in cached:
            joined = torch.cat([features[layer, pooling].to(model.device) for layer in read], dim=1)
            cached = {(read, pooling, loss): rows(joined, loss)}
        train, dev = cached[read, pooling, loss]
        config = head_config(model.config, pooling=pooling, head_sizes=sizes)
        fitted: dict[int, FittedHead] = {}
        for seed in dict.fromkeys(seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                head = fresh_head(model, config, layers=len(read)).to(model.device)
            if not sizes:
                fitted[seed] = fit_path(head, train, dev=dev, penalties=penalties)
                break  # the solution is the same for every seed
            fitted[seed] = fit_head(head, train, dev=dev, settings=settings, seed=seed)
        sign = 1 if dev.best[1] else -1
        best = max(fitted, key=lambda seed: sign * fitted[seed].value)
        combination = Combination(layers=read, pooling=pooling, head_sizes=sizes, loss=loss)
        values = {seed: one.value for seed, one in fitted.items()}
        results.append(Result(combination=combination, values=values, seed=best, fitted=fitted[best]))
    return sorted(results, key=lambda result: (-sign * result.mean, result.combination))


def _states(
    features: Features, layers: Sequence[tuple[int, ...]] | None
) -> list[tuple[tuple[int, ...], str]]:
    """Return the layers and the pooling of each input of a head."""
    poolings = list(dict.fromkeys(pooling for _, pooling in features))
    single = [(layer,) for layer in dict.fromkeys(layer for layer, _ in features)]
    return list(product(single if layers is None else dict.fromkeys(layers), poolings))


def choose(results: Sequence[Result], *, tolerance: float = 0.0) -> Result:
    """Return the best result; with a tolerance, the best one of the shallowest layer within it.

    Args:
        results: best first, from `sweep_heads`.
        tolerance: in units of the dev metric.
    """
    best = results[0]
    near = [result for result in results if abs(result.mean - best.mean) <= tolerance]
    least = min(result.combination.layer for result in near)
    return next(result for result in near if result.combination.layer == least)
