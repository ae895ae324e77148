"""Load a model and serve it over HTTP until a signal."""

from __future__ import annotations

import math

import uvicorn

from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.serving.app import create_app
from qwen_task_heads.serving.arguments import ServeArguments, public_name
from qwen_task_heads.serving.limits import HeaderTimeoutProtocol
from qwen_task_heads.serving.sockets import address_of, listen


def serve(args: ServeArguments) -> None:
    """Load the model, print its address, and answer requests until SIGINT or SIGTERM.

    After a signal the server accepts no connection and answers the requests that it has. Then uvicorn raises
    the signal again, so that the exit code is that of a stopped process.

    Raises:
        TaskHeadsError: no such model, or a port in use.
    """
    listener = listen(args.host, args.port)  # before the model, which takes longer
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
    address = address_of(listener)
    path, body = (
        ("rank", '{"titles": ["A plain title", "One Weird Title"]}')
        if scorer.is_title_scorer
        else ("classify", '{"input": "A text"}')
    )
    auth = " -H 'Authorization: Bearer TOKEN'" if args.token else ""
    print(f"Serving {args.model} at {address}; Ctrl-C stops it.\n\nTry:", flush=True)
    print(f"  curl {address}/{path}{auth} -H 'Content-Type: application/json' -d '{body}'", flush=True)
    uvicorn.Server(config).run(sockets=[listener])
