"""Record of a finished run: what its card states, without rows of the data.

Two files of the run folder hold it. `metrics.json` has the metrics; `manifest.json` has versions, seed and
settings, and the other fields under `run`. The end of a run and every publish render the card from the
record (`model_card.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from qwen_task_heads.hubcode.configuration_task_heads import TitleScorerConfig
from qwen_task_heads.hubcode.hashes_task_heads import CARD, MANIFEST, RUN, read_manifest, sha256
from qwen_task_heads.metrics.classification import BEST_METRIC
from qwen_task_heads.reports.card_facts import CardFacts
from qwen_task_heads.verification.reference import REFERENCE, Reference, write_reference

MODEL = "this model"  # name of the model in `metrics.json`, next to the baselines
METRICS = "metrics.json"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Facts of a finished run, from which its card is rendered.

    Args:
        name: of the model: the name of its folder.
        task: `title_scorer` or `pooled_classifier`, the type of model.
        base: id of the base on a hub, or the name of its folder.
        base_note: on the precision of a packaged base; usually "".
        base_on_hub: a hub has the base.
        base_commit: commit of the base, if known.
        is_embedded: the base is the small backbone embedded in the package.
        is_adapter: the weights are an adapter.
        is_generative: the model is a generative classifier, without a head of this package.
        form: export format of the folder: `saved`, `merged`, `stock` or `gguf`.
        picked: the checkpoint was selected by its metric on dev; else it is the last one.
        selected: `{"step": …}` or `{"penalty": …}` of the selection on dev; {} if it is unknown.
        lines: messages of the data loader, without those that quote rows.
        test_seen: number of rows of test that are also in train.
        has_pairs: rows have a second text, or a prompt.
        descriptions: of the labels, in their order.
        lengths: limit of a classifier in tokens, and how it treats longer texts.
        plots: from title to file name.
        versions: of the libraries, by name.
        seed: of the run.
        settings: from the name of a setting to its value, with the facts that the owner states.
        metrics: content of `metrics.json`.
    """

    name: str
    task: str
    base: str
    base_note: str = ""
    base_on_hub: bool = False
    base_commit: str | None = None
    is_embedded: bool = False
    is_adapter: bool = False
    is_generative: bool = False
    form: str = "saved"
    picked: bool = True
    selected: Mapping[str, float] = field(default_factory=dict)
    lines: Sequence[str] = ()
    test_seen: int = 0
    has_pairs: bool = False
    descriptions: Sequence[str] = ()
    lengths: Mapping[str, Any] = field(default_factory=dict)
    plots: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str]
    seed: int
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> RunRecord | None:
        """Read the record of a folder.

        Returns:
            None if the folder has no record, or if its card was edited: then the text is the user's.
        """
        folder, manifest = Path(folder), read_manifest(folder)
        card, metrics = folder / CARD, folder / METRICS
        if not (isinstance(manifest.get(RUN), dict) and card.is_file() and metrics.is_file()):
            return None
        if manifest["files"].get(CARD) != sha256(card):
            return None
        known = {one.name for one in fields(cls)}
        found = {**manifest, **manifest[RUN], "metrics": json.loads(metrics.read_text(encoding="utf-8"))}
        return cls(**{name: value for name, value in found.items() if name in known})

    def manifest(self) -> dict[str, Any]:
        """Return the part of `manifest.json` that the record fills."""
        run = asdict(self)
        data = run.pop("metrics")["data"]
        top = {name: run.pop(name) for name in ("versions", "seed", "settings")}
        return {**top, "data": data, RUN: run}

    def published(self, *, form: str, facts: CardFacts) -> RunRecord:
        """Return the record of a published copy, with its export format and the stated facts."""
        form = self.form if form == "saved" else form
        return replace(self, form=form, settings={**self.settings, **facts.stated()})

    @property
    def facts(self) -> CardFacts:
        """Facts that the owner of the model states."""
        return CardFacts.of(self.settings)

    @property
    def reported(self) -> str:
        """Split of the metrics on the card."""
        return "test" if "test" in self.metrics else "dev"

    @property
    def ours(self) -> Mapping[str, Any]:
        """Metrics of the model on the reported split."""
        metrics: Mapping[str, Any] = self.metrics[self.reported][MODEL]
        return metrics

    @property
    def is_title_scorer(self) -> bool:
        """Whether the model scores titles."""
        return self.task == TitleScorerConfig.model_type

    @property
    def main_metric(self) -> str:
        """Metric that selects checkpoints by default."""
        return main_metric(self.task, self.metrics)

    @property
    def cut(self) -> list[str]:
        """Splits that were cut from the training data."""
        return [split for split, entry in self.metrics["data"].items() if entry.get("cut")]


def main_metric(task: str, metrics: Mapping[str, Any]) -> str:
    """Return the metric that selects checkpoints by default, by the problem type of a classifier."""
    if task == TitleScorerConfig.model_type:
        return "pair_accuracy"
    return BEST_METRIC[metrics["problem_type"]][0].removeprefix("eval_")


def write_json(path: Path, content: Any) -> None:
    """Write JSON indented and in UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def keep_reference(folder: Path, *, take: Callable[[], Reference]) -> None:
    """Write the reference answers of the trained model, for the verification before publishing.

    The manifest lists the file. If the memory does not suffice to compute the answers, no file is written;
    publishing then compares with the model that strict loading reads from the folder.

    Args:
        folder: of the run.
        take: computes the reference.
    """
    Path(folder, REFERENCE).unlink(missing_ok=True)  # of an earlier run in the same folder
    try:
        path = write_reference(folder, take())
    except torch.OutOfMemoryError:
        print("note: no reference was kept: computing it exceeds the memory of this machine", flush=True)
        return
    manifest = Path(folder, MANIFEST)
    if manifest.is_file():
        content = json.loads(manifest.read_text(encoding="utf-8"))
        content["files"][REFERENCE] = sha256(path)
        write_json(manifest, content)
