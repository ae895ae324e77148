"""Read the train, dev and test splits of a text classifier, with a summary of the data.

Design:
- Labels are given, or read from a label file next to the data, or derived from the set of training rows
  (`label_schemes.py`). A label file is read for single files and for folders, so that `data/train.jsonl` and
  `data` have the same labels.
- Splits are cut by a hash of the texts (`splits.split_texts`); none shares a text or a group with another.
- Rows of other datasets (`mix`) are added to train after the cut, so that they are never in dev or test.
- `{examples}` of an instruction inserts the examples of a label file. The summary counts the examples that
  are in dev or test, and the overlaps of train with dev and test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_task_heads.data.checks import ReadReport, bad_rows_problems
from qwen_task_heads.data.datasets import (
    SALTS,
    SplitSets,
    cut_line,
    overlap_lines,
    read_splits,
    shared_lines,
    splits_to_cut,
)
from qwen_task_heads.data.embedded_datasets import locate_dataset
from qwen_task_heads.data.example_columns import joined
from qwen_task_heads.data.example_tables import have_second
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.label_schemes import GIVEN, Scheme, derive_scheme, states_ids
from qwen_task_heads.data.label_summary import example_lines, label_lines, one_class
from qwen_task_heads.data.label_values import resolve_labels
from qwen_task_heads.data.lookups import LookupReport, report_texts
from qwen_task_heads.data.mixing import check_ratio, mix_in, names_of, read_others, resolve_others
from qwen_task_heads.data.question_records import derive_questions, labels_of_questions
from qwen_task_heads.data.raw_texts import RawTexts
from qwen_task_heads.data.schema import unread_lines
from qwen_task_heads.data.splits import check_fraction, hash_rows, split_texts
from qwen_task_heads.data.text_readers import read_texts
from qwen_task_heads.data.text_targets import resolve_all
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten
from qwen_task_heads.hubcode.configuration_task_heads import PROBLEM_TYPES
from qwen_task_heads.hubcode.questions_task_heads import QUESTIONS
from qwen_task_heads.hubs import hub_named
from qwen_task_heads.labels.label_files import find_label_file
from qwen_task_heads.labels.label_map import LabelMap, check_same
from qwen_task_heads.sources.file_options import UTF_8, options_of
from qwen_task_heads.sources.formats import split_hub


@dataclass(frozen=True, kw_only=True)
class TextSets(SplitSets[TextExample]):
    """The train, dev and test splits of a text classifier, with its labels.

    Args:
        problem_type: one of `PROBLEM_TYPES`.
        labels: the labels in their order; a `target` is an id of them.
        questions: of records, as a config has them; () without. Each output is a label, and a `target` is a
            number per output, see `question_records.resolve_record`.
        mixed: number of rows of train from other datasets (`mix`), which are the last ones.
    """

    problem_type: str
    labels: LabelMap
    questions: tuple[Mapping[str, Any], ...] = ()
    mixed: int = 0

    @property
    def have_pairs(self) -> bool:
        """Whether the training set has pairs of texts."""
        return have_second(self.train)

    def fingerprint(self) -> dict[str, str]:
        """Return SHA-256 of train, dev and labels; a run resumes only if they are unchanged."""
        return {
            "train_texts": hash_texts(self.train),
            "dev_texts": hash_texts(self.dev),
            # including the descriptions and examples, which prompts may contain
            "labels": hash_rows([(self.problem_type, *self.labels.stated(), *map(str, self.questions))]),
        }

    def look_up(self, split: str, rows: Sequence[TextExample]) -> LookupReport:
        """Measure a lookup of the training texts on a split."""
        return report_texts(self.train, rows, split=split, problem_type=self.problem_type)


def hash_texts(examples: Iterable[TextExample]) -> str:
    """Return SHA-256 over the texts, targets, candidates and weights of examples, in their order.

    Example:
        >>> hash_texts([TextExample(text="A", target=0)])[:8]
        '4b0e06b4'
    """
    return hash_rows(
        # without empty candidates, so that runs that are older than this field can resume
        (
            row.text,
            row.text_b,
            row.target,
            row.soft,
            row.weight,
            *([row.candidates] if row.candidates else []),
        )
        for row in examples
    )


def read_text_sets(
    source: str,
    *,
    dev: str | None = None,
    test: str | None = None,
    problem_type: str | None = None,
    labels: LabelMap | str | None = None,
    dev_fraction: float = 0.1,
    test_fraction: float | None = None,
    hub: str = "huggingface",
    bad_rows: str = "raise",
    max_samples: int | None = None,
    streaming: bool = False,
    mix: str | Sequence[str] | None = None,
    mix_ratio: float = 2.0,
    encoding: str = UTF_8,
    columns: Sequence[str] = (),
    questions: Sequence[Mapping[str, Any]] = (),
) -> TextSets:
    """Read the splits of a text classifier; `text_readers.py` lists the accepted columns.

    Args:
        source: file, folder or dataset id of the training set; `"embedded"` for the sample in the package.
            If `dev` or `test` is None, the dev and test splits of a folder or dataset are used.
        dev: file, folder or id of the dev set; of several splits, the one called dev or validation.
        test: file, folder or id of the test set; of several splits, the one called test. A test split of
            `source` whose labels are all -1 is left out.
        problem_type: `single_label_classification`, `multi_label_classification`, `regression` or `ordinal`;
            None derives it from the target column (never ordinal).
        labels: the labels in their order, or the path of `labels.yaml` or a class file. None looks for such
            a file next to the data, else derives the labels from the training rows. If `labels` is a map of
            a model and the rows have ids, a label file next to the data must have the same labels.
        dev_fraction: share of the rows that are cut for dev if there is no dev set, after the cut of test.
        test_fraction: share of the rows that are cut for test if there is no test set; None cuts none.
        hub: `huggingface` or `modelscope`, for ids.
        bad_rows: `raise` names every refused row in one error; `skip` leaves them out and counts them.
        max_samples: maximum number of rows to read of the training set.
        streaming: whether to read the rows of a Hugging Face dataset as they arrive; refused for other data.
        mix: files, folders or ids of other training sets with the same labels, whose rows are added to train
            (`mixing.py`); of several splits, the training split.
        mix_ratio: own rows for each added row.
        encoding: encoding of text files, such as `gb18030`.
        columns: names of the columns of CSV and TSV files without a header.
        questions: of a saved model, which records must have.

    Raises:
        TaskHeadsError: the problems of all files: unreadable sources, unknown or ambiguous columns, labels
            that contradict each other or have gaps, one label only, refused rows, an empty split, or a mixed
            dataset with other labels.

    Example:
        >>> import pathlib, tempfile
        >>> from qwen_task_heads.data.text_datasets import read_text_sets
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "train.csv")
        ...     rows = [f"text {i},{'good' if i % 2 else 'bad'}\\n" for i in range(40)]
        ...     _ = path.write_text("text,label\\n" + "".join(rows))
        ...     sets = read_text_sets(str(path))
        >>> sets.labels.names, len(sets.train), len(sets.dev), sets.problem_type
        (('bad', 'good'), 36, 4, 'single_label_classification')
    """
    _check_options(problem_type=problem_type, bad_rows=bad_rows, max_samples=max_samples)
    check_ratio(mix_ratio)
    if test_fraction is not None:
        check_fraction(test_fraction, "test_fraction")
    source, skip = locate_dataset(source, "texts"), bad_rows == "skip"
    if streaming and (Path(source).exists() or not hub_named(split_hub(source, hub)[1]).by_id):
        problem, fix = "found true for other data", "drop it: the data is read from its files"
        expected = "an id of the Hugging Face Hub"
        raise error_at("streaming", problem, expected, fix, code="option-unsupported")
    options = options_of(encoding, columns)
    kind, limit = problem_type, max_samples

    def read(place: str, split: str | None) -> RawTexts:
        """Read train first, whose kind is that of the other splits; the limit is its own."""
        nonlocal kind, limit
        texts = read_texts(
            place,
            split=split,
            hub=hub,
            problem_type=kind,
            max_samples=limit,
            streaming=streaming,
            options=options,
        )
        kind, limit = kind or texts.kind or None, None
        return texts

    raws, places, problems = read_splits(source, dev=dev, test=test, read=read)
    others, more = read_others([mix] if isinstance(mix, str) else mix or [], read=read)
    problems += more
    for raw in raws.values():
        problems += raw.file_problems
    scheme, more = _scheme(
        raws,
        source,
        labels,
        mixed=[*others.values()],
        is_class=problem_type is not None,
        questions=questions,
    )
    problems += more
    if scheme is None:
        raise TaskHeadsError(problems + [problem for raw in raws.values() for problem in raw.row_problems()])
    is_unlabeled = test is None and "test" in raws and 0 < raws["test"].unlabeled == raws["test"].rows_read
    if is_unlabeled:
        del raws["test"]
    splits: dict[str, Sequence[TextExample]] = {}
    reports: dict[str, ReadReport] = {}
    for split, raw in raws.items():
        splits[split], reports[split] = resolve_all(raw, scheme, place=places[split])
    problems += _refusals(reports, places, skip=skip)
    mixed, mix_lines, more = resolve_others(
        others, scheme, source=source, own=raws["train"].stated, skip=skip
    )
    problems += more
    if not problems:
        problems += one_class(splits["train"], scheme, source)
    if problems:
        raise TaskHeadsError(problems)
    lines = _read_lines(raws, reports)
    lines += ["test: all labels are -1 (unpublished), so the split is left out"] * is_unlabeled
    unread = {split: tuple(raw.unread) for split, raw in raws.items()}
    lines += unread_lines(unread)
    lines += label_lines(splits["train"], scheme)
    to_cut, more_lines = splits_to_cut(splits, dev_fraction=dev_fraction, test_fraction=test_fraction)
    lines += more_lines
    for split, share in to_cut.items():
        splits["train"], splits[split], note = split_texts(
            splits["train"], dev_fraction=share, salt=SALTS[split], held_out=split
        )
        lines.append(cut_line(split, f"{len(splits[split]):,} texts", share))
        lines += [note] if note else []
    own = len(splits["train"])
    if others:
        apart = joined([splits["dev"], splits.get("test", [])])
        splits["train"], more_lines = mix_in(
            splits["train"], mixed, ratio=mix_ratio, apart=apart, name=names_of(others)
        )
        lines += mix_lines + more_lines
    more_lines, test_seen = overlap_lines(splits, noun="text")
    lines += more_lines + shared_lines(splits, to_cut) + example_lines(splits, scheme.labels)
    sets = TextSets(
        train=splits["train"],
        dev=splits["dev"],
        test=splits.get("test", []),
        problem_type=scheme.problem_type,
        labels=scheme.labels,
        questions=scheme.questions,
        lines=lines,
        dev_was_cut="dev" in to_cut,
        test_was_cut="test" in to_cut,
        test_seen=test_seen,
        mixed=len(splits["train"]) - own,
        unread=unread,
    )
    lines[:0] = sets.leak_lines()  # first, because a leak invalidates the metrics
    return sets


def _check_options(*, problem_type: str | None, bad_rows: str, max_samples: int | None) -> None:
    problems = []
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        problem, expected = f"found {shorten(problem_type)}", ", ".join(PROBLEM_TYPES)
        problems.append(Problem("problem_type", problem, expected, "choose one of them", code="option-value"))
    problems += bad_rows_problems(bad_rows)
    if max_samples is not None and max_samples < 1:
        problem, expected = f"found {max_samples}", "at least 1, or none"
        problems.append(Problem("max_samples", problem, expected, "correct the number", code="option-range"))
    if problems:
        raise TaskHeadsError(problems)


def _scheme(
    raws: Mapping[str, RawTexts],
    source: str,
    labels: LabelMap | str | None,
    *,
    mixed: Sequence[RawTexts],
    is_class: bool,
    questions: Sequence[Mapping[str, Any]],
) -> tuple[Scheme | None, list[Problem]]:
    """Derive the labels of the run, after `label_values` converted the label values of all datasets.

    Returns:
        The labels, or None, and the problems. Without a training set, the problems are those of its source.
    """
    train, given_by = raws.get("train"), GIVEN
    is_map = isinstance(labels, LabelMap)
    try:
        if train is not None and train.kind == QUESTIONS:
            return _records_scheme(train, labels, source=source, given=questions, mixed=mixed), []
        if labels is None and (train is None or train.kind != "regression"):
            labels = find_label_file(source)
        if isinstance(labels, str):
            given_by = Path(labels).name
            labels = LabelMap.read(labels)
        if train is None or not train.kind:
            return None, []
        others = [raw for raw in raws.values() if raw is not train]
        by_file = labels is not None and not is_map
        given_by += resolve_labels(train, others, labels, mixed=mixed, by_file=by_file, is_class=is_class)
        label_file = find_label_file(source) if is_map and states_ids(train.stated) else None
        if label_file is not None and labels is not None:  # ids of the data would be read as ids of the model
            check_same(LabelMap.read(label_file), labels, where=label_file)
        scheme = derive_scheme(
            train.stated,
            problem_type=train.kind,
            source=source,
            count=len(train),
            given=labels,
            given_by=given_by,
            class_names=train.class_names,
        )
    except TaskHeadsError as error:
        return None, list(error.problems) if train is None else train.of_rows(error.problems)
    return scheme, []


def _records_scheme(
    train: RawTexts,
    labels: LabelMap | str | None,
    *,
    source: str,
    given: Sequence[Mapping[str, Any]],
    mixed: Sequence[RawTexts],
) -> Scheme:
    """Return the questions of records, whose outputs are the labels."""
    for option, value in (("--labels", labels), ("--mix", mixed)):
        if value:
            problem, expected = "found it with records of questions", "none: each record states its questions"
            raise error_at(option, problem, expected, f"drop {option}", code="option-unsupported")
    found = derive_questions(train.stated, source=source, given=given)
    return Scheme(QUESTIONS, labels_of_questions(found), "the questions in train", questions=found)


def _read_lines(raws: Mapping[str, RawTexts], reports: Mapping[str, ReadReport]) -> list[str]:
    """Return the messages on the rows of each split, and on how its files were read."""
    lines = [f"{split}: {line}" for split, report in reports.items() for line in report.lines()]
    for split, raw in raws.items():
        lines += [f"{split}: {message}" for message in raw.messages]
        if raw.cut_at is not None:
            lines.append(f"{split}: only the first {raw.cut_at:,} rows were read")
    return lines


def _refusals(reports: Mapping[str, ReadReport], places: Mapping[str, str], *, skip: bool) -> list[Problem]:
    """Return all refused rows; with `skip`, only those of a split of which more than half is refused."""
    problems: list[Problem] = []
    for split, report in reports.items():
        if skip and 2 * report.refused > report.rows_read:
            problem = f"{report.refused:,} of {report.rows_read:,} rows are refused"
            fix = "correct the rows below"
            problems.append(Problem(places[split], problem, "at most half", fix, code="rows-too-few"))
        elif skip:
            continue
        problems += report.refusals
    return problems
