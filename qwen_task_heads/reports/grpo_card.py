"""The card of a title generator that was trained by GRPO.

Every value comes from the run: what was not measured reads "not evaluated". Texts and titles of the training
data stay out of the card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_task_heads.data.splits import hash_rows
from qwen_task_heads.pretrained import hub_id
from qwen_task_heads.reports.cards import code, fenced, figure, one_line, plain, render
from qwen_task_heads.reports.run_manifest import versions

if TYPE_CHECKING:
    from trl import ModelConfig

    from qwen_task_heads.training.grpo_arguments import TitleGeneratorArguments, TitleGeneratorConfig

NOT_EVALUATED = "not evaluated"
SHOWN = {  # column of the log to its name on the card
    "reward": "mean reward",
    "title_characters": "mean length of a title, in characters",
    "without_title": "share of completions without a title",
}
SETTINGS = (
    "learning_rate", "lr_scheduler_type", "per_device_train_batch_size", "gradient_accumulation_steps",
    "num_generations", "max_completion_length", "temperature", "beta", "seed",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GeneratorRun:
    """What the card says of a run, apart from its log.

    Args:
        base: id or folder of the model that was trained.
        reward_model: id or folder of the title scorer.
        dataset: source of the texts, as the user named it.
        column: column of the texts.
        instruction: what the model was asked, `{text}` for the text.
        rows: number of texts.
        sha256: of the texts, in their order.
        chat: the prompts were conversations.
        max_tokens: longest completion.
        adapter: the folder holds an adapter.
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
        shown = {name: args.to_dict()[name] for name in SETTINGS}
        shown |= {"length_penalty": task.length_penalty, "with_context": task.with_context}
        if model_args.use_peft:
            shown |= {"lora_r": model_args.lora_r, "lora_alpha": model_args.lora_alpha}
        return cls(
            base=str(model_args.model_name_or_path), reward_model=task.reward_model,
            dataset=task.dataset_name, column=task.text_column, instruction=task.instruction,
            rows=len(texts), sha256=hash_rows((text,) for text in texts), chat=chat,
            max_tokens=int(args.max_completion_length or 0), adapter=model_args.use_peft, settings=shown,
        )  # fmt: skip


def generator_card(
    run: GeneratorRun, *, name: str, log_history: Sequence[Mapping[str, Any]], steps: int
) -> str:
    """Return the card as Markdown.

    Args:
        run: what was trained on what.
        name: of the model, such as its folder's.
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
        title=plain(name),
        repo=_in_string(name),
        base=_named(run.base),
        reward_model=_named(run.reward_model),
        dataset=_named(run.dataset),
        column=code(run.column),
        instruction=fenced(run.instruction),
        rows=f"{run.rows:,}",
        sha256=f"{run.sha256[:12]}…",
        chat=run.chat,
        max_tokens=run.max_tokens,
        adapter=run.adapter,
        steps=f"{steps:,}",
        settings={plain(key): plain(value) for key, value in run.settings.items()},
        versions=versions(),
        measures=measures_of(log_history),
    )


def measures_of(log_history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the rows of the table of measures: first and last logged values, and what was not measured.

    Example:
        >>> measures_of([{"reward": 0.25, "step": 5}, {"reward": 1.0, "step": 10}])["mean reward"]
        '0.250 at step 5, 1.000 at step 10'
        >>> measures_of([])["mean reward"]
        'not evaluated'
    """
    found = {}
    for column, name in SHOWN.items():
        logged = [entry for entry in log_history if column in entry]
        ends = logged[:1] + logged[1:][-1:]
        ends_shown = [f"{figure(float(entry[column]))} at step {entry['step']:,}" for entry in ends]
        found[name] = ", ".join(ends_shown) or NOT_EVALUATED
    return found | {
        "reward on texts outside of training": NOT_EVALUATED,
        "preference of readers": NOT_EVALUATED,
    }


def _metadata(run: GeneratorRun, name: str) -> str:
    """Return the front matter; a base in a folder is named on the card alone, since the hub knows it not."""
    from huggingface_hub import ModelCardData

    named = hub_id(run.base)
    base = one_line(named) if named else None
    data = ModelCardData(
        model_name=one_line(name),
        library_name="peft" if run.adapter else "transformers",
        pipeline_tag="text-generation",
        base_model=base,
        base_model_relation=("adapter" if run.adapter else "finetune") if base else None,
        tags=["title-generator", "grpo", "trl", "qwen-task-heads"],
    )
    return data.to_yaml()


def _named(place: str) -> str:
    """Return an id as it is, and of a path its name: folders of a machine stay out of the card."""
    return code(Path(place).name if Path(place).exists() else place)


def _in_string(name: str) -> str:
    """Return a name between quotes of the Python snippet."""
    return one_line(name).replace("\\", "\\\\").replace('"', '\\"').replace("`", "'")
