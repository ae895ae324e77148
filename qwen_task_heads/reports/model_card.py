"""Render the model card of a run from its record, with the templates of `model_cards/`.

- `card.md` has the sections of all models; one template per task fills its blocks.
- Every number comes from the metrics of the record. Free text passes through `escape`, `code`, `link` or
  `fenced` (`markdown.py`) before it reaches a template.
- The card is rendered at the end of a run, and again at each publish, for the repo, its export format, the
  facts that the owner states and the results of the verification. No card is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from qwen_task_heads.backbones import EMBEDDED
from qwen_task_heads.data.embedded_datasets import EMBEDDED_DATASETS, EmbeddedDataset
from qwen_task_heads.export.servers import Served
from qwen_task_heads.hubcode.card_task_heads import HERE, HERE_NOTE
from qwen_task_heads.hubs import HUBS, HUGGINGFACE, hub_named
from qwen_task_heads.losses.registry import LOSSES
from qwen_task_heads.reports.calibration_summary import calibration_fields
from qwen_task_heads.reports.card_facts import STATED, licence_fields
from qwen_task_heads.reports.card_lines import (
    card_verdict,
    picked_line,
    picked_what,
    reported_on,
    settings_in_effect,
    time_line,
)
from qwen_task_heads.reports.card_serving import serving_fields
from qwen_task_heads.reports.markdown import code, escape, fenced, link, one_line
from qwen_task_heads.reports.records import RunRecord
from qwen_task_heads.reports.text_card import text_fields
from qwen_task_heads.reports.title_card import title_fields
from qwen_task_heads.training.publish_arguments import OWN_LICENCE, is_dataset_id

EMBEDDED_BASE = "the small backbone embedded in the package"
PUBLISHING = ("publish_", "hub", "card_")  # prefixes of options without effect on the training
# The reference of the comparison: answers that the run recorded, or the published folder itself.
TRAINED = "compared with the trained model on held-out texts"
FOLDER = "compared with this folder at the time of publishing; no answers of the training run were recorded"
UNVERIFIED = (
    "This card was rendered before the verification. `recipes/publish.py` loads the model in a clean "
    "process, compares it with\nthe trained model, and writes the differences here."
)
# Meaning of the logits of an ONNX graph, which ends with the head, by a tag of the card.
LOGITS = {
    "title-scorer": "The logit is the score of a title, higher is better; of two titles, P(A preferred) is "
    "the sigmoid of score(A) − score(B).",
    "multi-label-classification": "Probabilities are the sigmoid of each logit, in the order of `id2label` "
    "in `config.json`. A label is predicted if its probability reaches its threshold in `label_thresholds`, "
    "or .5 without thresholds.",
    "regression": "The logits are the predicted values.",
    "questions": "The outputs of a question are consecutive, in the order of `id2label` in `config.json`. "
    "Its probabilities are their softmax; of a `noul`, which has one output, P(true) is the sigmoid of it.",
}
SOFTMAX = (
    "Probabilities are the softmax over the logits of a text, in the order of `id2label` in `config.json`."
)


def model_card(
    record: RunRecord,
    *,
    repo_id: str | None = None,
    hub: str = HUGGINGFACE,
    revision: str | None = None,
    rows: bool = True,
    parity: Sequence[Mapping[str, Any]] = (),
    against: str = TRAINED,
    onnx: bool = False,
    int8: bool = False,
    served: Served | None = None,
) -> str:
    """Return the card of a run as Markdown.

    Args:
        record: of the run; `RunRecord.published` sets the export format and the facts of a published copy.
        repo_id: `owner/name` of the repo; None for the folder of the run.
        hub: of the repo, a name in `hubs.HUBS`.
        revision: the branch, if it is not the default branch of the hub.
        rows: `errors.md` and `predictions.jsonl` are next to the card.
        parity: results of the verification, `Parity.card_rows`; without them the card says that the model
            was not verified.
        against: `TRAINED` or `FOLDER`, the reference of the verification.
        onnx: `onnx/model.onnx` is next to the card.
        int8: `onnx/model_int8.onnx` is next to the card.
        served: facts of the folder of the card for the section on servers, which the card of a model with a
            head lacks without them.
    """
    of_task = title_fields(record) if record.is_title_scorer else text_fields(record)
    tags = of_task.pop("tags")
    metadata = _metadata(record, of_task, name=repo_id or record.name, tags=tags)
    is_adapter, facts = record.is_adapter and record.form == "saved", record.facts
    sample = _embedded_set(record)
    fields = {
        "metadata": metadata.to_yaml().strip(),
        "title": escape(repo_id or record.name),
        "kind": _kind(record),
        "base": EMBEDDED_BASE if record.is_embedded else code(record.base) + record.base_note,
        "revision": code(record.base_commit) if record.base_commit else None,
        "versions": record.versions,
        "licence": escape(facts.license.removeprefix(OWN_LICENCE)) if facts.license else "not stated",
        "intended_use": escape(facts.intended_use),
        "splits": _splits(record),
        "own_data": sample.statement if sample else None,
        "data_licence": escape(facts.dataset_license) if facts.dataset_license else None,
        "data_url": link(facts.dataset_url) if facts.dataset_url else None,
        "embedded": record.is_embedded,
        "data_lines": [escape(line) for line in dict.fromkeys([*record.lines, *record.metrics["notes"]])],
        "settings": _settings(record),
        "picked": record.picked,
        "picked_what": picked_what(record.settings),
        "picked_line": picked_line(record),
        "dev_was_cut": "dev" in record.cut,
        "time_line": time_line(record.metrics["train"]),
        "reported_on": reported_on(record),
        "verdict": card_verdict(record.metrics, record.reported),
        "plots": record.plots,
        "rows_published": rows,
        "calibration": calibration_fields(record),
        "citation": _citation(record, sample=sample),
    }
    sections = {
        **load_fields(
            repo_id,
            hub=hub,
            revision=revision,
            form=record.form,
            is_adapter=is_adapter,
            is_generative=record.is_generative,
            ranking=record.is_title_scorer,
            has_pairs=record.has_pairs,
            questions=record.metrics.get("questions", ()),
        ),
        **onnx_fields(tags, onnx=onnx, int8=int8),
        **parity_fields(parity, against=against),
        **serving_fields(record, served, repo_id=repo_id, hub=hub, revision=revision),
    }
    template = "title_scorer" if record.is_title_scorer else "text_classifier"
    return render(template, **fields, **sections, **of_task)


def render(template: str, **fields: Any) -> str:
    """Render `model_cards/<template>.md`; a missing field is an error.

    Args:
        template: name of the template, such as `title_scorer`.
        **fields: values of the fields; free text must be escaped.
    """
    text = _environment().get_template(f"{template}.md").render(**fields)
    # Omitted blocks leave their blank lines.
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@lru_cache(maxsize=1)
def _environment() -> Any:
    import jinja2

    folder = resources.files("qwen_task_heads.model_cards")
    # No autoescape: it escapes HTML only; `escape` covers Markdown too.
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def load_fields(
    repo_id: str | None,
    *,
    hub: str,
    revision: str | None,
    form: str,
    is_adapter: bool,
    is_generative: bool,
    ranking: bool,
    has_pairs: bool,
    questions: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the fields of `load.md` and `onnx.md` on the repo and the inputs of the model."""
    stock = form in ("stock", "gguf")  # both are classes of transformers, which take a plain text
    pinned = f", revision={json.dumps(revision)}" if revision else ""
    texts = ["The text", "A plain title"] if ranking else ["One text", "another"]
    pair = f'{{"text": "{texts[0]}", "text_pair": "{texts[1]}"}}'
    titles = '["A plain title", "Another title"]'
    if has_pairs:
        inputs = pair if stock or not ranking else f'{{"titles": {titles}, "prompt": "{texts[0]}"}}'
    else:
        inputs = titles if ranking else '["A text"]'
    return {
        "repo": json.dumps(repo_id or HERE) + pinned,
        "here_note": "" if repo_id else HERE_NOTE,
        "hub_notes": hub_named(hub).card_notes(repo_id, pinned).strip() if repo_id else "",
        "library": hub_named(hub if repo_id else HUGGINGFACE).library,
        "stock": stock,
        "gguf": form == "gguf",
        "adapter": is_adapter,
        "answers": is_generative,
        "ranking": ranking,
        "decision": bool(questions),
        "pipeline_input": inputs,
        "texts": f'["{texts[0]}"], ["{texts[1]}"]' if has_pairs else inputs,
        "truncation": '"only_first"' if ranking and has_pairs else "True",
    }


def onnx_fields(tags: Sequence[str], *, onnx: bool, int8: bool) -> dict[str, Any]:
    """Return further fields of `onnx.md` and `load.md`; the tags of the card name the problem type."""
    meaning = next((LOGITS[tag] for tag in tags if tag in LOGITS), SOFTMAX)
    return {"onnx": onnx, "int8": int8, "meaning": meaning, "softmax": meaning is SOFTMAX}


def parity_fields(rows: Sequence[Mapping[str, Any]], *, against: str) -> dict[str, Any]:
    """Return the fields of `parity.md`; the first row determines the columns of the table."""
    table = [[escape(name.replace("_", " ")) for name in row] for row in rows[:1]]
    table += [[escape(value) for value in row.values()] for row in rows]
    return {"parity": table, "against": against, "unverified": UNVERIFIED}


def reported_dataset(record: RunRecord) -> str | None:
    """Return the hub id of the dataset of the metrics; None if it was a file or is unknown."""
    option = f"{record.reported}_dataset"
    if record.settings.get(option):
        return _hub_dataset(record, option)
    if record.reported in record.cut:
        return None  # a part of a training split is not the evaluation split of a dataset
    return record.facts.dataset_id or _hub_dataset(record, "dataset_name")


def _hub_dataset(record: RunRecord, option: str) -> str | None:
    """Return a setting if it is a dataset id; the settings have only the names of files and folders."""
    name = str(record.settings.get(option) or "")
    hub = HUBS.get(str(record.settings.get("hub")), HUBS[HUGGINGFACE])
    return name if hub.by_id and is_dataset_id(name) else None


def _metadata(record: RunRecord, of_task: dict[str, Any], *, name: str, tags: Sequence[str]) -> ModelCardData:
    """Return the front matter; the classes of huggingface_hub write it, so that the hub reads every field.

    A local folder is not a base that the hub knows, and a file is not a dataset of the hub: both are omitted.
    """
    settings, facts = record.settings, record.facts
    trained = facts.dataset_id or _hub_dataset(record, "dataset_name")
    named = settings.get("test_dataset") if record.reported == "test" else None
    datasets = [name for name in (trained, reported_dataset(record)) if name]
    metrics: Sequence[tuple[str, str, float]] = of_task.pop("hub_metrics")
    task, dataset_type = of_task.pop("pipeline_tag"), of_task.pop("dataset_type")
    licence = licence_fields(facts.license)
    relation = "adapter" if record.is_adapter and record.form == "saved" else "finetune"
    default_language = ["en"] if settings.get("dataset_name") == EMBEDDED else None
    return ModelCardData(
        model_name=one_line(name),
        library_name="transformers",
        pipeline_tag=task,
        language=list(facts.language) or default_language,
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        base_model=one_line(record.base) if record.base_on_hub else None,
        base_model_relation=relation if record.base_on_hub else None,
        datasets=list(dict.fromkeys(datasets)) or None,
        metrics=list(dict.fromkeys(kind for kind, _, _ in metrics)) or None,
        tags=[*tags, "qwen-task-heads"],
        eval_results=[
            EvalResult(
                task_type=task or "text-classification",
                dataset_type=dataset_type,
                dataset_name=one_line(named or settings.get("dataset_name", "own data")),
                dataset_split=record.reported,
                metric_type=kind,
                metric_name=title,
                metric_value=round(value, 4),
            )
            for kind, title, value in metrics
        ],
    )


def _kind(record: RunRecord) -> str:
    if record.form == "stock":
        return "A full model in a stock class of transformers,"
    if record.form == "gguf":
        return "A full model in a GGUF file for llama.cpp,"
    if not record.is_adapter:
        return "A full model"
    if record.form == "merged":
        return "A full model, merged from an adapter,"
    return "An adapter" if record.is_generative else "An adapter with its head"


def _settings(record: RunRecord) -> dict[str, str]:
    """Return the rows of the table of settings: those with an effect on the training."""
    return {
        escape(name): escape(value)
        for name, value in settings_in_effect(record).items()
        if not name.startswith(PUBLISHING) and name not in STATED
    }


def _splits(record: RunRecord) -> list[dict[str, str]]:
    """Return the rows of the table of splits: source, size, and prefix of the hash."""
    options = {"train": "dataset_name", "dev": "dev_dataset", "test": "test_dataset"}
    source = str(record.settings.get("dataset_name", "own data"))
    rows = []
    for split, entry in record.metrics["data"].items():
        count = entry.get("pairs", entry.get("rows"))
        origin = escape(str(record.settings.get(options[split]) or source))
        if entry.get("cut"):
            origin += ", cut from train by a hash"
        if count:
            rows.append(
                {"split": split, "source": origin, "count": f"{count:,}", "sha256": entry["sha256"][:12]}
            )
    return rows


def _embedded_set(record: RunRecord) -> EmbeddedDataset | None:
    """Return the sample of the package that the run was trained on; None for other data."""
    if record.settings.get("dataset_name") != EMBEDDED:
        return None
    return EMBEDDED_DATASETS["titles" if record.is_title_scorer else "texts"]


def _citation(record: RunRecord, *, sample: EmbeddedDataset | None) -> str:
    """Return BibTeX of this package, of the methods of the run and of the owner, as a code block."""
    text = (resources.files("qwen_task_heads.model_cards") / "references.bib").read_text(encoding="utf-8")
    entries = {entry.partition("{")[2].partition(",")[0]: entry for entry in text.strip().split("\n\n")}
    settings = record.settings
    loss = str(settings.get("loss"))
    papers = [losses[loss].paper for losses in LOSSES.values() if loss in losses]
    keys = ["qwen_task_heads", *papers[:1]]
    if record.is_adapter and "lora_r" in settings and not settings.get("freeze_backbone"):
        keys.append("dora" if settings.get("lora_dora") else "lora")
    # The embedded backbone was pretrained on the headlines of this archive.
    sources = [*([sample.citation] if sample else []), *(["upworthy"] if record.is_embedded else [])]
    keys += dict.fromkeys(sources)
    version = record.versions["qwen-task-heads"]
    cited = [entries[key].replace("VERSION", version) for key in keys if key]
    return fenced("\n\n".join([*cited, record.facts.citation.strip()]), language="bibtex")
