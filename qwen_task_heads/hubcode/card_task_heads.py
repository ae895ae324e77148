"""Basic model card of a model that no recipe evaluated, and the repo name on a card.

This file is copied into every published model.

The full card, with baselines, intervals and training data, is rendered by the package at the end of a recipe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .errors_task_heads import TaskHeadError

# The name in the load snippet of a folder without a repo, and the note under it, which `name_card` removes.
HERE = "."
HERE_NOTE = 'Run this in the folder of the card, or put its path or the id of its repo in place of `"."`.'
# Front matter, as the hub reads it: from a line --- at the start to the next one
FRONT = re.compile(r"\s*---[ \t\r]*\n(.*?\n)??---[ \t\r]*(?:\n|\Z)", re.DOTALL)
UNSTATED_USE = "Texts like those that it was trained on. Its owner stated nothing else."


def basic_card(
    config: Any,
    *,
    is_adapter: bool,
    evaluation: Mapping[str, float] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """Return a model card from the config alone, with the metrics that exist.

    Args:
        config: a `TaskHeadConfig`.
        is_adapter: whether the folder contains an adapter.
        evaluation: metric to value, on the evaluation set of the training; None: "Not evaluated".
        facts: more fields of the metadata: `license`, `language`, `tags`, `datasets`.

    Example:
        >>> from transformers import Qwen2Config
        >>> from qwen_task_heads.hubcode.card_task_heads import basic_card
        >>> from qwen_task_heads.hubcode.configuration_task_heads import TitleScorerConfig
        >>> card = basic_card(TitleScorerConfig(text_config=Qwen2Config()), is_adapter=False)
        >>> "Not evaluated." in card
        True
    """
    ranks = config.model_type == "title_scorer"
    name = "Title scorer" if ranks else "Text classifier"
    base = config.backbone_name_or_path
    has_id = bool(base) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) is not None
    measured = {key: value for key, value in (evaluation or {}).items() if isinstance(value, float)}
    page = [
        "---",
        _metadata(
            config,
            name=name,
            base=base if has_id else None,
            is_adapter=is_adapter,
            measured=measured,
            facts=facts or {},
        ),
        "---",
        "",
        f"# {name}",
        "",
        "## Model details",
        "",
        "A title scorer: one score per title, a higher score is better."
        if ranks
        else f"A text classifier ({config.problem_type or 'single_label_classification'}).",
        f"{'An adapter with its head' if is_adapter else 'Full weights'} on "
        + (f"`{base}`" if has_id else f"a `{config.text_config.model_type}` backbone")
        + f", with {config.pooling} pooling{_layers(config)} and a {config.head} head.",
        "",
    ]
    if is_adapter and not has_id:
        page += ["Its base is a folder of the machine that trained it: it loads only there.", ""]
    if not ranks:
        labels = [config.id2label[index] for index in sorted(config.id2label)]
        page += ["Labels, in the order of their ids:", "", *_fenced(labels), ""]
    quoted = json.dumps(HERE)
    asks = not ranks and bool(config.questions)
    pipe = '"title-ranking"' if ranks else '"decision"' if asks else '"text-classification"'
    call = 'predict(["A plain title", "Another title"])' if ranks else 'predict(["A text"], top_k=None)'
    if asks:
        call = 'predict({"state": "A text", "questions": model.config.as_request()})'
    page += [
        "## Intended use",
        "",
        UNSTATED_USE,
        "",
        "## How to load it",
        "",
        "```python",
        "from transformers import AutoModelForSequenceClassification, pipeline",
        "",
        f"model = AutoModelForSequenceClassification.from_pretrained({quoted}, trust_remote_code=True)",
        f"predict = pipeline({pipe}, model={quoted}, trust_remote_code=True)",
        call,
        "```",
        "",
        "`trust_remote_code=True` runs code of this repo; after `import qwen_task_heads` nothing needs it.",
        "",
        HERE_NOTE,
        "",
        "## Evaluation",
        "",
    ]
    if measured:
        page += ["On the evaluation set of the training. No baseline was measured.", ""]
        page += ["| metric | value |", "|---|---|"]
        page += [f"| {metric.replace('_', ' ')} | {value:.4f} |" for metric, value in measured.items()]
    else:
        page.append("Not evaluated.")
    page += [
        "",
        "## Limitations",
        "",
        "Without a test set and a baseline it is not known whether a simpler model is as good.",
        "",
    ]
    return "\n".join(page)


def _metadata(
    config: Any,
    *,
    name: str,
    base: str | None,
    is_adapter: bool,
    measured: Mapping[str, float],
    facts: Mapping[str, Any],
) -> str:
    """Return the YAML front matter, written by huggingface_hub's own classes."""
    ranks = config.model_type == "title_scorer"
    task = "text-ranking" if ranks else "text-classification"
    tags = ["title-scorer"] * ranks + [*facts.get("tags", ()), "qwen-task-heads"]
    results = [
        EvalResult(
            task_type=task,
            dataset_type="pairs" if ranks else "texts",
            dataset_name="evaluation set of the training",
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for metric, value in measured.items()
    ]
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=None if not ranks and config.questions else task,  # the hub has no tag of decisions
        base_model=base,
        base_model_relation=("adapter" if is_adapter else "finetune") if base else None,
        eval_results=results or None,
        **{**facts, "tags": list(dict.fromkeys(tags))},
    )
    return data.to_yaml().strip()


def name_card(text: str, repo_id: str, *, revision: str | None = None, tags: list[str] | None = None) -> str:
    """Set the name of a repo on a card: in the metadata, in the load snippets and in the heading.

    The snippets and the heading are changed where they have the name that the metadata states, or `HERE`. A
    heading that was written by hand is kept.

    Args:
        text: text of the card.
        repo_id: `owner/name`.
        revision: the branch, if it is not the default one; the snippets then name it.
        tags: added to the metadata.

    Example:
        >>> from qwen_task_heads.hubcode.card_task_heads import name_card
        >>> print(name_card('load.from_pretrained(".")', "me/b"))
        load.from_pretrained("me/b")
    """
    front, page = read_card(text)
    old = page.data.get("model_name")
    body = page.text.replace(f"{HERE_NOTE}\n\n", "")
    named = json.dumps(repo_id) + (f", revision={json.dumps(revision)}" if revision else "")
    for name in {HERE, str(old or HERE)}:
        for before in ("(", "model="):
            body = body.replace(f"{before}{json.dumps(name)}", f"{before}{named}")
        # Commands of servers and their requests
        body = re.sub(rf"(--model |vllm serve ){re.escape(name)}(?=\s)", rf"\g<1>{repo_id}", body)
        body = body.replace(f'"model": {json.dumps(name)}', f'"model": {json.dumps(repo_id)}')
    lines = body.split("\n")
    if old and f"# {old}" in lines:
        lines[lines.index(f"# {old}")] = f"# {repo_id}"
    page.text = "\n".join(lines)
    if old:
        page.data["model_name"] = repo_id
    if tags and front:
        page.data["tags"] = list(dict.fromkeys([*(page.data.get("tags") or []), *tags]))
    return card_text(page, front=front)


def read_card(text: str, *, where: str = "README.md") -> tuple[str, ModelCard]:
    """Return the front matter of a card as text, and the card, whose body begins after it.

    Args:
        text: text of the card, which may be written by hand.
        where: place in the error.

    Raises:
        TaskHeadError: front matter that the hub cannot read: nothing of it may be lost.

    Example:
        >>> from qwen_task_heads.hubcode.card_task_heads import read_card
        >>> front, page = read_card("---\\nlicense: mit\\n---\\n# Mine\\n")
        >>> page.data.license, page.text
        ('mit', '# Mine\\n')
    """
    text = text.removeprefix("\ufeff")
    found = FRONT.match(text)
    front = text[: found.end()] if found else ""
    problem = "" if found or not re.match(r"\s*---[ \t\r]*\n", text) else "it has no end"
    fields = (found[1] if found else "") or "{}\n"
    try:
        # Without metadata the class would search for them in the text.
        page = ModelCard(f"---\n{fields}---\n{text[len(front) :]}")
    except Exception as error:  # noqa: BLE001 - errors of yaml, which this file does not import
        problem = " ".join(str(error).split())[:200]
    if problem:
        raise TaskHeadError(
            where,
            f"the front matter cannot be read ({problem})",
            "YAML fields between two lines of ---",
            "correct it, or remove both lines",
            code="file-format",
        )
    return front, page


def card_text(page: ModelCard, *, front: str) -> str:
    """Return the text of a card that was changed; unchanged front matter is kept as it is.

    Args:
        page: from `read_card`, with other fields or another body.
        front: from `read_card`; its lines with comments are kept above the new fields.
    """
    fields = page.data.to_dict()
    if not fields or (front and read_card(front)[1].data.to_dict() == fields):
        return front + page.text
    first, rest = str(page).split("\n", 1)
    comments = [line for line in front.splitlines() if "#" in line and line not in rest.splitlines()]
    comments = [line if line.lstrip().startswith("#") else f"# {line}" for line in comments]
    return "\n".join([first, *comments, rest])


def _layers(config: Any) -> str:
    """Return the words for the layers that are pooled, if they are several."""
    if not config.lower_layers:
        return ""
    return f" of layers {', '.join(map(str, config.lower_layers))} and {config.head_layers[-1]}"


def _fenced(labels: Sequence[str]) -> list[str]:
    """Return a code block whose fence is longer than any run of backticks in the labels."""
    lines = json.dumps(labels, ensure_ascii=False, indent=1).splitlines()
    longest = max((len(run) for run in re.findall(r"`+", "\n".join(lines))), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}json", *lines, fence]
