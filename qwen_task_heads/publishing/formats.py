"""The forms a finished model is published in, and what proves each: with a head, or writing the label.

Both have a folder with the account of a run; they differ in what opens them, in what a form is, and in the
reference that a form is held against.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.export.folders import ADAPTERS, save
from qwen_task_heads.export.stock import export_stock
from qwen_task_heads.generators import load_generator
from qwen_task_heads.models import load, load_tokenizer, merge
from qwen_task_heads.modelscope import HUGGINGFACE
from qwen_task_heads.pretrained import EMBEDDED_FOLDER, is_folder
from qwen_task_heads.publishing.staging import files_of, is_publishable
from qwen_task_heads.reports.cards import with_form
from qwen_task_heads.tokenization.label_prompts import LABEL_PROMPT, AnswerPrompts
from qwen_task_heads.training.publish_arguments import EXPORT_FORMATS
from qwen_task_heads.verification.reference import (
    REFERENCE,
    Reference,
    read_reference,
    take_answer_reference,
    take_reference,
)

SAVED, MERGED, STOCK = EXPORT_FORMATS


class Finished(ABC):
    """The folder of a finished run.

    Attributes:
        folder: of the run.
        is_adapter: it holds an adapter, and not full weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_adapter = any((folder / name).is_file() for name in ADAPTERS)

    @property
    @abstractmethod
    def base(self) -> str | None:
        """What an adapter names as its base."""

    @abstractmethod
    def kinds(self, form: str) -> list[str]:
        """Kinds of the gate that prove a form."""

    @abstractmethod
    def make(self, form: str, made: Path) -> None:
        """Write the model in another form."""

    @abstractmethod
    def opened(self) -> Reference:
        """What strict loading opens from the folder, where the run kept no reference."""

    def reference(self) -> Reference:
        """What the trained model answered."""
        return read_reference(self.folder) if self.kept else self.opened()

    @property
    def kept(self) -> bool:
        """What the trained model answered was kept; else the folder can be held against itself alone."""
        return (self.folder / REFERENCE).is_file()

    def check_base(self) -> None:
        """Refuse an adapter whose base nobody else has: a folder of this machine."""
        if self.is_adapter and is_local(self.base):
            raise TaskHeadsError(nobody_has(str(self.folder), self.base))

    def in_form(self, form: str, made: Path) -> Path:
        """The folder, or the same model in another form with the account of its run."""
        if form == SAVED:
            return self.folder
        self.make(form, made)
        for name in files_of(self.folder):
            if is_publishable(name, rows=True, model=False):
                (made / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(self.folder / name, made / name)
        card = made / "README.md"
        if card.is_file():
            card.write_text(with_form(card.read_text(encoding="utf-8"), form), encoding="utf-8")
        return made


class WithHead(Finished):
    """A title scorer or a classifier."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        path = folder / "config.json"
        if not path.is_file():
            found, wanted = "no config.json", "the folder that a run finished in"
            raise TaskHeadsError(Problem(str(folder), f"found {found}", wanted, "name that folder"))
        self.config = json.loads(path.read_text(encoding="utf-8"))
        self.hub = self.config.get("backbone_hub") or HUGGINGFACE

    @property
    def base(self) -> str | None:
        """The true base, which stands in the config."""
        return self.config.get("backbone_name_or_path")

    def kinds(self, form: str) -> list[str]:
        """As saved, merged, or of a stock class."""
        return [form] if form != SAVED else ["adapter" if self.is_adapter else "full"]

    def full(self, *, dtype: str) -> Any:
        """Return the model without an adapter, its backbone in `dtype`."""
        open_full = merge if self.is_adapter else load
        return open_full(str(self.folder), hub=self.hub, dtype=dtype)

    def make(self, form: str, made: Path) -> None:
        """Fold the adapter, or write transformers' own class."""
        trained = self.config["dtype"] or "float32"  # else a model of half precision would double in size
        if form == STOCK:
            export_stock(str(self.folder), folder=made, hub=self.hub, dtype=trained)
        else:
            tokenizer = load_tokenizer(str(self.folder))
            save(self.full(dtype=trained), tokenizer=tokenizer, folder=made)

    def opened(self) -> Reference:
        """By `load`."""
        model = load(str(self.folder), hub=self.hub)
        return take_reference(model, tokenizer=load_tokenizer(str(self.folder)))


class Writes(Finished):
    """A language model that writes the label: a stock model already."""

    @property
    def base(self) -> str | None:
        """What PEFT's own config names."""
        content = json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8"))
        return content.get("base_model_name_or_path")

    def kinds(self, form: str) -> list[str]:
        """Its own, with an adapter or without."""
        if form == MERGED:
            return ["generator_merged"]
        return ["generator_adapter" if self.is_adapter else "generator"]

    def make(self, form: str, made: Path) -> None:
        """Fold the adapter."""
        if form == STOCK:
            accepted = "saved or merged: it is a class of transformers already"
            raise TaskHeadsError(Problem("--form", f"found {form!r}", accepted, "choose one of them"))
        trained = self.reference().report["dtype"]  # the base may be stored in another
        load_generator(str(self.folder), dtype=trained).save_pretrained(made)
        load_tokenizer(str(self.folder)).save_pretrained(made)
        for name in (LABEL_PROMPT, "decision.json", "decision_template.jinja"):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, made / name)

    def opened(self) -> Reference:
        """By `load_generator`, an adapter merged."""
        model, tokenizer = load_generator(str(self.folder)), load_tokenizer(str(self.folder))
        family = model.config.get_text_config().model_type
        prompts = AnswerPrompts.load(self.folder / LABEL_PROMPT, tokenizer=tokenizer, model_type=family)
        return take_answer_reference(model, tokenizer=tokenizer, prompts=prompts)


def finished(folder: Path) -> Finished:
    """What a folder holds.

    Raises:
        TaskHeadsError: no model of this library.
    """
    return Writes(folder) if (folder / LABEL_PROMPT).is_file() else WithHead(folder)


def is_local(base: str | None) -> bool:
    """Whether a base is a folder of this machine."""
    return bool(base) and (is_folder(base) or Path(base or "").is_absolute())


def nobody_has(where: str, base: str | None) -> Problem:
    """The problem of such an adapter."""
    return Problem(
        where,
        f"found an adapter of {_shown(base)}, a folder of this machine",
        "an adapter of a base that others can fetch by its id, or a full model",
        "publish it merged (recipes/publish.py --form merged, when training --publish_form merged; in Python "
        "qwen_task_heads.merge(folder).push_to_hub(repo)), or train from a repo id",
    )


def _shown(base: str | None) -> str:
    """Return a base as its user named it."""
    embedded = base and Path(base).resolve() == EMBEDDED_FOLDER.resolve()
    return repr(EMBEDDED if embedded else Path(base or "").name)
