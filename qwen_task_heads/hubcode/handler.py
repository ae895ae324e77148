"""`EndpointHandler` of Hugging Face Inference Endpoints. This file is copied into every published model.

The endpoint loads this file by its path, outside any package, so it has no relative imports. It loads the
model and the encoder from the code files in the same folder, as transformers loads remote code. The ids are
those of training. Bad input raises a `RequestError`, whose message the endpoint returns. The next request is
not affected.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

BATCH = 32  # rows per pass
SHOWN = 10  # problems in a message
TEXT = "a text that is not empty"
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which JSON can hold and no tokenizer reads
# Rows of ids, and a function from their logits to the answer
Request = tuple[list[list[int]], Callable[[torch.Tensor], list[Any]]]


class RequestProblem(NamedTuple):
    """One defect of a request, with the fields of `TaskHeadError`."""

    where: str
    problem: str
    expected: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}. Expected {self.expected}. Fix: {self.fix}."


class RequestError(ValueError):
    """A request with defects.

    Args:
        problems: all of them; the message has the first 10.
    """

    def __init__(self, problems: Sequence[RequestProblem]) -> None:
        self.problems = tuple(problems)
        more = [f"and {len(self.problems) - SHOWN} more"] if len(self.problems) > SHOWN else []
        super().__init__("\n".join([*map(str, self.problems[:SHOWN]), *more]))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickle makes the error of, as processes send it to each other."""
        return type(self), (self.problems,)


class EndpointHandler:
    """Answer requests: scores or rankings of titles, or labels of texts with their probabilities.

    | `inputs` | answer of a title scorer |
    |---|---|
    | a title, or a list of them | a list of `{"title", "score"}`, in their order |
    | `{"titles": [...], "prompt": "..."}` | `{"title", "score", "probability", "rank"}`, best first |
    | a list of such dictionaries | a list of such lists |

    | `inputs` | answer of a classifier |
    |---|---|
    | a text, or `{"text": "...", "text_pair": "..."}` | a list of `{"label", "score"}`, best first |
    | a list of either | a list of such lists |

    A model with several questions answers with `{question: [{"label", "score"}, ...]}` for each text.

    `score` of a label is its probability, or the value of a regression. `parameters`: `top_k` for rankings
    and labels, `prompt` for titles given as plain texts, `threshold` for multi-label models: labels with at
    least this probability are returned. Without it, `label_thresholds` of the config apply, if there are any;
    `"threshold": 0` returns all labels.

    Args:
        path: the folder of the model; if empty, the folder of this file.

    Example:
        handler = EndpointHandler("/repository")
        handler({"inputs": {"titles": ["A plain title", "One Weird Title"]}, "parameters": {"top_k": 1}})

    Source: https://huggingface.co/docs/inference-endpoints/guides/custom_handler
    """

    def __init__(self, path: str = "") -> None:
        folder = str(path or Path(__file__).parent)
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        model = config["auto_map"]["AutoModelForSequenceClassification"]
        model_class: Any = get_class_from_dynamic_module(model, folder)
        self._encode, self._encode_texts, self._pad_rows, self._strip_title = (
            get_class_from_dynamic_module(f"encoding_task_heads.{name}", folder)
            for name in ("encode", "encode_texts", "pad_rows", "strip_title")
        )
        self._slices_of, self._options_of, self._option_scores = (
            get_class_from_dynamic_module(name, folder)
            for name in (
                "questions_task_heads.slices_of",
                "questions_task_heads.options_of",
                "pooling_task_heads.option_scores",
            )
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model_class.from_pretrained(folder).eval().to(device)
        self.config = self.model.config
        # The tokenizer has no code. Without `config`, transformers reads the config again and warns or asks.
        self.tokenizer = AutoTokenizer.from_pretrained(folder, config=self.config)
        self.scores_titles = self.config.model_type == "title_scorer"
        template = {} if self.scores_titles else self.config.template or {}
        self.needs_pairs = "between" in template
        self.takes_pairs = self.needs_pairs or not template

    def __call__(self, data: dict[str, Any]) -> list[Any]:
        """Answer one request, `{"inputs": ..., "parameters": {...}}`.

        Raises:
            RequestError: bad input, with all problems.
        """
        rows, answer_of = self.read(data)
        return answer_of(self.run(rows))

    def read(self, data: dict[str, Any]) -> Request:
        """Validate a request and encode its texts, without running the model.

        A server can run the rows of several requests together, and pass each request its own logits.

        Args:
            data: `{"inputs": ..., "parameters": {...}}`.

        Returns:
            n rows of ids, and a function from their logits (n, L) to the answer.

        Raises:
            RequestError: bad input, with all problems.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise RequestError(
                [_problem("request", data, '{"inputs": ..., "parameters": {...}}', "pass inputs")]
            )
        inputs, parameters = data["inputs"], data.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise RequestError([_problem("parameters", parameters, "an object", "pass an object")])
        single = isinstance(inputs, (str, dict))
        items = [inputs] if single else inputs
        if not isinstance(items, list) or not items:
            expected = "a text, an object or a list of them"
            raise RequestError([_problem("inputs", inputs, expected, "pass one of them")])
        of_titles = self.scores_titles and isinstance(items[0], str)
        answer = self._titles if of_titles else self._rankings if self.scores_titles else self._labels
        rows, to_answers = answer(items, dict(parameters))

        def answer_of(logits: torch.Tensor) -> list[Any]:
            answers = to_answers(logits)
            return answers[0] if single and not of_titles else answers

        return rows, answer_of

    def _titles(self, titles: list[Any], parameters: dict[str, Any]) -> Request:
        """Read titles to score, in their order."""
        prompt = parameters.pop("prompt", None) or ""
        problems = _unknown(parameters, "prompt, or top_k with titles in an object")
        problems += _texts(self._bare(titles), "inputs") + (
            [] if isinstance(prompt, str) else _texts([prompt], "prompt")
        )
        _raise(problems)

        def answer_of(logits: torch.Tensor) -> list[Any]:
            scores = logits[:, 0].tolist()
            return [{"title": title, "score": score} for title, score in zip(titles, scores, strict=True)]

        return self._title_rows(titles, prompt), answer_of

    def _rankings(self, items: list[Any], parameters: dict[str, Any]) -> Request:
        """Read lists of titles to rank, best first; equal scores keep their order."""
        top_k, problems = _top_k(parameters)
        problems += _unknown(parameters, "top_k, or a prompt in the object")
        for index, item in enumerate(items):
            where = f"inputs[{index}]"
            titles = item.get("titles") if isinstance(item, dict) else None
            if not isinstance(titles, list) or not titles or item.keys() - {"titles", "prompt"}:
                problems.append(_problem(where, item, '{"titles": [...], "prompt": "..."}', "pass titles"))
                continue
            problems += _texts(self._bare(titles), f"{where}.titles")
            if not isinstance(item.get("prompt") or "", str):
                problems += _texts([item["prompt"]], f"{where}.prompt")
        _raise(problems)
        lists = [self._title_rows(item["titles"], item.get("prompt") or "") for item in items]

        def answer_of(logits: torch.Tensor) -> list[Any]:
            answers = []
            for item, values in zip(items, logits[:, 0].split([len(rows) for rows in lists]), strict=True):
                titles = zip(item["titles"], values.tolist(), values.softmax(0).tolist(), strict=True)
                ranked = sorted(titles, key=lambda title: -title[1])
                answers.append(
                    [
                        {"title": title, "score": score, "probability": probability, "rank": rank}
                        for rank, (title, score, probability) in enumerate(ranked[:top_k], start=1)
                    ]
                )
            return answers

        return [row for rows in lists for row in rows], answer_of

    def _labels(self, items: list[Any], parameters: dict[str, Any]) -> Request:
        """Read texts to label, with the labels of each text best first."""
        top_k, problems = _top_k(parameters)
        kind = self.config.problem_type
        kind = kind or ("regression" if self.config.num_labels == 1 else "single_label_classification")
        thresholds = self.config.label_thresholds or [0.0] * self.config.num_labels
        if kind == "multi_label_classification" and "threshold" in parameters:
            threshold, threshold_problems = _number(parameters.pop("threshold"))
            thresholds = [threshold] * self.config.num_labels
            problems += threshold_problems
        allowed = "top_k and threshold" if kind == "multi_label_classification" else "top_k"
        problems += _unknown(parameters, f"{allowed} for a {kind} model")
        texts, pairs = [], []
        for index, item in enumerate(items):
            fields = {"text": item} if isinstance(item, str) else item
            where = f"inputs[{index}]"
            if not isinstance(fields, dict) or "text" not in fields or fields.keys() - {"text", "text_pair"}:
                problems.append(
                    _problem(where, item, 'a text or {"text": ..., "text_pair": ...}', "pass one of them")
                )
                continue
            texts.append(fields["text"])
            pairs.append(fields.get("text_pair") or "")
            problems += _texts([fields["text"]], f"{where}.text")
            if not isinstance(pairs[-1], str) or (pairs[-1] and not self.takes_pairs):
                problems.append(_problem(f"{where}.text_pair", pairs[-1], "single texts", "drop it"))
            if self.needs_pairs and "text_pair" not in fields:
                problems.append(_problem(where, item, "pairs, as in training", 'pass text_pair, "" for none'))
        _raise(problems)
        rows = self._encode_texts(
            self.tokenizer,
            texts,
            text_pairs=pairs if any(pairs) else None,
            max_length=self.config.max_seq_length,
            truncation=self.config.truncation,
        ).input_ids
        apply: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "regression": lambda values: values,
            "multi_label_classification": torch.sigmoid,
        }
        # Logits of an ordinal model are log-probabilities, which softmax does not change.
        to_values = apply.get(kind, lambda values: values.softmax(-1))
        names = [self.config.id2label[index] for index in range(self.config.num_labels)]
        if self.config.questions:
            return rows, lambda logits: self._answers(logits.double(), top_k)
        least = dict(zip(names, thresholds, strict=True)) if kind == "multi_label_classification" else {}

        def answer_of(logits: torch.Tensor) -> list[Any]:
            answers = []
            for row in to_values(logits.double()).tolist():
                best = [{"label": name, "score": value} for name, value in zip(names, row, strict=True)]
                if kind != "regression":
                    best.sort(key=lambda label: -label["score"])
                kept = [label for label in best if label["score"] >= least.get(label["label"], -math.inf)]
                answers.append(kept[:top_k])
            return answers

        return rows, answer_of

    def _answers(self, logits: torch.Tensor, top_k: int | None) -> list[Any]:
        """Return the options of each question of each text with their probabilities, best first."""
        questions = self.config.questions
        answers: list[dict[str, Any]] = [{} for _ in logits]
        slices = self._slices_of(questions)
        for question in questions:
            scores = self._option_scores(logits[:, slices[question["name"]]], question).exp()
            for answer, row in zip(answers, scores.tolist(), strict=True):
                pairs = sorted(zip(self._options_of(question), row, strict=True), key=lambda pair: -pair[1])
                best = [{"label": name, "score": score} for name, score in pairs[:top_k]]
                answer[question["name"]] = best
        return answers

    def _bare(self, titles: Sequence[Any]) -> list[Any]:
        """Return the titles without tags, as the model reads them."""
        return [self._strip_title(title) if isinstance(title, str) else title for title in titles]

    def _title_rows(self, titles: Sequence[str], prompt: str) -> list[list[int]]:
        prompts = [prompt] * len(titles) if prompt else None
        rows: list[list[int]] = self._encode(self.tokenizer, self._bare(titles), prompts=prompts).input_ids
        return rows

    @torch.inference_mode()
    def run(self, rows: list[list[int]]) -> torch.Tensor:
        """Return the logits (n, L) of rows of ids, fp32 on the CPU, in the order of the rows."""
        found = []
        for start in range(0, len(rows), BATCH):
            batch = self._pad_rows(rows[start : start + BATCH], pad_id=self.tokenizer.pad_token_id or 0)
            inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            found.append(self.model(**inputs).logits.float().cpu())
        return torch.cat(found)


def _problem(where: str, found: Any, expected: str, fix: str) -> RequestProblem:
    """Return the problem of a value, which is cut to 80 characters."""
    text = repr(found)
    return RequestProblem(where, f"found {text[:80]}{'...' * (len(text) > 80)}", expected, fix)


def _raise(problems: Sequence[RequestProblem]) -> None:
    if problems:
        raise RequestError(problems)


def _texts(texts: Sequence[Any], where: str) -> list[RequestProblem]:
    return [
        _problem(f"{where}[{index}]" if len(texts) > 1 else where, text, TEXT, "pass a text, or drop it")
        for index, text in enumerate(texts)
        if not isinstance(text, str) or not text.strip() or SURROGATE.search(text)
    ]


def _unknown(parameters: dict[str, Any], expected: str) -> list[RequestProblem]:
    return [_problem(f"parameters.{name}", parameters[name], expected, "drop it") for name in parameters]


def _top_k(parameters: dict[str, Any]) -> tuple[int | None, list[RequestProblem]]:
    value = parameters.pop("top_k", None)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value, []
    return None, [_problem("parameters.top_k", value, "a whole number of at least 1", "raise or drop it")]


def _number(value: Any) -> tuple[float | None, list[RequestProblem]]:
    """Read a probability, which is a text if it was a parameter of a URL."""
    try:
        number = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if 0 <= number <= 1:
        return number, []
    return None, [_problem("parameters.threshold", value, "a probability from 0 to 1", "change or drop it")]
