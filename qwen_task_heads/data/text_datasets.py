"""Train, dev and test of a text classifier, from whatever the user has, with an account of all of it.

Design:
- Every defect of every file is collected before the one error is raised.
- Labels come from what states them: given, or a label file next to the data, else from the training rows
  as a set (`text_targets.py`). A label file counts for single files as for folders, so that naming
  `data/train.jsonl` and naming `data` mean the same.
- Without a dev set one is cut by a hash of the texts (`splits.split_texts`), and on request a test set before
  it, with another hash: neither shares a text or a group with the others.
- Rows of other sets (`mix`) come last, after the cut: none is ever measured on.
- Examples of a label file are shown by `{examples}` of an instruction: those that stand in dev or test are
  counted, as overlaps of train are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_task_heads.data.checks import ReadReport, find_overlaps, shared_lines
from qwen_task_heads.data.embedded_datasets import locate_dataset
from qwen_task_heads.data.example_columns import joined
from qwen_task_heads.data.example_tables import have_second
from qwen_task_heads.data.examples import TextExample
from qwen_task_heads.data.file_options import UTF_8, options_of
from qwen_task_heads.data.label_files import find_label_file
from qwen_task_heads.data.label_schemes import GIVEN, Scheme, derive_scheme, states_ids
from qwen_task_heads.data.label_summary import label_lines, one_class, shown_lines
from qwen_task_heads.data.label_values import resolve_labels
from qwen_task_heads.data.labels import LabelMap, check_same
from qwen_task_heads.data.lookups import leak_lines, report_texts
from qwen_task_heads.data.mixing import check_ratio, mix_in, names_of, read_others, resolve_others
from qwen_task_heads.data.pair_layout import unread_lines
from qwen_task_heads.data.raw_texts import RawTexts
from qwen_task_heads.data.split_sources import read_splits
from qwen_task_heads.data.splits import TEST_GIVEN, check_fraction, cut_line, hash_rows, split_texts
from qwen_task_heads.data.text_layout import PROBLEM_TYPES
from qwen_task_heads.data.text_readers import read_texts
from qwen_task_heads.data.text_targets import resolve_all
from qwen_task_heads.errors import Problem, TaskHeadsError, shorten

SHOWN = 8  # names in a line


@dataclass(frozen=True, kw_only=True)
class TextSets:
    """Everything that a run trains and is measured on.

    Args:
        train: labelled texts.
        dev: texts for choosing.
        test: texts for reporting, perhaps none.
        problem_type: one of `PROBLEM_TYPES`.
        labels: the labels in their order; `target` counts in it.
        lines: what was read, found and cut, in plain words.
        dev_was_cut: the dev set was cut from the training source.
        test_was_cut: the test set was cut from the training source.
        test_seen: texts of test that also stand in train.
        mixed: rows of train that come from other sets (`mix`), the last ones.
    """

    train: Sequence[TextExample]
    dev: Sequence[TextExample]
    test: Sequence[TextExample]
    problem_type: str
    labels: LabelMap
    lines: list[str]
    dev_was_cut: bool
    test_was_cut: bool = False
    test_seen: int = 0
    mixed: int = 0

    @property
    def were_cut(self) -> tuple[str, ...]:
        """Names of the sets that were cut from the training source."""
        return ("dev",) * self.dev_was_cut + ("test",) * self.test_was_cut

    @property
    def have_pairs(self) -> bool:
        """Whether the training set holds pairs of texts."""
        return have_second(self.train)

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of all that trains a model or picks its checkpoint; a run resumes on the same data only."""
        return {
            "train_texts": hash_texts(self.train),
            "dev_texts": hash_texts(self.dev),
            # with what a prompt may say of them
            "labels": hash_rows([(self.problem_type, *self.labels.stated())]),
        }


def hash_texts(examples: Iterable[TextExample]) -> str:
    """SHA-256 over the examples in their order: texts, targets, candidates, weights; not where they stood.

    Example:
        >>> hash_texts([TextExample(text="A", target=0)])[:8]
        '4b0e06b4'
    """
    return hash_rows(
        # candidates only where there are any, so that runs from before there were go on
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
) -> TextSets:
    """Read the sets of a text classifier; `text_readers.py` lists the columns that are accepted.

    Args:
        source: file, folder or data set id of the training set; `"embedded"` for the sample that ships
            with the package. Splits found in a folder or data set are used where `dev` and `test` are
            None.
        dev: file, folder or id of the dev set; of several splits, the one called dev or validation.
        test: file, folder or id of the test set; of several splits, the one called test. A test split that is
            merely found, and whose labels are all -1, is left out.
        problem_type: `single_label_classification`, `multi_label_classification`, `regression` or `ordinal`;
            None to tell it by the target column (never ordinal).
        labels: the labels in their order, or the path of `labels.yaml` or a class file. None looks for such
            a file next to the data, else tells them from the training rows. A map is that of a model: where
            rows state ids, a file next to the data must say the same.
        dev_fraction: share of rows cut for dev where there is none; of what a cut test set leaves.
        test_fraction: share of rows cut for test where there is none; None cuts no test set.
        hub: `huggingface` or `modelscope`, for ids.
        bad_rows: `raise` names every refused row in one error; `skip` leaves them out and counts them.
        max_samples: read at most so many rows of the training set.
        streaming: read the rows of a Hugging Face data set as they arrive; refused for others.
        mix: files, folders or ids of other training sets with the same labels, rows of which are added to
            train (`mixing.py`); a set's training split where it has several.
        mix_ratio: own rows for one row of these.
        encoding: of text files, such as `gb18030`.
        columns: names of the columns of CSV and TSV files without a header.

    Raises:
        TaskHeadsError: all the problems of all the files: unreadable sources, unknown or ambiguous columns,
            labels that contradict each other or have gaps, one label only, refused rows, an empty set, or a
            mixed set with other labels.

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
    source = locate_dataset(source, "texts")
    if streaming and (Path(source).exists() or "modelscope" in (hub, source.split(":", 1)[0])):
        found, accepted = "found true for other data", "for ids of the Hugging Face Hub"
        raise TaskHeadsError(
            Problem("streaming", found, accepted, "drop it: the data is read from its files")
        )
    options = options_of(encoding, columns)
    told = [problem_type]  # the training set, read first, says what the others are read as
    limit = [max_samples]  # of the training set

    def read(place: str, split: str | None) -> RawTexts:
        texts = read_texts(
            place,
            split=split,
            hub=hub,
            problem_type=told[0],
            max_samples=limit[0],
            streaming=streaming,
            options=options,
        )
        told[0], limit[0] = told[0] or texts.kind or None, None
        return texts

    raws, places, problems = read_splits(source, dev=dev, test=test, read=read)
    others, more = read_others([mix] if isinstance(mix, str) else mix or [], read=read)
    problems += more
    for raw in raws.values():
        problems += raw.file_problems
    beside = [raw for role, raw in raws.items() if role != "train"]
    scheme, more = _scheme(
        raws.get("train"), source=source, labels=labels, others=beside, mixed=[*others.values()],
        is_class=problem_type is not None,
    )  # fmt: skip
    problems += more
    if scheme is None:
        for raw in raws.values():
            problems += raw.row_problems()
        raise TaskHeadsError(problems)
    hidden = test is None and "test" in raws and 0 < raws["test"].hidden == raws["test"].rows_read
    if hidden:
        del raws["test"]
    sets: dict[str, Sequence[TextExample]] = {}
    reports: dict[str, ReadReport] = {}
    for role, raw in raws.items():
        sets[role], reports[role] = resolve_all(raw, scheme, place=places[role])
    problems += _refusals(reports, places, skip=bad_rows == "skip")
    mixed, mix_lines, more = resolve_others(
        others, scheme, source=source, own=raws["train"].stated, skip=bad_rows == "skip"
    )
    problems += more
    if not problems:
        problems += one_class(sets["train"], scheme, source)
    if problems:
        raise TaskHeadsError(problems)
    lines = [f"{role}: {line}" for role, report in reports.items() for line in report.lines()]
    for role, raw in raws.items():
        lines += [f"{role}: {note}" for note in raw.notes]
        if raw.cut_at is not None:
            lines.append(f"{role}: only the first {raw.cut_at:,} rows were read")
    if hidden:
        lines.append("test: all labels are -1 (kept by the authors), so the set is left out")
    lines += unread_lines({role: raw.unread for role, raw in raws.items()})
    lines += label_lines(sets["train"], scheme)
    train, dev_was_cut = sets["train"], "dev" not in sets
    test_was_cut = "test" not in sets and test_fraction is not None
    if test_fraction is not None and test_was_cut:
        train, sets["test"], note = split_texts(
            train, dev_fraction=test_fraction, salt="test", held_out="test"
        )
        lines.append(cut_line("test", f"{len(sets['test']):,} texts", test_fraction))
        lines += [note] if note else []
    elif test_fraction is not None:
        lines.append(TEST_GIVEN)
    if dev_was_cut:
        train, sets["dev"], note = split_texts(train, dev_fraction=dev_fraction)
        lines.append(cut_line("dev", f"{len(sets['dev']):,} texts", dev_fraction))
        lines += [note] if note else []
    own = len(train)
    if others:
        apart = joined([sets["dev"], sets.get("test", [])])
        train, more_lines = mix_in(train, mixed, ratio=mix_ratio, apart=apart, name=names_of(others))
        lines += mix_lines + more_lines
    seen_before = {}
    for role in ("dev", "test"):
        overlaps = find_overlaps(train, sets.get(role, []))
        seen_before[role] = len(overlaps)
        if overlaps:
            first = overlaps[0]
            stand = f"text of {role} also stands" if len(overlaps) == 1 else f"texts of {role} also stand"
            seen, where = (Path(place).name for place in (first.test_source, first.train_source))
            lines.append(
                f"{len(overlaps):,} {stand} in train: figures on {role} flatter (first: "
                f"{seen} as {where}, {first.kind})"
            )
    if test_was_cut and not dev_was_cut:
        lines += shared_lines(sets["dev"], sets["test"])
    lines += shown_lines(sets, scheme.labels)
    kind = scheme.problem_type
    measured = {name: rows for name, rows in sets.items() if name != "train"}
    lookups = {n: report_texts(train, rows, split=n, problem_type=kind) for n, rows in measured.items()}
    were_cut = ["dev"] * dev_was_cut + ["test"] * test_was_cut
    return TextSets(
        train=train,
        dev=sets["dev"],
        test=sets.get("test", []),
        problem_type=scheme.problem_type,
        labels=scheme.labels,
        lines=[*leak_lines(lookups, were_cut=were_cut), *lines],  # first: nothing counts with a leak
        dev_was_cut=dev_was_cut,
        test_was_cut=test_was_cut,
        test_seen=seen_before["test"],
        mixed=len(train) - own,
    )


def _check_options(*, problem_type: str | None, bad_rows: str, max_samples: int | None) -> None:
    problems = []
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        found, accepted = f"found {shorten(problem_type)}", f"{', '.join(PROBLEM_TYPES)}"
        problems.append(Problem("problem_type", found, accepted, "choose one of them"))
    if bad_rows not in ("raise", "skip"):
        found = f"found {shorten(bad_rows)}"
        problems.append(Problem("bad_rows", found, "raise, skip", "choose one of them"))
    if max_samples is not None and max_samples < 1:
        found = f"found {max_samples}"
        problems.append(Problem("max_samples", found, "at least 1, or none", "correct the number"))
    if problems:
        raise TaskHeadsError(problems)


def _scheme(
    train: RawTexts | None,
    *,
    source: str,
    labels: LabelMap | str | None,
    others: Sequence[RawTexts],
    mixed: Sequence[RawTexts],
    is_class: bool,
) -> tuple[Scheme | None, list[Problem]]:
    """The labels of the run, or None with problems (perhaps none, where others are at fault).

    Values of labels get one form in all of these sets, see `label_values`.
    """
    given_by = GIVEN
    stated = isinstance(labels, LabelMap)
    try:
        if labels is None and (train is None or train.kind != "regression"):
            labels = find_label_file(source)
        if isinstance(labels, str):
            given_by = Path(labels).name
            labels = LabelMap.read(labels)
        if train is None or not train.kind:
            return None, []
        by_file = labels is not None and not stated
        given_by += resolve_labels(train, others, labels, mixed=mixed, by_file=by_file, is_class=is_class)
        beside = find_label_file(source) if stated and states_ids(train.stated) else None
        if beside is not None and labels is not None:  # ids of the data would be read as those of the model
            check_same(LabelMap.read(beside), labels, where=beside)
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


def _refusals(reports: Mapping[str, ReadReport], places: Mapping[str, str], *, skip: bool) -> list[Problem]:
    """What stops the run: refused rows, or with `skip` a set that is mostly or wholly refused."""
    problems: list[Problem] = []
    for role, report in reports.items():
        if skip and 2 * report.refused > report.rows_read:
            found = f"{report.refused:,} of {report.rows_read:,} rows are refused"
            problems.append(Problem(places[role], found, "at most half", "correct the rows below"))
        elif skip:
            continue
        problems += report.refusals
    return problems
