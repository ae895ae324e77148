"""Load a model and serve it over HTTP until a signal."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import uvicorn

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.serving.app import create_app
from qwen_task_heads.serving.arguments import ServeArguments
from qwen_task_heads.serving.limits import HeaderTimeoutProtocol


def serve(args: ServeArguments) -> None:
    """Load the model, print its address, and answer requests until SIGINT or SIGTERM.

    After a signal the server accepts no connection and answers the requests that it has. Then uvicorn raises
    the signal again, so that the exit code is that of a stopped process.

    Raises:
        TaskHeadsError: no such model, or a port in use.
    """
    listener = _listen(args.host, args.port)  # before the model, which takes longer
    scorer = Scorer(
        args.model,
        hub=args.hub,
        revision=args.revision,
        device=args.device,
        dtype=args.dtype,
        int8=args.int8,
        batch_tokens=args.batch_tokens,
        progress=False,
    )
    app = create_app(
        scorer,
        name=public_name(args.model),
        limits=args.limits,
        max_waiting=args.max_waiting_tokens,
        token=args.token,
    )
    protocol = type("Protocol", (HeaderTimeoutProtocol,), {"read_seconds": args.read_seconds})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(args.read_seconds + args.answer_seconds),
    )
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    path, body = (
        ("rank", '{"titles": ["A plain title", "One Weird Title"]}')
        if scorer.is_title_scorer
        else ("classify", '{"input": "A text"}')
    )
    auth = " -H 'Authorization: Bearer TOKEN'" if args.token else ""
    print(f"Serving {args.model} at {address}; Ctrl-C stops it.\n\nTry:", flush=True)
    print(f"  curl {address}/{path}{auth} -H 'Content-Type: application/json' -d '{body}'", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def public_name(model: str) -> str:
    """Return the name of a model without the path of its folder, which is no matter of clients.

    Example:
        >>> from qwen_task_heads.serving.server import public_name
        >>> public_name("me/titles")
        'me/titles'
    """
    path = Path(model)
    return path.resolve().name if path.is_dir() else model


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise TaskHeadsError(
            Problem(
                f"--host {host} --port {port}",
                f"found {error.strerror or error}",
                "an address of this machine and a free port",
                "pass --port 0 for a free port",
                code="option-value",
            )
        ) from error
