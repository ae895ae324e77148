"""Fields of the section "Serving" of a card: the servers of its export format, each with an exact request."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

from qwen_task_heads.export.servers import RUN_WITH, Served
from qwen_task_heads.hubcode.card_task_heads import HERE
from qwen_task_heads.hubs import HUGGINGFACE
from qwen_task_heads.reports.records import RunRecord


def serving_fields(
    record: RunRecord, served: Served | None, *, repo_id: str | None, hub: str, revision: str | None
) -> dict[str, Any]:
    """Return the fields of `serving.md`.

    Args:
        record: of the run.
        served: of the folder of the card; None if the card is rendered without one.
        repo_id: `owner/name`; None for the folder of the card.
        hub: of the repo; vLLM loads from Hugging Face alone.
        revision: the branch, if it is not the default one.
    """
    name = repo_id or HERE
    options = ["--hub", hub] if repo_id and hub != HUGGINGFACE else []
    options += ["--revision", revision] if repo_id and revision else []
    head = replace(served, pairs=record.has_pairs) if served and served.has_head else served
    stock = record.form == "stock"
    pairs_without_endpoint = stock and record.has_pairs
    in_vllm = served is not None and not (served.is_adapter or served.bidirectional or pairs_without_endpoint)
    elsewhere = bool(repo_id) and hub != HUGGINGFACE  # then vLLM loads a folder
    place = "FOLDER" if elsewhere else name
    pinned = f" --revision {shlex.quote(revision)}" if repo_id and revision and not elsewhere else ""
    return {
        "run_with": RUN_WITH,
        "has_server": served is not None and not record.is_generative and record.form != "gguf",
        "qth_serve": None if stock else shlex.join(["qth", "serve", "--model", name, *options]),
        "request": head.curl(name) if head and not stock else None,
        "vllm": served.command(place) + pinned if in_vllm and served else None,
        "vllm_request": head.curl(place) if in_vllm and head else None,
        "elsewhere": elsewhere,
        "is_adapter_served": served is not None and served.is_adapter,
        "bidirectional": served is not None and served.bidirectional,
        "pairs_without_endpoint": pairs_without_endpoint,
        "serving_name": name,
    }
