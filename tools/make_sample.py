"""Write the two embedded samples of `qwen_task_heads/assets` from the prepared data.

    python tools/make_sample.py --sample titles --data_dir data/upworthy
    python tools/make_sample.py --sample texts --data_dir data/banking77

Titles: the columns that training reads, without `<title>` tags (the readers accept both). Texts: the rows
of ten intents on transfers, with the name of the intent as label. The order of the rows is kept. Both sources
are CC BY 4.0; the attribution is in the `LICENSE.md` of each folder.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from trl import TrlParser

from qwen_task_heads.data.embedded_datasets import EMBEDDED_DATASETS
from qwen_task_heads.errors import Problem, TaskHeadsError, run_recipe

SPLITS = ("train", "dev", "test_public")
FILES = {"titles": "pairs_{}.jsonl", "texts": "{}.jsonl"}
PAIR_COLUMNS = ["chosen", "rejected", "test_id", "chosen_impressions", "chosen_clicks"]
PAIR_COLUMNS += ["rejected_impressions", "rejected_clicks"]
COLUMNS = {"titles": PAIR_COLUMNS, "texts": ["text", "label_name"]}
# Ten of 77: those on transfers, which share most of their words.
INTENTS = ["balance_not_updated_after_bank_transfer", "beneficiary_not_allowed", "cancel_transfer"]
INTENTS += ["declined_transfer", "failed_transfer", "pending_transfer", "transfer_fee_charged"]
INTENTS += ["transfer_into_account", "transfer_not_received_by_recipient", "transfer_timing"]


@dataclass
class SampleArguments:
    """Options: the sample, the folder of the prepared data, and the output folder."""

    sample: str = "titles"
    data_dir: str = "."
    output_dir: str | None = None


def sample_row(row, *, sample):
    """Return the row of the sample, or None if the sample does not contain the row."""
    if sample == "texts":
        return {"text": row["text"], "label": row["label_name"]} if row["label_name"] in INTENTS else None
    plain = {
        name: row[name].removeprefix("<title>").removesuffix("</title>").strip() for name in PAIR_COLUMNS[:2]
    }
    return {name: plain.get(name, row[name]) for name in PAIR_COLUMNS}


def main() -> None:
    """Write train, dev and test_public; one error names all rows without the columns."""
    (args,) = TrlParser(SampleArguments).parse_args_and_config()
    if args.sample not in FILES:
        problem, fix = f"found {args.sample!r}", "choose one of them"
        raise TaskHeadsError(Problem("--sample", problem, ", ".join(FILES), fix, code="option-value"))
    problems: list[Problem] = []
    samples: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        path = Path(args.data_dir, FILES[args.sample].format(split))
        if not path.is_file():
            problem, expected, fix = "the file does not exist", "the prepared data", "correct --data_dir"
            problems.append(Problem(str(path), problem, expected, fix, code="path-not-found"))
            continue
        for number, row in enumerate(map(json.loads, path.read_bytes().splitlines()), 1):
            if missing := [column for column in COLUMNS[args.sample] if column not in row]:
                problem, expected = f"found no column {missing}", f"columns: {', '.join(row)}"
                where, fix = f"{path}:{number}", "use other files"
                problems.append(Problem(where, problem, expected, fix, code="column-missing"))
            elif kept := sample_row(row, sample=args.sample):
                # ASCII, so that tools with another encoding, or that split at U+2028, read the same rows.
                samples[split].append(json.dumps(kept))
    if problems:
        raise TaskHeadsError(problems)
    out = Path(args.output_dir or EMBEDDED_DATASETS[args.sample].folder)
    out.mkdir(parents=True, exist_ok=True)
    for split, lines in samples.items():
        (out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="ascii")
        print(f"{out / split}.jsonl: {len(lines)} rows")


if __name__ == "__main__":
    sys.exit(run_recipe(main))
