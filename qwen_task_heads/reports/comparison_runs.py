"""The two courses of `recipes/compare.py`: read, check, measure baselines and engines, write.

Everything that can be refused is refused before a model is loaded or the output folder is made.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qwen_task_heads.data.few_shot import choose_shots, shots_line
from qwen_task_heads.data.text_datasets import read_text_sets
from qwen_task_heads.data.title_datasets import read_title_sets
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.inference.engine_options import (
    FEW_SHOT,
    TEXTS,
    TITLES,
    EngineSpec,
    PromptOptions,
    check_task,
    task_of,
)
from qwen_task_heads.inference.engines import check_engines, check_prompts
from qwen_task_heads.inference.title_engines import check_title_engines
from qwen_task_heads.reports.comparison import Row, draw_groups
from qwen_task_heads.reports.comparison_engines import measure_baselines, measure_engines, measure_lookup
from qwen_task_heads.reports.comparison_pages import (
    claim_folder,
    write_comparison,
    write_title_comparison,
)
from qwen_task_heads.reports.title_comparison import measure_title_baselines, measure_title_engines


def run_comparison(
    specs: Sequence[EngineSpec], *, asking: PromptOptions, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Compare engines on labelled texts or on pairs of titles.

    Args:
        specs: engines.
        asking: of prompted models and of all; as yet without shots.
        options: of `recipes/compare.py`, by their names.

    Returns:
        What `comparison.json` holds; None if no engine could be measured.

    Raises:
        TaskHeadsError: what is refused beforehand; and in the end, names of engines that were not measured.
    """
    task = options["task"] or task_of(specs) or _task_of_data(options)
    check_task(specs, task, options)
    course = _compare_titles if task == TITLES else _compare_texts
    content, failed = course(specs, asking, options)
    if failed:
        names = ", ".join(failed)
        raise TaskHeadsError(
            Problem("--engines", f"found {names}, not measured", "models that open", "see above why")
        )
    return content


def _task_of_data(options: Mapping[str, Any]) -> str:
    """The task of which the columns are, where the engines serve both.

    Raises:
        TaskHeadsError: they are of neither.
    """
    try:
        read_text_sets(options["dataset_name"], **_places(options), labels=options["labels"])
    except TaskHeadsError as of_texts:
        try:
            read_title_sets(options["dataset_name"], **_places(options))
        except TaskHeadsError:
            found, accepted = "columns of neither task", "texts with labels, or pairs of titles"
            remedy = "give --task texts or give --task titles"  # each says what it lacks
            raise TaskHeadsError(Problem("--dataset_name", f"found {found}", accepted, remedy)) from of_texts
        return TITLES
    return TEXTS


def _places(options: Mapping[str, Any]) -> dict[str, Any]:
    names = {"dev": "dev_dataset", "test": "test_dataset", "test_fraction": "test_fraction", "hub": "hub"}
    return {name: options[option] for name, option in names.items()}


def _rows_of(
    dev: Sequence[Row], test: Sequence[Row], options: Mapping[str, Any]
) -> tuple[Sequence[Row], str, list[str]]:
    """The rows that are measured, the split they are from, and what is to be said of them."""
    rows, split = (test, "test") if test else (dev, "dev")
    notes = []
    if options["max_rows"] and options["max_rows"] < len(rows):
        whole, rows = rows, draw_groups(rows, rows=options["max_rows"], seed=options["seed"])
        how = ", whole groups" if any(row.group for row in rows) else ""
        notes.append(f"measured on {len(rows):,} of {len(whole):,} rows of {split}{how} drawn at random")
    if split == "dev":
        notes.append("measured on dev: figures flatter models whose checkpoint was picked on the same rows")
    return rows, split, notes


def _compare_texts(
    specs: Sequence[EngineSpec], asking: PromptOptions, options: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, list[str]]:
    sets = read_text_sets(options["dataset_name"], **_places(options), labels=options["labels"])
    labels = sets.labels
    rows, split, notes = _rows_of(sets.dev, sets.test, options)
    check_engines(specs, sets, hub=options["hub"])
    choosing = 0.0
    if any(spec.kind == FEW_SHOT for spec in specs):
        import sklearn.feature_extraction.text  # noqa: F401 (its time is not that of choosing)

        begin = time.monotonic()
        texts, how = [row.text for row in rows], {"k": options["shots"], "by": options["shots_by"]}
        chosen = choose_shots(sets.train, labels, **how, each=False, seed=options["seed"], texts=texts)
        asking = replace(asking, shots=dict(zip(texts, chosen, strict=True)))
        told = f"few-shot: the {options['shots']} nearest of train"
        told = shots_line(labels, chosen[0]) if asking.shared else told
        seconds = time.monotonic() - begin
        choosing = 0.0 if asking.shared else seconds / len(rows)
        notes.append(f"{told}; chosen in {seconds:.1f} s for all rows")
    check_prompts(specs, labels, rows, asking=asking)
    claim_folder(options["output_dir"])
    print("\n".join(sets.lines), flush=True)
    near = None if asking.shared else asking.shots
    baselines = measure_baselines(sets.train, rows, labels=labels, shots=near, choosing=choosing)
    baselines += measure_lookup(sets.train, rows, labels=labels)
    measuring: dict[str, Any] = {"asking": asking, "alone": options["latency_rows"], "choosing": choosing}
    found, more, failed = measure_engines(specs, sets, rows, **measuring)
    if not found:
        return None, failed
    content = write_comparison(
        options["output_dir"], [*baselines, *found], sets=sets, examples=rows, split=split,
        figure=options["figure"], settings=options, notes=list(dict.fromkeys([*notes, *more])),
        missing=failed,
    )  # fmt: skip
    return content, failed


def _compare_titles(
    specs: Sequence[EngineSpec], asking: PromptOptions, options: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, list[str]]:
    sets = read_title_sets(options["dataset_name"], **_places(options))
    pairs, split, notes = _rows_of(sets.dev, sets.test, options)
    check_title_engines(specs, hub=options["hub"])
    claim_folder(options["output_dir"])
    print("\n".join(sets.lines), flush=True)
    baselines = measure_title_baselines(sets.train, pairs, notes=notes)
    measuring: dict[str, Any] = {"asking": asking, "alone": options["latency_rows"]}
    found, more, failed = measure_title_engines(specs, sets, pairs, **measuring)
    if not found:
        return None, failed
    content = write_title_comparison(
        options["output_dir"], [*baselines, *found], sets=sets, examples=pairs, split=split,
        settings=options, notes=list(dict.fromkeys([*notes, *more])), missing=failed,
    )  # fmt: skip
    return content, failed
