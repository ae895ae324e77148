"""Fields of a card other than metrics: facts of the owner, base, data, training, time and citations.

A run cannot know licences, languages or the intended use: the owner of a model states them in `CardFacts`.
A fact without a statement is "not stated" on the card; nothing is inferred from the name of a base. Facts
that are stated when a finished run is published replace those of the run in the staged card (`state_facts`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_task_heads import __version__
from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.data.embedded_datasets import EMBEDDED_DATASETS, EmbeddedDataset
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.card_task_heads import HERE, HERE_NOTE, UNSTATED_USE
from qwen_task_heads.hubcode.configuration_task_heads import TitleScorerConfig
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.pretrained import hub_id, in_bits
from qwen_task_heads.reports.calibration_summary import calibration_fields
from qwen_task_heads.reports.cards import ADAPTER, ADAPTER_ALONE, FULL, licence_fields
from qwen_task_heads.reports.markdown import code, escape, fenced, link, one_line
from qwen_task_heads.reports.run_manifest import versions
from qwen_task_heads.training.losses import LOSSES
from qwen_task_heads.training.publish_arguments import OWN_LICENCE, card_problems, is_dataset_id

if TYPE_CHECKING:
    from qwen_task_heads.reports.finishing import RunRecord

EMBEDDED_BASE = "the small backbone embedded in the package"
PUBLISHING = ("publish_", "hub", "card_")  # prefixes of options without effect on the training


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
        >>> from qwen_task_heads.reports.finishing import CardFacts
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


NOTHING_STATED: CardFacts = CardFacts()
STATED = {field.name for field in fields(CardFacts)}


# Lines of `card.md` with facts. Groups: the text before a fact, the fact, the text after it.
_LICENCE_LINE = re.compile(r"^(qwen-task-heads \S+ Licence: )(.*)(\.)$", re.MULTILINE)
_DATA_LINE = re.compile(r"^(Licence of the data: )(.*?)(\.)(?: Source: (.*))?$", re.MULTILINE)
_PARAGRAPH = r"(?:[^\n#-][^\n]*\n)+\n"
# Runs of version 0.1.0 wrote "Intended use and limits".
_USE = re.compile(
    rf"^(## Intended use(?: and limits)?\n\n)({_PARAGRAPH})??({_PARAGRAPH}(?=[-#]))", re.MULTILINE
)
_CITATION = re.compile(r"^(## Citation\n\n)(`{3,})bibtex\n(.*?)\n\2$", re.MULTILINE | re.DOTALL)


def state_facts(staged: str | Path, facts: CardFacts, *, named: str | Path) -> None:
    """Replace facts of the run in a staged card and its manifest by those that the owner states.

    Args:
        staged: from `stage`; its `README.md` and `manifest.json` are rewritten.
        facts: stated facts; others are unchanged.
        named: folder that messages name.

    Raises:
        TaskHeadsError: the card is missing, or lacks the line of a fact; all problems at once.
    """
    stated = {name: value for name, value in vars(facts).items() if value}
    card, manifest = Path(staged, "README.md"), Path(staged, "manifest.json")
    where = f"{named}/README.md"
    if not stated:
        return
    if not card.is_file():
        raise TaskHeadsError(
            Problem(
                where,
                f"the card that should state {', '.join(stated)} is missing",
                "a README.md",
                "write one, with the facts in it, and do not state them",
                code="path-not-found",
            )
        )
    content = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    settings = content.setdefault("settings", {})
    text, missing = _restated(card.read_text(encoding="utf-8"), facts, settings=settings)
    if missing:
        expected = "the lines that the run wrote"
        fix = "write it there yourself, or put back the card of the run"
        raise TaskHeadsError(
            [
                Problem(where, f"found no place for {fact}", expected, fix, code="file-format")
                for fact in missing
            ]
        )
    card.write_text(text, encoding="utf-8")
    settings |= {name: list(value) if name == "language" else value for name, value in stated.items()}
    manifest.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _restated(card: str, facts: CardFacts, *, settings: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the card with the stated facts, and the names of facts whose line it lacks."""
    from huggingface_hub import ModelCard

    page = ModelCard(card, ignore_metadata_errors=True)
    missing: list[str] = []
    is_short = UNSTATED_USE in page.text  # `hubcode.card_task_heads`, of a model that no recipe evaluated

    def replace_line(fact: str, line: re.Pattern[str], new: Callable[[re.Match[str]], str]) -> None:
        page.text, count = line.subn(new, page.text, count=1)
        if not count and not is_short:
            missing.append(fact)

    if facts.license:
        stated_licence = escape(facts.license.removeprefix(OWN_LICENCE))
        replace_line("license", _LICENCE_LINE, lambda m: m[1] + stated_licence + m[3])
        page.data.pop("license_name")
        for name, value in licence_fields(facts.license).items():
            page.data[name] = value
    if facts.language:
        page.data["language"] = list(facts.language)
    if facts.dataset_id:
        others = [name for name in page.data.get("datasets") or [] if name != settings.get("dataset_id")]
        page.data["datasets"] = list(dict.fromkeys([facts.dataset_id, *others]))
    if facts.dataset_license or facts.dataset_url:

        def data_line(match: re.Match[str]) -> str:
            licence = escape(facts.dataset_license) if facts.dataset_license else match[2]
            url = link(facts.dataset_url) if facts.dataset_url else match[4]
            return match[1] + licence + match[3] + (f" Source: {url}" if url else "")

        replace_line("dataset_license and dataset_url", _DATA_LINE, data_line)
    if facts.intended_use:
        replace_line("intended_use", _USE, lambda m: f"{m[1]}{escape(facts.intended_use)}\n\n{m[3]}")
    if facts.citation:
        of_run = _fenced_body(str(settings.get("citation") or ""))

        def citation(match: re.Match[str]) -> str:
            entries = match[3].replace(of_run, "") if of_run else match[3]
            return match[1] + fenced(f"{entries}\n\n{facts.citation}", language="bibtex")

        replace_line("citation", _CITATION, citation)
    if is_short:
        page.text = f"{page.text.rstrip()}\n\n{_owner_section(facts)}"
        if facts.intended_use:
            page.text = page.text.replace(UNSTATED_USE, escape(facts.intended_use))
    return str(page).rstrip("\n") + "\n", missing


def _owner_section(facts: CardFacts) -> str:
    """Return a section with the facts of an owner, for a card without one."""
    lines = ["## Terms and citation", ""]
    if facts.license:
        lines += [f"Licence: {escape(facts.license.removeprefix(OWN_LICENCE))}.", ""]
    if facts.dataset_license:
        lines += [f"Licence of the data: {escape(facts.dataset_license)}.", ""]
    if facts.dataset_url:
        lines += [f"Source of the data: {link(facts.dataset_url)}", ""]
    if facts.citation:
        lines += [fenced(facts.citation, language="bibtex"), ""]
    return "\n".join(lines) if len(lines) > 2 else ""


def _fenced_body(citation: str) -> str:
    """Return a citation as a card contains it, without its fences."""
    return "\n".join(fenced(citation).splitlines()[1:-1]) if citation.strip() else ""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Properties of a trained model that its card needs.

    Args:
        config: labels, problem type and lengths; `backbone_revision` is the commit of its base, or None.
        is_adapter: the weights are an adapter.
        answers: the model is a generative classifier, without a head of this package.
    """

    config: Any
    is_adapter: bool
    answers: bool = False

    @classmethod
    def of(cls, model: Any) -> Trained:
        """Describe a model with a head, or a `PeftModel` around one."""
        from peft import PeftModel

        return cls(config=model.config, is_adapter=isinstance(model, PeftModel))


def card_fields(
    model: Trained, folder: Path, run: RunRecord, *, metrics: Mapping[str, Any], reported: str, seen: int
) -> dict[str, Any]:
    """Return the template fields of all cards; `seen` rows of test are also in train."""
    adapter = model.is_adapter
    base = hub_id(run.backbone) or Path(run.backbone).name
    embedded = run.backbone == EMBEDDED
    facts, revision = run.card, model.config.backbone_revision
    sample = embedded_set(model, run)
    kind = FULL
    if adapter:
        kind = ADAPTER_ALONE if model.answers else ADAPTER
    return {
        "title": escape(folder.name),
        "kind": kind,
        "base": EMBEDDED_BASE if embedded else code(base) + in_bits(run.backbone),
        "revision": code(revision) if revision else None,
        "versions": versions(),
        "reported_on": _reported_on(reported, run, seen),
        "repo": HERE,
        "here_note": HERE_NOTE,
        "adapter": adapter,
        "answers": model.answers,
        "stock": False,
        "picked": run.picked,
        "picked_what": picked_what(run),
        "calibration": calibration_fields(metrics, reported, model.config),
        "settings": {
            escape(name): escape(value)
            for name, value in run.settings.items()
            if not name.startswith(PUBLISHING) and name not in STATED
        },
        "embedded": embedded,
        "splits": _splits(metrics["data"], run),
        "licence": escape(facts.license.removeprefix(OWN_LICENCE)) if facts.license else "not stated",
        "intended_use": escape(facts.intended_use),
        "data_licence": escape(facts.dataset_license) if facts.dataset_license else None,
        "data_url": link(facts.dataset_url) if facts.dataset_url else None,
        "own_data": sample.statement if sample else None,
        "time_line": _time_line(metrics["train"]),
        "citation": fenced(
            "\n\n".join([*citations(run, adapter=adapter, sample=sample), facts.citation.strip()]),
            language="bibtex",
        ),
    }


def picked_what(run: RunRecord) -> str:
    """Return the noun for the selection on dev: the head of a sweep, or a checkpoint."""
    return "head" if "penalties" in run.settings else "checkpoint"


def picked_note(run: RunRecord, reported: str, noun: str) -> str:
    """Return a note for metrics on dev, if dev also selected the checkpoint or head; else ""."""
    picked = reported == "dev" and run.picked
    return f" (the {picked_what(run)} was chosen on the same {noun})" if picked else ""


def without_rows(lines: Sequence[str]) -> list[str]:
    """Remove the lines of a report that quote rows of the data; they are indented by two spaces.

    Example:
        >>> from qwen_task_heads.reports.card_facts import without_rows
        >>> without_rows(["train: 9 pairs read", "train:   a.jsonl:3: found 'My secret'; …"])
        ['train: 9 pairs read']
    """
    return [line for line in lines if not re.match(r"(\w+: )? {2}", line)]


def loss_line(run: RunRecord, losses: Mapping[str, Any]) -> str:
    """Return formula and source of the run's loss, by default the first; "" for an unknown one."""
    loss = losses.get(str(run.settings.get("loss") or next(iter(losses))))
    return f"Loss: {code(loss.formula)} ({escape(loss.source)})." if loss else ""


def metadata_fields(
    model: Trained, run: RunRecord, *, reported: str, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Return base, relation, licence, language and datasets of the card's metadata.

    A local folder is not a base that the hub knows, and a file is not a dataset of the hub: both are omitted.
    """
    measured = reported_dataset(run, reported, metrics)
    trained = run.card.dataset_id or _hub_dataset(run, "dataset_name")
    named = run.settings.get("test_dataset") if reported == "test" else None
    return {
        "base": one_line(hub_id(run.backbone)) if hub_id(run.backbone) else None,
        "relation": "adapter" if model.is_adapter else "finetune",
        "language": run.card.language or (("en",) if run.settings.get("dataset_name") == EMBEDDED else ()),
        "license": run.card.license,
        "datasets": list(dict.fromkeys(name for name in (trained, measured) if name)),
        "dataset": str(named or run.settings.get("dataset_name", "own data")),
        "split": reported,
    }


def reported_dataset(run: RunRecord, reported: str, metrics: Mapping[str, Any]) -> str | None:
    """Return the hub id of the dataset of the metrics; None if it was a file or is unknown."""
    option = {"test": "test_dataset", "dev": "dev_dataset"}[reported]
    if run.settings.get(option):
        return _hub_dataset(run, option)
    if metrics["data"][reported].get("cut"):
        return None  # a part of a training split is not the evaluation split of a dataset
    return run.card.dataset_id or _hub_dataset(run, "dataset_name")


def _hub_dataset(run: RunRecord, option: str) -> str | None:
    """Return a setting if it is a dataset id; the settings have only the names of files and folders."""
    name = str(run.settings.get(option) or "")
    hub = HUBS.get(str(run.settings.get("hub")), HUBS[HUGGINGFACE])
    return name if hub.by_id and is_dataset_id(name) else None


def embedded_set(model: Trained, run: RunRecord) -> EmbeddedDataset | None:
    """Return the sample of the package that the run was trained on; None for other data."""
    if run.settings.get("dataset_name") != EMBEDDED:
        return None
    return EMBEDDED_DATASETS["titles" if model.config.model_type == TitleScorerConfig.model_type else "texts"]


def citations(run: RunRecord, *, adapter: bool, sample: EmbeddedDataset | None) -> list[str]:
    """Return BibTeX of this package and of the methods of the run, from `model_cards/references.bib`."""
    text = (resources.files("qwen_task_heads.model_cards") / "references.bib").read_text(encoding="utf-8")
    entries = {re.match(r"@\w+\{([\w-]+)", entry)[1]: entry for entry in text.strip().split("\n\n")}  # type: ignore[index]
    settings = run.settings
    loss = str(settings.get("loss"))
    papers = [losses[loss].paper for losses in LOSSES.values() if loss in losses]
    keys = ["qwen_task_heads", *papers[:1]]
    if adapter and "lora_r" in settings and not settings.get("freeze_backbone"):
        keys.append("dora" if settings.get("lora_dora") else "lora")
    # The embedded backbone was pretrained on the headlines of this archive.
    sources = [*([sample.citation] if sample else []), *(["upworthy"] if run.backbone == EMBEDDED else [])]
    keys += dict.fromkeys(sources)
    return [entries[key].replace("VERSION", __version__) for key in keys if key]


def _splits(data: Mapping[str, Mapping[str, Any]], run: RunRecord) -> list[dict[str, str]]:
    """Return the rows of the table of splits: source, size, and prefix of the hash."""
    options = {"train": "dataset_name", "dev": "dev_dataset", "test": "test_dataset"}
    source = str(run.settings.get("dataset_name", "own data"))
    rows = []
    for split, entry in data.items():
        count = entry.get("pairs", entry.get("rows"))
        origin = escape(str(run.settings.get(options[split]) or source))
        if entry.get("cut"):
            origin += ", cut from train by a hash"
        if count:
            rows.append(
                {"split": split, "source": origin, "count": f"{count:,}", "sha256": entry["sha256"][:12]}
            )
    return rows


def _time_line(train: Mapping[str, Any]) -> str:
    count = train["processes"]
    processes = "one process" if count == 1 else f"{count} processes"
    since = ", counted from the checkpoint from which the run resumed" if train["resumed"] else ""
    return f"Training took {train['seconds']:,.1f} s on {escape(train['device'])}, {processes}{since}."


def _reported_on(reported: str, run: RunRecord, seen: int) -> str:
    if reported == "test" and seen:
        rows = "one row of which is" if seen == 1 else f"{seen:,} rows of which are"
        return f"On the test set, {rows} also in train: the metrics are optimistic."
    if reported == "test":
        return "On the test set, which was used neither for training nor for model selection."
    if run.picked:
        return f"On the dev set, which also selected the {picked_what(run)}: expect lower values on new data."
    return "On the dev set, which was not used for model selection: the weights are the last of the run."
