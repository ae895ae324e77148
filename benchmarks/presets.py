"""Table of every value of the presets and of the published systems, with the reason for each difference.

    python benchmarks/presets.py    # writes benchmarks/results/presets.md

Values of the sources are in `configs/preset_sources.yaml`. The values of the presets are parsed by the
recipes' parsers, including defaults, so that the table shows the values of a run. A test compares the file
with the table.
"""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from qwen_task_heads.hubcode.families_task_heads import FAMILIES
from qwen_task_heads.training.classifier_arguments import parse_classifier_arguments
from qwen_task_heads.training.sft_arguments import parse_sft_arguments
from qwen_task_heads.training.title_arguments import parse_title_arguments

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "recipes" / "configs"
SOURCES = ROOT / "benchmarks" / "configs" / "preset_sources.yaml"
RESULT = ROOT / "benchmarks" / "results" / "presets.md"
PARSERS = {"ad_titles_7b": parse_title_arguments, "fudan_news_sft": parse_sft_arguments}
# Options shown for every preset, even if it does not set them.
COMMON = (
    "model_name_or_path",
    "dtype",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "adam_beta2",
    "max_grad_norm",
    "activation_checkpointing",
    "save_strategy",
    "seed",
    "dev_fraction",
    "test_fraction",
)
# Defaults of the model's config for options of `head_options` that are not given.
MODEL_DEFAULTS = {"head_activation": "relu"}
HEADER = """# Presets and their sources

`python benchmarks/presets.py`. Values of the sources are from the linked pages. Ours are the values of a run,
including defaults of transformers and trl. "not stated" means that no page states the value. Published
metrics are those of the sources and have not been reproduced.
"""


def in_force(preset: str) -> dict[str, Any]:
    """Return every option of a preset as its recipe parses it."""
    parse = PARSERS.get(preset, parse_classifier_arguments)
    arguments = ["--config", str(CONFIGS / f"{preset}.yaml"), "--output_dir", "runs/x", "--use_cpu", "true"]
    arguments += ["--dataset_name", "train.jsonl", "--bf16", "false"]
    options: dict[str, Any] = dict(MODEL_DEFAULTS)
    for group in parse(arguments):
        for item in fields(group):
            value = group.__dict__[item.name]
            value = value.value if isinstance(value, Enum) else value
            if value is not None or item.name not in options:
                options[item.name] = value
    options["lora_target_modules"] = modules(options["lora_target_modules"])
    return options


def modules(targets: str | list[str] | None) -> list[str] | None:
    """Return the modules of a Qwen that LoRA adapts, with names of module groups expanded."""
    groups = {"attention": FAMILIES["qwen2"].attention, "all-linear": FAMILIES["qwen2"].all_linear}
    name = targets[0] if isinstance(targets, list) and len(targets) == 1 else targets
    return list(groups.get(name, targets)) if isinstance(name, str) else targets


def rows(preset: str, entry: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return `(option, source's value, ours, "equal" or the reason)` of one preset.

    Raises:
        ValueError: an option of the preset is not in the table, or a difference has no reason.
    """
    ours, values = in_force(preset), entry["values"]
    given = yaml.safe_load((CONFIGS / f"{preset}.yaml").read_text(encoding="utf-8"))
    if missing := sorted({*given, *COMMON} - set(values)):
        raise ValueError(f"{preset}: not in {SOURCES.name}: {', '.join(missing)}")
    table_rows = []
    for option, stated in values.items():
        if set(stated) - {"theirs", "why"}:
            raise ValueError(f"{preset}: {option} has {sorted(stated)}, expected theirs and why")
        if option not in ours:
            continue  # shared between recipes, such as max_length and max_seq_length
        is_stated = "theirs" in stated
        is_equal = is_stated and stated["theirs"] == ours[option]
        reason = "equal" if is_equal else stated.get("why", "")
        if not reason:
            raise ValueError(
                f"{preset}: {option} is {ours[option]!r} and differs from the source without a reason"
            )
        source = as_cell(stated["theirs"]) if is_stated else "not stated"
        table_rows.append((option, source, as_cell(ours[option]), reason))
    return table_rows


def as_cell(value: Any) -> str:
    """Return a value as Markdown text of a table cell."""
    if value is None:
        return "none"
    text = ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"
    text = text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 90 else text[:89] + "…"


def table() -> str:
    """Return the whole page."""
    sources = yaml.safe_load(SOURCES.read_text(encoding="utf-8"))
    own = sources.pop("own")
    known = {path.stem for path in CONFIGS.glob("*.yaml")}
    if known != {*sources, *own}:
        raise ValueError(f"presets without an entry, or entries without one: {known ^ {*sources, *own}}")
    parts = [HEADER]
    for preset, entry in sources.items():
        lines = [f"## `{preset}.yaml`: {entry['title']}", ""]
        lines += ["Source: " + ", ".join(f"<{url}>" for url in entry["sources"]), ""]
        lines += ["| option | source | ours | equal, or the reason |", "|---|---|---|---|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows(preset, entry)]
        lines += ["| " + " | ".join(map(as_cell, row)) + " |" for row in entry["habits"]]
        parts.append("\n".join(lines) + "\n")
    names = ", ".join(f"`{name}.yaml`" for name in own)
    parts.append(f"## Presets without a published system\n\n{names}: their values are this project's.\n")
    return "\n".join(parts)


if __name__ == "__main__":
    RESULT.write_text(table(), encoding="utf-8")
