"""Query a model from the command line: `python -m qwen_task_heads MODEL "text one" "text two"`.

A title scorer ranks the texts; a classifier or a generative classifier labels each of them.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from qwen_task_heads.data.text_readers import TextInput
from qwen_task_heads.errors import Problem, TaskHeadsError, run_recipe
from qwen_task_heads.inference.arguments import QueryArguments
from qwen_task_heads.inference.label_scorer import LabelScorer
from qwen_task_heads.inference.loading import choose, labels_to_choose, open_scorer, resolve_candidates
from qwen_task_heads.inference.predictions import Prediction
from qwen_task_heads.inference.scorer import Scorer

RANKED = 3  # labels printed per text without --top_k


def main() -> None:
    """Print titles, best first, with score and P(best of the list), or each text with its labels."""
    from transformers import HfArgumentParser

    parser = HfArgumentParser(QueryArguments, prog="python -m qwen_task_heads", description=__doc__)
    parser.add_argument("model", help="folder or repo id of a model that a recipe trained")
    parser.add_argument("texts", nargs="+", help="titles to rank, or texts to label")
    args = parser.parse_args()
    scorer = open_scorer(args.model, hub=args.hub, revision=args.revision)
    _check_supported(scorer, args)
    if isinstance(scorer, Scorer) and scorer.is_title_scorer:
        print(f"{'rank':>4}  {'P(best)':>7}  {'score':>8}  title")
        for row in scorer.rank(args.texts, prompt=args.prompt or "", top_k=args.top_k):
            print(f"{row.rank:>4}  {row.probability:>7.3f}  {row.score:>8.3f}  {row.title}")
        return
    options: dict[str, Any] = {"top_k": args.top_k, "abstain": args.abstain}
    options |= {"threshold": args.threshold, "max_error": args.max_error}
    if args.text_pair is not None:
        options["text_pairs"] = [args.text_pair] * len(args.texts)
    candidates: tuple[str, ...] = ()
    if args.candidates is not None:
        given = TextInput(text="", row={"--candidates": args.candidates}, source="--candidates")
        found = resolve_candidates(given, column="--candidates", labels=labels_to_choose(scorer))
        if isinstance(found, Problem):
            raise TaskHeadsError(found)
        candidates = found.candidates
    for answer in choose(scorer, args.texts, candidates=[candidates] * len(args.texts), **options):
        print(_format(answer, limit=args.top_k or RANKED))


def _check_supported(scorer: Any, args: Namespace) -> None:
    """Raise for options that a model of this kind does not have, or for a missing second text."""
    if isinstance(scorer, LabelScorer):
        kind, unsupported = "generative classifier", ["prompt", "text_pair", "threshold", "max_error"]
    elif scorer.is_title_scorer:
        kind, unsupported = "title scorer", ["text_pair", "threshold", "abstain", "max_error", "candidates"]
    else:
        kind, unsupported = "classifier", ["prompt"]
    problem, expected = f"a {kind} does not support it", f"options of a {kind}"
    problems = [
        Problem(f"--{name}", problem, expected, "drop it", code="option-unsupported")
        for name in unsupported
        if vars(args)[name] is not None
    ]
    if scorer.needs_pairs and args.text_pair is None:
        problem, fix = "the second text is missing", 'give --text_pair "the second text"'
        problems.append(Problem("--text_pair", problem, "pairs, as in training", fix, code="option-missing"))
    if problems:
        raise TaskHeadsError(problems)


def _format(answer: Prediction, *, limit: int) -> str:
    """Return one line with the answer, its probabilities and the text."""
    if answer.scores:
        scores = "  ".join(f"{name} {score:.3f}" for name, score in answer.scores.items())
        return f"{scores}  |  {answer.text}"
    if answer.answers:
        found = {name: own.label or "(abstains)" for name, own in answer.answers.items()}
        named = (f"{name}: {found[name]} ({own.probability:.3f})" for name, own in answer.answers.items())
        return f"{'  '.join(named)}  |  {answer.text}"
    label = answer.label or "(abstains)"
    if answer.labels is not None:
        label = ", ".join(answer.labels) or "(none)"
    ranked = "  ".join(f"{name} {probability:.3f}" for name, probability in answer.ranked[:limit])
    return f"{label}  |  {ranked}  |  {answer.text}"


if __name__ == "__main__":
    raise SystemExit(run_recipe(main, interrupted="nothing was written"))
