"""Facts that the owner of a model states for its card.

A run cannot know licences, languages or the intended use. A fact without a statement is "not stated" on the
card; nothing is inferred from the name of a base. Facts are stated as options of a recipe, or when a finished
run is published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.reports.markdown import one_line
from qwen_task_heads.training.publish_arguments import LICENCES, OWN_LICENCE, card_problems


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Facts of a model that its owner states; all are optional.

    Args:
        license: of the model: an id of the hub such as `apache-2.0`, or `other:` and a name.
        language: codes of two or three letters, such as `("zh", "en")`; a single code may be a string.
        dataset_license: of the data, as its owner states it.
        dataset_url: web address of the data.
        dataset_id: `owner/name` of the data on the Hugging Face Hub, for data that was read from files.
        intended_use: one paragraph on the uses of the model.
        citation: BibTeX entry of the model or the data.

    Raises:
        TaskHeadsError: an unknown licence, or an invalid language code, address or id of a dataset; all
            problems at once.

    Example:
        >>> from qwen_task_heads.reports.card_facts import CardFacts
        >>> CardFacts(license="apache-2.0", language="zh").language
        ('zh',)
    """

    license: str | None = None
    language: str | Sequence[str] = ()
    dataset_license: str | None = None
    dataset_url: str | None = None
    dataset_id: str | None = None
    intended_use: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        if problems := card_problems(vars(self)):
            raise TaskHeadsError(problems)
        codes = (self.language,) if isinstance(self.language, str) else tuple(self.language)
        object.__setattr__(self, "language", codes)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> CardFacts:
        """Return the facts among the settings of a run."""
        return cls(**{name: settings[name] for name in STATED if settings.get(name)})

    def stated(self) -> dict[str, Any]:
        """Return the facts that are stated, as settings of a run."""
        found = {name: value for name, value in vars(self).items() if value}
        return {name: list(value) if name == "language" else value for name, value in found.items()}


NOTHING_STATED: CardFacts = CardFacts()
STATED = {field.name for field in fields(CardFacts)}


def licence_fields(name: str | None) -> dict[str, str]:
    """Return a licence as hub metadata: an id of `LICENCES`, or `other` with a name (`other:name`).

    Example:
        >>> from qwen_task_heads.reports.card_facts import licence_fields
        >>> licence_fields("Apache-2.0"), licence_fields("other:proprietary")
        ({'license': 'apache-2.0'}, {'license': 'other', 'license_name': 'proprietary'})
    """
    if name is None or not one_line(name):
        return {}
    lower = one_line(name).lower()
    if lower in LICENCES:
        return {"license": lower}
    slug = re.sub(r"[^a-z0-9.]+", "-", lower.removeprefix(OWN_LICENCE)).strip("-.")
    return {"license": "other", "license_name": slug or "own-terms"}
