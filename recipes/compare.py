"""Compare engines on the same texts or pairs of titles: trained models, prompted models and embeddings.

Requires: pip install "qwen-task-heads[train]"; embeddings= also requires "qwen-task-heads[embeddings]"

python recipes/compare.py --dataset_name news/ --output_dir runs/which --engines head=runs/news \
    sft=runs/news_sft zero_shot=Qwen/Qwen2.5-0.5B-Instruct few_shot=Qwen/Qwen2.5-0.5B-Instruct \
    embeddings=sentence-transformers/all-MiniLM-L6-v2
python recipes/compare.py --dataset_name news/ --labels labels.yaml --output_dir runs/which \
    --engines head=runs/news few_shot=Qwen/Qwen2.5-7B-Instruct --shots 8 --shots_by similarity
python recipes/compare.py --dataset_name clicks/ --output_dir runs/which --engines scorer=runs/clicks \
    zero_shot=Qwen/Qwen2.5-0.5B embeddings=sentence-transformers/all-MiniLM-L6-v2

No task head is trained. The result is comparison.md in the output folder.
"""

import argparse
import sys

import torch

from qwen_task_heads.data.few_shot import WAYS
from qwen_task_heads.errors import run_recipe
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.inference.engine_options import KINDS, TASKS, PromptOptions, parse_engines
from qwen_task_heads.reports.comparison import ALONE, COMPARED
from qwen_task_heads.reports.comparison_runs import run_comparison
from qwen_task_heads.tokenization.label_prompts import MAX_LENGTH
from qwen_task_heads.tokenization.templates import from_shell

PROMPTING = ("instruction", "max_length", "length_normalized", "calibrate", "hub", "dtype", "batch_tokens")
COUNTS = ("max_rows", "shots", "max_length", "latency_rows", "batch_tokens")  # 1 or more


def parse_arguments() -> argparse.Namespace:
    """Parse the options; all problems are reported before anything is measured."""
    raw = argparse.RawDescriptionHelpFormatter
    add = (parser := argparse.ArgumentParser(description=__doc__, formatter_class=raw)).add_argument
    add("--engines", nargs="+", required=True, help=f"KIND=folder or repo id; {', '.join(KINDS)}")
    add("--dataset_name", required=True, help="texts as of classify.py, or pairs as of reward_titles.py")
    add("--task", choices=TASKS, help="inferred from the engines or the columns if not given")
    add("--dev_dataset", help="dev set, used if there is no test set")
    add("--test_dataset", help="test set")
    add("--test_fraction", type=float, help="as in training, if the test set was split off one file")
    add("--labels", help="labels.yaml or class file; inferred from the data if not given")
    add("--output_dir", required=True, help="folder for comparison.md, .json, .png and answers.jsonl")
    add("--max_rows", type=int, help="use about this many rows, as random whole groups (default: all)")
    add("--figure", default=COMPARED[0], choices=COMPARED, help="metric of the advice (default: %(default)s)")
    add("--shots", type=int, default=8, help="few_shot: examples in a prompt (default: %(default)s)")
    add(
        "--shots_by",
        default=WAYS[0],
        choices=WAYS,
        help="few_shot: the same examples for all texts, or the nearest ones",
    )
    words = "zero_shot, few_shot: may contain {labels}, {descriptions} and {examples}"
    add("--instruction", type=from_shell, help=words)
    add("--max_length", type=int, default=MAX_LENGTH, help="zero_shot, few_shot: maximum tokens of a prompt")
    add(
        "--calibrate",
        action="store_true",
        help="zero_shot, few_shot: calibrate by predictions on texts without content",
    )
    add("--length_normalized", action="store_true", help="score a label by the mean over its tokens")
    add("--latency_rows", type=int, default=ALONE, help="rows timed one by one (default: %(default)s)")
    add("--batch_tokens", type=int, default=8192, help="tokens per batch (default: %(default)s)")
    types = ("auto", "float32", "bfloat16", "float16")
    add("--dtype", default="auto", choices=types, help="auto: as saved")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    add("--hub", default=HUGGINGFACE, choices=HUBS, help="hub to load from (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the examples and of --max_rows (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Check the options, measure baselines and engines, and write the comparison."""
    args = parse_arguments()
    prompt = PromptOptions(
        **{key: vars(args)[key] for key in PROMPTING}, shared=args.shots_by == WAYS[0], device=args.device
    )
    counts = {f"--{key}": vars(args)[key] for key in COUNTS}
    specs = parse_engines(args.engines, asking=prompt, counts=counts)
    run_comparison(specs, asking=prompt, options=vars(args))


if __name__ == "__main__":
    sys.exit(run_recipe(main))
