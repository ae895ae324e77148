"""Render the card of a title generator that was trained by GRPO.

Every value comes from the run; a metric that was not measured is "not evaluated". The card contains no texts
or titles of the training data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_task_heads.data.splits import hash_rows
from qwen_task_heads.pretrained import hub_id
from qwen_task_heads.reports.markdown import code, escape, fenced, format_value, one_line
from qwen_task_heads.reports.model_card import render
from qwen_task_heads.reports.run_manifest import versions

if TYPE_CHECKING:
    from trl import ModelConfig

    from qwen_task_heads.training.grpo_arguments import TitleGeneratorArguments, TitleGeneratorConfig

NOT_EVALUATED = "not evaluated"
LOGGED = {  # from a column of the log to its name on the card
    "reward": "mean reward",
    "title_characters": "mean length of a title, in characters",
    "without_title": "share of completions without a title",
}
SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_generations",
    "max_completion_length",
    "temperature",
    "beta",
    "seed",
)


@dataclass(frozen=True, kw_only=True)
class GeneratorRun:
    """Facts of a run for its card, except for the log.

    Args:
        base: id or folder of the model that was trained.
        reward_model: id or folder of the title scorer.
        dataset: source of the texts, as the user named it.
        column: column of the texts.
        instruction: prompt, with `{text}` for the text.
        rows: number of texts.
        sha256: of the texts, in their order.
        chat: the prompts were conversations.
        max_tokens: longest completion.
        adapter: the folder contains an adapter.
        settings: further options that the card shows, name to value.
    """

    base: str
    reward_model: str
    dataset: str
    column: str
    instruction: str
    rows: int
    sha256: str
    chat: bool
    max_tokens: int
    adapter: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        task: TitleGeneratorArguments,
        args: TitleGeneratorConfig,
        model_args: ModelConfig,
        *,
        texts: Sequence[str],
        chat: bool,
    ) -> GeneratorRun:
        """Gather a run from the options of `recipes/grpo_titles.py` and its texts."""
        settings = {name: args.to_dict()[name] for name in SETTINGS}
        settings |= {"length_penalty": task.length_penalty, "with_context": task.with_context}
        if model_args.use_peft:
            settings |= {"lora_r": model_args.lora_r, "lora_alpha": model_args.lora_alpha}
        return cls(
            base=str(model_args.model_name_or_path),
            reward_model=task.reward_model,
            dataset=task.dataset_name,
            column=task.text_column,
            instruction=task.instruction,
            rows=len(texts),
            sha256=hash_rows((text,) for text in texts),
            chat=chat,
            max_tokens=int(args.max_completion_length or 0),
            adapter=model_args.use_peft,
            settings=settings,
        )


def generator_card(
    run: GeneratorRun, *, name: str, log_history: Sequence[Mapping[str, Any]], steps: int
) -> str:
    """Return the card as Markdown.

    Args:
        run: facts of the run.
        name: of the model, such as the name of its folder.
        log_history: entries of the trainer's log.
        steps: number of updates.

    Example:
        >>> run = GeneratorRun(
        ...     base="Qwen/Qwen3-0.6B", reward_model="me/scorer", dataset="articles.jsonl", column="text",
        ...     instruction="A title: {text}", rows=8, sha256="ab" * 32, chat=True, max_tokens=64,
        ... )
        >>> card = generator_card(run, name="generator", log_history=[{"reward": 0.5, "step": 1}], steps=1)
        >>> [line for line in card.splitlines() if line.startswith("## ")][:2]
        ['## Model details', '## Intended use']
    """
    return render(
        "title_generator",
        metadata=_metadata(run, name).strip(),
        title=escape(name),
        repo=_in_string(name),
        base=_id_or_name(run.base),
        reward_model=_id_or_name(run.reward_model),
        dataset=_id_or_name(run.dataset),
        column=code(run.column),
        instruction=fenced(run.instruction),
        rows=f"{run.rows:,}",
        sha256=f"{run.sha256[:12]}…",
        chat=run.chat,
        max_tokens=run.max_tokens,
        adapter=run.adapter,
        steps=f"{steps:,}",
        settings={escape(key): escape(value) for key, value in run.settings.items()},
        versions=versions(),
        measures=measures_of(log_history),
    )


def measures_of(log_history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the rows of the table of metrics: first and last logged values, and unmeasured metrics.

    Example:
        >>> measures_of([{"reward": 0.25, "step": 5}, {"reward": 1.0, "step": 10}])["mean reward"]
        '0.250 at step 5, 1.000 at step 10'
        >>> measures_of([])["mean reward"]
        'not evaluated'
    """
    rows = {}
    for column, name in LOGGED.items():
        logged = [entry for entry in log_history if column in entry]
        first_and_last = logged[:1] + logged[1:][-1:]
        values = [
            f"{format_value(float(entry[column]))} at step {entry['step']:,}" for entry in first_and_last
        ]
        rows[name] = ", ".join(values) or NOT_EVALUATED
    return rows | {
        "reward on texts outside of training": NOT_EVALUATED,
        "preference of readers": NOT_EVALUATED,
    }


def _metadata(run: GeneratorRun, name: str) -> str:
    """Return the front matter; it omits a base in a folder, which the hub does not know."""
    from huggingface_hub import ModelCardData

    repo_id = hub_id(run.base)
    base = one_line(repo_id) if repo_id else None
    data = ModelCardData(
        model_name=one_line(name),
        library_name="peft" if run.adapter else "transformers",
        pipeline_tag="text-generation",
        base_model=base,
        base_model_relation=("adapter" if run.adapter else "finetune") if base else None,
        tags=["title-generator", "grpo", "trl", "qwen-task-heads"],
    )
    return data.to_yaml()


def _id_or_name(source: str) -> str:
    """Return an id unchanged, and only the name of a path, so that the card has no local folders."""
    return code(Path(source).name if Path(source).exists() else source)


def _in_string(name: str) -> str:
    """Escape a name for a string literal of the Python code."""
    return one_line(name).replace("\\", "\\\\").replace('"', '\\"').replace("`", "'")
