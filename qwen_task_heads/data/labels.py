"""The labels of a model: names in an order, perhaps with descriptions and examples.

Design:
- The order is the meaning: logit `k` belongs to name `k`. So a map comes from a file that states it, from a
  model's config, or from the labels of the training rows as a set; never from the order of rows.
- Names are compared as they stand, white space around them aside. Two that are equal are refused.
- What files of labels look like stands in `label_files.py`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qwen_task_heads.data.doctor import text_key
from qwen_task_heads.data.label_files import name_problems, read_label_file
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

WHOLE = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class LabelMap:
    """The names of the labels; the place of a name is its id.

    Args:
        names: label names, in the order of the logits; not blank, all different.
        descriptions: one per name ("" where there is none), or () without any.
        examples: texts of each label, one tuple per name, or () without any.

    Raises:
        TaskHeadsError: no name, a blank or repeated name, or descriptions or examples of another length.

    Example:
        >>> labels = LabelMap(("sport", "politics"))
        >>> labels.id2label, labels.label2id["politics"], len(labels)
        ({0: 'sport', 1: 'politics'}, 1, 2)
    """

    names: tuple[str, ...]
    descriptions: tuple[str, ...] = ()
    examples: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        problems = name_problems(self.names, "labels[{}]", first=0)
        for field, values in (("descriptions", self.descriptions), ("examples", self.examples)):
            if values and len(values) != len(self.names):
                found = f"{len(values):,} {field} of {len(self.names):,} labels"
                problems.append(
                    Problem("labels", found, "accepted: one per label, or none", "add the others")
                )
        if not self.names:
            problems.append(Problem("labels", "no label", "accepted: at least one", "name the labels"))
        if problems:
            raise TaskHeadsError(problems)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def id2label(self) -> dict[int, str]:
        """Id -> name, as in a config."""
        return dict(enumerate(self.names))

    @cached_property
    def label2id(self) -> dict[str, int]:
        """Name -> id."""
        return {name: place for place, name in enumerate(self.names)}

    @cached_property
    def folded(self) -> dict[str, str]:
        """Name without case, width and spacing -> name; the last of several."""
        return {text_key(name): name for name in self.names}

    def described(self) -> dict[str, Any]:
        """Descriptions and examples as fields of a config, where there are any."""
        fields = {
            "label_descriptions": [*self.descriptions],
            "label_examples": [[*texts] for texts in self.examples],  # lists, as config.json gives them back
        }
        return {name: values for name, values in fields.items() if values}

    @cached_property
    def are_numbers(self) -> bool:
        """Whether names are whole numbers that are not their own ids, such as the stars 1 to 5."""
        return any(is_whole(name) and name != str(place) for place, name in enumerate(self.names))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LabelMap:
        """Read `labels.yaml`, or a class file with one name per line.

        Args:
            path: `.yaml` or `.yml`: a list of names; or a list of `{name, description, examples}`, the last
                two optional; or a mapping of names to descriptions. Any other suffix: a name per line.

        Raises:
            TaskHeadsError: the file cannot be read, or any of its names is blank, repeated or no text. All
                of them at once.

        Example:
            >>> import pathlib, tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = pathlib.Path(folder, "labels.yaml")
            ...     _ = path.write_text("- {name: sport, description: Matches}\\n- name: politics\\n")
            ...     LabelMap.read(path).descriptions
            ('Matches', '')
        """
        return cls(*read_label_file(path))

    @classmethod
    def of_config(cls, config: PreTrainedConfig) -> LabelMap:
        """The labels of a model, from `id2label`.

        Descriptions and examples come from `label_descriptions` and `label_examples`, where it has them.

        Raises:
            TaskHeadsError: ids that are not 0 to K-1, or `label2id` that says something else.

        Example:
            >>> from transformers import Qwen2Config
            >>> config = Qwen2Config(id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
            >>> LabelMap.of_config(config).names
            ('bad', 'good')
        """
        id2label = {int(key): value for key, value in (config.id2label or {}).items()}
        if not id2label or sorted(id2label) != list(range(len(id2label))):
            found = f"the ids {shorten(sorted(id2label))}"
            raise TaskHeadsError(
                Problem("config.id2label", found, "accepted: 0 to K-1, each once", "mend config.json")
            )
        names = tuple(id2label[place] for place in range(len(id2label)))
        fields = vars(config)
        labels = cls(
            names,
            tuple(fields.get("label_descriptions") or ()),
            tuple(tuple(texts) for texts in fields.get("label_examples") or ()),
        )
        # transformers fills label2id with LABEL_0, ... where only id2label was given: that says nothing.
        label2id = config.label2id or {}
        stated = {key: value for key, value in label2id.items() if key != f"LABEL_{value}"}
        if stated and stated != labels.label2id:
            found = f"label2id is {shorten(stated)}"
            accepted = f"accepted: the inverse of id2label, {shorten(labels.label2id)}"
            raise TaskHeadsError(Problem("config.label2id", found, accepted, "mend config.json"))
        return labels


def check_same(labels: LabelMap, model: LabelMap, *, where: str = "labels") -> None:
    """Refuse labels whose names or order are not those of a model.

    Args:
        labels: what a file or the data say.
        model: labels of the model that goes on training.
        where: what `labels` was read from, for the message.

    Raises:
        TaskHeadsError: another number of labels, other names, or the same names in another order.

    Example:
        >>> check_same(LabelMap(("a", "b")), LabelMap(("b", "a")))
        Traceback (most recent call last):
        ...
        qwen_task_heads.errors.TaskHeadsError: labels: label 0 is 'a', and 'b' in the model (the same names in
        another order); accepted: the labels of the model, in its order; remove the label file, or train a new
        model for it
    """
    if labels.names == model.names:
        return
    if len(labels) != len(model):
        found = f"{len(labels):,} labels, and {len(model):,} in the model"
    else:
        place = next(index for index, name in enumerate(labels.names) if name != model.names[index])
        found = (
            f"label {place} is {shorten(labels.names[place])}, and {shorten(model.names[place])} in the model"
        )
        if sorted(labels.names) == sorted(model.names):
            found += " (the same names in another order)"
    accepted = "accepted: the labels of the model, in its order"
    remedy = "remove the label file, or train a new model for it"
    raise TaskHeadsError(Problem(where, found, accepted, remedy))


def is_whole(text: str) -> bool:
    """Whether a text is a whole number in plain digits, such as `7` or `-100`.

    Example:
        >>> is_whole("-100"), is_whole("1.0"), is_whole("²")
        (True, False, False)
    """
    return WHOLE.fullmatch(text) is not None
