"""What a tracker of a run is told: settings, figures and example predictions, without secrets and folders.

Texts are cleaned before they are cut: a token cut in two would not be known any more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Number
from pathlib import Path
from typing import Any

from qwen_task_heads.publishing.secrets import known_secrets, redact

EXAMPLES, MAX_TEXT = 10, 200  # predictions shown, and characters of each text


class Cleaner:
    """Takes secrets and folders of this machine out of what a tracker is told.

    Args:
        secrets: where each is from, and its value; None for `known_secrets`.

    Example:
        >>> from qwen_task_heads.publishing.tracked import Cleaner
        >>> Cleaner({"$T": "abcdefgh"}).value({"key": "is abcdefgh", "base": "/data/models/qwen", "n": 3})
        {'key': 'is ***', 'base': 'qwen', 'n': 3}
    """

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        self._secrets = known_secrets() if secrets is None else secrets
        home = str(Path.home())
        self._home = home if len(home) > 1 else None  # "/" is in every address

    def text(self, text: str) -> str:
        """A text of somebody's data: what is no secret stays as it is."""
        text = redact(text, self._secrets)
        return text.replace(self._home, "~") if self._home else text

    def value(self, value: Any) -> Any:
        """A setting, or settings in mappings and lists; what is no JSON becomes text."""
        if isinstance(value, Mapping):
            return {self.text(str(name)): self.value(item) for name, item in value.items()}
        if isinstance(value, list | tuple | set):
            return [self.value(item) for item in value]
        if value is None or isinstance(value, Number):
            return value
        text = str(value)
        is_path = Path(text).is_absolute() or text.startswith("~")
        return self.text(Path(text).name if is_path else text)


class ShownConfig(dict[str, Any]):
    """The cleaned config of a model; trackers ask for a dict or for JSON."""

    def to_json_string(self) -> str:
        """As a config gives it."""
        return json.dumps(self, indent=2, ensure_ascii=False)


class ShownModel:
    """What a tracker may know of a model: config, adapter, size."""

    def __init__(self, model: Any, clean: Cleaner) -> None:
        from peft import PeftModel

        self.config = ShownConfig(clean.value(model.config.to_dict()))
        adapters = model.peft_config if isinstance(model, PeftModel) else {}
        told = {name: clean.value(adapter.to_dict()) for name, adapter in adapters.items()}
        self.peft_config = told or None
        self._size = sum(parameter.numel() for parameter in model.parameters())

    def num_parameters(self) -> int:
        """Of all of the model."""
        return self._size


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a tracker is told when a run is measured; all of it is clean.

    Args:
        scalars: name to figure.
        texts: name to Markdown.
        pictures: PNG files.
    """

    scalars: Mapping[str, float]
    texts: Mapping[str, str]
    pictures: Sequence[Path]


def told_at_end(
    *,
    folder: Path,
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
    reported: str,
    predictions: bool,
    clean: Cleaner,
) -> Told:
    """Gather it from a finished run.

    Args:
        folder: of the run, with `predictions.jsonl` and plots.
        metrics: as `metrics.json` holds them.
        settings: as `manifest.json` holds them.
        reported: the split of the predictions.
        predictions: tell some of them.
        clean: takes secrets and folders out.
    """
    words = json.dumps(clean.value(settings), indent=2, ensure_ascii=False)
    texts = {"settings": f"```json\n{words}\n```"}
    if predictions:
        texts[f"predictions/{reported}"] = "\n".join(example_lines(folder / "predictions.jsonl", clean))
    scalars = {clean.text(name): value for name, value in final_figures(metrics).items()}
    return Told(scalars=scalars, texts=texts, pictures=sorted(folder.glob("*.png")))


def final_figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """`final/<split>/<scorer>/<figure>` to value, of the model and of the floors.

    Example:
        >>> from qwen_task_heads.publishing.tracked import final_figures
        >>> final_figures({"seed": 0, "dev": {"this model": {"accuracy": {"value": 0.9, "low": 0.8}}}})
        {'final/dev/this_model/accuracy': 0.9}
    """
    found = {}
    for split in ("dev", "test"):
        for scorer, figures in metrics.get(split, {}).items():
            scorer_name = "_".join(re.findall(r"[\w-]+", scorer))  # TensorBoard knows no blanks
            for name, entry in figures.items():
                value = entry.get("value") if isinstance(entry, Mapping) else entry
                if isinstance(value, int | float):
                    found[f"final/{split}/{scorer_name}/{name}"] = float(value)
    return found


def example_lines(path: Path, clean: Cleaner) -> list[str]:
    """The first rows of a `predictions.jsonl` as Markdown: text, truth, answer, probability."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, EXAMPLES)]
    return [f"{number}. {_example(row, clean)}" for number, row in enumerate(rows, start=1)]


def _example(row: Mapping[str, Any], clean: Cleaner) -> str:
    is_pair = "chosen" in row
    names = ("prompt", "chosen", "rejected") if is_pair else ("text", "text_b")
    texts = [" ".join(clean.text(row[name]).split()) for name in names if row.get(name)]
    shown = " // ".join(text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…" for text in texts)
    truth, probability = row.get("true"), row.get("probability")
    answer = next((row[name] for name in ("labels", "label", "score", "scores") if name in row), None)
    if is_pair:
        truth, answer = "chosen", "chosen" if row["correct"] else "rejected"
        probability = max(row["p_preferred"], 1 - row["p_preferred"])
    elif "labels" in row:
        probability = {label: row["probabilities"][label] for label in row["labels"]}
    sure = "" if probability is None else f" | probability: {_told(probability, clean)}"
    return f"{shown} | true: {_told(truth, clean)} | answer: {_told(answer, clean)}{sure}"


def _told(value: Any, clean: Cleaner) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return clean.text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
