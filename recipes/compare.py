r"""Compare engines on the same texts or pairs of titles: trained models, prompted models and embeddings.

qth compare --dataset_name news/ --output_dir runs/which --engines head=runs/news sft=runs/news_sft \
    zero_shot=Qwen/Qwen2.5-0.5B-Instruct embeddings=sentence-transformers/all-MiniLM-L6-v2
qth compare --dataset_name news/ --labels labels.yaml --output_dir runs/which \
    --engines head=runs/news few_shot=Qwen/Qwen2.5-7B-Instruct --shots 8 --shots_by similarity
qth compare --dataset_name clicks/ --output_dir runs/which --engines scorer=runs/clicks \
    zero_shot=Qwen/Qwen2.5-0.5B embeddings=sentence-transformers/all-MiniLM-L6-v2

No task head is trained. The result is comparison.md in the output folder. `embeddings=` also requires
`pip install "qwen-task-heads[embeddings]"`.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[train]"]
# ///

import sys

from qwen_task_heads import ComparisonArguments, run_comparison, run_recipe


def main() -> None:
    """Check the options, measure baselines and engines, and write the comparison."""
    args = ComparisonArguments.from_command_line()
    engines = args.parse_engines()  # before the data: all problems of the options in one error
    run_comparison(engines, asking=args.prompt_options(), options=vars(args))


if __name__ == "__main__":
    sys.exit(run_recipe(main))
