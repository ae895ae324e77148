"""Serve a classifier or title scorer over HTTP: /classify, /rank, /predict, /health, /metrics.

qth serve --model runs/news
qth serve --model me/titles --revision v1 --port 8080 --dtype bfloat16

Concurrent requests are run together. The server listens on loopback; for another --host set the bearer token
in QWEN_TASK_HEADS_API_KEY.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[serve]"]
# ///

import sys

from qwen_task_heads import ServeArguments, run_recipe, serve


def main() -> None:
    """Load the model and answer requests until a signal."""
    serve(ServeArguments.from_command_line())


if __name__ == "__main__":
    sys.exit(run_recipe(main, interrupted="the server has stopped"))
