"""Cut the Upworthy sample that ships in `qwen_task_heads/assets/upworthy` from the prepared pairs.

    python recipes/make_sample.py --data_dir data/upworthy

Only the columns that training reads are kept, `<title>` tags are dropped (the readers take both forms), rows
keep their order. The archive is CC BY 4.0 and its attribution travels in `LICENSE.md` beside the rows.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from trl import TrlParser

from qwen_task_heads.errors import Problem, TaskHeadsError, run_recipe

COLUMNS = ["chosen", "rejected", "test_id", "chosen_impressions", "chosen_clicks"]
COLUMNS += ["rejected_impressions", "rejected_clicks"]


@dataclass
class SampleArguments:
    """Where the prepared pairs are and where the sample goes."""

    data_dir: str = "."
    output_dir: str = "qwen_task_heads/assets/upworthy"


def main() -> None:
    """Write train, dev and test_public; refuse rows without the columns, all of them at once."""
    (args,) = TrlParser(SampleArguments).parse_args_and_config()
    problems: list[Problem] = []
    samples: dict[str, list[str]] = {}
    for split in ("train", "dev", "test_public"):
        path = Path(args.data_dir, f"pairs_{split}.jsonl")
        if not path.is_file():
            problems.append(Problem(str(path), "no such file", "the prepared pairs", "correct --data_dir"))
            continue
        for number, row in enumerate(map(json.loads, path.read_bytes().splitlines()), 1):
            if missing := [column for column in COLUMNS if column not in row]:
                there = f"columns: {', '.join(row)}"
                problems.append(Problem(f"{path}:{number}", f"no column {missing}", there, "use other files"))
                continue
            for column in ("chosen", "rejected"):
                row[column] = row[column].removeprefix("<title>").removesuffix("</title>").strip()
            # ASCII-safe: a tool with another encoding, or one that splits at U+2028, reads the same rows.
            samples.setdefault(split, []).append(json.dumps({column: row[column] for column in COLUMNS}))
    if problems:
        raise TaskHeadsError(problems)
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    for split, lines in samples.items():
        (out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="ascii")
        print(f"{out / split}.jsonl: {len(lines)} pairs")


if __name__ == "__main__":
    sys.exit(run_recipe(main))
