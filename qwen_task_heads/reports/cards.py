"""Render model cards from templates, and update sections of rendered cards.

Design:
- Templates are the Markdown files in `model_cards/`, which are installed as `qwen_task_heads.model_cards`.
  `card.md` has the sections of all models; one template per kind of model fills its blocks.
- Every number comes from the metrics of the run.
- Free text passes through `escape`, `code`, `link` or `fenced` (`markdown.py`) before it reaches a template.
- Publishing adds the verification and the export format. Each replaces a section of the rendered card. A
  section ends at the next `## ` heading; escaped text cannot start a line with one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from qwen_task_heads.hubcode.card_task_heads import HERE, HERE_NOTE
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.reports.markdown import escape, one_line
from qwen_task_heads.training.publish_arguments import LICENCES, OWN_LICENCE

PARITY, LOAD, ONNX = "Parity", "How to load it", "ONNX"
# Meaning of the logits of an ONNX graph, by a tag of the card; the graph ends with the head.
LOGITS = {
    "title-scorer": "The logit is the score of a title, higher is better; of two titles, P(A preferred) is "
    "the sigmoid of score(A) − score(B).",
    "multi-label-classification": "Probabilities are the sigmoid of each logit, in the order of `id2label` "
    "in `config.json`. A label is predicted if its probability reaches its threshold in `label_thresholds`, "
    "or .5 without thresholds.",
    "regression": "The logits are the predicted values.",
    "": "Probabilities are the softmax over the logits of a text, in the order of `id2label` in "
    "`config.json`.",
}
# The reference of the comparison: answers that the run recorded, or the published folder itself.
TRAINED = "compared with the trained model on held-out texts"
FOLDER = "compared with this folder at the time of publishing; no answers of the training run were recorded"
# Contents of a repo as its card states them; `with_form` replaces them by the export format.
ADAPTER, FULL, ADAPTER_ALONE = "An adapter with its head", "A full model", "An adapter"
MERGED = "A full model, merged from an adapter,"
STOCK = "A full model in a stock class of transformers,"


def licence_fields(name: str | None) -> dict[str, str]:
    """Return a licence as hub metadata: an id of `LICENCES`, or `other` with a name (`other:name`).

    Example:
        >>> from qwen_task_heads.reports.cards import licence_fields
        >>> licence_fields("Apache-2.0"), licence_fields("other:proprietary")
        ({'license': 'apache-2.0'}, {'license': 'other', 'license_name': 'proprietary'})
    """
    if name is None or not one_line(name):
        return {}
    lower = one_line(name).lower()
    if lower in LICENCES:
        return {"license": lower}
    slug = re.sub(r"[^a-z0-9.]+", "-", lower.removeprefix(OWN_LICENCE)).strip("-.")
    return {"license": "other", "license_name": slug or "own-terms"}


def metadata(
    *,
    name: str,
    base: str | None,
    relation: str,
    task: str,
    tags: Sequence[str],
    dataset: str,
    dataset_type: str,
    split: str,
    metrics: Sequence[tuple[str, str, float]],
    language: Sequence[str] = (),
    license: str | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """Return the YAML front matter of a card, without the dashes; names are made one line.

    The classes of huggingface_hub write it, so that the hub can read every field.

    Args:
        name: of the model.
        base: repo id of the base, or None.
        relation: `adapter` or `finetune`.
        task: the hub's name of the pipeline, such as `text-classification`.
        tags: in addition to `qwen-task-heads`.
        dataset, dataset_type, split: data that the metrics were measured on.
        metrics: (type, name, value) of each.
        language: codes of the languages, if known.
        license: of the model; None omits it.
        datasets: ids of hub datasets that the model was trained or evaluated on.
    """
    from huggingface_hub import EvalResult, ModelCardData

    named = licence_fields(license)
    data = ModelCardData(
        model_name=one_line(name),
        library_name="transformers",
        pipeline_tag=task,
        language=list(language) or None,
        license=named.get("license"),
        license_name=named.get("license_name"),
        base_model=base,
        base_model_relation=relation if base else None,
        datasets=list(datasets) or None,
        metrics=list(dict.fromkeys(kind for kind, _, _ in metrics)) or None,
        tags=[*tags, "qwen-task-heads"],
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=dataset_type,
                dataset_name=one_line(dataset),
                dataset_split=split,
                metric_type=kind,
                metric_name=title,
                metric_value=round(value, 4),
            )
            for kind, title, value in metrics
        ],
    )
    return data.to_yaml()


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


def with_parity(
    card: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = (), *, against: str = TRAINED
) -> str:
    """Return the card with the results of the verification in its section "Parity".

    If the rows include an ONNX graph, the card also gets the section that runs it.

    Args:
        card: rendered card; the section is appended if the card lacks it.
        rows: of the table, column to cell: text, a number, True or False, or None. The first row determines
            the columns.
        notes: sentences under the table.
        against: `TRAINED` or `FOLDER`.

    Example:
        >>> from qwen_task_heads.reports.cards import with_parity
        >>> card = "# a\\n\\n## Parity\\n\\nNot verified.\\n\\n## Citation\\n"
        >>> row = {"artefact": "adapter", "largest difference": 8.1e-07, "bound": 1e-4}
        >>> print(with_parity(card, [row]).split("\\n\\n")[3])
        | artefact | largest difference | bound |
        |---|---|---|
        | adapter | 8.1e-07 | 0.0001 |
    """
    if graphs := {str(row.get("artefact")) for row in rows} & {"onnx", "onnx_int8"}:
        card = with_onnx(card, int8="onnx_int8" in graphs)
    blocks = [f"Each artefact was loaded in a clean process and {against}."]
    if rows:
        names = list(rows[0])
        lines = [[escape(name.replace("_", " ")) for name in names], ["---"] * len(names)]
        lines += [[_cell(row[name]) for name in names] for row in rows]
        table = ["| " + " | ".join(line) + " |" for line in lines]
        table[1] = table[1].replace(" ", "")
        blocks.append("\n".join(table))
    if notes:
        blocks.append("\n".join(f"- {escape(note)}" for note in notes))
    return _replace_section(card, PARITY, "\n\n".join(blocks))


def with_onnx(card: str, *, int8: bool) -> str:
    """Return the card with a section that runs the ONNX files of its repo, before "Parity".

    Args:
        card: rendered card; repo, kind of model and inputs are read from it.
        int8: the repo also has `onnx/model_int8.onnx`.
    """
    from huggingface_hub import ModelCard

    tags = ModelCard(card).data.to_dict().get("tags") or []
    inputs = _pipeline_input(card)
    paired = inputs.startswith("{")  # a prompt and a title, or two texts
    texts = ", ".join(
        f"[{text}]" for text in re.findall(r'"text(?:_pair)?": ("[^"]*")', _single_input(inputs))
    )
    section = render(
        "onnx",
        repo=_repo(card),
        pinned=pinned[0] if (pinned := re.search(r', revision="[\w./-]+"', card)) else "",
        library=next(
            (hub.library for hub in HUBS.values() if f"from {hub.library} import" in card),
            HUBS[HUGGINGFACE].library,
        ),
        ranking="title-scorer" in tags,
        texts=texts if paired else inputs,
        truncation='"only_first"' if inputs.startswith('{"titles"') else "True",
        meaning=next((LOGITS[tag] for tag in tags if tag in LOGITS), LOGITS[""]),
        int8=int8,
    )
    card = re.sub(rf"^## {ONNX}\n.*?(?=^## |\Z)", "", card, flags=re.MULTILINE | re.DOTALL)
    before, heading, rest = card.partition(f"\n## {PARITY}\n")
    return f"{before.rstrip()}\n\n{section}{heading}{rest}"


def _repo(card: str) -> str:
    """Return the repo that the code of a card loads."""
    found = re.search(r'from_pretrained\("([^"\n]*)"', card)
    return found.group(1) if found else HERE


def _pipeline_input(card: str) -> str:
    """Return the argument of the pipeline call in the code of a card."""
    found = re.search(r"^(?:classify|ranker|score)\((.*?)(?:, top_k=None)?\)$", card, re.MULTILINE)
    return found.group(1) if found else '["A text"]'


def _single_input(inputs: str) -> str:
    """Return an input of a stock pipeline, which reads a prompt with one title, not with several."""
    ranked = inputs.startswith('{"titles"')
    return '{"text": "The text", "text_pair": "A plain title"}' if ranked else inputs


def with_form(card: str, form: str) -> str:
    """Return the card of a run, changed to the export format that is published.

    Args:
        card: of the run folder.
        form: `saved` (unchanged), `merged` (full weights in a class of this package) or `stock` (a class of
            transformers).
    """
    if form == "saved":
        return card
    from huggingface_hub import ModelCard

    stock = form == "stock"
    page = ModelCard(card)
    if page.data.get("base_model"):
        page.data["base_model_relation"] = "finetune"
    for kind, exported in ((ADAPTER, STOCK if stock else MERGED), (FULL, STOCK if stock else FULL)):
        page.text = page.text.replace(f"\n{kind} on ", f"\n{exported} on ", 1)
    inputs = _pipeline_input(page.text)
    inputs = _single_input(inputs) if stock else inputs
    section = render(
        "load",
        repo=_repo(page.text),
        here_note=HERE_NOTE,
        ranking=page.data.get("pipeline_tag") == "text-ranking",
        pipeline_input=inputs,
        adapter=False,
        answers=False,
        stock=stock,
    )
    return _replace_section(str(page), LOAD, section.split("\n", 1)[1].strip())


def _replace_section(card: str, heading: str, body: str) -> str:
    section = re.compile(rf"^## {heading}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    text = f"## {heading}\n\n{body}\n\n"
    # A function, because a replacement string would interpret the backslashes of the text.
    replaced, count = section.subn(lambda _: text, card, count=1)
    return (replaced if count else f"{card.rstrip()}\n\n{text}").rstrip() + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else escape(value)
