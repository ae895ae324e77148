"""Which head, on which layer, pooled how: every combination is fitted on cached features, dev decides.

Decisions:

- A linear head is solved, once, for a path of penalties: it has one value and no spread. An MLP is trained
  with every seed, and the mean over the seeds ranks it. Differences between combinations are often smaller
  than those between seeds, so the table shows the spread too.
- Dev picks, and only dev: the figure of the winner on dev is therefore a little too good, the more so the
  more was tried. Test is not looked at here.
- The winner is the best by the mean, or, with a tolerance, the shallowest within it: a head on half the
  layers costs half the time of every answer. Of an MLP's seeds the best on dev is kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.training.class_balance import count_labels
from qwen_task_heads.training.convex_heads import PENALTIES, fit_path
from qwen_task_heads.training.feature_rows import FeatureRows, TextRows, check_soft
from qwen_task_heads.training.features import Features
from qwen_task_heads.training.frozen_heads import FittedHead, HeadTraining, fit_head, fresh_head, head_config
from qwen_task_heads.training.text_losses import resolve_text_loss

# From features (N, H) and the name of a loss to rows of train and of dev.
MakeRows = Callable[[torch.Tensor, str], tuple[FeatureRows, FeatureRows]]


@dataclass(frozen=True, kw_only=True, order=True)
class Combination:
    """One way to put a head on a backbone.

    Args:
        layers: whose states it reads, from 1; of several, one after the other.
        pooling: `last`, `mean`, `max`.
        head_sizes: widths of an MLP; () for the linear head.
        loss: name of it.
    """

    layers: tuple[int, ...]
    pooling: str
    head_sizes: tuple[int, ...]
    loss: str

    @property
    def layer(self) -> int:
        """The deepest of the layers, which is how many the model keeps."""
        return max(self.layers)

    @property
    def read(self) -> str:
        """The layers as `parse_layers` reads them: `20`, `15+20`."""
        return "+".join(map(str, self.layers))

    @property
    def head(self) -> str:
        """As `parse_head` reads it: `linear`, `mlp:256`."""
        return "mlp:" + ",".join(map(str, self.head_sizes)) if self.head_sizes else "linear"

    def head_options(self) -> dict[str, Any]:
        """Arguments of `models.build`."""
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
        combination: which.
        values: dev figure of each seed, by seed; of a linear head one, at the first seed.
        seed: the seed of the best of them.
        fitted: its head.
    """

    combination: Combination
    values: Mapping[int, float]
    seed: int
    fitted: FittedHead

    @property
    def mean(self) -> float:
        """Mean dev figure over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 of a single one."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else 0.0


def parse_head(text: str) -> tuple[int, ...]:
    """Read `linear` or `mlp:WIDTHS`.

    Raises:
        TaskHeadsError: it is neither.

    Example:
        >>> from qwen_task_heads.training.head_sweep import parse_head
        >>> parse_head("linear"), parse_head("mlp:1024,512")
        ((), (1024, 512))
    """
    kind, _, widths = text.partition(":")
    sizes = [width.strip() for width in widths.split(",")] if widths else []
    if (kind == "linear" and not sizes) or (kind == "mlp" and sizes and all(_is_width(w) for w in sizes)):
        return tuple(map(int, sizes))
    accepted = "linear, or mlp with its widths, as mlp:256 or mlp:1024,512"
    raise TaskHeadsError(Problem("--heads", f"found {text!r}", accepted, "choose such as mlp:256"))


def parse_layers(text: str | int) -> tuple[int, ...]:
    """Read `20`, or several layers whose states are concatenated: `15+20`.

    Raises:
        TaskHeadsError: it is neither.

    Example:
        >>> from qwen_task_heads.training.head_sweep import parse_layers
        >>> parse_layers("20"), parse_layers("20+15")
        ((20,), (15, 20))
    """
    numbers = str(text).split("+")  # a YAML file holds numbers
    if not all(map(_is_width, numbers)):
        accepted = "layers from 1, several by +, as 20 or 15+20"
        raise TaskHeadsError(Problem("--layers", f"found {text!r}", accepted, "choose such as 2"))
    return tuple(sorted(set(map(int, numbers))))


def _is_width(text: str) -> bool:
    return text.isdecimal() and int(text) > 0


def text_rows(
    train: Any, dev: Any, *, config: PooledClassifierConfig, options: Mapping[str, Mapping[str, Any]]
) -> MakeRows:
    """Give what `sweep_heads` takes as `rows`, for features of the rows of train and then of dev.

    Args:
        train: a data set of `tokenization.collators.text_dataset`.
        dev: another.
        config: of the classifier.
        options: of each loss by its name, as `resolve_text_loss` takes them.

    Raises:
        TaskHeadsError: labels out of range, options that do not fit, or soft labels that a loss leaves out.
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
            check_soft(loss, table)

    def make(features: torch.Tensor, loss: str) -> tuple[FeatureRows, FeatureRows]:
        parts = features.split([len(train), len(dev)])
        of_train, of_dev = (
            TextRows.of_table(part, table, loss=losses[loss], problem_type=kind)
            for part, table in zip(parts, (train, dev), strict=True)
        )
        return of_train, of_dev

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
    """Fit every combination of layers, pooling, head and loss; give them best first.

    A linear head is the solution of a convex problem, the same for each seed (`convex_heads.fit_path`). An
    MLP is trained by steps from each seed (`frozen_heads.fit_head`).

    Args:
        model: names the task, the labels and how heads are drawn.
        features: from `extract_features`, of train and dev together or however `rows` takes them.
        rows: makes rows of train and dev of features and a loss.
        layers: each a layer of `features`, or several that are concatenated; None for each by itself.
        heads: widths of each head, see `parse_head`.
        losses: names that `rows` knows.
        seeds: of MLPs; each draws another head and another order of rows.
        settings: of every training by steps.
        penalties: of the path of linear heads.
        progress: show a bar.

    Raises:
        TaskHeadsError: nothing to try, or a loss that is not finite.
    """
    states = _states(features, layers)
    grid = list(product(states, dict.fromkeys(losses), dict.fromkeys(heads)))
    if not grid or not seeds:
        accepted = "a layer, a pooling, a head, a loss and a seed at least"
        raise TaskHeadsError(Problem("sweep", "found nothing to try", accepted, "name some"))
    made: dict[Any, tuple[FeatureRows, FeatureRows]] = {}
    results = []
    for (read, pooling), loss, sizes in _bar(grid, progress=progress):
        if (read, pooling, loss) not in made:
            joined = torch.cat([features[layer, pooling].to(model.device) for layer in read], dim=1)
            made = {(read, pooling, loss): rows(joined, loss)}
        train, dev = made[read, pooling, loss]
        config = head_config(model.config, pooling=pooling, head_sizes=sizes)
        found: dict[int, FittedHead] = {}
        for seed in dict.fromkeys(seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                head = fresh_head(model, config, layers=len(read)).to(model.device)
            if not sizes:
                found[seed] = fit_path(head, train, dev=dev, penalties=penalties)
                break  # every seed has this solution
            found[seed] = fit_head(head, train, dev=dev, settings=settings, seed=seed)
        sign = 1 if dev.best[1] else -1
        seed = max(found, key=lambda number: sign * found[number].value)
        combination = Combination(layers=read, pooling=pooling, head_sizes=sizes, loss=loss)
        values = {number: fitted.value for number, fitted in found.items()}
        results.append(Result(combination=combination, values=values, seed=seed, fitted=found[seed]))
    return sorted(results, key=lambda result: (-sign * result.mean, result.combination))


def _states(
    features: Features, layers: Sequence[tuple[int, ...]] | None
) -> list[tuple[tuple[int, ...], str]]:
    """What heads read: layers and a pooling."""
    poolings = list(dict.fromkeys(pooling for _, pooling in features))
    single = [(layer,) for layer in dict.fromkeys(layer for layer, _ in features)]
    return list(product(single if layers is None else dict.fromkeys(layers), poolings))


def choose(results: Sequence[Result], *, tolerance: float = 0.0) -> Result:
    """The best result; with a tolerance, the best of the shallowest layer that comes so near to it.

    Args:
        results: best first, from `sweep_heads`.
        tolerance: in units of the dev figure.
    """
    best = results[0]
    near = [result for result in results if abs(result.mean - best.mean) <= tolerance]
    least = min(result.combination.layer for result in near)
    return next(result for result in near if result.combination.layer == least)


def _bar(grid: Sequence[Any], *, progress: bool) -> Iterable[Any]:
    if not progress or len(grid) < 2:
        return grid
    from tqdm.auto import tqdm

    return tqdm(grid, desc="Heads", unit="head")
