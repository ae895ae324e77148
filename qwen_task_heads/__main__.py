"""Query a model from the command line: `python -m qwen_task_heads MODEL "text one" "text two"`.

A title scorer ranks the texts; a classifier or a generative classifier labels each of them.
"""

from __future__ import annotations

import argparse
from typing import Any

from qwen_task_heads.data.text_readers import TextInput
from qwen_task_heads.errors import Problem, TaskHeadsError, run_recipe
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.inference.loading import choose, labels_to_choose, open_scorer, resolve_candidates
from qwen_task_heads.inference.predictions import Prediction
from qwen_task_heads.inference.scorer import Scorer

RANKED = 3  # labels printed per text without --top_k


def main() -> None:
    """Print titles, best first, with score and P(best of the list), or each text with its labels."""
    parser = argparse.ArgumentParser(prog="python -m qwen_task_heads", description=__doc__)
    parser.add_argument("model", help="folder or repo id of a model that a recipe trained")
    parser.add_argument("texts", nargs="+", help="titles to rank, or texts to label")
    parser.add_argument("--prompt", help="title scorer: context that all titles share")
    parser.add_argument("--text_pair", help="classifier of pairs: second text of all pairs")
    parser.add_argument("--candidates", help="candidate labels, separated by commas (default: all labels)")
    parser.add_argument("--top_k", type=int, help="number of titles, or of labels per text (default: 3)")
    parser.add_argument("--threshold", type=float, help="multi-label: least probability of a predicted label")
    parser.add_argument("--abstain", type=float, help="predict no label below this probability")
    parser.add_argument("--max_error", type=float, help="abstain by a target share of wrong answers instead")
    parser.add_argument("--hub", default=HUGGINGFACE, choices=HUBS, help="hub of repo ids")
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    args = parser.parse_args()
    scorer = open_scorer(args.model, hub=args.hub, revision=args.revision)
    if isinstance(scorer, LabelScorer):
        kind, unsupported = "generative classifier", ["prompt", "text_pair", "threshold", "max_error"]
    elif scorer.is_title_scorer:
        kind, unsupported = "title scorer", ["text_pair", "threshold", "abstain", "max_error", "candidates"]
    else:
        kind, unsupported = "classifier", ["prompt"]
    problems = [
        Problem(
            f"--{name}",
            f"a {kind} does not support it",
            f"options of a {kind}",
            "drop it",
            code="option-unsupported",
        )
        for name in unsupported
        if args.__dict__[name] is not None
    ]
    if scorer.needs_pairs and args.text_pair is None:
        problems.append(
            Problem(
                "--text_pair",
                "the second text is missing",
                "pairs, as in training",
                'give --text_pair "the second text"',
                code="option-missing",
            )
        )
    if problems:
        raise TaskHeadsError(problems)
    if isinstance(scorer, Scorer) and scorer.is_title_scorer:
        _rank(scorer, args)
        return
    options: dict[str, Any] = {"top_k": args.top_k, "abstain": args.abstain}
    if isinstance(scorer, Scorer):
        pairs = None if args.text_pair is None else [args.text_pair] * len(args.texts)
        options |= {"text_pairs": pairs, "threshold": args.threshold, "max_error": args.max_error}
    candidates: tuple[str, ...] = ()
    if args.candidates is not None:
        given = TextInput(text="", row={"--candidates": args.candidates}, source="--candidates")
        found = resolve_candidates(given, column="--candidates", labels=labels_to_choose(scorer))
        if isinstance(found, Problem):
            raise TaskHeadsError(found)
        candidates = found.candidates
    for answer in choose(scorer, args.texts, candidates=[candidates] * len(args.texts), **options):
        print(_format(answer, limit=args.top_k or RANKED))


def _rank(scorer: Scorer, args: argparse.Namespace) -> None:
    print(f"{'rank':>4}  {'P(best)':>7}  {'score':>8}  title")
    for row in scorer.rank(args.texts, prompt=args.prompt or "", top_k=args.top_k):
        print(f"{row.rank:>4}  {row.probability:>7.3f}  {row.score:>8.3f}  {row.title}")


def _format(answer: Prediction, *, limit: int) -> str:
    """Return one line with the answer, its probabilities and the text."""
    if answer.scores:
        scores = "  ".join(f"{name} {score:.3f}" for name, score in answer.scores.items())
        return f"{scores}  |  {answer.text}"
    label = answer.label or "(abstains)"
    if answer.labels is not None:
        label = ", ".join(answer.labels) or "(none)"
    ranked = "  ".join(f"{name} {probability:.3f}" for name, probability in answer.ranked[:limit])
    return f"{label}  |  {ranked}  |  {answer.text}"


if __name__ == "__main__":
    raise SystemExit(run_recipe(main, interrupted="nothing was written"))
