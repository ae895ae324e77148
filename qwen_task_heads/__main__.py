"""Ask a model from the command line: `python -m qwen_task_heads MODEL "text one" "text two"`.

A title scorer ranks the texts, a classifier or a label writer labels each of them.
"""

from __future__ import annotations

import argparse
from typing import Any

from qwen_task_heads.data.text_readers import TextInput
from qwen_task_heads.errors import Problem, TaskHeadsError, run_recipe
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.inference.loading import choose, labels_to_choose, open_scorer, resolve_candidates
from qwen_task_heads.inference.predictions import Prediction
from qwen_task_heads.inference.scorer import Scorer
from qwen_task_heads.modelscope import HUBS

RANKED = 3  # labels shown per text where --top_k does not say


def main() -> None:
    """Print the titles, best first, with score and P(best of the list); or every text with its labels."""
    parser = argparse.ArgumentParser(prog="python -m qwen_task_heads", description=__doc__)
    parser.add_argument("model", help="folder or repo id of what a recipe trained")
    parser.add_argument("texts", nargs="+", help="titles to rank, or texts to label")
    parser.add_argument("--prompt", help="of a title scorer: context that all titles share")
    parser.add_argument("--text_pair", help="of a classifier of pairs: the second text of all")
    parser.add_argument("--candidates", help="labels to choose from, separated by commas; all when absent")
    parser.add_argument("--top_k", type=int, help="titles, or labels of a text, to show (3 labels)")
    parser.add_argument("--threshold", type=float, help="multi-label: predict labels at or over it")
    parser.add_argument("--abstain", type=float, help="no label where the best probability is below it")
    parser.add_argument("--max_error", type=float, help="the same by a wanted share of wrong answers")
    parser.add_argument("--hub", default=HUBS[0], choices=HUBS, help="where ids are looked up")
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    args = parser.parse_args()
    scorer = open_scorer(args.model, hub=args.hub, revision=args.revision)
    if isinstance(scorer, LabelScorer):
        kind, unfit = "model that writes its labels", ["prompt", "text_pair", "threshold", "max_error"]
    elif scorer.is_title_scorer:
        kind, unfit = "title scorer", ["text_pair", "threshold", "abstain", "max_error", "candidates"]
    else:
        kind, unfit = "classifier", ["prompt"]
    problems = [
        Problem(f"--{name}", f"found with a {kind}", "without", "drop it")
        for name in unfit
        if args.__dict__[name] is not None
    ]
    if scorer.needs_pairs and args.text_pair is None:
        accepted, remedy = "pairs, as in training", 'give --text_pair "the second text"'
        problems.append(Problem("--text_pair", "found no second text", accepted, remedy))
    if problems:
        raise TaskHeadsError(problems)
    if isinstance(scorer, Scorer) and scorer.is_title_scorer:
        _rank(scorer, args)
        return
    options: dict[str, Any] = {"top_k": args.top_k, "abstain": args.abstain}
    if isinstance(scorer, Scorer):
        pairs = None if args.text_pair is None else [args.text_pair] * len(args.texts)
        options |= {"text_pairs": pairs, "threshold": args.threshold, "max_error": args.max_error}
    offered: tuple[str, ...] = ()
    if args.candidates is not None:
        given = TextInput(text="", row={"--candidates": args.candidates}, source="--candidates")
        found = resolve_candidates(given, column="--candidates", labels=labels_to_choose(scorer))
        if isinstance(found, Problem):
            raise TaskHeadsError(found)
        offered = found.candidates
    for answer in choose(scorer, args.texts, candidates=[offered] * len(args.texts), **options):
        print(_line(answer, shown=args.top_k or RANKED))


def _rank(scorer: Scorer, args: argparse.Namespace) -> None:
    print(f"{'rank':>4}  {'P(best)':>7}  {'score':>8}  title")
    for row in scorer.rank(args.texts, prompt=args.prompt or "", top_k=args.top_k):
        print(f"{row.rank:>4}  {row.probability:>7.3f}  {row.score:>8.3f}  {row.title}")


def _line(answer: Prediction, *, shown: int) -> str:
    """The answer, the probabilities behind it, and the text."""
    if answer.scores:
        said = "  ".join(f"{name} {score:.3f}" for name, score in answer.scores.items())
        return f"{said}  |  {answer.text}"
    label = answer.label or "(abstains)"
    if answer.labels is not None:
        label = ", ".join(answer.labels) or "(none)"
    ranked = "  ".join(f"{name} {probability:.3f}" for name, probability in answer.ranked[:shown])
    return f"{label}  |  {ranked}  |  {answer.text}"


if __name__ == "__main__":
    raise SystemExit(run_recipe(main, interrupted="nothing was written"))
