"""Check data as training reads it, before training: `qth data FILE_OR_FOLDER`.

A new check is one function `CheckedData -> findings` and its row in `CHECKS`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tqdm import tqdm

from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.data.title_datasets import TitleSets, read_title_sets
from qwen_task_heads.data_checks import clicks, labels, lengths, rows, shortcuts, splits
from qwen_task_heads.data_checks.arguments import DataCheckArguments
from qwen_task_heads.data_checks.checked_data import CheckedData, read_columns
from qwen_task_heads.data_checks.findings import CheckFinding, by_severity, exit_code
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.sources.file_options import options_of
from qwen_task_heads.sources.json_files import FileProblem

COMMANDS = {"texts": "classify", "titles": "titles"}  # task -> the command that trains on it


@dataclass(frozen=True)
class Check:
    """A check of data.

    Args:
        run: returns the findings.
        is_quick: whether training runs it too; it takes at most a second on 10,000 rows.
    """

    run: Callable[[CheckedData], list[CheckFinding]]
    is_quick: bool = False


CHECKS = {
    "leaks": Check(splits.check_leaks, is_quick=True),
    "overlaps": Check(splits.check_overlaps, is_quick=True),
    "shared groups": Check(splits.check_shared_groups, is_quick=True),
    "repeated rows": Check(rows.check_repeats, is_quick=True),
    "cycles": Check(rows.check_cycles, is_quick=True),
    "class balance": Check(labels.check_balance, is_quick=True),
    "length": Check(shortcuts.check_length, is_quick=True),
    "position": Check(shortcuts.check_position, is_quick=True),
    "clicks": Check(clicks.check_clicks),
    "unread columns": Check(shortcuts.check_unread_columns),
    "frequent texts": Check(rows.check_frequent_texts),
    "damaged text": Check(rows.check_damaged_text),
    "near overlaps": Check(splits.check_near_overlaps),
    "near contradictions": Check(splits.check_near_contradictions),
    "direction of pairs": Check(splits.check_direction),
    "label noise": Check(labels.check_label_noise),
    "characters": Check(lengths.check_characters),
}


@dataclass(frozen=True, kw_only=True)
class DataInspection:
    """What training would read of a source, and what the checks found.

    Args:
        source: file, folder or dataset id.
        task: `texts` or `titles`; None if the columns are of neither task.
        splits: number of rows by split.
        labels: names of the labels; () for titles and regression.
        problem_type: of texts; None for titles.
        messages: how the source was read, one statement each.
        findings: of the checks, errors first.
        problems: every defect that training would refuse.
        command: the next command to type.
    """

    source: str
    task: str | None
    splits: Mapping[str, int] = field(default_factory=dict)
    labels: Sequence[str] = ()
    problem_type: str | None = None
    messages: Sequence[str] = ()
    findings: Sequence[CheckFinding] = ()
    problems: Sequence[Problem] = ()
    command: str = ""

    @property
    def exit_code(self) -> int:
        """1 if training would refuse the data or a finding is an error, 3 for warnings, else 0."""
        return 1 if self.problems else exit_code(self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.problems:
            count = f"{len(self.problems):,} problem{'' if len(self.problems) == 1 else 's'}"
            lines = [f"{self.source}: {count}", *map(str, self.problems)]
            return "\n".join([*lines, f"Next, once corrected: {self.command}"])
        counts = ", ".join(f"{count:,} {split}" for split, count in self.splits.items())
        kind = f", {self.problem_type}" if self.problem_type else ""
        lines = [f"{self.source}: {self.task}{kind}: {counts}", *self.messages]
        return "\n".join([*lines, *map(str, self.findings), f"Next: {self.command}"])


def inspect_data(source: str, options: DataCheckArguments | None = None) -> DataInspection:
    """Read a source as training does, and check it.

    Args:
        source: file, folder or dataset id; `embedded` for the sample in the package.
        options: see `DataCheckArguments`.

    Example:
        >>> from qwen_task_heads.data_checks.arguments import DataCheckArguments
        >>> from qwen_task_heads.data_checks.inspection import inspect_data
        >>> report = inspect_data("embedded", DataCheckArguments(quick=True))
        >>> report.task, report.splits["test"], report.command
        ('texts', 200, 'qth classify --dataset_name embedded')
    """
    options = options or DataCheckArguments()
    refused: dict[str, Sequence[Problem]] = {}
    for task in (options.task,) if options.task else COMMANDS:
        try:
            sets = _read(source, task, options)
        except TaskHeadsError as error:
            refused[task] = error.problems
            continue
        return _checked(source, task, sets, options)
    named: str | None = None
    known = [task for task, problems in refused.items() if not any(map(_of_columns, problems))]
    if options.task or known:
        named = options.task or known[0]
        problems = refused[named]
    else:
        found, expected = "found columns of neither task", "texts with labels, or pairs of titles"
        fix = "give --task texts or --task titles"  # each then names the missing columns
        problems = [Problem(source, found, expected, fix, code="column-missing")]
    command = shlex.join(["qth", "data", source, *_given(options)])
    return DataInspection(source=source, task=named, problems=problems, command=command)


def check_sets(sets: TextSets | TitleSets) -> list[CheckFinding]:
    """Run the quick checks on the splits of a run.

    Args:
        sets: as training reads them.

    Returns:
        The findings, errors first.

    Example:
        >>> from qwen_task_heads.data.text_datasets import read_text_sets
        >>> from qwen_task_heads.data_checks.inspection import check_sets
        >>> [one for one in check_sets(read_text_sets("embedded")) if one.severity == "error"]
        []
    """
    return _run(CheckedData(sets=sets), quick=True)


def worst_line(findings: Sequence[CheckFinding], source: str) -> str:
    """Return the message of a run on its worst finding, with the command that lists all; "" for notes.

    Args:
        findings: of `check_sets`, errors first.
        source: of the training data.
    """
    serious = [one for one in findings if one.severity != "note"]
    if not serious:
        return ""
    more = f" ({len(serious) - 1} more)" if len(serious) > 1 else ""
    return f"data checks: {serious[0]}{more} All: {shlex.join(['qth', 'data', source])}"


def _checked(
    source: str, task: str, sets: TextSets | TitleSets, options: DataCheckArguments
) -> DataInspection:
    command = shlex.join(["qth", COMMANDS[task], "--dataset_name", source, *_given(options, CHECK_ONLY)])
    counts = {"train": len(sets.train), "dev": len(sets.dev), "test": len(sets.test)}
    report: dict[str, Any] = {"source": source, "task": task, "splits": counts, "messages": sets.lines}
    if isinstance(sets, TextSets):
        report |= {"labels": sets.labels.names, "problem_type": sets.problem_type}
    data = CheckedData(sets=sets)
    if not options.quick and source != "embedded":
        files = options_of(options.encoding, options.columns or ())
        columns, names = read_columns(source, sets.unread.get("train", ()), hub=options.hub, options=files)
        data = CheckedData(sets=sets, columns=columns, names=names)
    findings = _run(data, quick=options.quick)
    if options.model_name_or_path:
        more: dict[str, Any] = {"model": options.model_name_or_path, "hub": options.hub}
        more |= {"max_length": options.max_length}
        findings += lengths.check_tokens(data, **more)
        findings += [] if options.quick else lengths.check_cost(data, **more)
    result = DataInspection(**report, findings=by_severity(findings), command=command)
    if options.output_dir:
        from qwen_task_heads.data_checks.html import write_report

        write_report(result, data, options.output_dir)
    return result


def _run(data: CheckedData, *, quick: bool) -> list[CheckFinding]:
    """Run the checks in order; progress is shown for slow ones."""
    chosen = {name: check for name, check in CHECKS.items() if check.is_quick or not quick}
    findings: list[CheckFinding] = []
    for check in tqdm(chosen.values(), desc="Checks", unit="check", leave=False, disable=quick or None):
        findings += check.run(data)
    return by_severity(findings)


def _read(source: str, task: str, options: DataCheckArguments) -> TextSets | TitleSets:
    common: dict[str, Any] = {
        "dev": options.dev_dataset,
        "test": options.test_dataset,
        "columns": options.columns or (),
        **{name: vars(options)[name] for name in ("dev_fraction", "test_fraction", "hub")},
        **{name: vars(options)[name] for name in ("bad_rows", "encoding")},
    }
    if task == "texts":
        return read_text_sets(source, labels=options.labels, **common)
    if options.labels is not None:
        problem, expected = "found labels with pairs of titles", "texts with labels"
        raise TaskHeadsError(Problem("--labels", problem, expected, "drop it", code="option-unsupported"))
    return read_title_sets(source, **common)


def _of_columns(problem: Problem) -> bool:
    """Return whether a problem says that the columns of a whole file are not those of the task."""
    return isinstance(problem, FileProblem) and problem.code == "column-missing"


# Options of the check that training does not have, or has with another meaning.
CHECK_ONLY = ("task", "json", "quick", "output_dir", "model_name_or_path", "max_length")


def _given(options: DataCheckArguments, left_out: Sequence[str] = ()) -> list[str]:
    """Return the words of the options that are not at their default."""
    words: list[str] = []
    for item in fields(options):
        value = vars(options)[item.name]
        if value != item.default and item.name not in ("json", *left_out):
            words += [f"--{item.name}", *(value if isinstance(value, list) else [str(value)])]
    return words
