"""Which engine for these labels? A trained head, a fine-tuned generator and prompted ones on the same rows.

Requires: pip install "qwen-task-heads[train]"

python recipes/compare.py --dataset_name news/ --output_dir runs/which --engines head=runs/news \
    sft=runs/news_sft zero_shot=Qwen/Qwen2.5-0.5B-Instruct few_shot=Qwen/Qwen2.5-0.5B-Instruct
python recipes/compare.py --dataset_name news/ --labels labels.yaml --output_dir runs/which \
    --engines head=runs/news few_shot=Qwen/Qwen2.5-7B-Instruct --shots 8 --shots_by similarity

It trains nothing. See comparison.md in the output folder.
"""

import argparse
import sys
import time
from dataclasses import replace

import torch

from qwen_task_heads.batching.answers import MAX_LENGTH
from qwen_task_heads.batching.text import from_shell
from qwen_task_heads.data.few_shot import WAYS, choose_shots, shots_line
from qwen_task_heads.data.formats import HUBS
from qwen_task_heads.data.text_sets import read_text_sets
from qwen_task_heads.errors import TaskHeadsError, run_recipe
from qwen_task_heads.inference.engine_options import FEW_SHOT, Asking, parse_engines
from qwen_task_heads.inference.engines import check_engines, check_prompts
from qwen_task_heads.publishing.comparison import ALONE, COMPARED, draw_groups
from qwen_task_heads.publishing.comparison_engines import measure_engines, measure_floors
from qwen_task_heads.publishing.comparison_pages import claim_folder, write_comparison

ASKED = ("instruction", "max_length", "length_normalized", "calibrate", "hub", "dtype", "batch_tokens")
COUNTS = ("max_rows", "shots", "max_length", "latency_rows", "batch_tokens")  # 1 or more


def parse_arguments() -> argparse.Namespace:
    """Options; what does not fit them, the data or a prompt is refused before anything is measured."""
    raw = argparse.RawDescriptionHelpFormatter
    add = (parser := argparse.ArgumentParser(description=__doc__, formatter_class=raw)).add_argument
    add("--engines", nargs="+", required=True, help="head=, sft=, zero_shot= or few_shot= folder or repo id")
    add("--dataset_name", required=True, help="labelled texts, as of classify.py; few-shot takes from train")
    add("--dev_dataset", help="measured on where there is no test set")
    add("--test_dataset", help="measured on")
    add("--test_fraction", type=float, help="as in training, where that cut its test set from one file")
    add("--labels", help="labels.yaml or class file; told from the data when absent")
    add("--output_dir", required=True, help="for comparison.md, .json, .png and answers.jsonl")
    add(
        "--max_rows", type=int, help="measure on about so many, whole groups drawn at random; all when absent"
    )
    add("--figure", default=COMPARED[0], choices=COMPARED, help="the advice goes by (default: %(default)s)")
    add("--shots", type=int, default=8, help="few_shot: examples in a prompt (default: %(default)s)")
    add("--shots_by", default=WAYS[0], choices=WAYS, help="same ones for all, or the nearest to each text")
    words = "zero_shot, few_shot: may hold {labels}, {descriptions} and {examples}"
    add("--instruction", type=from_shell, help=words)
    add("--max_length", type=int, default=MAX_LENGTH, help="zero_shot, few_shot: tokens of a prompt at most")
    add("--calibrate", action="store_true", help="zero_shot, few_shot: by answers to texts without content")
    add("--length_normalized", action="store_true", help="score a label by the mean over its tokens")
    add("--latency_rows", type=int, default=ALONE, help="texts timed one by one (default: %(default)s)")
    add("--batch_tokens", type=int, default=8192, help="tokens per batch (default: %(default)s)")
    types = ("auto", "float32", "bfloat16", "float16")
    add("--dtype", default="auto", choices=types, help="as saved when auto")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    add("--hub", default=HUBS[0], choices=HUBS, help="where ids are looked up (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the examples and of --max_rows (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Read the rows, choose examples, measure floors and engines one after the other, compare, advise."""
    args, notes = parse_arguments(), []
    asking = {key: vars(args)[key] for key in ASKED} | {"shared": args.shots_by == WAYS[0]}
    asking = Asking(**asking, device=args.device)
    counts = {f"--{key}": vars(args)[key] for key in COUNTS}
    specs = parse_engines(args.engines, asking=asking, counts=counts)
    where = {"dev": args.dev_dataset, "test": args.test_dataset, "labels": args.labels, "hub": args.hub}
    sets = read_text_sets(args.dataset_name, test_fraction=args.test_fraction, **where)
    labels, split = sets.labels, "test" if sets.test else "dev"
    rows = sets.test or sets.dev
    check_engines(specs, sets, hub=args.hub)
    if args.max_rows and args.max_rows < len(rows):
        whole, rows = rows, draw_groups(rows, rows=args.max_rows, seed=args.seed)
        how = ", whole groups" if any(row.group for row in rows) else ""
        notes.append(f"measured on {len(rows):,} of {len(whole):,} rows of {split}{how} drawn at random")
    if split == "dev":
        notes.append("measured on dev: figures flatter models whose checkpoint was picked on the same rows")
    choosing = 0.0
    if any(spec.kind == FEW_SHOT for spec in specs):
        import sklearn.feature_extraction.text  # noqa: F401 (its time is not that of choosing)

        begin = time.monotonic()
        texts, how = [row.text for row in rows], {"k": args.shots, "by": args.shots_by}
        chosen = choose_shots(sets.train, labels, **how, each=False, seed=args.seed, texts=texts)
        asking = replace(asking, shots=dict(zip(texts, chosen, strict=True)))
        told = f"few-shot: the {args.shots} nearest of train"
        told = shots_line(labels, chosen[0]) if asking.shared else told
        seconds = time.monotonic() - begin
        choosing = 0.0 if asking.shared else seconds / len(rows)
        notes.append(f"{told}; chosen in {seconds:.1f} s for all rows")
    check_prompts(specs, labels, rows, asking=asking)
    claim_folder(args.output_dir)
    print("\n".join(sets.lines), flush=True)

    near = None if asking.shared else asking.shots
    floors = measure_floors(sets.train, rows, labels=labels, shots=near, choosing=choosing)
    options = {"asking": asking, "alone": args.latency_rows, "choosing": choosing}
    found, told, failed = measure_engines(specs, sets, rows, **options)
    if found:
        write_comparison(
            args.output_dir, [*floors, *found], sets=sets, examples=rows, split=split, figure=args.figure,
            settings=vars(args), notes=list(dict.fromkeys([*notes, *told])), missing=failed,
        )  # fmt: skip
    if failed:
        names = ", ".join(failed)
        raise TaskHeadsError.of("--engines", f"{names}, not measured", "models that open", "see above why")


if __name__ == "__main__":
    sys.exit(run_recipe(main))
