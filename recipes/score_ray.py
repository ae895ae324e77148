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
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from qwen_task_heads import run_recipe
from qwen_task_heads.inference.parquet_files import pending_files, score_file


@dataclass
class ScoreArguments:
    """Options of the recipe."""

    model: str = field(metadata={"help": "Folder or repo id of a model."})
    input: str = field(metadata={"help": "Parquet file, or folder of Parquet files."})
    output: str = field(metadata={"help": "Folder of the answers."})
    actors: int = field(default=1, metadata={"help": "Models that are loaded and work at once."})
    gpus: float = field(default=0, metadata={"help": "GPUs per actor."})
    text: str = field(default="text", metadata={"help": "Column of texts."})
    title: str = field(default="title", metadata={"help": "Column of titles, for a title scorer."})
    prompt: str | None = field(default=None, metadata={"help": "Column of prompts, for a title scorer."})
    batch_rows: int = field(default=1024, metadata={"help": "Rows read and scored at a time."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})


def main() -> None:
    """Score the files that have no output yet."""
    (args,) = HfArgumentParser(ScoreArguments, description=__doc__).parse_args_into_dataclasses()
    files = pending_files(args.input, args.output)  # before Ray, which takes seconds
    import ray
    from ray.util import ActorPool
    from tqdm.auto import tqdm

    from qwen_task_heads.inference.batch import BatchScorer

    @ray.remote(num_gpus=args.gpus, max_restarts=-1, max_task_retries=-1)
    class Actor:
        def __init__(self) -> None:
            columns = {"text": args.text, "title": args.title, "prompt": args.prompt}
            self.scorer = BatchScorer(args.model, revision=args.revision, **columns)

        def score(self, source: str, target: str) -> tuple[int, int]:
            return score_file(self.scorer, source, target, batch_rows=args.batch_rows)

    start = time.monotonic()
    actors = ActorPool([Actor.remote() for _ in range(args.actors)])
    results = actors.map_unordered(lambda actor, paths: actor.score.remote(*map(str, paths)), files)
    counts = list(tqdm(results, total=len(files), unit="file"))
    rows, errors = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    seconds = time.monotonic() - start
    print(f"{rows:,} rows of {len(files):,} files in {args.output}, {errors:,} with an error")
    print(f"{rows / seconds:,.0f} rows per second with {args.actors} actors")


if __name__ == "__main__":
    sys.exit(run_recipe(main, interrupted="the same command resumes"))
