r"""Find layers, pooling and head for texts or titles on a frozen backbone, which runs over them once.

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
    """Parse, load, run the backbone once, try the heads, save the best, and say how good it is."""
    options, args, model_args = parse_sweep_arguments()
    args.announce(options, model_args)
    check_world(1, running=args.world_size)  # features and heads are made by one process
    destination, trackers = publish_target_of(options, args, model_args), track(args, task=options)
    sweep, start, shown = open_sweep(options, args, model_args), time.monotonic(), not args.disable_tqdm
    open_output(args.output_dir, None)
    rows, lines = sweep.encode()
    print("\n".join(lines), flush=True)

    # The backbone once, then the heads
    seen = {"layers": sweep.read_layers, "progress": shown, "usage": sweep.usage}
    features = extract_features(sweep.model, rows, **seen, **options.feature_options())
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
        progress=shown,
    )
    seconds, chosen = time.monotonic() - start, choose(results, tolerance=options.tolerance)

    # What answers cost with a head on each layer; then the best one as a model like any other
    points = measure_exits(results, sweep.with_head, rows=sweep.timed)
    write_exits(args.output_dir, points, metric=sweep.metric, chosen=chosen, results=results)
    metrics = sweep.finish(chosen, seconds=seconds, trackers=trackers)
    said = {"chosen": chosen, "points": points, "metric": sweep.metric}
    table = sweep_table(results, **said, baseline=metrics["dev"].get(sweep.BASELINE))
    command = warm_start_command(options, args, model_args, folder=args.output_dir, chosen=chosen.combination)
    following = ["", "Next, LoRA that starts from this head:", f"  {shlex.join(command)}"]
    print("", *table, *following, sep="\n", flush=True)
    if destination:
        destination.push(args.output_dir)


if __name__ == "__main__":
    sys.exit(run_recipe(main))
