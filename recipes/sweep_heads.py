r"""Select layers, pooling and head for texts or titles on a frozen backbone, which runs over them once.

Requires: pip install "qwen-task-heads[train]"

accelerate launch recipes/sweep_heads.py  # the embedded sample and backbone
accelerate launch recipes/sweep_heads.py --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name reviews.jsonl
accelerate launch recipes/sweep_heads.py --task titles --dataset_name clicks.jsonl \
    --model_name_or_path smollm2-135m
"""

import shlex
import sys
import time

from qwen_task_heads.errors import run_recipe
from qwen_task_heads.publishing.target import publish_target_of
from qwen_task_heads.reports.early_exits import measure_exits, sweep_table, write_exits
from qwen_task_heads.reports.sweeps import open_sweep
from qwen_task_heads.tracking.callbacks import track
from qwen_task_heads.training.callbacks import check_world
from qwen_task_heads.training.checkpoints import open_output
from qwen_task_heads.training.features import extract_features
from qwen_task_heads.training.head_sweep import choose, parse_head, sweep_heads
from qwen_task_heads.training.sweep_arguments import parse_sweep_arguments, warm_start_command


def main() -> None:
    """Extract features once, train the heads, save the best one, and report its metrics."""
    options, args, model_args = parse_sweep_arguments()
    args.announce(options, model_args)
    check_world(1, running=args.world_size)  # one process extracts features and trains heads
    target, trackers = publish_target_of(options, args, model_args), track(args, task=options)
    sweep, start, progress = open_sweep(options, args, model_args), time.monotonic(), not args.disable_tqdm
    open_output(args.output_dir, None)
    rows, lines = sweep.encode()
    print("\n".join(lines), flush=True)

    # Run the backbone once, then train the heads
    extraction = {"layers": sweep.read_layers, "progress": progress, "usage": sweep.usage}
    features = extract_features(sweep.model, rows, **extraction, **options.feature_options())
    results = sweep_heads(
        sweep.model,
        features,
        sweep.rows,
        layers=sweep.layers,
        heads=[parse_head(head) for head in options.heads],
        losses=sweep.losses,
        seeds=options.seeds,
        settings=args.head_training(),
        penalties=options.penalties,
        progress=progress,
    )
    seconds, chosen = time.monotonic() - start, choose(results, tolerance=options.tolerance)

    # Measure the latency of a head on each layer; save the best head as a model
    points = measure_exits(results, sweep.with_head, rows=sweep.timed)
    write_exits(args.output_dir, points, metric=sweep.metric, chosen=chosen, results=results)
    metrics = sweep.finish(chosen, seconds=seconds, trackers=trackers)
    best = {"chosen": chosen, "points": points, "metric": sweep.metric}
    table = sweep_table(results, **best, baseline=metrics["dev"].get(sweep.BASELINE))
    command = warm_start_command(options, args, model_args, folder=args.output_dir, chosen=chosen.combination)
    next_step = ["", "Next, LoRA that starts from this head:", f"  {shlex.join(command)}"]
    print("", *table, *next_step, sep="\n", flush=True)
    if target:
        target.push(args.output_dir)


if __name__ == "__main__":
    sys.exit(run_recipe(main))
