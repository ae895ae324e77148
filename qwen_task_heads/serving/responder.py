"""Answer requests with the logits of any engine: the model of this process, or vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import TitleScorerConfig
from qwen_task_heads.hubcode.decision_task_heads import HeadDecisionConfig, answer_scores
from qwen_task_heads.hubcode.encoding_task_heads import encode, encode_texts, pad_rows, strip_title
from qwen_task_heads.hubcode.errors_task_heads import TaskHeadError
from qwen_task_heads.hubcode.handler import SURROGATE, EndpointHandler, RequestError
from qwen_task_heads.hubcode.long_rows_task_heads import aggregate, pieces_of
from qwen_task_heads.hubcode.pooling_task_heads import option_scores
from qwen_task_heads.hubcode.questions_task_heads import options_of, slices_of
from qwen_task_heads.serving.request_limits import RequestLimits

Rows = list[list[int]]
# Rows of ids, and a function from their logits to the answer
ReadRequest = tuple[Rows, Callable[[torch.Tensor], Any]]


class _Handler(EndpointHandler):
    """The handler of published models, which reads requests here and runs no model."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.scores_titles = isinstance(config, TitleScorerConfig)
        template = {} if self.scores_titles else config.template or {}
        self.needs_pairs = "between" in template
        self.takes_pairs = self.needs_pairs or not template
        self._encode, self._encode_texts, self._pad_rows = encode, encode_texts, pad_rows
        self._strip_title = strip_title
        self._slices_of, self._options_of, self._option_scores = slices_of, options_of, option_scores


class Responder:
    """Read requests, get the logits of their rows, and return the answers.

    Args:
        config: config of the model.
        tokenizer: tokenizer saved with the model.
        logits: from n rows of ids to their logits (n, L), fp32 on the CPU; long rows are cut before.
        name: name of the model in answers.
        limits: limits of each request.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        logits: Callable[[Rows], Awaitable[torch.Tensor]],
        *,
        name: str,
        limits: RequestLimits | None = None,
    ) -> None:
        self.config, self.name, self.limits = config, name, limits or RequestLimits()
        self.is_title_scorer = isinstance(config, TitleScorerConfig)
        self._tokenizer, self._logits = tokenizer, logits
        self._handler = _Handler(config, tokenizer)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")  # it is not safe for threads

    async def answer(self, data: dict[str, Any]) -> tuple[Any, int]:
        """Return the handler's answer to `{"inputs", "parameters"}`, and the number of tokens.

        Raises:
            TaskHeadsError: bad input (`request-invalid`), too many rows, no answer in time, or a busy server.
        """
        problem = self._too_many(data["inputs"])
        if problem:
            raise TaskHeadsError(problem)
        return await self._in_time(self._answer(self._handler.read, data))

    async def decide(self, request: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Return the answers to the typed questions of `{"state", "questions"}`, and the number of tokens.

        Raises:
            TaskHeadsError: see `answer`; also questions that the head was not trained for.
        """
        count = len(request["questions"]) if isinstance(request["questions"], dict) else 0
        if count > self.limits.questions:
            fix = "send several requests"
            raise TaskHeadsError(self._too_large("questions", count, self.limits.questions, fix))
        for name in request["questions"] if count else ():
            if SURROGATE.search(name):  # it would be a key of the answer, which UTF-8 cannot have
                expected, fix = "a name of whole characters", "rename it"
                raise TaskHeadsError(
                    Problem("questions", f"found {name!r}", expected, fix, code="request-invalid")
                )
        return await self._in_time(self._answer(self._read_questions, request))

    def close(self) -> None:
        """End the thread of the tokenizer."""
        self._reader.shutdown()

    def _read_questions(self, request: dict[str, Any]) -> ReadRequest:
        prompts = HeadDecisionConfig(self.config).prepare_inputs(request, self._tokenizer)
        [(inputs, questions)] = prompts

        def answer_of(logits: torch.Tensor) -> dict[str, Any]:
            return {
                question.name: question.answer(answer_scores(logits[0], question, self.config).exp().tolist())
                for question in questions
            }

        return inputs["input_ids"].tolist(), answer_of

    async def _in_time(self, answer: Coroutine[Any, Any, tuple[Any, int]]) -> tuple[Any, int]:
        try:
            return await asyncio.wait_for(answer, self.limits.answer_seconds)
        except asyncio.TimeoutError as error:
            raise TaskHeadsError(
                Problem(
                    "server",
                    f"found no answer in {self.limits.answer_seconds:g} seconds",
                    "a shorter request or less load",
                    "send fewer rows, or again later",
                    code="server-busy",
                )
            ) from error

    async def _answer(
        self, read: Callable[[dict[str, Any]], ReadRequest], data: dict[str, Any]
    ) -> tuple[Any, int]:
        loop = asyncio.get_running_loop()
        try:
            rows, answer_of = await loop.run_in_executor(self._reader, read, data)
        except TaskHeadsError:
            raise
        except (ValueError, RecursionError) as error:  # the latter of values inside of each other
            raise TaskHeadsError(_problems_of(error)) from error
        tokens = sum(map(len, rows))
        if tokens > self.limits.tokens:
            raise TaskHeadsError(self._too_large("tokens", tokens, self.limits.tokens, "send shorter texts"))
        pieces = [pieces_of(self.config, row) for row in rows]  # so that a long row takes turns with others
        logits = await self._logits([piece for row in pieces for piece in row])
        if not self.is_title_scorer:
            logits = aggregate(self.config, logits, [*map(len, pieces)])
        if not bool(torch.isfinite(logits).all()):
            raise TaskHeadsError(
                Problem(
                    "server",
                    "found a logit that is not finite",
                    "finite numbers",
                    "serve the model with --dtype float32",
                    code="server-error",
                )
            )
        return await loop.run_in_executor(self._reader, answer_of, logits), tokens

    def _too_many(self, inputs: Any) -> Problem | None:
        items = inputs if isinstance(inputs, list) else [inputs]
        if len(items) > self.limits.rows:  # without a look at each
            return self._too_large("rows", len(items), self.limits.rows, "send several requests")
        lists = [item["titles"] if isinstance(item, dict) and "titles" in item else [item] for item in items]
        rows = sum(len(part) if isinstance(part, list) else 1 for part in lists)
        if rows <= self.limits.rows:
            return None
        return self._too_large("rows", rows, self.limits.rows, "send several requests")

    def _too_large(self, unit: str, found: int, limit: int, fix: str) -> Problem:
        return Problem(
            "inputs", f"found {found:,} {unit}", f"at most {limit:,}", fix, code="request-too-large"
        )


def _problems_of(error: ValueError | RecursionError) -> list[Problem]:
    """Return the problems of an error of the handler; the message of another library is kept as it is."""
    if isinstance(error, RequestError):
        return [Problem(*problem, code="request-invalid") for problem in error.problems]
    if isinstance(error, TaskHeadError):
        return [Problem(error.where, error.problem, error.expected, error.fix, code="request-invalid")]
    expected = "a request that the model can answer"
    return [Problem("request", str(error), expected, "see /docs", code="request-invalid")]
