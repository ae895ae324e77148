"""Publish a card that no record renders: its text is kept, and its metadata updated.

Such a card was edited by hand, is of version 0.1, or of a model that no recipe evaluated. Nothing in it is
parsed. Placeholders that the package itself wrote are replaced where they are still there: the name of the
repo, facts that were not stated, the results of the verification. Everything else is appended as a section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_task_heads.hubcode.card_task_heads import UNSTATED_USE, card_text, name_card, read_card
from qwen_task_heads.reports.card_facts import CardFacts, licence_fields
from qwen_task_heads.reports.markdown import escape, fenced, link
from qwen_task_heads.reports.model_card import UNVERIFIED, load_fields, onnx_fields, parity_fields, render
from qwen_task_heads.training.publish_arguments import OWN_LICENCE

# The text of version 0.1 in place of `UNVERIFIED`
UNVERIFIED_0_1 = (
    "This card was written before a comparison. `recipes/publish.py` opens the model again in a clean "
    "process, compares it with\nthe trained model, and writes the differences here."
)
LOAD, AS_TRAINED = "\n## How to load it\n", "\n## How to load it as trained\n"


def kept_card(
    text: str,
    *,
    repo_id: str,
    hub: str,
    revision: str | None = None,
    form: str = "saved",
    facts: CardFacts,
    parity: Sequence[Mapping[str, Any]] = (),
    against: str = "",
    onnx: bool = False,
    int8: bool = False,
) -> str:
    """Return the card of a folder for a repo; for the other arguments see `model_card`.

    Args:
        text: text of the card.
        form: export format of the repo. For another one than `saved`, its code is put before that of the
            card, which then has the heading "How to load it as trained".
        facts: that the owner states. Language, licence and dataset are set in the metadata; all that a card
            shows are appended as a section.
    """
    front, page = read_card(name_card(text, repo_id, revision=revision))
    _update_metadata(page.data, form=form, facts=facts)
    tags = page.data.get("tags") or []
    sections = {
        **load_fields(
            repo_id,
            hub=hub,
            revision=revision,
            form=form,
            is_adapter=False,
            is_generative="label-scoring" in tags,
            ranking=page.data.get("pipeline_tag") == "text-ranking",
            has_pairs=False,
        ),
        **onnx_fields(tags, onnx=onnx, int8=int8),
        **parity_fields(parity, against=against),
    }
    body, added = page.text, []
    code = render("load", **sections) if form != "saved" else sections["hub_notes"]
    if LOAD in body and form != "saved":
        body = body.replace(LOAD, f"\n{code}{AS_TRAINED}", 1)
    elif LOAD in body and code:
        body = body.replace(LOAD, f"{LOAD}\n{code}\n", 1)
    elif code:  # another heading
        added.append(code if form != "saved" else f"{LOAD}\n{code}")
    if onnx:
        added.append(render("onnx", **sections))
    if parity:
        results = render("parity", **sections)
        placeholder = next((text for text in (UNVERIFIED, UNVERIFIED_0_1) if text in body), None)
        if placeholder:
            body = body.replace(placeholder, results.partition("\n\n")[2].strip())
        else:
            added.append(results)
    body, statements = _with_facts(body, facts)
    sections_added = [part.strip("\n") for part in (*added, *statements)]
    page.text = "\n\n".join([body.rstrip("\n"), *sections_added]) + "\n"
    return card_text(page, front=front)


def _update_metadata(data: Any, *, form: str, facts: CardFacts) -> None:
    """Set the export format and the stated facts in the metadata of a card."""
    if form != "saved" and data.get("base_model"):
        data["base_model_relation"] = "finetune"
    if facts.license:
        data.pop("license_name")
        for name, value in licence_fields(facts.license).items():
            data[name] = value
    if facts.language:
        data["language"] = list(facts.language)
    if facts.dataset_id:
        stated = data.get("datasets") or []
        stated = [stated] if isinstance(stated, str) else stated
        data["datasets"] = list(dict.fromkeys([facts.dataset_id, *stated]))


def _with_facts(body: str, facts: CardFacts) -> tuple[str, list[str]]:
    """Return the text with the facts that have a placeholder in it, and a section with the others."""
    lines = []

    def state(line: str, *, placeholder: str) -> None:
        nonlocal body
        if placeholder in body:
            body = body.replace(placeholder, line)
        else:
            lines.append(line)

    if facts.license:
        licence = escape(facts.license.removeprefix(OWN_LICENCE))
        state(f"Licence: {licence}.", placeholder="Licence: not stated.")
    if facts.dataset_license:
        licence = escape(facts.dataset_license)
        state(f"Licence of the data: {licence}.", placeholder="Licence of the data: not stated.")
    if facts.intended_use:
        state(escape(facts.intended_use), placeholder=UNSTATED_USE)
    if facts.dataset_url:
        lines.append(f"Source of the data: {link(facts.dataset_url)}")
    if facts.citation:
        lines.append(fenced(facts.citation, language="bibtex"))
    if not lines:
        return body, []
    stated = "The owner of the model states the following; it replaces what the sections above state."
    return body, ["\n\n".join(["## Terms and citation", stated, *lines])]
