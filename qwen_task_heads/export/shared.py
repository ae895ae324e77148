"""What the exports share: loading and merging, refused settings, a staging folder, and the verification.

An export is written to a staging folder, compared with its model on `VERIFICATION_TEXTS`, and then renamed.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from qwen_task_heads.errors import Problem, error_at
from qwen_task_heads.hubcode.encoding_task_heads import encode_texts, template_of
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.hubs import HUGGINGFACE
from qwen_task_heads.models import (
    PooledClassifier,
    TaskHeadModel,
    has_adapter,
    load,
    load_tokenizer,
    merge,
)
from qwen_task_heads.verification.reference import FIXED_TEXTS

# Of logits in fp32, relative to the largest one if that is above 1. The stock class adds the same numbers in
# another order, which changes deep models and merged adapters by more than 1e-6.
TOLERANCE = 1e-5
# The last text is longer than most limits. The text with control tokens is left out, because a tokenizer
# without a compiled template would parse them.
VERIFICATION_TEXTS = (*(text for text in FIXED_TEXTS if "<|" not in text), "word " * 600)

Rule = tuple[str, Any, bool, str]  # field, its value, whether it fits, what is expected


def load_merged(
    model_or_folder: Any, *, tokenizer: Any, revision: str | None = None, hub: str = HUGGINGFACE
) -> tuple[Any, Any]:
    """Return the model of an export with its adapter merged, and a copy of the tokenizer.

    Args:
        model_or_folder: see `export_stock`.
        tokenizer: None for the one in the folder.
        revision: branch, tag or commit of a repo.
        hub: hub of the ids.

    Raises:
        TaskHeadsError: a model without a tokenizer, or no such model.
    """
    if isinstance(model_or_folder, (str, Path)):
        source = str(model_or_folder)
        place: dict[str, Any] = {"revision": revision, "hub": hub}
        tokenizer = tokenizer or load_tokenizer(source, **place)
        model: Any = merge(source, **place) if has_adapter(source, **place) else load(source, **place)
    else:
        model = model_or_folder
        if not isinstance(model, TaskHeadModel) or model._hf_peft_config_loaded:
            model = merge(model)
    if tokenizer is None:
        raise error_at(
            "tokenizer",
            "the tokenizer is missing",
            "the tokenizer of the model",
            "pass tokenizer=",
            code="option-missing",
        )
    return model, copy.deepcopy(tokenizer)  # its pad token may change


def last_token_problems(model: Any, *, fix: str) -> list[Problem]:
    """Return the settings of a model that a linear head on the last token does not support."""
    config = model.config
    kind, kinds = config.problem_type, "single-label, multi-label or regression"
    return unmet(
        [
            ("pooling", config.pooling, config.pooling == "last", "last"),
            (
                "head_layers",
                config.head_layers,
                not config.lower_layers,
                "one layer, the last one of the model",
            ),
            ("bidirectional", config.bidirectional, not config.bidirectional, "false"),
            ("problem_type", kind, kind not in ("ordinal", QUESTIONS), kinds),
            *truncation_rules(model),
        ],
        fix=fix,
    )


def unmet(rules: Iterable[Rule], *, fix: str) -> list[Problem]:
    """Return a problem for each rule that a model does not meet."""
    return [
        Problem(field, f"found {value!r}", expected, fix, code="model-unsupported")
        for field, value, fits, expected in rules
        if not fits
    ]


def truncation_rules(model: Any) -> list[Rule]:
    """Return the rule of the truncation policy; [] for title scorers."""
    if not isinstance(model, PooledClassifier):
        return []
    policy = model.config.truncation
    fits = policy not in ("head_tail", "windows")
    return [("truncation", policy, fits, "head or tail, which a tokenizer supports")]


def server_config(model: Any, *, architecture: str, problem_type: str, pad_id: int | None) -> Any:
    """Return a copy of the backbone's config with the fields that servers read of a classifier."""
    config = copy.deepcopy(model.config.text_config)
    config.id2label, config.label2id = dict(model.config.id2label), dict(model.config.label2id)
    config.problem_type = problem_type
    config.pad_token_id = pad_id
    config.architectures = [architecture]
    config._name_or_path = ""
    return config


def make_portable(folder: Path) -> None:
    """Edit the saved files so that other versions and servers read the same model and the same inputs.

    - transformers 4 reads `rope_theta` at the top of the config, and 10,000 if it is absent; transformers 5
      writes it below `rope_parameters` only.
    - transformers 4 expects a dictionary in `extra_special_tokens`; a list is `additional_special_tokens`.
    - transformers 5 names the generic tokenizer of Llama and other families `TokenizersBackend`, which
      transformers 4 lacks; both know `PreTrainedTokenizerFast`.
    - With a chat template vLLM answers `messages` on `/classify`, by ids that the model was not trained on;
      without one it refuses them.

    Args:
        folder: with `config.json` and the files of the tokenizer.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "sliding_attention" in rope:  # two kinds of attention, as in Gemma 3
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope.get("full_attention") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    path = folder / "tokenizer_config.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    stated.pop("chat_template", None)
    if isinstance(stated.get("extra_special_tokens"), list):
        stated["additional_special_tokens"] = stated.pop("extra_special_tokens")
    if stated.get("tokenizer_class") == "TokenizersBackend":
        stated["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(stated, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `folder` at the end, and removed after an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
        staged = Path(staging, "export")
        yield staged
        os.replace(staged, folder)


def folder_problems(folder: Path) -> list[Problem]:
    """Return the problem of an output folder that is not empty, or []."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return []
    return [
        Problem(
            str(folder),
            "the folder is not empty",
            "a new or empty folder",
            "name another, or empty it",
            code="path-exists",
        )
    ]


def verification_rows(model: Any, tokenizer: Any) -> list[list[int]]:
    """Return the token ids of `VERIFICATION_TEXTS`, truncated as in training."""
    limit, side = verification_limit(model, tokenizer), tokenizer.truncation_side
    return encode_texts(
        tokenizer, VERIFICATION_TEXTS, max_length=limit, truncation="tail" if side == "left" else "head"
    ).input_ids


def verification_limit(model: Any, tokenizer: Any) -> int:
    """Return the length limit of the verification; without a limit of the model, about 512 tokens."""
    limit = model.config.max_seq_length if isinstance(model, PooledClassifier) else None
    return limit or min(tokenizer.model_max_length, 512 + sum(map(len, template_of(tokenizer))))


@torch.no_grad()
def float_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return logits (B, L) of a padded batch, in fp32 and eval mode whatever the state of the model."""
    ours = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    training, device = ours.training, ours.device
    ours.eval()
    logits = ours(**{name: tensor.to(device) for name, tensor in batch.items()}).logits.cpu()
    ours.train(training)
    return logits


def check_difference(
    found: torch.Tensor, expected: torch.Tensor, *, tolerance: float, where: str, runtime: str
) -> float:
    """Return the largest absolute difference of logits; raise if it exceeds the tolerance.

    Args:
        found: (B, L), logits of the export.
        expected: (B, L), logits of the model.
        tolerance: relative to the largest logit if that is above 1.
        where: the folder or file.
        runtime: the class or runtime that computed `found`.

    Raises:
        TaskHeadsError: the difference exceeds the tolerance or is NaN.
    """
    allowed = tolerance * max(1.0, float(expected.abs().max()))
    difference = float((found - expected).abs().max())
    if difference <= allowed:  # false for NaN
        return difference
    raise error_at(
        where,
        f"the logits of {runtime} differ by {difference:.2g}",
        f"a difference of at most {allowed:.0e}",
        "publish the model with save(), because this export computes other logits",
        code="verification-failed",
    )
