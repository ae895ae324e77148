"""Entry point of the console script.

In a process that has imported this module the package registers nothing with transformers by itself, which
would take seconds: `qwen_task_heads.cli` does, once options are checked.
"""

from qwen_task_heads.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    import sys

    sys.exit(main())
