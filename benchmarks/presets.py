"""Every value of the presets and that of the published system, with the reason where they differ.

    python benchmarks/presets.py    # writes benchmarks/results/presets.md

Values of the sources are in `configs/preset_sources.yaml`. Ours are what the recipes' parsers make of each
preset, defaults included, so that the table shows what a run uses. A test compares the file with the table.
"""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from qwen_task_heads.backbones import backbone_of
from qwen_task_heads.training.classifier_arguments import parse_classifier_arguments
from qwen_task_heads.training.sft_arguments import parse_sft_arguments
from qwen_task_heads.training.title_arguments import parse_title_arguments

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "recipes" / "configs"
SOURCES = ROOT / "benchmarks" / "configs" / "preset_sources.yaml"
RESULT = ROOT / "benchmarks" / "results" / "presets.md"
PARSERS = {"ad_titles_7b": parse_title_arguments, "fudan_news_sft": parse_sft_arguments}
# Shown for every preset, given in it or not.
COMMON = (
    "model_name_or_path", "dtype", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "optim", "weight_decay", "adam_beta2", "max_grad_norm", "activation_checkpointing", "save_strategy",
    "seed", "dev_fraction", "test_fraction",
)  # fmt: skip
# Of `head_options`, what the model's config makes of an option that is not given.
MODEL_DEFAULTS = {"head_activation": "relu"}
HEADER = """# Presets and their sources

`python benchmarks/presets.py`. Values of the sources are read from the pages named. Ours are those in force,
defaults of transformers and trl included. "not stated" means that no page states the value. Published figures
stay theirs until they are measured again.
"""


def in_force(preset: str) -> dict[str, Any]:
    """Return every option of a preset as its recipe reads it."""
    parse = PARSERS.get(preset, parse_classifier_arguments)
    words = ["--config", str(CONFIGS / f"{preset}.yaml"), "--output_dir", "runs/x", "--use_cpu", "true"]
    words += ["--dataset_name", "train.jsonl", "--bf16", "false"]
    found: dict[str, Any] = dict(MODEL_DEFAULTS)
    for group in parse(words):
        for item in fields(group):
            value = group.__dict__[item.name]
            value = value.value if isinstance(value, Enum) else value
            if value is not None or item.name not in found:
                found[item.name] = value
    found["lora_target_modules"] = modules(found["lora_target_modules"])
    return found


def modules(targets: str | list[str] | None) -> list[str] | None:
    """Return the modules of a Qwen that LoRA adapts, where an option names them together."""
    together = {"attention": backbone_of("qwen2").attention, "all-linear": backbone_of("qwen2").all_linear}
    name = targets[0] if isinstance(targets, list) and len(targets) == 1 else targets
    return list(together.get(name, targets)) if isinstance(name, str) else targets


def rows(preset: str, entry: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return `(option, source's value, ours, "equal" or the reason)` of one preset.

    Raises:
        ValueError: an option that the preset gives is not in the table, or a difference has no reason.
    """
    ours, values = in_force(preset), entry["values"]
    given = yaml.safe_load((CONFIGS / f"{preset}.yaml").read_text(encoding="utf-8"))
    if missing := sorted({*given, *COMMON} - set(values)):
        raise ValueError(f"{preset}: not in {SOURCES.name}: {', '.join(missing)}")
    found = []
    for option, stated in values.items():
        if set(stated) - {"theirs", "why"}:
            raise ValueError(f"{preset}: {option} has {sorted(stated)}, expected theirs and why")
        if option not in ours:
            continue  # shared between recipes, such as max_length and max_seq_length
        has = "theirs" in stated
        equal = has and stated["theirs"] == ours[option]
        reason = "equal" if equal else stated.get("why", "")
        if not reason:
            raise ValueError(
                f"{preset}: {option} is {ours[option]!r}, not as in the source, without a reason"
            )
        found.append((option, shown(stated["theirs"]) if has else "not stated", shown(ours[option]), reason))
    return found


def shown(value: Any) -> str:
    """Return a value in a table cell."""
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
        lines += ["| " + " | ".join(map(shown, row)) + " |" for row in entry["habits"]]
        parts.append("\n".join(lines) + "\n")
    names = ", ".join(f"`{name}.yaml`" for name in own)
    parts.append(f"## Presets without a published system\n\n{names}: their values are this project's.\n")
    return "\n".join(parts)


if __name__ == "__main__":
    RESULT.write_text(table(), encoding="utf-8")
