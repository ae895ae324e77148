"""Serve the page with the limits of `qth serve` on the size and the time of requests."""

from __future__ import annotations

from types import FrameType

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.routes import App
from starlette.routing import Mount

from qwen_task_heads.demo.arguments import DemoArguments
from qwen_task_heads.demo.pages import build_demo
from qwen_task_heads.serving.limits import HeaderTimeoutProtocol, LimitsMiddleware
from qwen_task_heads.serving.request_limits import RequestLimits
from qwen_task_heads.serving.sockets import address_of, listen

BYTES_PER_CHARACTER = 12  # of JSON: an escaped surrogate pair
OTHER_BYTES = 2**16  # of a request: names, and the answers on the page
SECONDS_TO_STOP = 5  # for questions that are being answered


def serve_page(args: DemoArguments) -> None:
    """Load the models, print the address, and serve their page until SIGINT or SIGTERM.

    Raises:
        TaskHeadsError: no such model, models of different kinds, or a port in use.
    """
    listener = listen(args.host, args.port)  # before the models, which take longer
    app = app_of(build_demo(args), args)
    address = address_of(listener)
    print(f"The demo of {args.model} is at {address}; Ctrl-C stops it.", flush=True)
    if args.mcp:
        print(f"The MCP server is at {address}/gradio_api/mcp/", flush=True)
    DemoServer(app).run(sockets=[listener])


def app_of(page: gr.Blocks, args: DemoArguments) -> FastAPI:
    """Return the page as an app for uvicorn, with the login of the environment.

    Args:
        page: of `build_demo`.
        args: the largest text, and whether there is an MCP server.
    """
    app = FastAPI(openapi_url=None)
    limits = RequestLimits(body_bytes=OTHER_BYTES + BYTES_PER_CHARACTER * args.max_characters)
    app.add_middleware(LimitsMiddleware, limits=limits, token=None)
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth=args.login,
        show_error=False,  # of defects, whose messages may quote texts; ours are shown
        max_file_size=1,  # the page takes no files, but Gradio has a route for them
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=args.mcp,
    )


class DemoServer(uvicorn.Server):
    """A server that at a signal ends the streams of open pages, for which uvicorn would wait.

    Args:
        app: of `app_of`.
    """

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(
            app,
            http=HeaderTimeoutProtocol,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SECONDS_TO_STOP,
        )
        super().__init__(config)
        mounts = [route.app for route in app.routes if isinstance(route, Mount)]
        self._pages = [page for page in mounts if isinstance(page, App)]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        for page in self._pages:
            page.stop_event.set()
        super().handle_exit(sig, frame)
