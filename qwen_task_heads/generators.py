"""Load causal language models as generative classifiers; only this module calls `from_pretrained` for them.

A generator is a stock model of transformers, plain or with a stock PEFT adapter. The only file of this
library that is published with it is `label_prompt.json`. It holds the labels, the words around a text
(`AnswerPrompts.save`), the dtype in which the metrics were measured, and the base of an adapter. The base is
pinned by its commit or by the hashes of its files.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import CONFIG_NAME, cached_file, find_adapter_config_file

from qwen_task_heads.adapters import quiet_peft
from qwen_task_heads.errors import TaskHeadsError, error_at, reason_of
from qwen_task_heads.files import check_manifest
from qwen_task_heads.hubcode.configuration_task_heads import PooledClassifierConfig, TitleScorerConfig
from qwen_task_heads.hubcode.errors_task_heads import TaskHeadError
from qwen_task_heads.hubcode.hashes_task_heads import check_base, hash_base
from qwen_task_heads.hubs import HUGGINGFACE, hub_named, resolve
from qwen_task_heads.pretrained import locate, stored_name
from qwen_task_heads.repo_checks import check_repo, commit_of
from qwen_task_heads.tokenization.label_prompts import LABEL_PROMPT, read_label_prompt

EXPECTED = "a repo id or folder of a causal language model, or an adapter of one"
HEAD_KINDS = {PooledClassifierConfig.model_type: "classifier", TitleScorerConfig.model_type: "title scorer"}
HEAD_CLASS = "ForSequenceClassification"


@dataclass(frozen=True, kw_only=True)
class Base:
    """Base model of an adapter.

    Args:
        name: repo id, or a folder of this machine.
        revision: commit of its hub; None for a folder.
        hub: hub of the commit, such as `modelscope`; None for the Hugging Face Hub or a folder.
        files: SHA-256 of the files of a folder or of a download; None for the Hugging Face Hub.
    """

    name: str
    revision: str | None = None
    hub: str | None = None
    files: dict[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that `label_prompt.json` stores."""
        return asdict(self)


def base_of(name: str, *, revision: str | None = None, hub: str = HUGGINGFACE) -> Base:
    """Pin a base by its name in a recipe.

    Example:
        >>> from qwen_task_heads.generators import base_of
        >>> sorted(base_of("embedded").files)
        ['config.json', 'model.safetensors', 'tokenizer.json']
    """
    path = locate(name)
    if Path(path).is_dir():
        return Base(name=stored_name(path), files=hash_base(path))
    place, fetched = resolve(path, hub=hub, revision=revision)
    if fetched is not None:
        return Base(name=path, revision=fetched, hub=hub, files=hash_base(place))
    return Base(name=path, revision=commit_of(path, revision))


def file_of(name: str, file: str, *, revision: str | None = None, hub: str = HUGGINGFACE) -> str | None:
    """Return the local path of a file of a model, fetched if needed; None if the model or cache lacks it.

    Args:
        name: repo id or folder, as in `load_generator`.
        file: its name in the repo.
        revision: branch, tag or commit.
        hub: hub of repo ids.

    Raises:
        TaskHeadsError: no such model or revision, or the hub does not answer and its cache is empty.

    Example:
        >>> from qwen_task_heads.generators import file_of
        >>> file_of("embedded", "label_prompt.json") is None
        True
    """
    path, _ = resolve(locate(name), hub=hub, revision=revision)
    try:
        found: str | None = cached_file(
            path,
            file,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except OSError as error:
        raise error_at(
            name,
            f"the model was not found ({reason_of(error)})",
            "an existing repo id or folder",
            "check the name, the revision and the network",
            code="model-not-found",
        ) from error
    return found


def load_generator(
    name: str | Path,
    *,
    revision: str | None = None,
    hub: str = HUGGINGFACE,
    dtype: torch.dtype | str = "auto",
    verify: bool = True,
    merge: bool = True,
    model_kwargs: dict[str, Any] | None = None,
) -> Any:
    """Load a chat model, or an adapter of one, which is merged.

    Args:
        name: repo id or folder; `"embedded"` for the small backbone in the package.
        revision: branch, tag or commit.
        hub: hub of repo ids, a name in `hubs.HUBS`; also that of an adapter's base.
        dtype: dtype of the weights. `auto`: that of `label_prompt.json`, in which the metrics of the card
            were measured; without one, that of the saved weights. A base may be stored in another dtype than
            its adapter was trained with.
        verify: compare the files with `manifest.json`, and a local base with its hashes.
        merge: merge an adapter into its base; False returns PEFT's model with the stored weights.
        model_kwargs: passed on to transformers (`attn_implementation`, ...).

    Raises:
        TaskHeadsError: no such model, a model that does not generate text (use `Scorer` for a head), or files
            or a base that changed.

    Example:
        >>> from qwen_task_heads.generators import load_generator
        >>> load_generator("embedded").config.model_type
        'qwen2'
    """
    name = str(name)
    path, _ = resolve(locate(name), hub=hub, revision=revision)
    try:
        check_repo(path, revision=revision)
        if verify:
            check_manifest(path, revision=revision)
        _refuse_head(name, path, revision=revision)
        prompt = _read_prompt(path, revision)
        measured_in = prompt.get("dtype") or "auto"
        options = {"dtype": measured_in if dtype == "auto" else dtype, "trust_remote_code": False}
        options |= model_kwargs or {}
        if find_adapter_config_file(path, revision=revision) is None:
            return AutoModelForCausalLM.from_pretrained(path, revision=revision or "main", **options).eval()
        from peft import AutoPeftModelForCausalLM, PeftModel

        with quiet_peft():
            if prompt.get("base") is None:  # an adapter that another library saved
                adapted = AutoPeftModelForCausalLM.from_pretrained(
                    path, revision=revision or "main", **options
                )
            else:
                place, commit = _resolve_base(Base(**prompt["base"]), hub=hub, verify=verify)
                model = AutoModelForCausalLM.from_pretrained(place, revision=commit or "main", **options)
                adapted = PeftModel.from_pretrained(model, path, revision=revision)
        return (adapted.merge_and_unload() if merge else adapted).eval()
    except TaskHeadsError:
        raise
    except TaskHeadError as error:
        raise error_at(error.where, error.problem, error.expected, error.fix, code=error.code) from error
    except (OSError, ValueError) as error:
        reason = [*str(error).splitlines(), ""][0]
        reason = reason if len(reason) <= 160 else f"{reason[:159]}…"
        raise error_at(
            name,
            f"no causal language model could be loaded ({reason})",
            EXPECTED,
            "check the name and the network",
            code="model-not-found",
        ) from error


def _refuse_head(name: str, path: str, *, revision: str | None) -> None:
    """Raise for a model with a head, for which transformers would initialise a language-model head."""
    file = cached_file(path, CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
    config = {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    kind, classes = config.get("model_type"), config.get("architectures") or []
    if kind in HEAD_KINDS:
        raise error_at(
            name,
            f"found a {HEAD_KINDS[kind]}, whose head does not generate text",
            EXPECTED,
            f"load it by Scorer({name!r})",
            code="model-type",
        )
    if any(str(one).endswith(HEAD_CLASS) for one in classes):
        raise error_at(
            name,
            f"found a {classes[0]}, whose head does not generate text",
            EXPECTED,
            f"load it by transformers' pipeline('text-classification', {name!r})",
            code="model-type",
        )


def _read_prompt(path: str, revision: str | None) -> dict[str, Any]:
    """Return the content of `label_prompt.json`; {} without one."""
    file = cached_file(path, LABEL_PROMPT, revision=revision, _raise_exceptions_for_missing_entries=False)
    return {} if file is None else read_label_prompt(file)


def _resolve_base(base: Base, *, hub: str, verify: bool) -> tuple[str, str | None]:
    """Return the folder or repo id of a base, and its revision there."""
    source = base.hub or hub if hub_named(hub).by_id else hub
    pin = base.revision if source == (base.hub or HUGGINGFACE) else None  # hubs share no commits
    place, fetched = resolve(locate(base.name), hub=source, revision=pin)
    commit = pin if fetched is None else None
    if verify and Path(place).is_dir():
        check_base(place, base.files)
    return place, commit
