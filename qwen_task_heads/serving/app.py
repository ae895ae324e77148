"""The HTTP app of one model in this process: its routes, `/health`, `/metrics` and the limits.

The texts of requests are not logged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from qwen_task_heads.errors import Problem, shorten
from qwen_task_heads.inference.identity import identity_of
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.serving import routes
from qwen_task_heads.serving.batcher import RowBatcher
from qwen_task_heads.serving.limits import LimitsMiddleware, refusal
from qwen_task_heads.serving.metrics import ServerMetrics
from qwen_task_heads.serving.request_limits import RequestLimits
from qwen_task_heads.serving.responder import Responder

logger = logging.getLogger(__name__)


def create_app(
    scorer: Scorer,
    *,
    name: str,
    limits: RequestLimits | None = None,
    max_waiting: int = 1_000_000,
    token: str | None = None,
) -> FastAPI:
    """Return the app of a loaded model, for uvicorn or another ASGI server with one worker.

    Args:
        scorer: the model; its `batch_tokens` are those of the server.
        name: name of the model in answers, which clients see: a repo id, or the name of a folder.
        limits: limits of each request.
        max_waiting: tokens that may wait; beyond them requests get HTTP 503.
        token: bearer token of every path but `/health`; None for none.

    Example:
        >>> from qwen_task_heads import Scorer, build, load_tokenizer
        >>> from qwen_task_heads.serving.app import create_app
        >>> app = create_app(Scorer(build("embedded"), tokenizer=load_tokenizer("embedded")), name="titles")
        >>> sorted(app.openapi()["paths"])
        ['/health', '/metrics', '/predict', '/rank']
    """
    metrics, identity = ServerMetrics(), identity_of(scorer)
    batcher = RowBatcher(
        scorer.run_ids,
        batch_tokens=scorer.batch_tokens,
        max_waiting=max_waiting,
        observe=metrics.observe_batch,
    )
    metrics.waiting.set_function(lambda: batcher.waiting_tokens)
    responder = Responder(scorer.config, scorer.tokenizer, batcher.logits, name=name, limits=limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await batcher.close()
        responder.close()

    app = FastAPI(title="qwen-task-heads", description=routes.__doc__ or "", lifespan=lifespan)
    app.add_middleware(LimitsMiddleware, limits=responder.limits, token=token)
    app.include_router(routes.model_router(responder))

    @app.middleware("http")
    async def measured(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        start, status = time.monotonic(), 500  # of an exception
        try:
            response = await call_next(request)
            status = response.status_code
        finally:
            route = request.scope.get("route")  # not the path of the request: clients choose it
            endpoint = route.path if isinstance(route, APIRoute) else "other"
            metrics.observe_request(endpoint, status, time.monotonic() - start)
        return response

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        problem = Problem(
            shorten(request.url.path),
            f"found {request.method} and {error.detail}",
            "a path and method of /docs",
            "open /docs",
            code="request-invalid",
        )
        response = refusal(problem)
        response.status_code = error.status_code
        return response

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        logger.error("A request failed", exc_info=error)
        name, fix = type(error).__name__, "read the log of the server"
        return refusal(Problem("server", f"found {name}", "an answer", fix, code="server-error"))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        is_title_scorer = responder.is_title_scorer
        return {
            "status": "ok",
            "model": name,
            **identity,
            "task": "title-ranking" if is_title_scorer else "text-classification",
            **({} if is_title_scorer else {"labels": scorer.config.num_labels}),
            "dtype": str(scorer.dtype).removeprefix("torch."),
            "waiting_tokens": batcher.waiting_tokens,
        }

    @app.get("/metrics")
    async def read_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app
