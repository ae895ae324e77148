"""Show a classifier or title scorer in the browser: titles ranked, texts labelled, words attributed.

qth demo me/news
qth demo me/titles --compare me/titles-small
qth demo me/news --space spaces/news

The page listens on loopback; for another --host set user:password in QWEN_TASK_HEADS_DEMO_LOGIN.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[demo]"]
# ///

import sys

from qwen_task_heads import DemoArguments, run_demo, run_recipe


def main() -> None:
    """Load the models and serve their page until a signal, or write a Space."""
    run_demo(DemoArguments.from_command_line())


if __name__ == "__main__":
    sys.exit(run_recipe(main, interrupted="the demo has stopped"))
