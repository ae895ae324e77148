"""Export formats of a finished run: as saved, merged, as a stock class of transformers, or as GGUF.

A run has trained a model with a head or a generative classifier. The two differ in their loaders, their
export formats, and the reference that verification compares with.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.errors import error_at
from qwen_task_heads.export.folders import ADAPTERS, save
from qwen_task_heads.export.gguf import export_gguf
from qwen_task_heads.export.stock import export_stock
from qwen_task_heads.generators import load_generator
from qwen_task_heads.hubs import HUGGINGFACE
from qwen_task_heads.models import load, load_tokenizer, merge
from qwen_task_heads.pretrained import EMBEDDED_FOLDER, is_folder
from qwen_task_heads.publishing.staging import files_of, is_publishable
from qwen_task_heads.tokenization.label_prompts import LABEL_PROMPT, AnswerPrompts
from qwen_task_heads.training.publish_arguments import EXPORT_FORMATS
from qwen_task_heads.verification.reference import (
    REFERENCE,
    Reference,
    read_reference,
    take_answer_reference,
    take_reference,
)

SAVED, MERGED, STOCK, GGUF = EXPORT_FORMATS


class FinishedRun(ABC):
    """The output folder of a finished run.

    Attributes:
        folder: output folder of the run.
        is_adapter: whether the folder has an adapter instead of full weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_adapter = any((folder / name).is_file() for name in ADAPTERS)

    @property
    @abstractmethod
    def base(self) -> str | None:
        """Repo id or folder of an adapter's base."""

    @abstractmethod
    def kinds(self, form: str) -> list[str]:
        """Return the kinds of verification for an export format."""

    @abstractmethod
    def make(self, form: str, made: Path) -> None:
        """Write the model in another export format."""

    @abstractmethod
    def compute_reference(self) -> Reference:
        """Compute a reference from the saved model, if the run saved none."""

    def reference(self) -> Reference:
        """Return the outputs of the trained model."""
        return read_reference(self.folder) if self.has_reference else self.compute_reference()

    @property
    def has_reference(self) -> bool:
        """Whether the run saved a reference; else the artifacts are compared with the saved model."""
        return (self.folder / REFERENCE).is_file()

    def in_form(self, form: str, made: Path) -> Path:
        """Return the folder of the run, or a folder with the model in another format and the run's record."""
        if form == SAVED:
            return self.folder
        self.make(form, made)
        for name in files_of(self.folder):
            if is_publishable(name, rows=True, model=False):
                (made / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(self.folder / name, made / name)
        return made


class HeadRun(FinishedRun):
    """A finished run of a title scorer or a classifier."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        path = folder / "config.json"
        if not path.is_file():
            expected, fix = "the output folder of a finished run", "pass the output folder of the run"
            raise error_at(str(folder), "config.json is missing", expected, fix, code="model-not-found")
        self.config = json.loads(path.read_text(encoding="utf-8"))
        self.hub = self.config.get("backbone_hub") or HUGGINGFACE

    @property
    def base(self) -> str | None:
        """The base as the config names it."""
        return self.config.get("backbone_name_or_path")

    def kinds(self, form: str) -> list[str]:
        """Return the kind of the adapter or full model, of the model in another format."""
        return [form] if form != SAVED else ["adapter" if self.is_adapter else "full"]

    def full(self, *, dtype: str) -> Any:
        """Return the model with its adapter merged, the backbone in `dtype`."""
        load_full = merge if self.is_adapter else load
        return load_full(str(self.folder), hub=self.hub, dtype=dtype)

    def make(self, form: str, made: Path) -> None:
        """Write the merged model, or the model as a class of transformers or a GGUF file."""
        trained = self.config["dtype"] or "float32"  # else a model in half precision would double in size
        exports = {STOCK: export_stock, GGUF: export_gguf}
        if form in exports:
            exports[form](str(self.folder), folder=made, hub=self.hub, dtype=trained)
        else:
            tokenizer = load_tokenizer(str(self.folder))
            save(self.full(dtype=trained), tokenizer=tokenizer, folder=made)

    def compute_reference(self) -> Reference:
        """Compute a reference with the model that `load` returns."""
        model = load(str(self.folder), hub=self.hub)
        return take_reference(model, tokenizer=load_tokenizer(str(self.folder)))


class GenerativeRun(FinishedRun):
    """A finished run of a generative classifier, which is a class of transformers already."""

    @property
    def base(self) -> str | None:
        """The base as PEFT's config names it."""
        content = json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8"))
        return content.get("base_model_name_or_path")

    def kinds(self, form: str) -> list[str]:
        """Return the kind of the generative classifier: merged, with an adapter, or full."""
        if form == MERGED:
            return ["generator_merged"]
        return ["generator_adapter" if self.is_adapter else "generator"]

    def make(self, form: str, made: Path) -> None:
        """Write the model with its adapter merged."""
        if form in (STOCK, GGUF):
            problem = f"found {form!r} for a generative classifier, which is a class of transformers already"
            fix = "choose one of them"
            raise error_at("--form", problem, "saved or merged", fix, code="option-unsupported")
        trained = self.reference().report["dtype"]  # the base may be stored in another dtype
        load_generator(str(self.folder), dtype=trained).save_pretrained(made)
        load_tokenizer(str(self.folder)).save_pretrained(made)
        for name in (LABEL_PROMPT, "decision.json", "decision_template.jinja"):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, made / name)

    def compute_reference(self) -> Reference:
        """Compute a reference with the model that `load_generator` returns, its adapter merged."""
        model, tokenizer = load_generator(str(self.folder)), load_tokenizer(str(self.folder))
        family = model.config.get_text_config().model_type
        prompts = AnswerPrompts.load(self.folder / LABEL_PROMPT, tokenizer=tokenizer, model_type=family)
        return take_answer_reference(model, tokenizer=tokenizer, prompts=prompts)


def read_run(folder: Path) -> FinishedRun:
    """Return the finished run of a folder.

    Raises:
        TaskHeadsError: the folder has no model of this library.
    """
    return GenerativeRun(folder) if (folder / LABEL_PROMPT).is_file() else HeadRun(folder)


def refuse_local_base(where: str, base: str | None) -> None:
    """Raise for an adapter whose base is a folder of this machine.

    Args:
        where: place of the message.
        base: repo id, folder or name of a packaged model; None or "" if it is not known.

    Raises:
        TaskHeadsError: others could not load the adapter.
    """
    if not base or not (is_folder(base) or Path(base).is_absolute()):
        return
    embedded = Path(base).resolve() == EMBEDDED_FOLDER.resolve()  # named as the user does
    raise error_at(
        where,
        f"the base of the adapter is {EMBEDDED if embedded else Path(base).name!r}, a folder of this machine",
        "an adapter of a base that a hub has, or a full model",
        "publish it merged (recipes/publish.py --form merged, when training --publish_form merged; in Python "
        "qwen_task_heads.merge(folder).push_to_hub(repo)), or train from a repo id",
        code="base-changed",
    )
