"""`BatchScorer`: a picklable callable from columns to columns, for Ray Data, Daft, Spark and plain loops.

    ray.data.read_parquet("in/").map_batches(
        BatchScorer, fn_constructor_args=("me/news",), concurrency=2, batch_size=1024
    ).write_parquet("out/")

A batch is a dictionary of columns, a pandas DataFrame or an Arrow table; the answer is of the same type, with
further columns. Every worker loads the model at its first batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.inference.identity import identity_of
from qwen_task_heads.inference.inputs import KEEP, rows_of
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.inference.loading import open_scorer
from qwen_task_heads.inference.predictions import FailedScore, Prediction, answer_columns, arrow_type
from qwen_task_heads.inference.scorer import Scorer

Columns = dict[str, list[Any]]


class Answers(NamedTuple):
    """A column of answers."""

    values: list[Any]
    key: str  # of `arrow_type`: a batch may have no answer from which the type could be read


AnswerColumns = dict[str, Answers]


@runtime_checkable
class ArrowTable(Protocol):
    """A table or a batch of rows of Arrow."""

    def to_pydict(self) -> dict[str, list[Any]]:
        """Return the columns as lists."""
        ...

    def append_column(self, name: str, values: Any) -> Any:
        """Return a table with one more column."""
        ...


@runtime_checkable
class DataFrame(Protocol):
    """A table of pandas."""

    columns: Any

    def assign(self, **columns: Any) -> Any:
        """Return a table with more columns."""
        ...

    def __getitem__(self, name: str) -> Any: ...


class BatchScorer:
    """Add answers to batches of columns. An invalid row gets an error, and the others are answered.

    | model | columns, after `prefix` |
    |---|---|
    | single-label | `label`, `probability` |
    | ordinal | `label`, `probability`, `expected_rank` |
    | multi-label | `labels` |
    | regression | `score`, or one per output by its name |
    | several questions | `answers`: a list with `question`, `label`, `probability` and `expected_rank` |
    | title scorer, `title` column | `score` |
    | title scorer, `titles` column of lists | `scores`, `probabilities`, `best` |
    | all | `error`, `model_revision`, `model_hash` |

    Answers equal those of `Scorer.predict` and `recipes/predict.py` on the same rows.

    Args:
        model: repo id or folder of a classifier, title scorer or generative classifier.
        text: column of texts.
        text_pair: column of second texts; None for none.
        title: column of titles, one per row.
        titles: column of lists of titles, which share the prompt of their row; replaces `title`.
        prompt: column of prompts; None for none.
        prefix: prefix of the added columns.
        probabilities: add `probabilities`, a list per row in the order of `id2label`, or of the options of
            each question.
        threshold: see `Scorer.predict`.
        abstain: see `Scorer.predict`.
        revision: branch, tag or commit.
        hub: hub of the id.
        device: `auto` for the GPU if there is one.
        dtype: dtype of the backbone.
        batch_tokens: tokens per batch; the default of the scorer if None.

    Raises:
        TaskHeadsError: at a call: no such model, a column that is missing, or one that exists already.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads import build, load_tokenizer, save
        >>> from qwen_task_heads.inference.batch import BatchScorer
        >>> model = build("embedded", task="pooled_classifier", labels=["sport", "trade"])
        >>> folder = save(model, tokenizer=load_tokenizer("embedded"), folder=tempfile.mkdtemp())
        >>> answers = BatchScorer(str(folder))({"text": ["A match", ""], "id": [1, 2]})
        >>> sorted(answers)[:4]
        ['id', 'predicted_error', 'predicted_label', 'predicted_model_hash']
        >>> answers["predicted_error"][0] is None, "text" in answers["predicted_error"][1]
        (True, True)
    """

    def __init__(
        self,
        model: str,
        *,
        text: str = "text",
        text_pair: str | None = None,
        title: str = "title",
        titles: str | None = None,
        prompt: str | None = None,
        prefix: str = "predicted_",
        probabilities: bool = False,
        threshold: float | None = None,
        abstain: float | None = None,
        revision: str | None = None,
        hub: str = "huggingface",
        device: str = "auto",
        dtype: torch.dtype | str = "auto",
        batch_tokens: int | None = None,
    ) -> None:
        self.model, self.revision, self.hub = str(model), revision, hub
        self.text, self.text_pair = text, text_pair
        self.title, self.titles, self.prompt = title, titles, prompt
        self.prefix, self.probabilities = prefix, probabilities
        self.options = {
            name: value
            for name, value in {"threshold": threshold, "abstain": abstain}.items()
            if value is not None
        }
        self.loading: dict[str, Any] = {"device": device, "dtype": dtype, "batch_tokens": batch_tokens}
        self._scorer: Scorer | LabelScorer | None = None
        self._identity: dict[str, str | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the options without the model, which each worker loads itself."""
        return {**self.__dict__, "_scorer": None}

    def __call__(self, batch: Any) -> Any:
        """Return a batch with the columns of the answers, of the same type.

        Args:
            batch: a dictionary of columns, a pandas DataFrame or an Arrow table, of n rows.
        """
        columns = _columns_of(batch)
        answers = self._answers(columns)
        taken = [name for name in answers if name in columns]
        if taken:
            raise TaskHeadsError(
                [
                    Problem(
                        f"column {name!r}",
                        "found it in the batch",
                        "a new name",
                        "choose another prefix=",
                        code="column-ambiguous",
                    )
                    for name in taken
                ]
            )
        return _with_columns(batch, answers)

    def frames(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the answers of an iterator of batches, as Spark's `mapInPandas` calls functions."""
        return map(self, batches)

    @property
    def scorer(self) -> Scorer | LabelScorer:
        """The model of this process, loaded at the first use."""
        if self._scorer is None:
            self._scorer = open_scorer(
                self.model, revision=self.revision, hub=self.hub, progress=False, **self.loading
            )
            self._identity = identity_of(self._scorer)
        return self._scorer

    @property
    def identity(self) -> dict[str, str | None]:
        """`model_revision` and `model_hash` of the model of this process, as in the columns."""
        _ = self.scorer  # loads the model
        return self._identity

    def _answers(self, columns: Columns) -> AnswerColumns:
        scorer = self.scorer
        if isinstance(scorer, Scorer) and scorer.is_title_scorer:
            answers = self._rankings(scorer, columns) if self.titles else self._scores(scorer, columns)
        else:
            answers = self._predictions(scorer, columns)
        count = len(answers["error"].values)
        answers |= {name: Answers([value] * count, name) for name, value in self._identity.items()}
        return {f"{self.prefix}{name}": column for name, column in answers.items()}

    def _scores(self, scorer: Scorer, columns: Columns) -> AnswerColumns:
        prompts = [value or "" for value in self._column(columns, self.prompt)] if self.prompt else None
        scores = scorer.score(self._column(columns, self.title), prompts=prompts, on_error=KEEP)
        return {
            "score": Answers([float(score) for score in scores], "score"),
            "error": Answers([_error_of(score) for score in scores], "error"),
        }

    def _rankings(self, scorer: Scorer, columns: Columns) -> AnswerColumns:
        """Score all titles of a batch together; the titles of a row share the state of its prompt."""
        lists, wrong = [], {}
        for row, value in enumerate(self._column(columns, self.titles)):
            try:
                lists.append(rows_of("titles", [] if value is None else value))
            except TaskHeadsError as refused:
                lists.append([])
                wrong[row] = str(refused)
        prompts = self._column(columns, self.prompt) if self.prompt else [""] * len(lists)
        flat = [title for titles in lists for title in titles]
        contexts = [prompt or "" for prompt, titles in zip(prompts, lists, strict=True) for _ in titles]
        scores = iter(scorer.score(flat, prompts=contexts if self.prompt else None, on_error=KEEP))
        answers: Columns = {"scores": [], "probabilities": [], "best": [], "error": []}
        for row, titles in enumerate(lists):
            found = [next(scores) for _ in titles]
            # The index of an error is that of all titles of the batch.
            errors = [
                f"titles[{place}]: {error.partition(': ')[2]}"
                for place, score in enumerate(found)
                if (error := _error_of(score))
            ]
            if row in wrong:
                errors = [wrong[row]]
            elif not titles:
                errors = [f"column {self.titles!r}: the list is empty. Expected titles. Fix: drop the row."]
            values = torch.tensor([float(score) for score in found], dtype=torch.float64)
            answers["scores"].append(values.tolist())
            answers["probabilities"].append(None if errors else values.softmax(0).tolist())
            answers["best"].append(None if errors else titles[int(values.argmax())])
            answers["error"].append("\n".join(errors) or None)
        return {name: Answers(values, name) for name, values in answers.items()}

    def _predictions(self, scorer: Scorer | LabelScorer, columns: Columns) -> AnswerColumns:
        options: dict[str, Any] = {**self.options, "on_error": KEEP}
        if self.text_pair:
            options["text_pairs"] = [value or "" for value in self._column(columns, self.text_pair)]
        found = scorer.predict(self._column(columns, self.text), **options)
        rows = [prediction.as_dict(digits=None) for prediction in found]
        names = [scorer.config.id2label[index] for index in range(scorer.config.num_labels)]
        answers: AnswerColumns = {}
        for key in answer_columns(scorer.config):
            if key == "scores":  # of several outputs: a column for each
                self._check_outputs(names)
                lists = [row.get(key) or dict.fromkeys(names, float("nan")) for row in rows]
                answers |= {name: Answers([row[name] for row in lists], "score") for name in names}
            elif key == "answers":
                answers[key] = Answers([self._of_questions(prediction) for prediction in found], key)
            elif key == "probabilities":
                if self.probabilities:
                    values = [[row[key][name] for name in names] if key in row else None for row in rows]
                    answers[key] = Answers(values, key)
            else:
                missing = float("nan") if key == "score" else None
                answers[key] = Answers([row.get(key, missing) for row in rows], key)
        return {**answers, "error": Answers([row.get("error") for row in rows], "error")}

    def _of_questions(self, prediction: Prediction) -> list[dict[str, Any]] | None:
        """Return the answer to each question of a row, None for an invalid row."""
        if prediction.error is not None:
            return None
        return [
            {
                "question": name,
                "label": answer.label,
                "probability": answer.probability,
                "expected_rank": answer.expected_rank,
                "probabilities": [*answer.probabilities.values()] if self.probabilities else None,
            }
            for name, answer in prediction.answers.items()
        ]

    def _check_outputs(self, names: list[str]) -> None:
        """Raise for outputs of a regression with the name of another column."""
        if taken := [name for name in names if name in ("error", *self._identity)]:
            raise TaskHeadsError(
                Problem(
                    f"column {self.prefix + taken[0]!r}",
                    f"found an output of the model named {taken[0]!r}",
                    "outputs with other names",
                    "call Scorer.predict, which returns all outputs in `scores`",
                    code="column-ambiguous",
                )
            )

    def _column(self, columns: Columns, name: str | None) -> list[Any]:
        if name not in columns:
            raise TaskHeadsError(
                Problem(
                    f"column {name!r}",
                    f"found the columns {', '.join(columns)}",
                    "a column of texts",
                    "name it by text=, title=, titles=, text_pair= or prompt=",
                    code="column-missing",
                )
            )
        return columns[name]


def _error_of(score: float) -> str | None:
    return score.error if isinstance(score, FailedScore) else None


def _columns_of(batch: Any) -> Columns:
    """Return the columns of a batch as lists; null values of pandas and Arrow are None."""
    if isinstance(batch, Mapping):
        return {name: [_plain(value) for value in values] for name, values in batch.items()}
    if isinstance(batch, ArrowTable):
        return dict(batch.to_pydict())
    if isinstance(batch, DataFrame):
        return {name: [_plain(value) for value in batch[name]] for name in batch.columns}
    raise TaskHeadsError(
        Problem(
            "batch",
            f"found a {type(batch).__name__}",
            "a dictionary of columns, a pandas DataFrame or an Arrow table",
            'pass columns, such as {"text": [...]}',
            code="argument-type",
        )
    )


def _plain(value: Any) -> Any:
    """Return a value of NumPy as one of Python; NaN, which pandas writes for null, as None."""
    if isinstance(value, np.generic):
        value = value.item()
    is_null = type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    return None if is_null else value


def _with_columns(batch: Any, answers: AnswerColumns) -> Any:
    if isinstance(batch, ArrowTable):
        import pyarrow as pa

        for name, column in answers.items():
            batch = batch.append_column(name, pa.array(column.values, arrow_type(column.key)))
        return batch
    values = {name: column.values for name, column in answers.items()}
    if isinstance(batch, Mapping):
        arrays = any(isinstance(column, np.ndarray) for column in batch.values())
        return {**batch, **(values if not arrays else {k: _array(v) for k, v in values.items()})}
    return batch.assign(**values)


def _array(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Return a NumPy array: of floats, or of objects for texts, lists and missing values."""
    if all(isinstance(value, float) for value in values):
        return np.array(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
