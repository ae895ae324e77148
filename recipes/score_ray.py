"""Label or score the rows of Parquet files with Ray: one model per actor, on one machine or a cluster.

python recipes/score_ray.py --model me/news --input texts/ --output answers/ --actors 2
ray job submit -- python score_ray.py --model me/news --input /data/in --output /data/out --actors 8 --gpus 1

Each input file gives an output file of the same name with the columns of `BatchScorer`. The same command
resumes: files that exist are kept. An actor that dies is started again, and its file is scored again.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[ray]"]
# ///

import sys
import time

from qwen_task_heads import BatchScorer, ScoreArguments, pending_files, run_recipe, score_file


def main() -> None:
    """Score the files that have no output yet."""
    args = ScoreArguments.from_command_line()
    files = pending_files(args.input, args.output)  # before Ray, which takes seconds
    import ray
    import torch
    from ray.util import ActorPool
    from tqdm.auto import tqdm

    @ray.remote(num_cpus=args.cpus, num_gpus=args.gpus, max_restarts=-1, max_task_retries=3)
    class Actor:
        def __init__(self) -> None:
            torch.set_num_threads(max(1, int(args.cpus)))  # Ray sets one thread
            columns = {"text": args.text, "title": args.title, "prompt": args.prompt}
            self.scorer = BatchScorer(args.model, revision=args.revision, **columns)

        def score(self, source: str, target: str) -> tuple[int, int]:
            return score_file(self.scorer, source, target, batch_rows=args.batch_rows)

    start = time.monotonic()
    actors = ActorPool([Actor.remote() for _ in range(max(1, min(args.actors, len(files))))])
    results = actors.map_unordered(lambda actor, paths: actor.score.remote(*map(str, paths)), files)
    counts = list(tqdm(results, total=len(files), unit="file"))
    rows, errors = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    seconds = time.monotonic() - start
    print(f"{rows:,} rows of {len(files):,} files in {args.output}, {errors:,} with an error")
    print(f"{rows / seconds:,.0f} rows per second with {args.actors} actors")


if __name__ == "__main__":
    sys.exit(run_recipe(main, interrupted="the same command resumes"))
