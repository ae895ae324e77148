"""Limits of the server on size, time and access, applied before a request is read by the app."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import h11
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from qwen_task_heads.errors import Problem
from qwen_task_heads.serving.request_limits import RequestLimits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

SHOWN = 10  # problems in the message of a refusal
LISTED = 2000  # problems in the list of a refusal: two of each row of the largest request
READ_AHEAD = 2**22  # bytes of further requests that a connection may send before its answer
DRAINED = 2**27  # bytes of a body over the limit that are read before the refusal
LEFT = 499  # status in metrics, as in nginx, of a request whose client left before its answer
OPEN = ("/health",)  # paths without a token, for load balancers
STATUS = {
    "request-denied": 401,
    "request-too-large": 413,
    "request-timeout": 408,
    "server-busy": 503,
    "server-error": 500,
}


def refusal(*problems: Problem) -> JSONResponse:
    """Return problems as JSON, with the status of the first one (400 unless `STATUS` has its code)."""
    status = STATUS.get(problems[0].code, 400)
    more = [f"and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
    fields = ("code", "where", "problem", "expected", "fix")
    listed = [{name: _whole(vars(problem)[name]) for name in fields} for problem in problems[:LISTED]]
    message = _whole("\n".join([*map(str, problems[:SHOWN]), *more]))
    body = {"error": {"code": problems[0].code, "message": message, "problems": listed}}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    headers |= {"Retry-After": "1"} if status == 503 else {}
    headers |= {"Connection": "close"} if status in (408, 413) else {}  # the rest of the body is not read
    return JSONResponse(body, status_code=status, headers=headers)


def _whole(text: str) -> str:
    """Escape halves of characters, which a request can quote and UTF-8 does not have."""
    return text.encode("utf-8", "backslashreplace").decode()


class LimitsMiddleware:
    """Refuse requests without the token, with a large body, or with a body that does not arrive in time.

    The body is read here as a whole, so that the app never waits for a client. If the client leaves before
    the answer, the app is cancelled, so that the rows of the request do not run.

    Args:
        app: the next ASGI app.
        limits: of each request.
        token: bearer token that requests must have; None for none.
    """

    def __init__(self, app: ASGIApp, *, limits: RequestLimits, token: str | None) -> None:
        self.app, self.limits, self.token = app, limits, token

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not self._is_allowed(scope["path"], headers.get(b"authorization", b"")):
            problem = Problem(
                "Authorization",
                "the bearer token is missing or wrong",
                "the token of the server",
                "send the header 'Authorization: Bearer TOKEN'",
                code="request-denied",
            )
            await refusal(problem)(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._body(headers, receive), self.limits.read_seconds)
        except asyncio.TimeoutError:
            problem = Problem(
                "body",
                f"found no end after {self.limits.read_seconds:g} seconds",
                "a body that is sent at once",
                "send it again",
                code="request-timeout",
            )
            await refusal(problem)(scope, receive, send)
            return
        except ClientDisconnect:
            await Response(status_code=LEFT)(scope, receive, send)
            return
        if body is None:
            problem = Problem(
                "body",
                f"found more than {self.limits.body_bytes:,} bytes",
                f"at most {self.limits.body_bytes:,}",
                "send fewer rows in a request",
                code="request-too-large",
            )
            await refusal(problem)(scope, receive, send)
            return
        await self._run(scope, body, receive, send)

    async def _run(self, scope: MutableMapping[str, Any], body: bytes, receive: Receive, send: Send) -> None:
        """Run the app until it has answered, or until the client leaves before the answer begins."""
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        left = asyncio.ensure_future(_disconnect(receive))
        has_begun = False

        async def replay() -> Message:
            return messages.pop() if messages else await asyncio.shield(left)

        async def track(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        answer = asyncio.ensure_future(self.app(scope, replay, track))
        try:
            await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
            if has_begun or answer.done():  # servers also report a disconnect after the answer
                await answer
                return
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
            if not has_begun:
                await Response(status_code=LEFT)(scope, receive, send)
        finally:
            answer.cancel()
            left.cancel()

    def _is_allowed(self, path: str, header: bytes) -> bool:
        if self.token is None or path in OPEN:
            return True
        scheme, _, token = header.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token, self.token.encode())

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """Return the body; None if it is larger than the limit.

        A body that is too large is read to its end and dropped, up to `DRAINED` bytes: most clients read the
        answer only after they have sent everything.

        Raises:
            ClientDisconnect: the client left before the end of the body.
        """
        limit = self.limits.body_bytes
        length = headers.get(b"content-length", b"0")
        too_large = not length.isdigit() or int(length) > limit
        parts: list[bytes] = []
        size, more = 0, True
        while more and size <= DRAINED:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            size += len(part)
            too_large = too_large or size > limit
            if not too_large:
                parts.append(part)
            more = message.get("more_body", False)
        return None if too_large else b"".join(parts)


async def _disconnect(receive: Receive) -> Message:
    """Return the message that the client has left."""
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


class HeaderTimeoutProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn that closes a connection if a client does not send its headers or read its answer.

    uvicorn limits only the time between requests. Without this a client that sends half a header, or reads no
    answer, keeps its connection for ever. One that sends further requests before its answer would fill the
    memory: uvicorn reads ahead with each request.
    """

    read_seconds = RequestLimits.read_seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first request."""
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Stop the timer if the headers are complete; close a connection that is far ahead of its answers."""
        super().data_received(data)
        if len(self.conn.trailing_data[0]) > READ_AHEAD:
            self.transport.abort()
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None:
            self._start_timer()

    def pause_writing(self) -> None:
        """Start the time in which the client must read, since the buffer of answers is full."""
        super().pause_writing()
        self._reading = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the time in which the client must read."""
        super().resume_writing()
        self._reading.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.read_seconds, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
