"""The labels of a model: names in an order, optionally with descriptions, examples, aliases and parents.

Design:
- Logit `k` belongs to name `k`. The order is therefore read from a label file or the config of a model, or
  derived from the set of labels of the training rows; it never depends on the order of rows.
- Names are compared exactly, without surrounding white space. Equal names are refused.
- An alias is another spelling of a label in the data. Rows with an alias have its label; models, prompts and
  predictions use the name only. A spelling of two labels is refused.
- A parent is a coarser label. A metric reports how many errors keep the parent. Parents have no parents.
- `label_files.py` documents the formats of label files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.hubcode.encoding_task_heads import as_list
from qwen_task_heads.labels.label_files import (
    alias_problems,
    is_whole,
    name_problems,
    parent_problems,
    read_label_file,
)
from qwen_task_heads.sources.keys import text_key

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SHOWN = 8  # labels named in a message


@dataclass(frozen=True)
class LabelMap:
    """The names of the labels; the index of a name is its id.

    Args:
        names: label names, in the order of the logits; not blank, all different.
        descriptions: one per name ("" if it has none), or () without any.
        examples: texts of each label, one tuple per name, or () without any.
        aliases: other spellings of each label, one tuple per name, or () without any.
        parents: the name of a coarser label, one per name ("" if it has none), or () without any.

    Raises:
        TaskHeadsError: no name, a blank or repeated name or alias, an alias that is a whole number, or a
            field of another length. The error names all problems.

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
                problem = f"found {len(values):,} {field} of {len(self.names):,} labels"
                expected = "one per label, or none"
                problems.append(Problem("labels", problem, expected, "add the others", code="label-invalid"))
        if not self.names:
            problems.append(
                Problem("labels", "no label", "at least one label", "name the labels", code="label-invalid")
            )
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
        """Name or alias -> id."""
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
        """Return the label whose name or alias differs only in case, width or spacing, None without one.

        Example:
            >>> LabelMap(("sport", "trade"), aliases=(("games",), ())).near(" Games")
            'sport'
        """
        key = text_key(spelling)
        return self.folded.get(key, self._folded_aliases.get(key))

    @cached_property
    def parent_of(self) -> dict[str, str]:
        """Name -> parent, for the labels that have one."""
        pairs = zip(self.names, self.parents, strict=False)
        return {name: parent for name, parent in pairs if parent}

    def subset(self, names: Iterable[str], *, where: str = "candidates") -> LabelMap:
        """Return the map of some labels with all of their fields, in the order of this map.

        Args:
            names: names, in any order; repeated names count once.
            where: origin of `names`, for messages.

        Raises:
            TaskHeadsError: all names that are not labels; or there is no name.

        Example:
            >>> LabelMap(("a", "b", "c"), ("x", "y", "z")).subset(["c", "a"])
            LabelMap(names=('a', 'c'), descriptions=('x', 'z'), examples=(), aliases=(), parents=())
        """
        wanted = dict.fromkeys(names)
        expected = f"{', '.join(self.names[:5])}{', …' if len(self) > 5 else ''} ({len(self):,} labels)"
        fix = "name labels of the schema"
        if problems := [
            Problem(where, f"found {shorten(name)}", expected, fix, code="label-unknown")
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
        """Return every field by its name."""
        return {field.name: self.__dict__[field.name] for field in fields(self)}

    def stated(self) -> tuple[object, ...]:
        """Return the fields of a fingerprint; aliases and parents are included only if there are any.

        Fingerprints of runs that were started before these fields existed therefore do not change.
        """
        first = (self.names, self.descriptions, self.examples)
        return (*first, self.aliases, self.parents) if self.aliases or self.parents else first

    def described(self) -> dict[str, Any]:
        """Return the fields other than the names as fields of a config, without empty ones."""
        lists = {
            "label_descriptions": [*self.descriptions],
            "label_examples": [[*texts] for texts in self.examples],  # lists, as read from config.json
            "label_aliases": [[*aliases] for aliases in self.aliases],
            "label_parents": [*self.parents],
        }
        return {name: values for name, values in lists.items() if values}

    @cached_property
    def are_numbers(self) -> bool:
        """Whether a name is a whole number other than its id, as in the stars 1 to 5."""
        return any(is_whole(name) and name != str(place) for place, name in enumerate(self.names))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LabelMap:
        """Read `labels.yaml`, or a class file with one name per line.

        Args:
            path: `.yaml` or `.yml`: a list of names; or a list of `{name, description, examples, aliases,
                parent}`, all but the name optional; or a mapping of names to descriptions. Any other suffix:
                a name per line.

        Raises:
            TaskHeadsError: the file cannot be read, or any name or alias is blank, repeated or not text. The
                error names all problems.

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
        """Read the labels of a model from `id2label`.

        The other fields are `label_descriptions`, `label_examples`, `label_aliases` and `label_parents`, if
        the config has them.

        Raises:
            TaskHeadsError: ids that are not 0 to K-1, or a `label2id` that contradicts them.

        Example:
            >>> from transformers import Qwen2Config
            >>> config = Qwen2Config(id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
            >>> LabelMap.of_config(config).names
            ('bad', 'good')
        """
        id2label = {int(key): value for key, value in (config.id2label or {}).items()}
        if not id2label or sorted(id2label) != list(range(len(id2label))):
            problem, fix = f"found the ids {shorten(sorted(id2label))}", "correct it in config.json"
            raise error_at("config.id2label", problem, "0 to K-1, each once", fix, code="config-invalid")
        names = tuple(id2label[place] for place in range(len(id2label)))
        values = vars(config)
        labels = cls(
            names,
            descriptions=tuple(values.get("label_descriptions") or ()),
            examples=tuple(tuple(texts) for texts in values.get("label_examples") or ()),
            aliases=tuple(tuple(aliases) for aliases in values.get("label_aliases") or ()),
            parents=tuple(values.get("label_parents") or ()),
        )
        # transformers fills label2id with LABEL_0, ... if only id2label is given; these entries are ignored.
        label2id = config.label2id or {}
        given = {key: value for key, value in label2id.items() if key != f"LABEL_{value}"}
        if given and given != labels.label2id:
            problem = f"label2id is {shorten(given)}"
            expected = f"the inverse of id2label, {shorten(labels.label2id)}"
            fix = "correct it in config.json, or remove it there"
            raise error_at("config.label2id", problem, expected, fix, code="config-invalid")
        return labels


def check_same(labels: LabelMap, model: LabelMap, *, where: str = "labels") -> None:
    """Refuse labels whose names or order differ from those of a model.

    Args:
        labels: labels of a file or of the data.
        model: labels of the model that continues training.
        where: origin of `labels`, for messages.

    Raises:
        TaskHeadsError: another number of labels, other names, or the same names in another order.

    Example:
        >>> check_same(LabelMap(("a", "b")), LabelMap(("b", "a")))
        Traceback (most recent call last):
        ...
        qwen_task_heads.errors.TaskHeadsError: labels: label 0 is 'a', and 'b' in the model (the same names in
        another order). Expected the labels of the model, in its order. Fix: write names in place of the ids,
        or train a new model: give a plain backbone as --model_name_or_path.
    """
    if labels.names == model.names:
        return
    if len(labels) != len(model):
        problem = f"found {len(labels):,} labels, and {len(model):,} in the model"
    else:
        place = next(index for index, name in enumerate(labels.names) if name != model.names[index])
        own, other = shorten(labels.names[place]), shorten(model.names[place])
        problem = f"label {place} is {own}, and {other} in the model"
        if sorted(labels.names) == sorted(model.names):
            problem += " (the same names in another order)"
    expected = "the labels of the model, in its order"
    fix = "write names in place of the ids"
    if set(labels.names) != set(model.names):
        fix += ", or name by --labels a file of these labels, followed by the other labels of the model"
    fix += ", or train a new model: give a plain backbone as --model_name_or_path"
    raise error_at(where, problem, expected, fix, code="label-conflict")


def few_names(names: Iterable[str]) -> str:
    """Return at most `SHOWN` names, quoted and joined for a message.

    Example:
        >>> few_names(str(number) for number in range(9))
        "'0', '1', '2', '3', '4', '5', '6', '7', …"
    """
    listed = [shorten(name, 40) for name in islice(names, SHOWN + 1)]
    return ", ".join(listed[:SHOWN]) + (", …" if len(listed) > SHOWN else "")


def _as_tuple(values: Any) -> Any:
    """Convert a list-like field, and the list-like entries in it, to tuples; texts are kept."""
    rows = as_list(values)
    return values if rows is None else tuple(map(_as_tuple, rows))
