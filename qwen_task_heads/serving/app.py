"""The HTTP app: `/classify`, `/rank`, `/predict`, `/health` and `/metrics` around the handler of the models.

| path | request | answer |
|---|---|---|
| `POST /classify` | `{"input": "text"}` or `{"input": ["text", ...]}` | as vLLM's `/classify` |
| `POST /rank` | `{"titles": [...], "prompt": "..."}` | titles, best first |
| `POST /predict` | `{"inputs": ..., "parameters": {...}}` | as Inference Endpoints |
| `POST /v1/systemone` | `{"state": ..., "questions": {...}}` | as `transformers serve` |
| `GET /health` | | the model and its task |
| `GET /metrics` | | Prometheus |

Refused requests have JSON with `error.code` of `errors.CODES`. The texts of requests are not logged.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.decision_task_heads import answer_scores
from qwen_task_heads.hubcode.encoding_task_heads import encode, encode_texts, pad_rows, strip_title
from qwen_task_heads.hubcode.handler import EndpointHandler
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.serving.batcher import RowBatcher
from qwen_task_heads.serving.limits import LimitsMiddleware, RequestLimits, refusal
from qwen_task_heads.serving.metrics import ServerMetrics

logger = logging.getLogger(__name__)
# Rows of ids, and a function from their logits to the answer
HandlerRequest = tuple[list[list[int]], Callable[[torch.Tensor], Any]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str | None = None  # accepted as other servers do; the server has one model


class TextPair(BaseModel):
    """A pair of texts."""

    model_config = ConfigDict(extra="forbid")
    text: str
    text_pair: str = ""


class ClassifyBody(_Body):
    """Texts to classify."""

    input: str | TextPair | list[str | TextPair]


class RankBody(_Body):
    """Titles to rank."""

    titles: list[str]
    prompt: str = ""
    top_k: int | None = None


class DecisionBody(_Body):
    """Typed questions about a state."""

    state: Any
    questions: dict[str, dict[str, Any]]


class PredictBody(_Body):
    """A request of Inference Endpoints."""

    inputs: Any
    parameters: dict[str, Any] | None = None


class _Requests(EndpointHandler):
    """The handler of published models, for a model that a `Scorer` has loaded."""

    def __init__(self, scorer: Scorer) -> None:
        self.model, self.config, self.tokenizer = scorer.model, scorer.config, scorer.tokenizer
        self.scores_titles = scorer.is_title_scorer
        self.needs_pairs, self.takes_pairs = scorer.needs_pairs, scorer.takes_pairs
        self._encode, self._encode_texts, self._pad_rows = encode, encode_texts, pad_rows
        self._strip_title = strip_title


class ModelServer:
    """Answer requests with one model.

    Args:
        scorer: loaded model; its `batch_tokens` are those of the server.
        name: name of the model in answers.
        limits: limits of each request.
        max_waiting: tokens that may wait.
    """

    def __init__(
        self, scorer: Scorer, *, name: str, limits: RequestLimits | None = None, max_waiting: int = 1_000_000
    ) -> None:
        self.scorer, self.name, self.limits = scorer, name, limits or RequestLimits()
        self.metrics = ServerMetrics()
        self._requests = _Requests(scorer)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")  # it is not safe for threads
        self._batcher = RowBatcher(
            scorer.run_ids,
            batch_tokens=scorer.batch_tokens,
            max_waiting=max_waiting,
            observe=self.metrics.observe_batch,
        )
        self.metrics.waiting.set_function(lambda: self._batcher.waiting_tokens)

    async def answer(self, data: dict[str, Any]) -> tuple[Any, int]:
        """Return the handler's answer to `{"inputs", "parameters"}`, and the number of tokens.

        Raises:
            TaskHeadsError: bad input (`request-invalid`), too many rows, no answer in time, or a busy server.
        """
        problem = self._too_many(data["inputs"])
        if problem:
            raise TaskHeadsError(problem)
        return await self._in_time(self._answer(self._requests.read, data))

    async def decide(self, request: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Return the answers to the typed questions of `{"state", "questions"}`, and the number of tokens.

        Raises:
            TaskHeadsError: see `answer`; also questions that the head was not trained for.
        """
        return await self._in_time(self._answer(self._read_questions, request))

    def _read_questions(self, request: dict[str, Any]) -> HandlerRequest:
        config = self.scorer.config
        [(inputs, questions)] = self.scorer.model.decision_config.prepare_inputs(
            request, self.scorer.tokenizer
        )

        def answer_of(logits: torch.Tensor) -> dict[str, Any]:
            return {
                question.name: question.answer(answer_scores(logits[0], question, config).exp().tolist())
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
        self, read: Callable[[dict[str, Any]], HandlerRequest], data: dict[str, Any]
    ) -> tuple[Any, int]:
        loop = asyncio.get_running_loop()
        try:
            rows, answer_of = await loop.run_in_executor(self._reader, read, data)
        except TaskHeadsError:
            raise
        except ValueError as error:
            raise TaskHeadsError(_problem_from(str(error))) from error
        return answer_of(await self._batcher.logits(rows)), sum(map(len, rows))

    def _too_many(self, inputs: Any) -> Problem | None:
        items = inputs if isinstance(inputs, list) else [inputs]
        lists = [item["titles"] if isinstance(item, dict) and "titles" in item else [item] for item in items]
        rows = sum(len(part) if isinstance(part, list) else 1 for part in lists)
        if rows <= self.limits.rows:
            return None
        return Problem(
            "inputs",
            f"found {rows:,} rows",
            f"at most {self.limits.rows:,}",
            "send several requests",
            code="request-too-large",
        )

    def health(self) -> dict[str, Any]:
        """Return the name and the task of the model, and what is waiting."""
        config = self.scorer.config
        task = "title-ranking" if self.scorer.is_title_scorer else "text-classification"
        labels = {} if self.scorer.is_title_scorer else {"labels": len(config.id2label)}
        return {
            "status": "ok",
            "model": self.name,
            "task": task,
            **labels,
            "dtype": str(self.scorer.dtype).removeprefix("torch."),
            "waiting_tokens": self._batcher.waiting_tokens,
        }

    async def close(self) -> None:
        """Finish the waiting requests."""
        await self._batcher.close()
        self._reader.shutdown()


def create_app(server: ModelServer, *, token: str | None = None) -> FastAPI:
    """Return the FastAPI app of a model.

    Args:
        server: answers the requests.
        token: bearer token of every path but `/health`; None for none.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await server.close()

    app = FastAPI(title="qwen-task-heads", description=__doc__ or "", lifespan=lifespan)
    app.add_middleware(LimitsMiddleware, limits=server.limits, token=token)

    @app.middleware("http")
    async def measured(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.monotonic()
        response = await call_next(request)
        endpoint = getattr(request.scope.get("route"), "path", "other")  # not the path: clients choose it
        server.metrics.observe_request(endpoint, response.status_code, time.monotonic() - start)
        return response

    @app.exception_handler(TaskHeadsError)
    async def refused(_: Request, error: TaskHeadsError) -> Response:
        return refusal(*error.problems)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return refusal(*(_problem_of(item) for item in error.errors()))

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        problem = Problem(
            shorten(request.url.path),
            f"found {request.method} and {error.detail}",
            "POST /classify, /rank, /predict or /v1/systemone; GET /health or /metrics",
            "open /docs",
            code="request-invalid",
        )
        response = refusal(problem)
        response.status_code = error.status_code
        return response

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        logger.exception("A request failed", exc_info=error)
        name = type(error).__name__
        return refusal(
            Problem(
                "server",
                f"found {name}",
                "an answer",
                "read the log of the server",
                code="server-error",
            )
        )

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return server.health()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/predict")
    async def predict(body: PredictBody) -> Any:
        answer, _ = await server.answer({"inputs": body.inputs, "parameters": body.parameters or {}})
        return answer

    if server.scorer.is_title_scorer:

        @app.post("/rank")
        async def rank(body: RankBody) -> dict[str, Any]:
            inputs = {"titles": body.titles, "prompt": body.prompt}
            parameters = {} if body.top_k is None else {"top_k": body.top_k}
            answer, tokens = await server.answer({"inputs": inputs, "parameters": parameters})
            return {"model": server.name, "data": answer, "usage": _usage(tokens)}

        return app

    @app.post("/classify")
    async def classify(body: ClassifyBody) -> dict[str, Any]:
        items = body.input if isinstance(body.input, list) else [body.input]
        inputs = [
            item if isinstance(item, str) else {"text": item.text, "text_pair": item.text_pair}
            for item in items
        ]
        names = [server.scorer.config.id2label[index] for index in range(server.scorer.config.num_labels)]
        is_multi_label = server.scorer.config.problem_type == "multi_label_classification"
        parameters = {"threshold": 0} if is_multi_label else {}  # all labels
        answers, tokens = await server.answer({"inputs": inputs, "parameters": parameters})
        data = []
        for index, answer in enumerate(answers):
            values = {label["label"]: label["score"] for label in answer}
            probs = [values[name] for name in names]
            best = names[probs.index(max(probs))]
            data.append({"index": index, "label": best, "probs": probs, "num_classes": len(names)})
        return {
            "id": f"classify-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": server.name,
            "data": data,
            "usage": _usage(tokens),
        }

    @app.post("/v1/systemone")
    async def systemone(body: DecisionBody) -> dict[str, Any]:
        answers, tokens = await server.decide({"state": body.state, "questions": body.questions})
        return {
            "model": server.name,
            "answers": answers,
            "usage": {"input_tokens": tokens, "output_tokens": 0},
        }

    return app


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def _problem_of(item: dict[str, Any]) -> Problem:
    """Convert a validation error of FastAPI."""
    where = ".".join(str(part) for part in item["loc"])
    found = "nothing" if item["type"] == "missing" else shorten(item.get("input"))
    return Problem(where, f"found {found}", item["msg"], "see /docs", code="request-invalid")


def _problem_from(text: str) -> Problem:
    """Read a message of the handler, `where: problem. Expected X. Fix: Y.`; keep another one as it is."""
    match = re.fullmatch(r"(.+?): (.+?)\. Expected (.+)\. Fix: (.+)\.", text, flags=re.DOTALL)
    fields = (
        match.groups() if match else ("request", text, "a request that the model can answer", "see /docs")
    )
    return Problem(*fields, code="request-invalid")
