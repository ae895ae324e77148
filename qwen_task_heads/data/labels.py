"""The labels of a model: names in an order, perhaps with descriptions, examples, aliases and parents.

Design:
- The order is the meaning: logit `k` belongs to name `k`. So a map comes from a file that states it, from a
  model's config, or from the labels of the training rows as a set; never from the order of rows.
- Names are compared as they stand, white space around them aside. Two that are equal are refused.
- An alias is another spelling in data, such as a second annotator's. Rows that use it have the label; models,
  prompts and predictions know the name only. A spelling means one label, or it is refused.
- A parent is a coarser label, for the figure of how often a mistake stays within the family. One level: what
  is above a parent is not asked.
- What files of labels look like stands in `label_files.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qwen_task_heads.data.keys import text_key
from qwen_task_heads.data.label_files import (
    alias_problems,
    is_whole,
    name_problems,
    parent_problems,
    read_label_file,
)
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.encoding_task_heads import as_list

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class LabelMap:
    """The names of the labels; the place of a name is its id.

    Args:
        names: label names, in the order of the logits; not blank, all different.
        descriptions: one per name ("" where there is none), or () without any.
        examples: texts of each label, one tuple per name, or () without any.
        aliases: other spellings of each label, one tuple per name, or () without any.
        parents: the name of a coarser label, one per name ("" where there is none), or () without any.

    Raises:
        TaskHeadsError: no name, a blank or repeated name or alias, an alias that is a whole number, or a
            field of another length. All of them at once.

    Example:
        >>> labels = LabelMap(("sport", "politics"))
        >>> labels.id2label, labels.label2id["politics"], len(labels)
        ({0: 'sport', 1: 'politics'}, 1, 2)
    """

    names: tuple[str, ...]
    descriptions: tuple[str, ...] = ()
    examples: tuple[tuple[str, ...], ...] = ()
    aliases: tuple[tuple[str, ...], ...] = ()
    parents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, values in self._fields().items():  # lists, arrays and Series
            object.__setattr__(self, field, _as_tuple(values))
        problems = name_problems(self.names, "labels[{}]", first=0)
        problems += alias_problems(self.names, self.aliases, "labels[{}]", first=0)
        problems += parent_problems(self.parents, "labels[{}]", first=0)
        for field in ("descriptions", "examples", "aliases", "parents"):
            values = self.__dict__[field]
            if values and len(values) != len(self.names):
                found = f"{len(values):,} {field} of {len(self.names):,} labels"
                problems.append(Problem("labels", found, "one per label, or none", "add the others"))
        if not self.names:
            problems.append(Problem("labels", "no label", "at least one", "name the labels"))
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
    def spelled(self) -> dict[str, int]:
        """Name or alias -> id: what a row may say."""
        others = {alias: place for place, aliases in enumerate(self.aliases) for alias in aliases}
        return {**others, **self.label2id}

    @cached_property
    def folded(self) -> dict[str, str]:
        """Name without case, width and spacing -> name; the last of several."""
        return {text_key(name): name for name in self.names}

    @cached_property
    def _folded_aliases(self) -> dict[str, str]:
        return {text_key(alias): self.names[self.spelled[alias]] for group in self.aliases for alias in group}

    def near(self, spelling: str) -> str | None:
        """The label that is meant where only case, width or spacing of its name or alias differ.

        Example:
            >>> LabelMap(("sport", "trade"), aliases=(("games",), ())).near(" Games")
            'sport'
        """
        key = text_key(spelling)
        return self.folded.get(key, self._folded_aliases.get(key))

    @cached_property
    def parent_of(self) -> dict[str, str]:
        """Name -> its parent, of the labels that have one."""
        pairs = zip(self.names, self.parents, strict=False)
        return {name: parent for name, parent in pairs if parent}

    def subset(self, names: Iterable[str], *, where: str = "candidates") -> LabelMap:
        """The map of some labels with all that is said of them, in the order of this map.

        Args:
            names: names, in any order; one that stands twice counts once.
            where: what `names` was read from, for the message.

        Raises:
            TaskHeadsError: names that are no labels, all of them, or no name.

        Example:
            >>> LabelMap(("a", "b", "c"), ("x", "y", "z")).subset(["c", "a"])
            LabelMap(names=('a', 'c'), descriptions=('x', 'z'), examples=(), aliases=(), parents=())
        """
        wanted = dict.fromkeys(names)
        accepted = f"{', '.join(self.names[:5])}{', …' if len(self) > 5 else ''}"
        accepted += f" ({len(self):,} labels)"
        if problems := [
            Problem(where, f"found {shorten(name)}", accepted, "name labels of the schema")
            for name in wanted
            if name not in self.label2id
        ]:
            raise TaskHeadsError(problems)
        places = sorted(self.label2id[name] for name in wanted)
        kept = {
            field: tuple(values[place] for place in places) if values else ()
            for field, values in self._fields().items()
        }
        return LabelMap(**kept)

    def _fields(self) -> dict[str, tuple[Any, ...]]:
        """Every field by its name, as it stands."""
        return {field.name: self.__dict__[field.name] for field in fields(self)}

    def stated(self) -> tuple[object, ...]:
        """What a fingerprint covers: fields that came later only where they say something.

        So a run that was started before they existed is still the same run.
        """
        first = (self.names, self.descriptions, self.examples)
        return (*first, self.aliases, self.parents) if self.aliases or self.parents else first

    def described(self) -> dict[str, Any]:
        """All but the names as fields of a config, where there are any."""
        lists = {
            "label_descriptions": [*self.descriptions],
            "label_examples": [[*texts] for texts in self.examples],  # lists, as config.json gives them back
            "label_aliases": [[*aliases] for aliases in self.aliases],
            "label_parents": [*self.parents],
        }
        return {name: values for name, values in lists.items() if values}

    @cached_property
    def are_numbers(self) -> bool:
        """Whether names are whole numbers that are not their own ids, such as the stars 1 to 5."""
        return any(is_whole(name) and name != str(place) for place, name in enumerate(self.names))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LabelMap:
        """Read `labels.yaml`, or a class file with one name per line.

        Args:
            path: `.yaml` or `.yml`: a list of names; or a list of `{name, description, examples, aliases,
                parent}`, all but the name optional; or a mapping of names to descriptions. Any other suffix:
                a name per line.

        Raises:
            TaskHeadsError: the file cannot be read, or any of its names or aliases is blank, repeated or no
                text. All of them at once.

        Example:
            >>> import pathlib, tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = pathlib.Path(folder, "labels.yaml")
            ...     _ = path.write_text("- {name: sport, description: Matches}\\n- name: politics\\n")
            ...     LabelMap.read(path).descriptions
            ('Matches', '')
        """
        return cls(**read_label_file(path))

    @classmethod
    def of_config(cls, config: PreTrainedConfig) -> LabelMap:
        """The labels of a model, from `id2label`.

        The other fields come from `label_descriptions`, `label_examples`, `label_aliases` and
        `label_parents`, where it has them.

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
                Problem("config.id2label", found, "0 to K-1, each once", "correct it in config.json")
            )
        names = tuple(id2label[place] for place in range(len(id2label)))
        said = vars(config)
        labels = cls(
            names,
            descriptions=tuple(said.get("label_descriptions") or ()),
            examples=tuple(tuple(texts) for texts in said.get("label_examples") or ()),
            aliases=tuple(tuple(aliases) for aliases in said.get("label_aliases") or ()),
            parents=tuple(said.get("label_parents") or ()),
        )
        # transformers fills label2id with LABEL_0, ... where only id2label was given: that says nothing.
        label2id = config.label2id or {}
        stated = {key: value for key, value in label2id.items() if key != f"LABEL_{value}"}
        if stated and stated != labels.label2id:
            found = f"label2id is {shorten(stated)}"
            accepted = f"the inverse of id2label, {shorten(labels.label2id)}"
            remedy = "correct it in config.json, or remove it there"
            raise TaskHeadsError(Problem("config.label2id", found, accepted, remedy))
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
        another order); accepted: the labels of the model, in its order; write names in place of the ids, or
        train a new model: give a plain backbone as --model_name_or_path
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
    accepted = "the labels of the model, in its order"
    remedy = "write names in place of the ids"
    if set(labels.names) != set(model.names):
        remedy += ", or name by --labels a file of these labels and then those of the model that it lacks"
    remedy += ", or train a new model: give a plain backbone as --model_name_or_path"
    raise TaskHeadsError(Problem(where, found, accepted, remedy))


def _as_tuple(values: Any) -> Any:
    """A tuple of a list-like field, and of the list-like entries in it; a text stays."""
    rows = as_list(values)
    return values if rows is None else tuple(map(_as_tuple, rows))
