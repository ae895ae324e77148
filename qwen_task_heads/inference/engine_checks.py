"""Check data, labels and prompts for engines (`engines.py`), before any model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.few_shot import Shots, with_shots
from qwen_task_heads.data.text_datasets import TextSets
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.generators import file_of
from qwen_task_heads.hubs import HUGGINGFACE
from qwen_task_heads.inference.embeddings import missing_library
from qwen_task_heads.inference.engine_options import (
    EMBEDDINGS,
    FEW_SHOT,
    HEAD,
    SFT,
    EngineSpec,
    PromptOptions,
)
from qwen_task_heads.inference.loading import ONE_LABEL
from qwen_task_heads.labels.label_map import LabelMap
from qwen_task_heads.models import load_tokenizer, saved_task
from qwen_task_heads.tokenization.label_prompts import (
    LABEL_PROMPT,
    AnswerPrompts,
    instruction_for,
    read_label_prompt,
)

MAX_NAMES = 8  # names of labels in a message


def check_engines(specs: Sequence[EngineSpec], sets: TextSets, *, hub: str = HUGGINGFACE) -> None:
    """Validate data and labels for the engines, before any model is loaded.

    The labels of a trained model must have the same names as the schema, in any order.

    Raises:
        TaskHeadsError: data of another problem type, pairs for a language model, and one problem per engine
            with other labels; all problems are raised together.
    """
    labels, problems = sets.labels, []
    if sets.problem_type not in ONE_LABEL:
        problems.append(
            Problem(
                "--dataset_name",
                f"found {sets.problem_type}",
                "one label per text",
                "compare the cards of its models",
                code="option-unsupported",
            )
        )
    splits = (sets.train, sets.dev, sets.test)
    if any(row.text_b for rows in splits for row in rows) and any(
        spec.kind not in (HEAD, EMBEDDINGS) for spec in specs
    ):
        problems.append(
            Problem(
                "--dataset_name",
                "found pairs of texts",
                "single texts, if a language model is compared",
                "compare only heads and embeddings",
                code="option-unsupported",
            )
        )
    for spec in specs:
        try:
            own = _own_labels(spec, hub=hub)
        except TaskHeadsError as error:
            problems += error.problems
            continue
        if own is None:
            continue
        sides = []
        for names, other, where in ((own, labels, "the model"), (labels, own, "the data")):
            if only := [name for name in names.names if name not in other.label2id]:
                listed = ", ".join(shorten(name, 40) for name in only[:MAX_NAMES])
                dots = ", …" if len(only) > MAX_NAMES else ""
                sides.append(f"{len(only):,} only in {where} ({listed}{dots})")
        if sides:
            problems.append(
                Problem(
                    spec.name,
                    f"found labels {' and '.join(sides)}",
                    "the same names, in any order",
                    "give the file of its labels by --labels, or leave the engine out",
                    code="label-conflict",
                )
            )
    if problems:
        raise TaskHeadsError(problems)


def check_prompts(
    specs: Sequence[EngineSpec], labels: LabelMap, examples: Sequence[TextExample], *, asking: PromptOptions
) -> None:
    """Validate the prompts of language models, before any model is loaded, by encoding each of them.

    Raises:
        TaskHeadsError: no tokenizer or chat template, an invalid instruction, or a limit without room for a
            text; the problems of all engines are raised together.
    """
    problems = []
    for spec in specs:
        if spec.kind in (HEAD, EMBEDDINGS):
            continue
        try:
            tokenizer = load_tokenizer(spec.source, hub=asking.hub)
            if spec.kind == SFT:
                path = file_of(spec.source, LABEL_PROMPT, hub=asking.hub) or ""
                prompts = AnswerPrompts.load(path, tokenizer=tokenizer, model_type="")
            else:  # the ids do not depend on the family; the chat template has the end of a turn
                prompts = prompts_of(spec, tokenizer, labels, asking=asking, model_type="")
            count_truncated(prompts, spec, examples, shots=asking.per_text(spec))
        except TaskHeadsError as error:
            options = {"max_length": "--max_length"} if spec.kind != SFT else {}  # sft has its own limit
            for problem in error.problems:
                where = options.get(problem.where, problem.where)
                problems.append(replace(problem, where=f"{spec.name}, {where}"))
    if problems:
        raise TaskHeadsError(problems)


def prompts_of(
    spec: EngineSpec, tokenizer: Any, labels: LabelMap, *, asking: PromptOptions, model_type: str
) -> AnswerPrompts:
    """Return the prompts of a prompted model, with the examples that all texts share."""
    few = spec.kind == FEW_SHOT
    instruction = asking.instruction
    if instruction is None:
        instruction = instruction_for(labels, few_shot=few)
    described = with_shots(labels, next(iter(asking.shots.values()))) if few else labels
    options: dict[str, Any] = {"model_type": model_type, "max_length": asking.max_length}
    return AnswerPrompts(tokenizer, described, instruction=instruction, **options)


def count_truncated(
    prompts: AnswerPrompts,
    spec: EngineSpec,
    examples: Sequence[TextExample],
    *,
    shots: Mapping[str, Shots] | None,
) -> tuple[int, int]:
    """Encode as scoring does; return how many texts are truncated, and prompts have fewer examples."""
    groups: dict[tuple[str, ...], list[TextExample]] = {}
    for example in examples:
        groups.setdefault(() if spec.kind == FEW_SHOT else example.candidates, []).append(example)
    cut = fewer = 0
    for candidates, rows in groups.items():
        row_shots = None if shots is None else [shots[row.text] for row in rows]
        encoded = prompts.encode([row.text for row in rows], candidates=candidates or None, shots=row_shots)
        cut, fewer = cut + encoded.cut, fewer + encoded.fewer
    return cut, fewer


def _own_labels(spec: EngineSpec, *, hub: str) -> LabelMap | None:
    """Return the labels of a trained model; None for a prompted one."""
    if spec.kind == HEAD:
        task = saved_task(spec.source, hub=hub)
        if not task or task["problem_type"] not in ONE_LABEL:
            raise error_at(
                spec.name,
                f"found {task['problem_type']}" if task else "found no classifier of this library",
                "a head with one label per text",
                "name a model that recipes/classify.py saved",
                code="model-type",
            )
        labels: LabelMap = task["labels"]
        return labels
    path = file_of(spec.source, LABEL_PROMPT, hub=hub)
    if spec.kind == EMBEDDINGS:
        if problems := missing_library(spec.name):
            raise TaskHeadsError(problems)
        return None
    if spec.kind != SFT:
        if path is None:
            return None
        raise error_at(
            spec.name,
            f"found a generative classifier with {LABEL_PROMPT}",
            "a chat model that is not a generative classifier",
            f"name it as sft={spec.source}",
            code="model-type",
        )
    if path is None:
        raise error_at(
            spec.name,
            f"{LABEL_PROMPT} is missing",
            "a generative classifier with this file",
            "name a chat model by zero_shot=",
            code="model-type",
        )
    saved_labels: LabelMap = read_label_prompt(path)["labels"]
    return saved_labels
