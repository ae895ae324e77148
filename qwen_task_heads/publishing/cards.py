"""Model cards: every number comes from the metrics of the run, every piece of free text is escaped.

Templates are the Markdown files in `model_cards/`, inside the package so that they are installed with
it. Metadata is written by huggingface_hub's own classes, so that the hub reads what was meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#])")


def plain(text: object) -> str:
    """Free text that shows as itself in Markdown, in one line: no markup, no HTML, no table break.

    Example:
        >>> from qwen_task_heads.publishing.cards import plain
        >>> plain("a | b <script>")
        'a \\\\| b &lt;script&gt;'
    """
    line = " ".join(str(text).split())
    escaped = _MARKUP.sub(r"\\\1", line)
    return escaped.replace("\\<", "&lt;").replace("\\>", "&gt;")


def figure(value: float | None, *, digits: int = 3) -> str:
    """A number as the card and the screen show it; a dash where it is not defined."""
    # adding 0.0 takes the sign off a zero
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def accuracy_rows(figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows of the accuracy table, from `metrics.json`: scorer name to its `pair_accuracy` entry."""
    return [
        {
            "name": name,
            "value": figure(entry["value"]),
            "low": figure(entry["low"]),
            "high": figure(entry["high"]),
            "n": f"{entry['n']:,}",
            "n_groups": f"{entry['n_groups']:,}",
        }
        for name, entry in figures.items()
    ]


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
    language: str | None = None,
) -> str:
    """YAML front matter, without the dashes; names become one line, where YAML would fold them.

    Args:
        name: of the model.
        base: repo id of the base, or None.
        relation: `adapter` or `finetune`.
        task: the hub's name of the pipeline, such as `text-classification`.
        tags: beside `qwen-task-heads`.
        dataset, dataset_type, split: what the figures were measured on.
        figures: (type, name, value) of each.
        language: code, where it is known.
    """
    from huggingface_hub import EvalResult, ModelCardData

    data = ModelCardData(
        model_name=" ".join(name.split()),
        library_name="transformers",
        pipeline_tag=task,
        language=language,
        base_model=base,
        base_model_relation=relation if base else None,
        tags=[*tags, "qwen-task-heads"],
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=dataset_type,
                dataset_name=" ".join(dataset.split()),
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
    import jinja2

    source = (resources.files("qwen_task_heads") / "model_cards" / f"{template}.md").read_text(
        encoding="utf-8"
    )
    # Markdown, not HTML: `plain` escapes what autoescape would not.
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(**fields)
