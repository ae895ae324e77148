"""Options of publishing that every recipe takes, and what of transformers' own is refused.

`--push_to_hub`, `--hub_model_id`, `--hub_private_repo` and `--hub_revision` are transformers' names and
mean what they mean there, with one difference: only a finished model leaves the machine, after it was
opened again and found equal (`verification/parity.py`). Trainer's own upload is switched off: it takes the
folder as it is, without config and code, and with `training_args.bin`, which holds the token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from transformers.trainer_utils import HubStrategy

from qwen_task_heads.errors import Problem, shorten

FORMS = ("saved", "merged", "stock")
# Strategies of transformers that would publish weights nobody has measured yet.
DURING_TRAINING = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)

# Ids that the Hugging Face Hub takes, and no others: it refuses a card with another one.
# https://huggingface.co/docs/hub/repositories-licenses
LICENCES = {
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5",
    "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0",
    "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0",
    "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "isc", "h-research", "intel-research", "lppl-1.3c",
    "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0", "odc-by", "odbl", "openmdw-1.0", "openrail++", "osl-3.0",
    "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "deepfloyd-if-license",
    "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4",
    "grok2-community", "gemma", "unknown", "other",
}  # fmt: skip
OWN_LICENCE = "other:"  # and a name, for terms that are no licence of the list
# What people type in place of a code.
LANGUAGES = {
    "arabic": "ar", "chinese": "zh", "english": "en", "french": "fr", "german": "de", "hindi": "hi",
    "italian": "it", "japanese": "ja", "korean": "ko", "mandarin": "zh", "portuguese": "pt", "russian": "ru",
    "spanish": "es", "cn": "zh", "jp": "ja", "kr": "ko",
}  # fmt: skip


@dataclass
class PublishArguments:
    """What the card says that no run can know, and in which form the model goes to its hub."""

    license: str | None = field(
        default=None,
        metadata={"help": "Licence for the card: an id of the hub such as apache-2.0, or other:NAME."},
    )
    language: list[str] = field(
        default_factory=list, metadata={"help": "Languages of the texts for the card, such as zh en."}
    )
    dataset_license: str | None = field(default=None, metadata={"help": "Licence of the data for the card."})
    dataset_url: str | None = field(default=None, metadata={"help": "Where the data are from, for the card."})
    dataset_id: str | None = field(
        default=None, metadata={"help": "owner/name of the data on the Hugging Face Hub, if read from files."}
    )
    intended_use: str = field(
        default="", metadata={"help": "What the model is for, in sentences, for the card."}
    )
    citation: str = field(default="", metadata={"help": "BibTeX of the model or its data, for the card."})
    publish_form: str = field(
        default="saved",
        metadata={"help": "saved: as trained; merged: without adapter; stock: transformers' own class."},
    )
    publish_rows: bool = field(
        default=False,
        metadata={"help": "Publish predictions.jsonl and errors.md too: they hold texts of the data."},
    )
    hub_tag: str | None = field(default=None, metadata={"help": "Tag of the published commit."})


def card_problems(facts: Mapping[str, Any], *, prefix: str = "") -> list[Problem]:
    """Problems of what is stated for a card, which hubs would refuse or readers could not use.

    Args:
        facts: the options of `PublishArguments` that go on a card, by name; None and "" are not stated.
        prefix: of the names in messages: `--` of options.

    Example:
        >>> from qwen_task_heads.training.publish_arguments import card_problems
        >>> print(card_problems({"license": "apache2"}, prefix="--")[0])
        --license: found 'apache2'; accepted: an id of the hub's list, or other:NAME; did you mean apache-2.0?
    """
    problems = []
    licence = " ".join(str(facts.get("license") or "").split())
    own = licence.lower().startswith(OWN_LICENCE) and licence[len(OWN_LICENCE) :].strip()
    if licence and not own and licence.lower() not in LICENCES:
        near = get_close_matches(licence.lower(), sorted(LICENCES), n=1, cutoff=0.5)
        name = re.sub(f"^{OWN_LICENCE}", "", licence, flags=re.IGNORECASE).strip() or "NAME"
        remedy = f"did you mean {near[0] if near else OWN_LICENCE + name}?"
        accepted = "an id of the hub's list, or other:NAME"
        problems.append(Problem(f"{prefix}license", f"found {shorten(licence)}", accepted, remedy))
    language = facts.get("language") or ()
    for code in (language,) if isinstance(language, str) else language:
        meant = LANGUAGES.get(code.lower())
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", code) or meant:
            remedy = f"did you mean {meant}?" if meant else "choose such as en"
            accepted = "codes of two or three letters, such as en or zh"
            problems.append(Problem(f"{prefix}language", f"found {shorten(code)}", accepted, remedy))
    url = facts.get("dataset_url") or ""
    if url and not re.match(r"https?://[^\s/]", url, re.IGNORECASE):
        accepted = "an address that begins with https:// or http://"
        host = re.fullmatch(r"[\w-]+(\.[\w-]+)+(/\S*)?", url)
        remedy = f"did you mean https://{url}?" if host else "drop it"
        problems.append(Problem(f"{prefix}dataset_url", f"found {shorten(url)}", accepted, remedy))
    dataset = facts.get("dataset_id")
    if dataset and not is_dataset_id(dataset):
        accepted = "owner/name of a data set on the Hugging Face Hub"
        problems.append(Problem(f"{prefix}dataset_id", f"found {shorten(dataset)}", accepted, "drop it"))
    return problems


def is_dataset_id(name: str) -> bool:
    """Whether a name has the shape `owner/name` of a data set on the Hugging Face Hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def publish_problems(task: PublishArguments, training: Any) -> list[Problem]:
    """Problems of the options of publishing.

    Args:
        task: holds the options above.
        training: `TrainingArguments`; their `push_to_hub` and `hub_*`.
    """
    problems = card_problems(vars(task), prefix="--")
    if task.publish_form not in FORMS:
        accepted = "" + ", ".join(FORMS)
        problems.append(
            Problem("--publish_form", f"found {task.publish_form!r}", accepted, "choose one of them")
        )
    if training.hub_token is not None:
        # Not quoted: it is a secret, and this message goes to logs.
        remedy = "drop it: revoke it there, and log in by `hf auth login`, HF_TOKEN or MODELSCOPE_API_TOKEN"
        problems.append(
            Problem("--hub_token", "found a token", "none on a command line or in a file", remedy)
        )
    if not training.push_to_hub:
        if training.hub_model_id is not None:
            found = f"{training.hub_model_id!r} without --push_to_hub"
            problems.append(
                Problem("--hub_model_id", f"found {found}", "both or neither", "add --push_to_hub true")
            )
        return problems
    if training.hub_model_id is None:
        accepted, remedy = "owner/name of the repo", "add --hub_model_id owner/name"
        problems.append(Problem("--hub_model_id", "found none", accepted, remedy))
    if HubStrategy(training.hub_strategy) in DURING_TRAINING:
        accepted = "end; what is published is the finished model, proven equal"
        problems.append(Problem("--hub_strategy", f"found {training.hub_strategy!s}", accepted, "drop it"))
    return problems
