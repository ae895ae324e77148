"""Run `recipes/compare.py` for texts or titles: read, check, measure baselines and engines, write.

All checks run before a model is loaded or the output folder is created.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from qwen_task_heads.data.few_shot import choose_shots, shots_line
from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.data.title_datasets import read_title_sets
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.inference.engine_checks import check_engines, check_prompts
from qwen_task_heads.inference.engine_options import (
    FEW_SHOT,
    TEXTS,
    TITLES,
    EngineSpec,
    PromptOptions,
    check_task,
    task_of,
)
from qwen_task_heads.inference.title_engines import check_title_engines
from qwen_task_heads.reports.comparison import Measured, Row, draw_groups
from qwen_task_heads.reports.comparison_engines import measure_baselines, measure_engines, measure_lookup
from qwen_task_heads.reports.comparison_pages import claim_folder, write_comparison
from qwen_task_heads.reports.title_comparison import measure_title_baselines


class Prepared(NamedTuple):
    """Data and baselines of a comparison; `choosing` is the time per text to select few-shot examples."""

    sets: Any
    rows: Sequence[Any]
    split: str
    messages: list[str]
    baselines: list[Measured]
    asking: PromptOptions
    choosing: float = 0.0


def run_comparison(
    specs: Sequence[EngineSpec], *, asking: PromptOptions, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Compare engines on labelled texts or on pairs of titles.

    Args:
        specs: engines.
        asking: options of prompted models and of all engines, without few-shot examples.
        options: of `recipes/compare.py`, by name.

    Returns:
        Content of `comparison.json`; None if no engine could be measured.

    Raises:
        TaskHeadsError: invalid options or data; after all measurements, the engines that were not measured.
    """
    task = options["task"] or task_of(specs) or _task_of_data(options)
    check_task(specs, task, options)
    prepare = _prepare_titles if task == TITLES else _prepare_texts
    data = prepare(specs, asking, options)
    engines, new_messages, failed = measure_engines(
        specs,
        data.sets,
        data.rows,
        asking=data.asking,
        alone=options["latency_rows"],
        choosing=data.choosing,
    )
    content = None
    if engines:
        content = write_comparison(
            options["output_dir"],
            [*data.baselines, *engines],
            sets=data.sets,
            examples=data.rows,
            split=data.split,
            metric="accuracy" if task == TITLES else options["figure"],
            settings=options,
            messages=list(dict.fromkeys([*data.messages, *new_messages])),
            missing=failed,
        )
    if failed:
        problem, expected = f"{', '.join(failed)} could not be measured", "models that load"
        fix = "see the errors printed above"
        raise TaskHeadsError(Problem("--engines", problem, expected, fix, code="option-unsupported"))
    return content


def _task_of_data(options: Mapping[str, Any]) -> str:
    """Infer the task from the columns, if the engines support both tasks.

    Raises:
        TaskHeadsError: the columns are of neither task.
    """
    try:
        read_text_sets(options["dataset_name"], **_split_options(options), labels=options["labels"])
    except TaskHeadsError as of_texts:
        try:
            read_title_sets(options["dataset_name"], **_split_options(options))
        except TaskHeadsError:
            raise TaskHeadsError(
                Problem(
                    "--dataset_name",
                    "found columns of neither task",
                    "texts with labels, or pairs of titles",
                    "give --task texts or give --task titles",  # each then names the missing columns
                    code="column-missing",
                )
            ) from of_texts
        return TITLES
    return TEXTS


def _split_options(options: Mapping[str, Any]) -> dict[str, Any]:
    names = {"dev": "dev_dataset", "test": "test_dataset", "test_fraction": "test_fraction", "hub": "hub"}
    return {name: options[option] for name, option in names.items()}


def _rows_of(
    dev: Sequence[Row], test: Sequence[Row], options: Mapping[str, Any]
) -> tuple[Sequence[Row], str, list[str]]:
    """Return the rows to measure, their split, and messages about them."""
    rows, split = (test, "test") if test else (dev, "dev")
    messages = []
    if options["max_rows"] and options["max_rows"] < len(rows):
        total = len(rows)
        rows = draw_groups(rows, rows=options["max_rows"], seed=options["seed"])
        groups = ", whole groups" if any(row.group for row in rows) else ""
        messages.append(f"measured on {len(rows):,} of {total:,} rows of {split}{groups} drawn at random")
    if split == "dev":
        messages.append(
            "measured on dev: metrics are optimistic for models whose checkpoint was selected on these rows"
        )
    return rows, split, messages


def _prepare_texts(
    specs: Sequence[EngineSpec], asking: PromptOptions, options: Mapping[str, Any]
) -> Prepared:
    sets = read_text_sets(options["dataset_name"], **_split_options(options), labels=options["labels"])
    labels = sets.labels
    rows, split, messages = _rows_of(sets.dev, sets.test, options)
    check_engines(specs, sets, hub=options["hub"])
    choosing = 0.0
    if any(spec.kind == FEW_SHOT for spec in specs):
        import sklearn.feature_extraction.text  # noqa: F401 (the time of the import is not measured)

        begin = time.monotonic()
        texts = [row.text for row in rows]
        chosen = choose_shots(
            sets.train,
            labels,
            k=options["shots"],
            by=options["shots_by"],
            each=False,
            seed=options["seed"],
            texts=texts,
        )
        asking = replace(asking, shots=dict(zip(texts, chosen, strict=True)))
        seconds = time.monotonic() - begin
        if asking.shared:
            summary = shots_line(labels, chosen[0])
        else:
            summary = f"few-shot: the {options['shots']} nearest of train"
            choosing = seconds / len(rows)
        messages.append(f"{summary}; chosen in {seconds:.1f} s for all rows")
    check_prompts(specs, labels, rows, asking=asking)
    claim_folder(options["output_dir"])
    print("\n".join(sets.lines), flush=True)
    nearest = None if asking.shared else asking.shots
    baselines = measure_baselines(sets.train, rows, labels=labels, shots=nearest, choosing=choosing)
    baselines += measure_lookup(sets.train, rows, labels=labels)
    return Prepared(sets, rows, split, messages, baselines, asking, choosing)


def _prepare_titles(
    specs: Sequence[EngineSpec], asking: PromptOptions, options: Mapping[str, Any]
) -> Prepared:
    sets = read_title_sets(options["dataset_name"], **_split_options(options))
    pairs, split, messages = _rows_of(sets.dev, sets.test, options)
    check_title_engines(specs, hub=options["hub"])
    claim_folder(options["output_dir"])
    print("\n".join(sets.lines), flush=True)
    baselines = measure_title_baselines(sets.train, pairs, messages=messages)
    return Prepared(sets, pairs, split, messages, baselines, asking)
