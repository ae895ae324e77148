"""Start the demo on this machine, or write the files of a Space. Imports Gradio only to start it."""

from __future__ import annotations

import os

from qwen_task_heads.demo.arguments import DemoArguments
from qwen_task_heads.demo.space import write_space


def run_demo(args: DemoArguments) -> None:
    """Load the models, print the address, and serve their page until SIGINT or SIGTERM.

    With `space`, only write the files of a Space and print the command that uploads them. The page loads
    nothing from other hosts, and Gradio sends no analytics.

    Raises:
        TaskHeadsError: no such model, models of different kinds, or a port in use.
    """
    if args.space is not None:
        print(write_space(args), flush=True)
        return
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from qwen_task_heads.demo.server import serve_page

    serve_page(args)
