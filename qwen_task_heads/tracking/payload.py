"""What a tracker of a run is told: settings, figures and example predictions, without secrets and folders.

Texts are cleaned before they are cut: a token cut in two would not be known any more.

Which paths are taken out: a setting that is one is told by its name. Inside longer texts only known ones are:
the home folder, the output folder, the data that the run was given and the folders of data files. Any other
path in a sentence stays, because an instruction or a text of the data may hold what merely looks like one.
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

EXAMPLES, MAX_TEXT = 10, 200  # predictions shown, and characters of each text
# What begins like a path and is none: "/no_think", a command such as "/classify: sport or trade?".
_PATH = re.compile(r"[^\s?!,;|<>{}，。！？：；、]+")


class Cleaner:
    """Takes secrets and folders of this machine out of what a tracker is told.

    Args:
        secrets: where each is from, and its value; None for `known_secrets`.
        places: values of settings, some of them in lists; those that are paths here are known in texts too.

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
        self._home = home if len(home) > 1 else None  # "/" is in every address
        self._names = {path: Path(path).name for path in _known_paths(places)}
        longest_first = sorted(map(re.escape, self._names), key=len, reverse=True)
        # After a letter it is the end of an address: "https://a.org/data/x".
        self._known = re.compile(rf"(?<![\w.~-])(?:{'|'.join(longest_first)})") if longest_first else None

    def text(self, text: str) -> str:
        """A text of somebody's data: what is no secret and no known path stays as it is."""
        text = redact(text, self._secrets)
        if self._known:
            text = self._known.sub(lambda match: self._names[match[0]], text)
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
        return self.text(Path(text).name if _is_path(text) else text)


def _is_path(text: str) -> bool:
    """Whether all of a text is a path: it exists, or names a file in a folder and holds no sentence."""
    path = Path(text)
    if not (path.is_absolute() or text.startswith("~")) or not path.name:
        return False
    in_folder = len(path.parts) > 2 or text.startswith("~")
    return (in_folder and _PATH.fullmatch(text) is not None) or _exists(text)


def _exists(text: str) -> bool:
    return os.path.exists(os.path.expanduser(text))  # of a Path, too long a text is an error


def _known_paths(places: Iterable[Any]) -> Iterator[str]:
    """Absolute spellings of what is a path of this machine, and of the folders of files."""
    for place in places:
        if isinstance(place, list | tuple):
            yield from _known_paths(place)
        elif isinstance(place, str) and place and (os.path.isabs(place) or _exists(place)):
            whole = os.path.abspath(os.path.expanduser(place))
            for path in {whole, os.path.realpath(whole)}:
                folders = [os.path.dirname(path)] if os.path.isfile(path) else []
                # A folder at the root, such as /data, tells nothing and is a word of many texts.
                yield from (known for known in (path, *folders) if len(Path(known).parts) > 2)


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
    """`final/<split>/<scorer>/<figure>` to value, of the model and of the baselines.

    Example:
        >>> from qwen_task_heads.tracking.payload import final_figures
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
