"""Check data as training reads it, without a model: `qth data FILE_OR_FOLDER`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from qwen_task_heads.data.text_datasets import TextSets, read_text_sets
from qwen_task_heads.data.title_datasets import TitleSets, read_title_sets
from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.sources.json_files import FileProblem

COMMANDS = {"texts": "classify", "titles": "titles"}  # task -> the command that trains on it


@dataclass(kw_only=True)
class DataCheckArguments:
    """Options of `inspect_data`; all but `task` and `json` are also options of training."""

    task: Literal["texts", "titles"] | None = field(
        default=None,
        metadata={"help": "Pairs of titles or labelled texts; inferred from the columns if None."},
    )
    dev_dataset: str | None = field(
        default=None, metadata={"help": "Dev set; split off by group hash if None."}
    )
    test_dataset: str | None = field(default=None, metadata={"help": "Test set."})
    dev_fraction: float = field(
        default=0.1, metadata={"help": "Share of groups split off for dev if none is given."}
    )
    test_fraction: float | None = field(
        default=None, metadata={"help": "Share of groups split off for test; no test set if None."}
    )
    labels: str | None = field(
        default=None, metadata={"help": "Texts: labels.yaml or class file; inferred from the data if None."}
    )
    hub: str = field(default=HUGGINGFACE, metadata={"help": "Hub to load from.", "choices": list(HUBS)})
    bad_rows: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "skip: leave defective rows out and count them."}
    )
    encoding: str = field(
        default="utf-8", metadata={"help": "Encoding of text files, such as gb18030, gbk, big5 or cp1252."}
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the columns of CSV and TSV without a header, such as label,title,text."},
    )
    json: bool = field(default=False, metadata={"help": "Print the report as JSON."})


@dataclass(frozen=True, kw_only=True)
class DataInspection:
    """What training would read of a source.

    Args:
        source: file, folder or dataset id.
        task: `texts` or `titles`; None if the columns are of neither task.
        splits: number of rows by split.
        labels: names of the labels; () for titles and regression.
        problem_type: of texts; None for titles.
        messages: summary of the data and its findings, one statement each.
        problems: every defect that training would refuse.
        command: the next command to type.
    """

    source: str
    task: str | None
    splits: Mapping[str, int] = field(default_factory=dict)
    labels: Sequence[str] = ()
    problem_type: str | None = None
    messages: Sequence[str] = ()
    problems: Sequence[Problem] = ()
    command: str = ""

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
        return "\n".join([*lines, f"Next: {self.command}"])


def inspect_data(source: str, options: DataCheckArguments | None = None) -> DataInspection:
    """Read a source as training does, and report splits, labels, findings and every defect.

    Args:
        source: file, folder or dataset id; `embedded` for the sample in the package.
        options: see `DataCheckArguments`.

    Example:
        >>> from qwen_task_heads.data.inspection import inspect_data
        >>> report = inspect_data("embedded")
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
        command = shlex.join(["qth", COMMANDS[task], "--dataset_name", source, *_given(options, ("task",))])
        splits = {"train": len(sets.train), "dev": len(sets.dev), "test": len(sets.test)}
        report: dict[str, Any] = {"source": source, "task": task, "splits": splits, "messages": sets.lines}
        if isinstance(sets, TextSets):
            report |= {"labels": sets.labels.names, "problem_type": sets.problem_type}
        return DataInspection(**report, command=command)
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


def _given(options: DataCheckArguments, left_out: Sequence[str] = ()) -> list[str]:
    """Return the words of the options that are not at their default."""
    words: list[str] = []
    for item in fields(options):
        value = vars(options)[item.name]
        if value != item.default and item.name not in ("json", *left_out):
            words += [f"--{item.name}", *(value if isinstance(value, list) else [str(value)])]
    return words
