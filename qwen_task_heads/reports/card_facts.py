"""What stands on a card beside the figures: what its owner states, base, data, training, time, citations.

What a card says and no run can know (licences, language) is stated by its owner in `CardFacts`; what nobody
stated the card calls not stated, and nothing is guessed from the name of a base. What is stated when a
finished run is published goes into the staged card (`state_facts`), in place of what the run said.
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
from qwen_task_heads.pretrained import hub_id, in_bits
from qwen_task_heads.reports.calibration_summary import calibration_fields
from qwen_task_heads.reports.cards import (
    ADAPTER,
    ADAPTER_ALONE,
    FULL,
    code,
    fenced,
    licence_fields,
    link,
    one_line,
    plain,
)
from qwen_task_heads.reports.run_manifest import versions
from qwen_task_heads.training.publish_arguments import OWN_LICENCE, card_problems, is_dataset_id

if TYPE_CHECKING:
    from qwen_task_heads.reports.finishing import RunRecord

EMBEDDED_BASE = "the small backbone embedded in the package"
UNTRAINED = ("publish_", "hub", "card_")  # options that say where a model goes, and nothing of its training
LOSS_PAPERS = {
    "bradley_terry": "bradley_terry",
    "bradley_terry_margin": "llama2",
    "plackett_luce": "plackett_luce",
    "all_pairs": "instructgpt",
    "focal": "focal",
    "logit_adjusted": "logit_adjusted",
    "cumulative_link": "cumulative_link",
}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the owner of a model states of it; all of it may be left out.

    Args:
        license: of the model: an id of the hub such as `apache-2.0`, or `other:` and a name.
        language: codes of two or three letters, such as `("zh", "en")`; one may be given as a text.
        dataset_license: of the data, as its owner states it.
        dataset_url: where the data is from, a web address.
        dataset_id: `owner/name` of the data on the Hugging Face Hub, for data that was read from files.
        intended_use: sentences on what the model is for, in one paragraph.
        citation: BibTeX of whoever trained it, or of the data.

    Raises:
        TaskHeadsError: a licence that no hub knows, a language that is no code, a data set's address that is
            none, or an id that no hub has; all of them.

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


NOTHING_STATED = CardFacts()
STATED = {field.name for field in fields(CardFacts)}


# Lines of `card.md` that hold facts: (what stands before, the fact, what stands behind).
_LICENCE_LINE = re.compile(r"^(qwen-task-heads \S+ Licence: )(.*)(\.)$", re.MULTILINE)
_DATA_LINE = re.compile(r"^(Licence of the data: )(.*?)(\.)(?: Source: (.*))?$", re.MULTILINE)
_PARAGRAPH = r"(?:[^\n#-][^\n]*\n)+\n"
_USE = re.compile(rf"^(## Intended use and limits\n\n)({_PARAGRAPH})??({_PARAGRAPH}(?=[-#]))", re.MULTILINE)
_CITATION = re.compile(r"^(## Citation\n\n)(`{3,})bibtex\n(.*?)\n\2$", re.MULTILINE | re.DOTALL)


def state_facts(staged: str | Path, facts: CardFacts, *, named: str | Path) -> None:
    """Write what an owner states into a staged card and its manifest, in place of what the run said.

    Args:
        staged: from `stage`; its `README.md` and `manifest.json` are written anew.
        facts: what is stated; the rest stays.
        named: the folder that messages name.

    Raises:
        TaskHeadsError: no card, or one that was edited so that a fact has no place; all of them.
    """
    stated = {name: value for name, value in vars(facts).items() if value}
    card, manifest = Path(staged, "README.md"), Path(staged, "manifest.json")
    where = f"{named}/README.md"
    if not stated:
        return
    if not card.is_file():
        found, accepted = f"no card to state {', '.join(stated)} on", "a README.md"
        raise TaskHeadsError(
            Problem(
                where, f"found {found}", accepted, "write one, with the facts in it, and do not state them"
            )
        )
    content = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    said = content.setdefault("settings", {})
    text, missing = _restated(card.read_text(encoding="utf-8"), facts, said=said)
    if missing:
        accepted = "the lines that the run wrote"
        remedy = "write it there yourself, or put back the card of the run"
        raise TaskHeadsError(
            [Problem(where, f"found no place for {one}", accepted, remedy) for one in missing]
        )
    card.write_text(text, encoding="utf-8")
    said |= {name: list(value) if name == "language" else value for name, value in stated.items()}
    manifest.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _restated(card: str, facts: CardFacts, *, said: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The card with what is stated, and the facts it has no place for; `said` are the run's settings."""
    from huggingface_hub import ModelCard

    page = ModelCard(card, ignore_metadata_errors=True)
    missing: list[str] = []
    is_short = UNSTATED_USE in page.text  # `hubcode.card_task_heads`, of a model that no recipe evaluated

    def put(what: str, line: re.Pattern[str], new: Callable[[re.Match[str]], str]) -> None:
        page.text, count = line.subn(new, page.text, count=1)
        missing.extend([what] * (not count and not is_short))

    if facts.license:
        shown = plain(facts.license.removeprefix(OWN_LICENCE))
        put("license", _LICENCE_LINE, lambda m: m[1] + shown + m[3])
        page.data.pop("license_name")
        for name, value in licence_fields(facts.license).items():
            page.data[name] = value
    if facts.language:
        page.data["language"] = list(facts.language)
    if facts.dataset_id:
        others = [name for name in page.data.get("datasets") or [] if name != said.get("dataset_id")]
        page.data["datasets"] = list(dict.fromkeys([facts.dataset_id, *others]))
    if facts.dataset_license or facts.dataset_url:

        def of_data(found: re.Match[str]) -> str:
            licence = plain(facts.dataset_license) if facts.dataset_license else found[2]
            url = link(facts.dataset_url) if facts.dataset_url else found[4]
            return found[1] + licence + found[3] + (f" Source: {url}" if url else "")

        put("dataset_license and dataset_url", _DATA_LINE, of_data)
    if facts.intended_use:
        put("intended_use", _USE, lambda m: f"{m[1]}{plain(facts.intended_use)}\n\n{m[3]}")
    if facts.citation:
        before = _inner(str(said.get("citation") or ""))
        put(
            "citation", _CITATION,
            lambda m: m[1] + fenced(
                f"{m[3].replace(before, '') if before else m[3]}\n\n{facts.citation}", language="bibtex"
            ),
        )  # fmt: skip
    if is_short:
        page.text = f"{page.text.rstrip()}\n\n{_owner_section(facts)}"
        if facts.intended_use:
            page.text = page.text.replace(UNSTATED_USE, plain(facts.intended_use))
    return str(page).rstrip("\n") + "\n", missing


def _owner_section(facts: CardFacts) -> str:
    """Return what an owner states of a model whose card has no section for it."""
    shown = ["## Terms and citation", ""]
    if facts.license:
        shown += [f"Licence: {plain(facts.license.removeprefix(OWN_LICENCE))}.", ""]
    if facts.dataset_license:
        shown += [f"Licence of the data: {plain(facts.dataset_license)}.", ""]
    if facts.dataset_url:
        shown += [f"Source of the data: {link(facts.dataset_url)}", ""]
    if facts.citation:
        shown += [fenced(facts.citation, language="bibtex"), ""]
    return "\n".join(shown) if len(shown) > 2 else ""


def _inner(citation: str) -> str:
    """A citation as it stands in the block of a card."""
    return "\n".join(fenced(citation).splitlines()[1:-1]) if citation.strip() else ""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a card asks of a trained model.

    Args:
        config: labels, problem type and lengths; `backbone_revision` is the commit of its base, or None.
        is_adapter: the weights are those of an adapter.
        answers: it writes the label, as a language model does, and has no head of ours.
    """

    config: Any
    is_adapter: bool
    answers: bool = False

    @classmethod
    def of(cls, model: Any) -> Trained:
        """Of a model with a head, or a `PeftModel` around one."""
        from peft import PeftModel

        return cls(config=model.config, is_adapter=isinstance(model, PeftModel))


def card_fields(
    model: Trained, folder: Path, run: RunRecord, *, metrics: Mapping[str, Any], reported: str, seen: int
) -> dict[str, Any]:
    """The fields that the cards of all models have in common; `seen` rows of test stand in train too."""
    adapter, named = model.is_adapter, hub_id(run.backbone)
    base = named or Path(run.backbone).name
    embedded = run.backbone == EMBEDDED
    facts, revision, known = run.card, model.config.backbone_revision, versions()
    sample = embedded_set(model, run)
    return {
        "title": plain(folder.name),
        "kind": ADAPTER_ALONE if adapter and model.answers else ADAPTER if adapter else FULL,
        "base": "the small backbone embedded in the package"
        if embedded
        else code(base) + in_bits(run.backbone),
        "revision": code(revision) if revision else None,
        "versions": known,
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
            plain(name): plain(value)
            for name, value in run.settings.items()
            if not name.startswith(UNTRAINED) and name not in STATED
        },
        "embedded": embedded,
        "splits": _splits(metrics["data"], run),
        "licence": plain(facts.license.removeprefix(OWN_LICENCE)) if facts.license else "not stated",
        "intended_use": plain(facts.intended_use),
        "data_licence": plain(facts.dataset_license) if facts.dataset_license else None,
        "data_url": link(facts.dataset_url) if facts.dataset_url else None,
        "own_data": sample.statement if sample else None,
        "time_line": _time_line(metrics["train"]),
        "citation": fenced(
            "\n\n".join([*citations(run, adapter=adapter, sample=sample), facts.citation.strip()]),
            language="bibtex",
        ),
    }


def picked_what(run: RunRecord) -> str:
    """Return what dev picked: the head of a sweep, or a checkpoint."""
    return "head" if "penalties" in run.settings else "checkpoint"


def picked_note(run: RunRecord, reported: str, noun: str) -> str:
    """Return the words that follow metrics on dev, if dev picked what is measured; "" otherwise."""
    picked = reported == "dev" and run.picked
    return f" (the {picked_what(run)} was chosen on the same {noun})" if picked else ""


def without_rows(lines: Sequence[str]) -> list[str]:
    """Lines of a report without those that quote the data, which stand two blanks in.

    Example:
        >>> from qwen_task_heads.reports.card_facts import without_rows
        >>> without_rows(["train: 9 pairs read", "train:   a.jsonl:3: found 'My secret'; …"])
        ['train: 9 pairs read']
    """
    return [line for line in lines if not re.match(r"(\w+: )? {2}", line)]


def loss_line(run: RunRecord, losses: Mapping[str, Any]) -> str:
    """Formula and source of the run's loss, or of the first of its table; "" for one in no table."""
    loss = losses.get(str(run.settings.get("loss") or next(iter(losses))))
    return f"Loss: {code(loss.formula)} ({plain(loss.source)})." if loss else ""


def metadata_fields(
    model: Trained, run: RunRecord, *, reported: str, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Base, relation, licence, language and data sets of the card's metadata.

    A folder of this machine is no base that a hub knows, and a file no data set.
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
    """Id of the hub's data set that the figures were measured on; None where it was a file or unknown."""
    role = {"test": "test_dataset", "dev": "dev_dataset"}[reported]
    if run.settings.get(role):
        return _hub_dataset(run, role)
    if metrics["data"][reported].get("cut"):
        return None  # part of a training split is nobody's benchmark
    return run.card.dataset_id or _hub_dataset(run, "dataset_name")


def _hub_dataset(run: RunRecord, role: str) -> str | None:
    """A data set id among the settings; files and folders stand there by their names alone."""
    name = str(run.settings.get(role) or "")
    return name if run.settings.get("hub") != "modelscope" and is_dataset_id(name) else None


def embedded_set(model: Trained, run: RunRecord) -> EmbeddedDataset | None:
    """Return the sample of the package that the run was trained on, None for other data."""
    if run.settings.get("dataset_name") != EMBEDDED:
        return None
    return EMBEDDED_DATASETS["titles" if model.config.model_type == TitleScorerConfig.model_type else "texts"]


def citations(run: RunRecord, *, adapter: bool, sample: EmbeddedDataset | None) -> list[str]:
    """BibTeX of this package and of the methods that the run used, from `model_cards/references.bib`."""
    text = (resources.files("qwen_task_heads.model_cards") / "references.bib").read_text(encoding="utf-8")
    entries = {re.match(r"@\w+\{([\w-]+)", entry)[1]: entry for entry in text.strip().split("\n\n")}  # type: ignore[index]
    settings = run.settings
    keys = ["qwen_task_heads", LOSS_PAPERS.get(str(settings.get("loss")))]
    if adapter and "lora_r" in settings and not settings.get("freeze_backbone"):
        keys.append("dora" if settings.get("lora_dora") else "lora")
    # The embedded backbone was pretrained on the headlines of this archive.
    sources = [*([sample.citation] if sample else []), *(["upworthy"] if run.backbone == EMBEDDED else [])]
    keys += dict.fromkeys(sources)
    return [entries[key].replace("VERSION", __version__) for key in keys if key]


def _splits(data: Mapping[str, Mapping[str, Any]], run: RunRecord) -> list[dict[str, str]]:
    """Rows of the table of sets: where each is from, its size, the beginning of its hash."""
    roles = {"train": "dataset_name", "dev": "dev_dataset", "test": "test_dataset"}
    source = str(run.settings.get("dataset_name", "own data"))
    rows = []
    for split, entry in data.items():
        count = entry.get("pairs", entry.get("rows"))
        place = plain(str(run.settings.get(roles[split]) or source))
        if entry.get("cut"):
            place += ", cut from train by a hash"
        if count:
            rows.append(
                {"split": split, "place": place, "count": f"{count:,}", "sha256": entry["sha256"][:12]}
            )
    return rows


def _time_line(train: Mapping[str, Any]) -> str:
    count = train["processes"]
    processes = "one process" if count == 1 else f"{count} processes"
    since = ", counted from the checkpoint that the run resumed from" if train["resumed"] else ""
    return f"Training took {train['seconds']:,.1f} s on {plain(train['device'])}, {processes}{since}."


def _reported_on(reported: str, run: RunRecord, seen: int) -> str:
    if reported == "test" and seen:
        rows = "one row of which was" if seen == 1 else f"{seen:,} rows of which were"
        return f"On the test set, {rows} trained on too: the figures flatter."
    if reported == "test":
        return "On the test set, which played no part in training or choosing:"
    if run.picked:
        return f"On the dev set, on which the {picked_what(run)} was also chosen: expect less on new data."
    return "On the dev set, which chose nothing: these are the last weights of the run."
