"""Routes of a model: `/classify` or `/rank`, `/predict` and `/v1/systemone`.

| path | request | answer |
|---|---|---|
| `POST /classify` | `{"input": "text"}` or `{"input": ["text", ...]}` | as vLLM's `/classify` |
| `POST /rank` | `{"titles": [...], "prompt": "..."}` | titles, best first |
| `POST /predict` | `{"inputs": ..., "parameters": {...}}` | as Inference Endpoints |
| `POST /v1/systemone` | `{"state": ..., "questions": {...}}` | as `transformers serve` |

Refused requests have JSON with `error.code` of `errors.CODES`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, StrictInt, model_validator

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.hubcode.decision_task_heads import HAS_DECISIONS
from qwen_task_heads.serving.limits import refusal
from qwen_task_heads.serving.responder import Responder

FIELDS = 64  # most fields of a request, and most parameters


# The handler validates texts after their number: the errors of pydantic would be many times a large body.
class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str | None = None  # accepted as other servers do; the server has one model

    @model_validator(mode="before")
    @classmethod
    def check_fields(cls, data: Any) -> Any:
        """Refuse many fields or parameters at once: errors of each would keep the server busy for seconds."""
        for part in (data, data.get("parameters") if isinstance(data, dict) else None):
            if isinstance(part, dict) and len(part) > FIELDS:
                raise ValueError(f"at most {FIELDS} fields")
        return data


class ClassifyBody(_Body):
    """Texts to classify: one, or a list of texts and of `{"text", "text_pair"}`.

    The fields after `input` are those of vLLM without an effect on the answer. Long texts are cut as in
    training.
    """

    input: Any
    truncate_prompt_tokens: int | None = None
    priority: int | None = None
    request_id: str | None = None
    user: str | None = None


class RankBody(_Body):
    """Titles to rank."""

    titles: Any
    prompt: str = ""
    top_k: StrictInt | None = None


class DecisionBody(_Body):
    """Typed questions about a state."""

    state: Any
    questions: Any


class PredictBody(_Body):
    """A request of Inference Endpoints."""

    inputs: Any
    parameters: dict[str, Any] | None = None


class RefusingRoute(APIRoute):
    """A route whose errors of bad input are JSON with codes, in the app of any server."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of FastAPI, with our answers to errors."""
        handle = super().get_route_handler()

        async def refuse_errors(request: Request) -> Response:
            try:
                return await handle(request)
            except TaskHeadsError as error:
                return refusal(*error.problems)
            except RequestValidationError as error:
                return refusal(*map(_problem_of, error.errors()))

        return refuse_errors


def model_router(responder: Responder) -> APIRouter:
    """Return the routes of a model; those that its task does not have are absent."""
    router = APIRouter(route_class=RefusingRoute)

    @router.post("/predict")
    async def predict(body: PredictBody) -> Any:
        answer, _ = await responder.answer({"inputs": body.inputs, "parameters": body.parameters or {}})
        return answer

    if responder.is_title_scorer:

        @router.post("/rank")
        async def rank(body: RankBody) -> dict[str, Any]:
            inputs = {"titles": body.titles, "prompt": body.prompt}
            parameters = {} if body.top_k is None else {"top_k": body.top_k}
            answer, tokens = await responder.answer({"inputs": inputs, "parameters": parameters})
            return {"model": responder.name, "data": answer, "usage": _usage(tokens)}

        return router

    if HAS_DECISIONS:

        @router.post("/v1/systemone")
        async def systemone(body: DecisionBody) -> dict[str, Any]:
            answers, tokens = await responder.decide({"state": body.state, "questions": body.questions})
            usage = {"input_tokens": tokens, "output_tokens": 0}
            return {"model": responder.name, "answers": answers, "usage": usage}

    if responder.config.questions:  # it has no label of a text
        return router

    @router.post("/classify")
    async def classify(body: ClassifyBody) -> dict[str, Any]:
        answers, tokens = await responder.answer(_classify_request(body, responder.config))
        return {
            "id": f"classify-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": responder.name,
            "data": [_class(index, answer, responder.config) for index, answer in enumerate(answers)],
            "usage": _usage(tokens),
        }

    return router


def _classify_request(body: ClassifyBody, config: Any) -> dict[str, Any]:
    """Return the handler's request for the probabilities of all labels."""
    inputs = body.input if isinstance(body.input, list) else [body.input]
    is_multi_label = config.problem_type == "multi_label_classification"
    return {"inputs": inputs, "parameters": {"threshold": 0} if is_multi_label else {}}


def _class(index: int, answer: list[dict[str, Any]], config: Any) -> dict[str, Any]:
    """Return one row of `/classify`: the best label, and the values of all in the order of their ids."""
    values = {label["label"]: label["score"] for label in answer}
    probs = [values[config.id2label[label]] for label in range(config.num_labels)]
    best = config.id2label[probs.index(max(probs))]
    return {"index": index, "label": best, "probs": probs, "num_classes": len(probs)}


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def _problem_of(item: dict[str, Any]) -> Problem:
    """Convert a validation error of FastAPI."""
    where = ".".join(str(part) for part in item["loc"])
    found = "nothing" if item["type"] == "missing" else shorten(item.get("input"))
    return Problem(where, f"found {found}", item["msg"], "see /docs", code="request-invalid")
