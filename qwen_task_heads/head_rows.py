"""Add labels to a trained head by the names of its rows.

Design:
- The last layer of a linear or MLP head has one row per label. A row moves with the name of its label, so
  new labels may have any position in the new order.
- A new row starts as the mean of the old rows, as new token embeddings do in transformers. Its logit is then
  the mean of the old logits, so an untrained new label is never the most probable label of a text
  (Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
- Labels are only added. A list without a label of the head, or with the same labels in another order, is
  refused, because it was more likely written for another model.
- A calibration applies to the labels on which it was fitted, and is dropped if labels are added.
- An ordinal head has no row per label: one latent value and K - 1 thresholds, which new labels would change.
- The labels of a head of several questions are their options, to which none can be added alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from qwen_task_heads.errors import error_at
from qwen_task_heads.hubcode.modeling_task_heads import TaskHeadModel
from qwen_task_heads.hubcode.pooling_task_heads import CumulativeLink, FloatLinear, build_head
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.labels.label_map import LabelMap, few_names

logger = logging.get_logger(__name__)

LIST = "name a file by --labels that lists them, one per line"
LABEL_FIELDS = ("label_descriptions", "label_examples", "label_aliases", "label_parents")  # of a config


def relabeled(saved: LabelMap, names: Sequence[str], **stated: Sequence[Any]) -> LabelMap:
    """Return a label map with other names; saved labels keep their descriptions and other fields.

    Args:
        saved: labels of a model.
        names: the names of the new map, in its order.
        **stated: `descriptions`, `examples`, `aliases` or `parents`, one per name, instead of the saved
            fields.

    Raises:
        TaskHeadsError: a blank or repeated name, or a field of another length.

    Example:
        >>> from qwen_task_heads.labels.label_map import LabelMap
        >>> from qwen_task_heads.head_rows import relabeled
        >>> relabeled(LabelMap(("a",), descriptions=("first",)), ["b", "a"]).descriptions
        ('', 'first')
    """
    fields: dict[str, Any] = {}
    for field, empty in (("descriptions", ""), ("examples", ()), ("aliases", ()), ("parents", "")):
        values = vars(saved)[field]
        known = dict(zip(saved.names, values, strict=False))
        if field in stated:
            values = stated[field] or ()
            fields[field] = tuple(value if isinstance(value, str) else tuple(value) for value in values)
        elif values:
            fields[field] = tuple(known.get(name, empty) for name in names)
    return LabelMap(tuple(names), **fields)


def check_added(
    labels: LabelMap,
    saved: LabelMap,
    *,
    problem_type: str | None,
    where: str = "--labels",
    base: str = "",
    kept: bool = True,
) -> None:
    """Raise for labels to which a head cannot be extended by adding rows.

    Args:
        labels: labels of the run.
        saved: labels of the head, in the order of its rows.
        problem_type: problem type of the head.
        where: source of `labels`, for the message.
        base: name of the backbone on which an ordinal model can be trained again; "" if it is not known.
        kept: whether a run without stated labels uses those of the head.

    Raises:
        TaskHeadsError: a label of the head is not among `labels`, the same labels have another order, or
            labels are added to an ordinal head.

    Example:
        >>> from qwen_task_heads.labels.label_map import LabelMap
        >>> from qwen_task_heads.head_rows import check_added
        >>> check_added(LabelMap(("c", "a", "b")), LabelMap(("a", "b")), problem_type=None)
    """
    if labels.names == saved.names:
        return
    fix = "leave the label file out: the model keeps its own labels"
    if lost := [name for name in saved.names if name not in labels.label2id]:
        problem = f"found {len(labels):,} labels without {few_names(lost)}"
        expected = f"all labels of the head ({few_names(saved.names)}), optionally with new ones"
        fix = f"add the missing ones, or {fix}" if kept else f"{LIST}, and new ones after them"
    elif len(labels) == len(saved):
        problem = f"found the labels of the head in another order, {few_names(labels.names)}"
        expected = f"their order in the head, {few_names(saved.names)}, or additional labels"
        fix = fix if kept else f"{LIST}, in the order of id2label in its config.json"
    elif problem_type == QUESTIONS:
        problem = "found labels to add to a head of several questions"
        expected = "its own questions, whose options are its labels"
        fix = (
            "train a new model: give a plain backbone as --model_name_or_path" if kept else "drop --init_head"
        )
    elif problem_type == "ordinal":
        new = [name for name in labels.names if name not in saved.label2id]
        problem = f"found new labels ({few_names(new)}) for an ordinal head of {len(saved):,}"
        expected = "its own labels, because an ordinal head has K - 1 thresholds and no row per label"
        plain = f"the backbone, {base}" if base else "a plain backbone"
        fix = f"leave them out, or train a new model: give {plain} as --model_name_or_path"
        fix = fix if kept else "drop --init_head"
    else:
        return
    raise error_at(where, problem, expected, fix, code="label-conflict")


def rows_by_name(
    state: Mapping[str, torch.Tensor], head: nn.Module, *, saved: LabelMap, labels: LabelMap
) -> dict[str, torch.Tensor]:
    """Arrange the tensors of a saved head for other labels.

    Args:
        state: tensors of the saved head, by their names in `head`; those of its last layer are (L, in) and
            (L,), with L labels.
        head: a linear or MLP head, from which the names of the last layer are read.
        saved: the L labels of `state`.
        labels: the new labels.

    Returns:
        The tensors; those of the last layer have a row per new label: the saved row of its name, or the mean
        of all saved rows. A tensor without a row per saved label is returned unchanged.

    Example:
        >>> import torch
        >>> from qwen_task_heads.labels.label_map import LabelMap
        >>> from qwen_task_heads.head_rows import rows_by_name
        >>> from qwen_task_heads.hubcode.pooling_task_heads import FloatLinear
        >>> old, new = LabelMap(("a", "b")), LabelMap(("new", "b", "a"))
        >>> state = {"weight": torch.tensor([[1.0], [5.0]])}
        >>> rows_by_name(state, FloatLinear(1, 3, bias=False), saved=old, labels=new)["weight"].flatten()
        tensor([3., 5., 1.])
    """
    *_, last = (name for name, module in head.named_modules() if isinstance(module, FloatLinear))
    names = {".".join(filter(None, (last, kind))) for kind in ("weight", "bias")}
    moved = dict(state)
    for name in names & state.keys():
        rows = state[name]
        if len(rows) == len(saved):
            mean = rows.float().mean(0).to(rows.dtype)
            moved[name] = torch.stack(
                [rows[saved.label2id[label]] if label in saved.label2id else mean for label in labels.names]
            )
    return moved


def set_labels(model: Any, labels: LabelMap) -> None:
    """Set labels that include all labels of a model, in place; rows of the head move by name.

    Args:
        model: a `PooledClassifier` without an adapter.
        labels: as `check_added` accepts them. Their descriptions, examples, aliases and parents replace those
            of the model's config.

    Example:
        >>> from qwen_task_heads import LabelMap, build
        >>> from qwen_task_heads.head_rows import set_labels
        >>> model = build("embedded", task="pooled_classifier", labels=["bad", "good"])
        >>> old = model.score.weight.clone()
        >>> set_labels(model, LabelMap(("bad", "fair", "good")))
        >>> model.config.num_labels, bool((model.score.weight[2] == old[1]).all())
        (3, True)
    """
    config, old = model.config, model.score
    saved = LabelMap.of_config(config)
    for name in LABEL_FIELDS:
        setattr(config, name, labels.described().get(name))
    if labels.names == saved.names:
        return
    config.id2label, config.label2id = dict(labels.id2label), dict(labels.label2id)
    config.probe = None  # of the old labels; a save stores its own
    drop_calibration(config)
    model.num_labels = config.num_labels
    with torch.device("meta"):  # initialise nothing, which would change all later random numbers
        head = build_head(config, hidden_size=model.model.config.hidden_size)
    state = rows_by_name(old.state_dict(), old, saved=saved, labels=labels)
    head.load_state_dict(state, assign=True)
    model.score = head.train(old.training).requires_grad_(True)


def added_summary(labels: LabelMap, saved: LabelMap, *, name: str) -> str:
    """Describe which labels keep their rows of a head, and how the others start.

    Args:
        labels: labels of the run.
        saved: labels of the head.
        name: name of the head in the summary.

    Returns:
        One line; "" without new labels.

    Example:
        >>> from qwen_task_heads.labels.label_map import LabelMap
        >>> from qwen_task_heads.head_rows import added_summary
        >>> added_summary(LabelMap(("a", "b", "c")), LabelMap(("b", "a")), name="the saved model")
        "labels: 2 of the saved model keep their rows of the head ('b', 'a'), 1 is new ('c'): its row starts
        as the mean of these"
    """
    new = [label for label in labels.names if label not in saved.label2id]
    if not new:
        return ""
    kept = f"labels: {len(saved):,} of {name} keep their rows of the head ({few_names(saved.names)})"
    start = "is new ({}): its row starts" if len(new) == 1 else "are new ({}): their rows start"
    return f"{kept}, {len(new):,} {start.format(few_names(new))} as the mean of these"


def drop_calibration(config: Any) -> None:
    """Remove calibration and thresholds of weights or labels that are about to change, with a warning.

    The temperature that was folded into the head stays there, as part of its weights.

    Args:
        config: config of a model, changed in place.
    """
    if config.calibration or config.__dict__.get("label_thresholds"):
        logger.warning(
            "The calibration of the saved model is dropped: it applies only to its weights and labels."
        )
    config.calibration = None
    if "label_thresholds" in config.__dict__:
        config.label_thresholds = None


@torch.no_grad()
def fold_temperature(model: Any, temperature: float | Sequence[float]) -> None:
    """Divide the logits of a model by a temperature, in place, in the weights of its last layer.

    Every copy of the weights then gives calibrated probabilities, and the temperature cannot be applied
    twice. For an ordinal head, the latent value and the thresholds are divided.

    Args:
        model: a `PooledClassifier` or `TitleScorer`, or a `PeftModel` around one.
        temperature: positive; or one per output (L,), for a head that is not ordinal.

    Example:
        >>> from qwen_task_heads import build
        >>> from qwen_task_heads.head_rows import fold_temperature
        >>> model = build("embedded", task="pooled_classifier", labels=["bad", "good"])
        >>> before = model.score.weight.clone()
        >>> fold_temperature(model, 2.0)
        >>> bool((2 * model.score.weight == before).all())
        True
    """
    from peft.utils import ModulesToSaveWrapper

    score: Any = (model if isinstance(model, TaskHeadModel) else model.get_base_model()).score
    if isinstance(score, ModulesToSaveWrapper):  # holds the initial and the trained head
        score = score.modules_to_save[score.active_adapters[0]]
    links = [module for module in score.modules() if isinstance(module, CumulativeLink)]
    *_, last = (module for module in score.modules() if isinstance(module, FloatLinear))
    parts = [last.weight] if last.bias is None else [last.weight, last.bias]
    if not isinstance(temperature, float | int):
        for part in parts:
            part.div_(torch.tensor(temperature).to(part).view(-1, *[1] * (part.dim() - 1)))
        return
    for link in links:
        parts.append(link.first)
        link.log_gaps.sub_(math.log(temperature))
    for part in parts:
        part.div_(temperature)
