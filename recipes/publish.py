"""Publish the folder of a finished run, or only verify it: reloaded in a clean process and compared.

Requires: pip install "qwen-task-heads[train]"; for ONNX [onnx], for ModelScope [modelscope]

python recipes/publish.py --model runs/titles --hub_model_id me/titles
python recipes/publish.py --model runs/news --hub_model_id me/news --hub modelscope --form merged --onnx
python recipes/publish.py --model runs/news --hub_model_id me/news --dry_run staged
python recipes/publish.py --model runs/news --hub_model_id me/news --license mit --language en zh

Log in first by `hf auth login` (HF_TOKEN), or for ModelScope by MODELSCOPE_API_TOKEN.
"""

import argparse
import sys
from dataclasses import fields
from functools import partial

from qwen_task_heads.errors import run_recipe
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.publishing.publish import publish
from qwen_task_heads.reports.card_facts import STATED, CardFacts
from qwen_task_heads.training.publish_arguments import EXPORT_FORMATS, PublishArguments


def parse_arguments() -> argparse.Namespace:
    """Parse the options, none of which accepts a token."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a finished run")
    add("--hub_model_id", required=True, help="owner/name of the repo; created if it does not exist")
    add("--hub", default=HUGGINGFACE, choices=HUBS, help="hub to publish to (default: %(default)s)")
    add(
        "--form",
        default="saved",
        choices=EXPORT_FORMATS,
        help="as trained, merged, or a class of transformers",
    )
    add("--public", action="store_true", help="make a new repo public (default: private)")
    add("--revision", help="branch (default: main branch of the hub)")
    add("--tag", help="tag of the published commit")
    add("--message", help="commit message")
    add(
        "--rows",
        action="store_true",
        help="publish predictions.jsonl and errors.md, which contain texts of the data",
    )
    add("--onnx", action="store_true", help="add onnx/model.onnx")
    add("--int8", action="store_true", help="add onnx/model_int8.onnx too, with its agreement with the model")
    add("--replace", action="store_true", help="allow to replace a model of another task in the repo")
    add("--dry_run", metavar="FOLDER", help="stage and verify in this folder, and publish nothing")
    for item in fields(PublishArguments):
        if item.name in STATED:
            several = {"nargs": "+"} if item.name == "language" else {}
            add(f"--{item.name}", help=item.metadata["help"], **several)
    return parser.parse_args()


def main() -> None:
    """Stage, verify and publish the model, and print its address."""
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
    sys.exit(run_recipe(main, interrupted="nothing was published; the same command starts again"))
