"""Features with their labels or preferences: the rows on which a head on a frozen backbone is trained.

The losses are those of the trainers, one value per row. The metrics are those of the trainers' evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from qwen_task_heads.losses.registry import TextLoss
from qwen_task_heads.losses.rows import Loss
from qwen_task_heads.metrics.classification import BEST_METRIC, dev_metrics
from qwen_task_heads.metrics.ranking import pair_credit
from qwen_task_heads.tokenization.collators import PREFERENCE_SIGNALS

ROWS_PER_PASS = 65_536  # of dev through a head, and of moments


class FeatureRows(Protocol):
    """N rows of features to train or evaluate a head on, with their losses and metrics."""

    @property
    def best(self) -> tuple[str, bool]:
        """Metric that selects an epoch, and whether a greater value is better."""
        ...

    def __len__(self) -> int: ...

    def losses(self, head: nn.Module, index: Tensor | slice) -> Tensor:
        """Return losses (B,) of the rows at `index` (B,), weighted."""
        ...

    def features_of(self) -> Sequence[Tensor]:
        """Return all features, as one or several matrices (M, H)."""
        ...

    def contrasts(self) -> Tensor:
        """Return the features that losses depend on (M, H); for titles, differences within pair or group."""
        ...

    def mapped(self, matrix: Tensor) -> FeatureRows:
        """Return the same rows with features in fp32 times `matrix` (H, G)."""
        ...

    def metrics(self, head: nn.Module) -> dict[str, float]:
        """Return `eval_loss` and the dev metrics of all rows, with the names that Trainer uses."""
        ...


@dataclass(frozen=True)
class TextRows:
    """Features of labelled texts.

    Args:
        features: (N, H), any float dtype.
        labels: as `TextCollator` gives them: (N,) int64, or (N, L) floats.
        loss: from `resolve_text_loss`.
        problem_type: of the config.
        soft: (N, L) probabilities, or None.
        weight: (N,) floats, or None.
    """

    features: Tensor
    labels: Tensor
    loss: TextLoss
    problem_type: str
    soft: Tensor | None = None
    weight: Tensor | None = None

    @classmethod
    def of_table(cls, features: Tensor, table: Any, *, loss: TextLoss, problem_type: str) -> TextRows:
        """Take labels, soft labels and weights from a data set of `tokenization.collators.text_dataset`.

        Raises:
            TaskHeadsError: soft labels that the loss does not use.
        """
        loss.check_soft(table, where="--losses")
        has_ids = problem_type in ("single_label_classification", "ordinal")
        columns = {
            name: torch.tensor(list(table[name]), dtype=torch.float32, device=features.device)
            for name in ("soft", "weight")
            if name in table.column_names
        }
        labels = torch.tensor(list(table["labels"]), dtype=torch.int64 if has_ids else torch.float32)
        return cls(features, labels.to(features.device), loss, problem_type, **columns)

    @property
    def best(self) -> tuple[str, bool]:
        """Metric of the problem type, and whether a greater value is better."""
        return BEST_METRIC[self.problem_type]

    def __len__(self) -> int:
        return len(self.labels)

    def features_of(self) -> Sequence[Tensor]:
        """See `FeatureRows`."""
        return [self.features]

    def contrasts(self) -> Tensor:
        """See `FeatureRows`."""
        return self.features

    def mapped(self, matrix: Tensor) -> TextRows:
        """See `FeatureRows`."""
        return replace(self, features=self.features.float() @ matrix)

    def losses(self, head: nn.Module, index: Tensor | slice) -> Tensor:
        """See `FeatureRows`."""
        return self._losses(head(self.features[index]), index)

    def _losses(self, logits: Tensor, index: Tensor | slice) -> Tensor:
        columns = {} if self.soft is None else {"soft": self.soft[index]}
        losses = self.loss(logits, self.labels[index], **columns)
        return losses if self.weight is None else losses * self.weight[index]

    def metrics(self, head: nn.Module) -> dict[str, float]:
        """See `FeatureRows`."""
        from transformers import EvalPrediction

        logits = logits_of(head, self.features)
        losses = self._losses(logits, slice(None))
        prediction = EvalPrediction(logits.cpu().numpy(), self.labels.cpu().numpy())
        values = {f"eval_{name}": value for name, value in dev_metrics(self.problem_type)(prediction).items()}
        return {"eval_loss": float(losses.double().mean()), **values}


@dataclass(frozen=True)
class PairRows:
    """Features of pairs of titles.

    Args:
        chosen: (N, H), any float dtype.
        rejected: (N, H).
        loss: from `PAIR_LOSSES`.
        signals: `margin` or `preference`, (N,) floats; columns that the loss does not use are ignored.
        weight: (N,) floats, or None.
        options: scalar options of the loss; an option with the name of a column applies to all rows.
    """

    chosen: Tensor
    rejected: Tensor
    loss: Loss
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    best: tuple[str, bool] = ("eval_accuracy", True)

    @classmethod
    def of_table(
        cls, features: Tensor, table: Any, *, loss: Loss, options: Mapping[str, float] | None = None
    ) -> PairRows:
        """Take the preference signals from a data set of `tokenization.collators.pair_dataset`.

        Args:
            features: (2N, H) of `chosen_ids`, then of `rejected_ids`.
            table: the data set.
            loss: from `PAIR_LOSSES`.
            options: of the loss.
        """
        chosen, rejected = features.chunk(2)
        columns = {
            name: torch.tensor(list(table[name]), dtype=torch.float32, device=features.device)
            for name in PREFERENCE_SIGNALS
            if name in table.column_names
        }
        weight = columns.pop("weight", None)
        loss.check([*columns, *(options or {})])
        return cls(chosen, rejected, loss, columns, weight, options or {})

    def __len__(self) -> int:
        return len(self.chosen)

    def features_of(self) -> Sequence[Tensor]:
        """See `FeatureRows`."""
        return [self.chosen, self.rejected]

    def contrasts(self) -> Tensor:
        """See `FeatureRows`."""
        return self.chosen.float() - self.rejected.float()

    def mapped(self, matrix: Tensor) -> PairRows:
        """See `FeatureRows`."""
        return replace(self, chosen=self.chosen.float() @ matrix, rejected=self.rejected.float() @ matrix)

    def losses(self, head: nn.Module, index: Tensor | slice) -> Tensor:
        """See `FeatureRows`."""
        both = torch.cat([self.chosen[index], self.rejected[index]])
        return self._losses(head(both).squeeze(-1), index)

    def _losses(self, scores: Tensor, index: Tensor | slice) -> Tensor:
        chosen, rejected = scores.chunk(2)
        columns = {name: values[index] for name, values in self.signals.items()}
        losses = self.loss(chosen, rejected, **self.loss.inputs(self.options, columns, like=chosen))
        return losses if self.weight is None else losses * self.weight[index]

    def metrics(self, head: nn.Module) -> dict[str, float]:
        """See `FeatureRows`."""
        scores = logits_of(head, torch.cat([self.chosen, self.rejected])).squeeze(-1)
        losses = self._losses(scores, torch.arange(len(self), device=scores.device))
        chosen, rejected = scores.double().cpu().numpy().reshape(2, -1)
        credit = pair_credit(chosen, rejected)  # .5 for equal scores
        return {"eval_loss": float(losses.double().mean()), "eval_accuracy": float(credit.mean())}


@dataclass(frozen=True)
class GroupRows:
    """Features of groups of titles; each group is a row.

    Args:
        features: (N, H) of all titles, group after group, any float dtype.
        sizes: titles of each group, with sum N.
        gains: (N,) floats, click rates.
        loss: from `GROUP_LOSSES`.
        options: of the loss.
    """

    features: Tensor
    sizes: tuple[int, ...]
    gains: Tensor
    loss: Loss
    options: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_table(
        cls, features: Tensor, table: Any, *, loss: Loss, options: Mapping[str, float] | None = None
    ) -> GroupRows:
        """Take sizes and gains from a data set of `tokenization.collators.group_dataset`."""
        gains = [torch.tensor(row, dtype=torch.float32) for row in table["gains"]]
        return cls(
            features, tuple(map(len, gains)), torch.cat(gains).to(features.device), loss, options or {}
        )

    @property
    def best(self) -> tuple[str, bool]:
        """The loss, less is better. Groups have no chosen title; sweeps evaluate on pairs."""
        return "eval_loss", False

    def __len__(self) -> int:
        return len(self.sizes)

    def features_of(self) -> Sequence[Tensor]:
        """See `FeatureRows`."""
        return [self.features]

    def contrasts(self) -> Tensor:
        """See `FeatureRows`."""
        groups = self.features.float().split(list(self.sizes))
        return torch.cat([group - group.mean(0) for group in groups])

    def mapped(self, matrix: Tensor) -> GroupRows:
        """See `FeatureRows`."""
        return replace(self, features=self.features.float() @ matrix)

    def losses(self, head: nn.Module, index: Tensor | slice) -> Tensor:
        """See `FeatureRows`."""
        groups = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        sizes = [self.sizes[group] for group in groups]
        if sizes == [*self.sizes] and isinstance(index, slice):  # all groups in their order: no copy
            return self._losses(head(self.features).squeeze(-1), sizes, self.gains)
        ends = np.cumsum(self.sizes)
        positions = torch.cat(
            [torch.arange(ends[group] - self.sizes[group], ends[group]) for group in groups]
        )
        positions = positions.to(self.features.device)
        scores = head(self.features[positions]).squeeze(-1)
        return self._losses(scores, sizes, self.gains[positions])

    def _losses(self, scores: Tensor, sizes: Sequence[int], gains: Tensor) -> Tensor:
        return self.loss(scores, sizes=sizes, gains=gains, **self.options)

    def metrics(self, head: nn.Module) -> dict[str, float]:
        """See `FeatureRows`."""
        scores = logits_of(head, self.features).squeeze(-1)
        losses = self._losses(scores, self.sizes, self.gains)
        return {"eval_loss": float(losses.double().mean())}


@torch.no_grad()
def logits_of(head: nn.Module, features: Tensor) -> Tensor:
    """Return logits (N, L) of features (N, H), in fp32, without dropout."""
    was_training = head.training
    head.eval()
    logits = torch.cat([head(part) for part in features.split(ROWS_PER_PASS)])
    head.train(was_training)
    return logits
