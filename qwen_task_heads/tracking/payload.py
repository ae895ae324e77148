"""Values for the trackers of a run: settings, metrics and example predictions, without secrets and paths.

Texts are cleaned before they are truncated, because a truncated token would not be recognized.

A setting that is a path is reduced to its name. Inside longer texts only known paths are removed: the home
folder, the output folder, the data of the run and the folders of data files. Other paths in a text are kept,
because an instruction or a text of the data may have words that look like a path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Number
from pathlib import Path
from typing import Any

from qwen_task_heads.redaction import known_secrets, redact

EXAMPLES, MAX_TEXT = 10, 200  # number of logged predictions, and characters of each text
# Texts such as "/no_think" or "/classify: sport or trade?" start like a path, but are not one.
_PATH = re.compile(r"[^\s?!,;|<>{}，。！？：；、]+")


class Cleaner:
    """Remove secrets and folders of this machine from values for a tracker.

    Args:
        secrets: source -> value; None for `known_secrets`.
        places: values of settings, also in lists; those that are paths are removed from texts too.

    Example:
        >>> from qwen_task_heads.tracking.payload import Cleaner
        >>> clean = Cleaner({"$T": "abcdefgh"}, places=["/data/runs/news"])
        >>> clean.value({"key": "is abcdefgh", "base": "/data/models/qwen", "n": 3})
        {'key': 'is ***', 'base': 'qwen', 'n': 3}
        >>> clean.value("/no_think saved in /data/runs/news/plots, see /etc/motd")
        '/no_think saved in news/plots, see /etc/motd'
    """

    def __init__(self, secrets: Mapping[str, str] | None = None, *, places: Iterable[Any] = ()) -> None:
        self._secrets = known_secrets() if secrets is None else secrets
        home = str(Path.home())
        self._home = home if len(home) > 1 else None  # "/" is part of every URL
        self._names = {path: Path(path).name for path in _known_paths(places)}
        longest_first = sorted(map(re.escape, self._names), key=len, reverse=True)
        # After a letter the match would be part of a URL: "https://a.org/data/x".
        self._known = re.compile(rf"(?<![\w.~-])(?:{'|'.join(longest_first)})") if longest_first else None

    def text(self, text: str) -> str:
        """Return a text of the data without secrets and known paths."""
        text = redact(text, self._secrets)
        if self._known:
            text = self._known.sub(lambda match: self._names[match[0]], text)
        return text.replace(self._home, "~") if self._home else text

    def value(self, value: Any) -> Any:
        """Return a cleaned setting, or mappings and lists of settings; other types become text."""
        if isinstance(value, Mapping):
            return {self.text(str(name)): self.value(item) for name, item in value.items()}
        if isinstance(value, list | tuple | set):
            return [self.value(item) for item in value]
        if value is None or isinstance(value, Number):
            return value
        text = str(value)
        return self.text(Path(text).name if _is_path(text) else text)


def _is_path(text: str) -> bool:
    """Return whether a whole text is a path: it exists, or names a file in a folder without blanks."""
    path = Path(text)
    if not (path.is_absolute() or text.startswith("~")) or not path.name:
        return False
    in_folder = len(path.parts) > 2 or text.startswith("~")
    return (in_folder and _PATH.fullmatch(text) is not None) or _exists(text)


def _exists(text: str) -> bool:
    return os.path.exists(os.path.expanduser(text))  # Path.exists raises for a text that is too long


def _known_paths(places: Iterable[Any]) -> Iterator[str]:
    """Yield the absolute spellings of paths of this machine, and of the folders of files."""
    for place in places:
        if isinstance(place, list | tuple):
            yield from _known_paths(place)
        elif isinstance(place, str) and place and (os.path.isabs(place) or _exists(place)):
            whole = os.path.abspath(os.path.expanduser(place))
            for path in {whole, os.path.realpath(whole)}:
                folders = [os.path.dirname(path)] if os.path.isfile(path) else []
                # A folder at the root, such as /data, is not private, and a word of many texts.
                yield from (known for known in (path, *folders) if len(Path(known).parts) > 2)


class CleanConfig(dict[str, Any]):
    """The cleaned config of a model; trackers read a dict or JSON."""

    def to_json_string(self) -> str:
        """Return the config as JSON, as `PreTrainedConfig` does."""
        return json.dumps(self, indent=2, ensure_ascii=False)


class CleanModel:
    """The cleaned description of a model for a tracker: config, adapter, number of parameters."""

    def __init__(self, model: Any, clean: Cleaner) -> None:
        from peft import PeftModel

        self.config = CleanConfig(clean.value(model.config.to_dict()))
        adapters = model.peft_config if isinstance(model, PeftModel) else {}
        configs = {name: clean.value(adapter.to_dict()) for name, adapter in adapters.items()}
        self.peft_config = configs or None
        self._size = sum(parameter.numel() for parameter in model.parameters())

    def num_parameters(self) -> int:
        """Return the number of parameters of the model."""
        return self._size


@dataclass(frozen=True, kw_only=True)
class FinalRecord:
    """Cleaned values that a tracker logs at the end of a run.

    Args:
        scalars: name -> metric.
        texts: name -> Markdown.
        pictures: PNG files.
    """

    scalars: Mapping[str, float]
    texts: Mapping[str, str]
    pictures: Sequence[Path]


def final_record(
    *,
    folder: Path,
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
    reported: str | None,
    predictions: bool,
    clean: Cleaner,
) -> FinalRecord:
    """Return the final record of a finished run.

    Args:
        folder: output folder of the run, with `predictions.jsonl` and plots.
        metrics: content of `metrics.json`.
        settings: settings in `manifest.json`.
        reported: the split of the predictions; None for a run without any.
        predictions: whether to log example predictions.
        clean: removes secrets and paths.
    """
    content = json.dumps(clean.value(settings), indent=2, ensure_ascii=False)
    texts = {"settings": f"```json\n{content}\n```"}
    if predictions and reported:
        texts[f"predictions/{reported}"] = "\n".join(example_lines(folder / "predictions.jsonl", clean))
    scalars = {clean.text(name): value for name, value in final_metrics(metrics).items()}
    return FinalRecord(scalars=scalars, texts=texts, pictures=sorted(folder.glob("*.png")))


def final_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return `final/<split>/<scorer>/<metric>` -> value, of the model and of the baselines.

    Example:
        >>> from qwen_task_heads.tracking.payload import final_metrics
        >>> final_metrics({"seed": 0, "dev": {"this model": {"accuracy": {"value": 0.9, "low": 0.8}}}})
        {'final/dev/this_model/accuracy': 0.9}
    """
    scalars = {}
    for split in ("dev", "test"):
        for scorer, entries in metrics.get(split, {}).items():
            scorer_name = "_".join(re.findall(r"[\w-]+", scorer))  # TensorBoard allows no blanks
            for name, entry in entries.items():
                value = entry.get("value") if isinstance(entry, Mapping) else entry
                if isinstance(value, int | float):
                    scalars[f"final/{split}/{scorer_name}/{name}"] = float(value)
    return scalars


def example_lines(path: Path, clean: Cleaner) -> list[str]:
    """Return the first rows of a `predictions.jsonl` as Markdown: text, truth, answer, probability."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, EXAMPLES)]
    return [f"{number}. {_example(row, clean)}" for number, row in enumerate(rows, start=1)]


def _example(row: Mapping[str, Any], clean: Cleaner) -> str:
    is_pair = "chosen" in row
    names = ("prompt", "chosen", "rejected") if is_pair else ("text", "text_b")
    texts = [" ".join(clean.text(row[name]).split()) for name in names if row.get(name)]
    joined = " // ".join(text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…" for text in texts)
    truth, probability = row.get("true"), row.get("probability")
    answer = next((row[name] for name in ("labels", "label", "score", "scores") if name in row), None)
    if is_pair:
        truth, answer = "chosen", "chosen" if row["correct"] else "rejected"
        probability = max(row["p_preferred"], 1 - row["p_preferred"])
    elif "labels" in row:
        probability = {label: row["probabilities"][label] for label in row["labels"]}
    suffix = "" if probability is None else f" | probability: {_format(probability, clean)}"
    return f"{joined} | true: {_format(truth, clean)} | answer: {_format(answer, clean)}{suffix}"


def _format(value: Any, clean: Cleaner) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return clean.text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
