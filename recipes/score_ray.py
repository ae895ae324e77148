"""Label or score the rows of Parquet files with Ray: one model per actor, on one machine or a cluster.

python recipes/score_ray.py --model me/news --input texts/ --output answers/ --actors 2
ray job submit -- python score_ray.py --model me/news --input /data/in --output /data/out --actors 8 --gpus 1

Each input file gives an output file of the same name with the columns of `BatchScorer`. The same command
resumes: files that exist are kept if their answers are of the same model. An actor that dies is started
again, and its file is scored again. A file that cannot be scored is named at the end; the others are
finished.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["qwen-task-heads[ray]"]
# ///

import sys
import time

from qwen_task_heads import (
    BatchScorer,
    ScoreArguments,
    TaskHeadsError,
    foreign_files,
    pending_files,
    run_recipe,
    score_file,
)


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

        def model_hash(self) -> str | None:
            return self.scorer.identity["model_hash"]

        def score(self, source: str, target: str) -> tuple[int, int, TaskHeadsError | None]:
            try:
                return (*score_file(self.scorer, source, target, batch_rows=args.batch_rows), None)
            except TaskHeadsError as error:  # of this file: the next one is scored
                return 0, 0, error

    start = time.monotonic()
    actors = [Actor.remote()]
    try:
        model_hash = ray.get(actors[0].model_hash.remote())
    except ray.exceptions.RayTaskError as error:  # its message has the traceback of the actor
        raise error.cause from error
    files += foreign_files(args.input, args.output, model_hash=model_hash, rescore=args.rescore)
    actors += [Actor.remote() for _ in range(min(args.actors, len(files)) - 1)]
    results = ActorPool(actors).map_unordered(
        lambda actor, paths: actor.score.remote(*map(str, paths)), files
    )
    done = list(tqdm(results, total=len(files), unit="file"))
    failed = [error for _, _, error in done if error]
    rows, errors = sum(count for count, _, _ in done), sum(count for _, count, _ in done)
    seconds = time.monotonic() - start
    print(f"{rows:,} rows of {len(files) - len(failed):,} files in {args.output}, {errors:,} with an error")
    print(f"{rows / seconds:,.0f} rows per second with {args.actors} actors")
    if failed:
        raise TaskHeadsError([problem for error in failed for problem in error.problems])


if __name__ == "__main__":
    sys.exit(run_recipe(main, interrupted="the same command resumes"))
