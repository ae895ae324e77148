"""Options of `qth data`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qwen_task_heads.hubs import HUBS, HUGGINGFACE


@dataclass(kw_only=True)
class DataCheckArguments:
    """Options of `inspect_data`; those that name the data are also options of training."""

    task: Literal["texts", "titles"] | None = field(
        default=None,
        metadata={"help": "Pairs of titles or labelled texts; inferred from the columns if None."},
    )
    dev_dataset: str | None = field(
        default=None, metadata={"help": "Dev set; split off by group hash if None."}
    )
    test_dataset: str | None = field(default=None, metadata={"help": "Test set."})
    dev_fraction: float = field(
        default=0.1, metadata={"help": "Share of groups split off for dev if none is given."}
    )
    test_fraction: float | None = field(
        default=None, metadata={"help": "Share of groups split off for test; no test set if None."}
    )
    labels: str | None = field(
        default=None, metadata={"help": "Texts: labels.yaml or class file; inferred from the data if None."}
    )
    hub: str = field(default=HUGGINGFACE, metadata={"help": "Hub to load from.", "choices": list(HUBS)})
    bad_rows: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "skip: leave defective rows out and count them."}
    )
    encoding: str = field(
        default="utf-8", metadata={"help": "Encoding of text files, such as gb18030, gbk, big5 or cp1252."}
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the columns of CSV and TSV without a header, such as label,title,text."},
    )
    json: bool = field(default=False, metadata={"help": "Print the report as JSON."})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Model whose tokens are counted, and whose time and memory are estimated."},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Limit of tokens per text, to count what it cuts."}
    )
    quick: bool = field(
        default=False, metadata={"help": "Only the checks that training runs too, which take seconds."}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for report.html with plots, and report.json."}
    )
