"""Write the card of a staged folder for its repo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen_task_heads.export.servers import Served
from qwen_task_heads.hubcode.hashes_task_heads import CARD, MANIFEST, RUN, read_manifest
from qwen_task_heads.reports.card_facts import CardFacts
from qwen_task_heads.reports.kept_card import kept_card
from qwen_task_heads.reports.model_card import TRAINED, model_card
from qwen_task_heads.reports.records import RunRecord, write_json
from qwen_task_heads.verification.parity import GRAPHS, Parity, Row


def stage_card(
    staged: str | Path,
    *,
    folder: str | Path,
    repo_id: str,
    hub: str,
    form: str,
    facts: CardFacts,
    rows: bool = False,
    revision: str | None = None,
) -> None:
    """Write the card of a staged folder for its repo, with the results of the verification in `parity.json`.

    The card of a run is rendered from its record. A card that was edited after the run, is of version 0.1, or
    of a model without the record of a run, keeps its text, and its metadata are updated (`kept_card`).

    Args:
        staged: from `stage`.
        folder: of the run; not changed.
        repo_id: `owner/name` of the repo.
        hub: of the repo.
        form: export format of the staged model.
        facts: that replace those of the run.
        rows: `errors.md` and `predictions.jsonl` are published.
        revision: the branch, if it is not the default branch of the hub; the code on the card names it.
    """
    staged, source = Path(staged), Path(folder, CARD)
    card, results = staged / CARD, staged / "parity.json"
    if not card.is_file():
        return
    content = read_manifest(staged)
    parity = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    common: dict[str, Any] = {
        "repo_id": repo_id,
        "hub": hub,
        "revision": revision,
        "parity": Parity(tuple(Row(**row) for row in parity.get("rows", ()))).card_rows(),
        "against": parity.get("compared", TRAINED),
        "onnx": (staged / GRAPHS["onnx"]).is_file(),
        "int8": (staged / GRAPHS["onnx_int8"]).is_file(),
    }
    if record := RunRecord.read(folder):
        record = record.published(form=form, facts=facts)
        content |= record.manifest()
        text = model_card(record, rows=rows, served=Served.find(staged), **common)
    else:
        text = (source if source.is_file() else card).read_text(encoding="utf-8")
        text = kept_card(text, form=form, facts=facts, **common)
        content.pop(RUN, None)
        if stated := facts.stated():
            content["settings"] = {**content.get("settings", {}), **stated}
    card.write_text(text, encoding="utf-8")
    write_json(staged / MANIFEST, content)
