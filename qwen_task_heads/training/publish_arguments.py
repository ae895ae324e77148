"""Options of publishing that every recipe takes, and options of transformers that are refused.

`--push_to_hub`, `--hub_model_id`, `--hub_private_repo` and `--hub_revision` are options of transformers and
keep their meaning, with one difference: only a finished model is published, after it was reloaded and
verified (`verification/parity.py`). Trainer's own upload is disabled: it publishes the folder without config
and code, and with `training_args.bin`, which contains the hub token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from transformers.trainer_utils import HubStrategy

from qwen_task_heads.errors import Problem, shorten
from qwen_task_heads.hubs import HUBS

EXPORT_FORMATS = ("saved", "merged", "stock", "gguf")
# Strategies of transformers that publish weights before they are evaluated.
DURING_TRAINING = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)

# Licence ids of the Hugging Face Hub, which refuses a card with another id.
# https://huggingface.co/docs/hub/repositories-licenses
_LICENCES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1
lgpl-3.0 lgpl-lr isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by
odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community
gemma unknown other
"""
LICENCES = frozenset(_LICENCES.split())
OWN_LICENCE = "other:"  # prefix of the name of a licence that is not on the list
# Frequent inputs in place of a language code.
LANGUAGES = {
    "arabic": "ar",
    "chinese": "zh",
    "english": "en",
    "french": "fr",
    "german": "de",
    "hindi": "hi",
    "italian": "it",
    "japanese": "ja",
    "korean": "ko",
    "mandarin": "zh",
    "portuguese": "pt",
    "russian": "ru",
    "spanish": "es",
    "cn": "zh",
    "jp": "ja",
    "kr": "ko",
}


@dataclass
class CardArguments:
    """Facts of the card that a run cannot measure."""

    license: str | None = field(
        default=None,
        metadata={"help": "Licence for the card: an id of the hub such as apache-2.0, or other:NAME."},
    )
    language: list[str] = field(
        default_factory=list, metadata={"help": "Languages of the texts for the card, such as zh en."}
    )
    dataset_license: str | None = field(default=None, metadata={"help": "Licence of the data for the card."})
    dataset_url: str | None = field(
        default=None, metadata={"help": "Source of the data for the card, as a URL."}
    )
    dataset_id: str | None = field(
        default=None,
        metadata={"help": "owner/name of the dataset on the Hugging Face Hub, if read from files."},
    )
    intended_use: str = field(
        default="", metadata={"help": "Intended use of the model for the card, in sentences."}
    )
    citation: str = field(default="", metadata={"help": "BibTeX of the model or its data for the card."})


@dataclass
class PublishArguments(CardArguments):
    """Facts of the card, and the export format of the published model."""

    publish_form: str = field(
        default="saved",
        metadata={
            "help": "saved: as trained; merged: without adapter; stock: a class of transformers; gguf: a "
            "file for llama.cpp (Qwen3)."
        },
    )
    publish_rows: bool = field(
        default=False,
        metadata={"help": "Publish predictions.jsonl and errors.md too; they contain texts of the data."},
    )
    hub_tag: str | None = field(default=None, metadata={"help": "Tag of the published commit."})


def card_problems(facts: Mapping[str, Any], *, prefix: str = "") -> list[Problem]:
    """Return the problems of the facts of a card that hubs refuse or that readers cannot use.

    Args:
        facts: options of `PublishArguments` for the card, by name; None and "" count as not given.
        prefix: prefix of the names in messages, `--` for options.

    Example:
        >>> from qwen_task_heads.training.publish_arguments import card_problems
        >>> print(card_problems({"license": "apache2"}, prefix="--")[0])
        --license: found 'apache2'. Expected an id of the hub's list, or other:NAME.
        Fix: give --license apache-2.0.
    """
    problems = []
    licence = " ".join(str(facts.get("license") or "").split())
    own = licence.lower().startswith(OWN_LICENCE) and licence[len(OWN_LICENCE) :].strip()
    if licence and not own and licence.lower() not in LICENCES:
        near = get_close_matches(licence.lower(), sorted(LICENCES), n=1, cutoff=0.5)
        name = re.sub(f"^{OWN_LICENCE}", "", licence, flags=re.IGNORECASE).strip() or "NAME"
        problem, expected = f"found {shorten(licence)}", "an id of the hub's list, or other:NAME"
        fix = f"give {prefix}license {near[0] if near else OWN_LICENCE + name}"
        problems.append(Problem(f"{prefix}license", problem, expected, fix, code="option-value"))
    language = facts.get("language") or ()
    for code in (language,) if isinstance(language, str) else language:
        meant = LANGUAGES.get(code.lower())
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", code) or meant:
            problem, fix = f"found {shorten(code)}", f"give {prefix}language {meant or 'en'}"
            expected = "codes of two or three letters, such as en or zh"
            problems.append(Problem(f"{prefix}language", problem, expected, fix, code="option-value"))
    url = facts.get("dataset_url") or ""
    if url and not re.match(r"https?://[^\s/]", url, re.IGNORECASE):
        problem, expected = f"found {shorten(url)}", "a URL that starts with https:// or http://"
        host = re.fullmatch(r"[\w-]+(\.[\w-]+)+(/\S*)?", url)
        fix = f"give {prefix}dataset_url https://{url}" if host else "drop it"
        problems.append(Problem(f"{prefix}dataset_url", problem, expected, fix, code="option-value"))
    dataset = facts.get("dataset_id")
    if dataset and not is_dataset_id(dataset):
        problem, expected = f"found {shorten(dataset)}", "owner/name of a dataset on the Hugging Face Hub"
        problems.append(Problem(f"{prefix}dataset_id", problem, expected, "drop it", code="option-value"))
    return problems


def is_dataset_id(name: str) -> bool:
    """Return whether a name has the form `owner/name` of a dataset on the Hugging Face Hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def publish_problems(task: PublishArguments, training: Any) -> list[Problem]:
    """Return the problems of the options of publishing.

    Args:
        task: holds the options above.
        training: `TrainingArguments`, of which `push_to_hub` and `hub_*` are read.
    """
    problems = card_problems(vars(task), prefix="--")
    if task.publish_form not in EXPORT_FORMATS:
        problem, expected = f"found {task.publish_form!r}", ", ".join(EXPORT_FORMATS)
        problems.append(
            Problem("--publish_form", problem, expected, "choose one of them", code="option-value")
        )
    if training.hub_token is not None:
        problem = "found a token"  # not quoted: this message is written to logs
        expected = "no token on a command line or in a file"
        fix = f"drop it: revoke it there, and {'; '.join(hub.login for hub in HUBS.values())}"
        problems.append(Problem("--hub_token", problem, expected, fix, code="secret-found"))
    name = training.hub_model_id
    if not training.push_to_hub:
        if name is not None:
            problem, expected = f"found {name!r} without --push_to_hub", "--push_to_hub true with it"
            fix = "add --push_to_hub true"
            problems.append(Problem("--hub_model_id", problem, expected, fix, code="option-missing"))
        return problems
    if name is None:
        expected, fix = "owner/name of the repo", "add --hub_model_id owner/name"
        problems.append(Problem("--hub_model_id", "found none", expected, fix, code="option-missing"))
    if HubStrategy(training.hub_strategy) in DURING_TRAINING:
        problem = f"found {training.hub_strategy!s}"
        expected = "end, because only the finished and verified model is published"
        problems.append(Problem("--hub_strategy", problem, expected, "drop it", code="option-unsupported"))
    return problems
