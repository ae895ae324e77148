"""Locate the two samples in the package, one per task, under the name `embedded`.

`tools/make_sample.py` creates both. The `LICENSE.md` of each folder has the licence and the changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen_task_heads.backbones import EMBEDDED

ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class EmbeddedDataset:
    """One sample.

    Args:
        folder: with the files of train, dev and test.
        statement: source and licence, for the model card.
        citation: key in `model_cards/references.bib`.
    """

    folder: Path
    statement: str
    citation: str


EMBEDDED_DATASETS = {
    "titles": EmbeddedDataset(
        ASSETS / "upworthy",
        "headlines and clicks of the Upworthy Research Archive (Matias, Munger, Le Quere and\n"
        "Ebersole 2021), CC BY 4.0, <https://doi.org/10.1038/s41597-021-00934-7>",
        "upworthy",
    ),
    "texts": EmbeddedDataset(
        ASSETS / "banking77",
        "questions of bank customers on transfers, ten of the 77 intents of BANKING77\n"
        "(Casanueva, Temčinas, Gerz, Henderson and Vulić 2020), CC BY 4.0,\n"
        "<https://doi.org/10.18653/v1/2020.nlp4convai-1.5>",
        "banking77",
    ),
}


def locate_dataset(source: str, task: str) -> str:
    """Return the sample folder of a task (`titles` or `texts`) for `embedded`; other sources unchanged.

    Example:
        >>> locate_dataset("embedded", "texts").endswith("banking77")
        True
        >>> locate_dataset("reviews.jsonl", "texts")
        'reviews.jsonl'
    """
    return str(EMBEDDED_DATASETS[task].folder) if source == EMBEDDED else source
