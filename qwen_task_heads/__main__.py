"""Rank titles from the command line: `python -m qwen_task_heads MODEL "title one" "title two"`."""

from __future__ import annotations

import argparse

from qwen_task_heads.errors import run_recipe
from qwen_task_heads.inference.scorer import Scorer


def main() -> None:
    """Print the titles, best first, with score and P(best of the list)."""
    parser = argparse.ArgumentParser(prog="python -m qwen_task_heads", description=__doc__)
    parser.add_argument("model", help="folder or repo id of a title scorer")
    parser.add_argument("titles", nargs="+", help="titles to rank")
    parser.add_argument("--prompt", default="", help="context that all titles share")
    args = parser.parse_args()
    print(f"{'rank':>4}  {'P(best)':>7}  {'score':>8}  title")
    for row in Scorer(args.model).rank(args.titles, prompt=args.prompt):
        print(f"{row.rank:>4}  {row.probability:>7.3f}  {row.score:>8.3f}  {row.title}")


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
