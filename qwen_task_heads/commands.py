"""Commands of the console script with their recipes, and the words that start a recipe like this process."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """A command of the console script.

    Args:
        recipe: the recipe that it runs; "" for none.
        summary: its help.
        usage: of its words.
        first: option whose value may also be the first word; "" for none.
    """

    recipe: str
    summary: str
    usage: str = "[--config NAME_OR_FILE] [--accelerate_config NAME_OR_FILE] [options]"
    first: str = ""


ADAPT_USAGE = "--dataset_name TEXTS --output_dir DIR [options]"
AUDIT_USAGE = "--dataset_name DATA --output_dir DIR [--review FILE] [options]"
POOL_USAGE = "--dataset_name DATA --unlabeled_dataset TEXTS --output_file FILE [options]"
DISTILL_USAGE = "--dataset_name DATA --teacher MODEL --output_file FILE [options]"
DATA_USAGE = "FILE_OR_FOLDER [options]"
PREDICT_USAGE = "--model MODEL (TEXT ... | --input FILE --output FILE) [options]"
COMMANDS = {
    "data": Command("", "Check data before training; exit code 1 for errors, 3 for warnings.", DATA_USAGE),
    "audit": Command("audit_labels", "Find wrong labels, and apply their review.", AUDIT_USAGE),
    "select": Command("select_rows", "Choose which unlabelled texts to label next.", POOL_USAGE),
    "pseudo": Command("pseudo_label", "Add confident answers of a teacher to the training set.", POOL_USAGE),
    "distill": Command("distill", "Write the answers of a teacher as soft targets.", DISTILL_USAGE),
    "adapt": Command("adapt", "Continue language modelling on texts of the domain.", ADAPT_USAGE),
    "titles": Command("reward_titles", "Train a title scorer on pairs, votes or clicks."),
    "classify": Command("classify", "Train a text classifier, regressor or ordinal model."),
    "label": Command("sft_classify", "Train a chat model that writes the label."),
    "sweep": Command("sweep_heads", "Find layers, pooling and head on a frozen backbone."),
    "grpo": Command("grpo_titles", "Train a title generator with a title scorer as its reward."),
    "predict": Command("predict", "Label or score texts, or the rows of a file.", PREDICT_USAGE),
    "score": Command("score_ray", "Label or score Parquet files with Ray, on one machine or a cluster."),
    "compare": Command("compare", "Compare engines and baselines on the same rows."),
    "publish": Command("publish", "Verify a finished run and publish it to a hub."),
    "serve": Command("serve", "Serve a classifier or title scorer over HTTP.", "--model MODEL [options]"),
    "demo": Command("demo", "Show a classifier or title scorer in the browser.", "MODEL [options]", "model"),
    "env": Command("", "Print versions and hardware, for a bug report.", ""),
}


def recipes() -> Path:
    """Return the folder of the installed recipes."""
    return Path(str(files(f"{__package__}.recipes")))


def words_of(recipe: str) -> list[str]:
    """Return the first words of a command that starts a recipe in the way in which this process was started.

    `qth` runs the installed recipes by their absolute path; otherwise the command is one of a clone.

    Example:
        >>> from qwen_task_heads.commands import words_of
        >>> words_of("classify")
        ['accelerate', 'launch', 'recipes/classify.py']
    """
    if Path(sys.argv[0]).parent == recipes():
        return ["qth", next(name for name, command in COMMANDS.items() if command.recipe == recipe)]
    return ["accelerate", "launch", f"recipes/{recipe}.py"]
