"""Publish the finished folder of a run, or only prove it: opened again in a clean process and compared.

Requires: pip install "qwen-task-heads[train]", and of exports [onnx], of ModelScope [modelscope]

python recipes/publish.py --model runs/titles --hub_model_id me/titles
python recipes/publish.py --model runs/news --hub_model_id me/news --hub modelscope --form merged --onnx
python recipes/publish.py --model runs/news --hub_model_id me/news --dry_run staged
python recipes/publish.py --model runs/news --hub_model_id me/news --license mit --language en zh

Log in before by `hf auth login` (HF_TOKEN), or of ModelScope by MODELSCOPE_API_TOKEN.
"""

import argparse
import sys
from dataclasses import fields
from functools import partial

from qwen_task_heads.errors import run_recipe
from qwen_task_heads.modelscope import HUBS
from qwen_task_heads.publishing.publish import publish
from qwen_task_heads.reports.card_facts import STATED, CardFacts
from qwen_task_heads.training.publish_arguments import FORMS, PublishArguments


def parse_arguments() -> argparse.Namespace:
    """Options; nothing here takes a token."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a finished run")
    add("--hub_model_id", required=True, help="owner/name of the repo; created when absent")
    add("--hub", default=HUBS[0], choices=HUBS, help="where to (default: %(default)s)")
    add("--form", default="saved", choices=FORMS, help="as trained, merged, or transformers' own class")
    add("--public", action="store_true", help="a new repo is for everybody; private without")
    add("--revision", help="branch; the hub's own when absent")
    add("--tag", help="of the published commit")
    add("--message", help="of the commit")
    add("--rows", action="store_true", help="publish predictions.jsonl and errors.md: texts of the data")
    add("--onnx", action="store_true", help="add onnx/model.onnx")
    add("--int8", action="store_true", help="add onnx/model_int8.onnx too, with its agreement")
    add("--replace", action="store_true", help="the repo's model may give way to one of another task")
    add("--dry_run", metavar="FOLDER", help="stage and prove there, and publish nothing")
    for item in fields(PublishArguments):
        if item.name in STATED:
            several = {"nargs": "+"} if item.name == "language" else {}
            add(f"--{item.name}", help=item.metadata["help"], **several)
    return parser.parse_args()


def main() -> None:
    """Stage, prove, publish, and say where it is."""
    args = parse_arguments()
    facts = CardFacts(**{name: value for name, value in vars(args).items() if name in STATED and value})
    published = publish(
        args.model,
        repo_id=args.hub_model_id,
        hub=args.hub,
        form=args.form,
        private=not args.public,
        revision=args.revision,
        tag=args.tag,
        message=args.message,
        rows=args.rows,
        onnx=args.onnx or args.int8,
        int8=args.int8,
        dry_run=args.dry_run,
        replace=args.replace,
        facts=facts,
        log=partial(print, flush=True),
    )
    print("\n".join(published.messages()))


if __name__ == "__main__":
    sys.exit(run_recipe(main, interrupted="nothing was published; the same command begins again"))
