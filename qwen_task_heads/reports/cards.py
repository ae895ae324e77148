"""Model cards: every number comes from the metrics of the run, every piece of free text is escaped.

Design:
- Templates are the Markdown files in `model_cards/`, which is installed as `qwen_task_heads.model_cards`:
  one page of sections that all models share, and one page per kind of model that fills its blocks.
- Free text goes through `plain` (one line, shown as itself), `code`, `link` or `fenced` (`shown.py`), and
  never into a template as it is.
- What is known only when a model is published (proof of equality, form) replaces a section of the finished
  card; a section runs from its `## heading` to the next, and free text can start no line with one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from qwen_task_heads.hubcode.card_task_heads import HERE, HERE_NOTE
from qwen_task_heads.reports.markdown import (
    code,
    fenced,
    figure,
    figure_name,
    interval,
    link,
    one_line,
    plain,
)
from qwen_task_heads.training.publish_arguments import LICENCES, OWN_LICENCE

__all__ = [
    "code", "fenced", "figure", "figure_name", "interval", "link", "metadata", "one_line", "plain", "render",
    "with_form", "with_onnx", "with_parity",
]  # fmt: skip

PARITY, LOAD, ONNX = "Parity", "How to load it", "ONNX"
# What the logits of a graph are, by a tag of the card; the graph ends where the head does.
LOGITS = {
    "title-scorer": "The logit is the score of a title, higher is better; of two titles, P(A preferred) is "
    "the sigmoid of score(A) − score(B).",
    "multi-label-classification": "Probabilities are yours to take: the sigmoid of each logit, in the order "
    "of `id2label` in `config.json`. A label is predicted from its threshold in `label_thresholds` on, or "
    "from .5 where there are none.",
    "regression": "The logits are the numbers themselves.",
    "": "Probabilities are yours to take: the softmax over the logits of a text, in the order of `id2label` "
    "in `config.json`.",
}
# What an artefact was held against: what the run kept, or nothing but the folder itself.
TRAINED = "compared with the trained model on held texts"
FOLDER = (
    "compared with this folder as it stood when it was published; no answers of the training run were kept"
)
# As a card says what its repo holds; `with_form` replaces the first by what was made of it.
ADAPTER, FULL, ADAPTER_ALONE = "An adapter with its head", "A full model", "An adapter"
MERGED = "A full model, merged from an adapter,"
STOCK = "A full model in a stock class of transformers,"


def licence_fields(name: str | None) -> dict[str, str]:
    """The licence as hubs take it: an id of `LICENCES`, else `other` with a name of its own (`other:name`).

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
    figures: Sequence[tuple[str, str, float]],
    language: Sequence[str] = (),
    license: str | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """YAML front matter, without the dashes; names become one line, where YAML would fold them.

    It is written by huggingface_hub's own classes, so that the hub reads what was meant.

    Args:
        name: of the model.
        base: repo id of the base, or None.
        relation: `adapter` or `finetune`.
        task: the hub's name of the pipeline, such as `text-classification`.
        tags: beside `qwen-task-heads`.
        dataset, dataset_type, split: what the figures were measured on.
        figures: (type, name, value) of each.
        language: codes, where they are known.
        license: of the model; None leaves it out.
        datasets: ids of the hub that the model was trained or measured on.
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
        metrics=list(dict.fromkeys(kind for kind, _, _ in figures)) or None,
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
            for kind, title, value in figures
        ],
    )
    return data.to_yaml()


def render(template: str, **fields: Any) -> str:
    """Fill `model_cards/<template>.md`; a field that the template misses is an error.

    Args:
        template: name of the template, such as `title_scorer`.
        **fields: values; free text must have passed through `plain`.
    """
    text = _environment().get_template(f"{template}.md").render(**fields)
    # blocks that are left out leave their blank lines behind
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@lru_cache(maxsize=1)
def _environment() -> Any:
    import jinja2

    folder = resources.files("qwen_task_heads.model_cards")
    # Markdown, not HTML: `plain` escapes what autoescape would not.
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def with_parity(
    card: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = (), *, against: str = TRAINED
) -> str:
    """The card with what was proven before publishing, in place of what stood there.

    Args:
        card: as it stands; one without the section gets it at its end.
        rows: of the table, column to cell: text, a number, True or False, or None. Columns are those of the
            first row.
        notes: sentences under the table.
        against: `TRAINED` or `FOLDER`.

    Where a graph is among the rows, the card also gets the section that says how to run it.

    Example:
        >>> from qwen_task_heads.reports.cards import with_parity
        >>> card = "# a\\n\\n## Parity\\n\\nNo proof.\\n\\n## Versions\\n"
        >>> row = {"artefact": "adapter", "largest difference": 8.1e-07, "bound": 1e-4}
        >>> print(with_parity(card, [row]).split("\\n\\n")[3])
        | artefact | largest difference | bound |
        |---|---|---|
        | adapter | 8.1e-07 | 0.0001 |
    """
    if graphs := {str(row.get("artefact")) for row in rows} & {"onnx", "onnx_int8"}:
        card = with_onnx(card, int8="onnx_int8" in graphs)
    said = [f"Each artefact was opened again in a clean process and {against}."]
    if rows:
        names = list(rows[0])
        lines = [[plain(name.replace("_", " ")) for name in names], ["---"] * len(names)]
        lines += [[_shown(row[name]) for name in names] for row in rows]
        table = ["| " + " | ".join(line) + " |" for line in lines]
        table[1] = table[1].replace(" ", "")
        said.append("\n".join(table))
    said += ["\n".join(f"- {plain(note)}" for note in notes)] * bool(notes)
    return _replace(card, PARITY, "\n\n".join(said))


def with_onnx(card: str, *, int8: bool) -> str:
    """The card of a repo with `onnx/`, with the lines that run it, before the proof of it.

    Args:
        card: as it stands; it names the repo, the kind of the model and what a call looks like.
        int8: `onnx/model_int8.onnx` is there too.
    """
    from huggingface_hub import ModelCard

    tags = ModelCard(card).data.to_dict().get("tags") or []
    inputs = _asked(card)
    paired = inputs.startswith("{")  # a prompt and a title, or two texts
    texts = ", ".join(f"[{text}]" for text in re.findall(r'"text(?:_pair)?": ("[^"]*")', _one(inputs)))
    section = render(
        "onnx",
        repo=_repo(card),
        pinned=pinned[0] if (pinned := re.search(r', revision="[\w./-]+"', card)) else "",
        library="modelscope" if "from modelscope import" in card else "huggingface_hub",
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
    """What the card's calls open."""
    found = re.search(r'from_pretrained\("([^"\n]*)"', card)
    return found.group(1) if found else HERE


def _asked(card: str) -> str:
    """What the card's call of a pipeline is given."""
    asked = re.search(r"^(?:classify|ranker|score)\((.*?)(?:, top_k=None)?\)$", card, re.MULTILINE)
    return asked.group(1) if asked else '["A text"]'


def _one(inputs: str) -> str:
    """One input of a stock pipeline, which reads a prompt and one title where ours ranks several."""
    ranked = inputs.startswith('{"titles"')
    return '{"text": "The text", "text_pair": "A plain title"}' if ranked else inputs


def with_form(card: str, form: str) -> str:
    """The card of an adapter's or a full model's run, as it holds for the form that is published.

    Args:
        card: of the run folder.
        form: `saved` (as it is), `merged` (full weights in our class) or `stock` (a class of transformers).
    """
    if form == "saved":
        return card
    from huggingface_hub import ModelCard

    stock = form == "stock"
    page = ModelCard(card)
    if page.data.get("base_model"):
        page.data["base_model_relation"] = "finetune"
    for kind, become in ((ADAPTER, STOCK if stock else MERGED), (FULL, STOCK if stock else FULL)):
        page.text = page.text.replace(f"\n{kind} on ", f"\n{become} on ", 1)
    inputs = _one(_asked(page.text)) if stock else _asked(page.text)
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
    return _replace(str(page), LOAD, section.split("\n", 1)[1].strip())


def _replace(card: str, heading: str, body: str) -> str:
    section = re.compile(rf"^## {heading}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    text = f"## {heading}\n\n{body}\n\n"
    put: Callable[[re.Match[str]], str] = lambda _: text  # noqa: E731 - a string would read its backslashes
    replaced, count = section.subn(put, card, count=1)
    return (replaced if count else f"{card.rstrip()}\n\n{text}").rstrip() + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else plain(value)
