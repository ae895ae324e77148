"""One HTML page with the findings and plots of a data check; it needs no network and runs no script."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from qwen_task_heads.data.example_columns import label_counts
from qwen_task_heads.data.examples import full_text
from qwen_task_heads.data.text_datasets import TextSets
from qwen_task_heads.data_checks.checked_data import CheckedData
from qwen_task_heads.data_checks.clicks import differences
from qwen_task_heads.data_checks.findings import CheckFinding
from qwen_task_heads.reports.fonts import families_for
from qwen_task_heads.reports.markdown import one_line
from qwen_task_heads.reports.plots import BLUE, GREY, ORANGE, new_figure

BARS = 40  # labels of a plot
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.finding { border-left: .3rem solid #8c8c8c; padding: .1rem .8rem; margin: .8rem 0 }
.warning { border-color: #d98200 } .error { border-color: #c3282d }
.code { font-weight: 600 } .fix { color: #444 } img { max-width: 100% } pre { white-space: pre-wrap }
"""


def write_report(inspection: Any, data: CheckedData, folder: str) -> Path:
    """Write `report.html` and `report.json`.

    Args:
        inspection: a `DataInspection`.
        data: what was checked.
        folder: is made if it does not exist.

    Returns:
        The path of the page.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    content = json.dumps(inspection.as_dict(), ensure_ascii=False, indent=2)
    (path / "report.json").write_text(content, encoding="utf-8")
    (path / "report.html").write_text(page(inspection, data), encoding="utf-8")
    return path / "report.html"


def page(inspection: Any, data: CheckedData) -> str:
    """Return the page; all text of the data is escaped."""
    counts = ", ".join(f"{count:,} {split}" for split, count in inspection.splits.items())
    title = f"{inspection.source}: {inspection.task}"
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">",
        f"<title>{_text(title)}</title><style>{STYLE}</style>",
        f"<h1>{_text(title)}</h1><p>{_text(counts)}</p><h2>Findings</h2>",
        *(_finding(one) for one in inspection.findings),
        "<h2>Plots</h2>",
        *(f"<figure><img alt='{_text(name)}' src='{image}'></figure>" for name, image in plots(data).items()),
        "<h2>How the data were read</h2><ul>",
        *(f"<li>{_text(message)}</li>" for message in inspection.messages),
        f"</ul><h2>Next</h2><pre>{_text(inspection.command)}</pre></html>",
    ]
    return "\n".join(parts)


def plots(data: CheckedData) -> Mapping[str, str]:
    """Return name -> PNG as a data URI: rows by label, lengths of texts, and differences of clicks."""
    drawn: dict[str, str] = {}
    if isinstance(data.sets, TextSets) and data.labels:
        counts = label_counts(data.sets.train).most_common(BARS)
        names = [one_line(data.labels[label])[:24] for label, _ in counts if label >= 0]
        values = [count for label, count in counts if label >= 0]
        figure = new_figure(7, 1 + 0.22 * len(names))
        axes = figure.subplots()
        axes.barh(names[::-1], values[::-1], color=BLUE)
        axes.set_xlabel("training rows")
        for tick in axes.get_yticklabels():
            tick.set_fontfamily(families_for(names) or "sans-serif")
        drawn["Training rows by label"] = _uri(figure)
    figure = new_figure(7, 3)
    axes = figure.subplots()
    if data.noun == "texts":
        lengths = [len(full_text(row)) for row in data.sample]
        axes.hist(lengths, bins=np.geomspace(1, max(lengths) + 1, 40), color=BLUE)
    else:
        for side, color in (("chosen", BLUE), ("rejected", ORANGE)):
            lengths = [len(vars(row)[side]) for row in data.sample]
            axes.hist(lengths, bins=40, histtype="step", color=color, label=side)
        axes.legend(frameon=False)
    axes.set_xlabel("characters")
    axes.set_ylabel("rows")
    if data.noun == "texts":
        axes.set_xscale("log")
    drawn["Lengths of the training texts"] = _uri(figure)
    preferences = [
        row.preference for row in data.sample if data.noun == "pairs" and row.preference is not None
    ]
    if preferences:
        figure = new_figure(7, 3)
        axes = figure.subplots()
        axes.hist(np.clip(differences(preferences), -8, 8), bins=60, color=BLUE)
        axes.axvline(1.96, color=GREY, linestyle="--")
        axes.set_xlabel("difference of the two titles in standard errors; dashed: significant at 5%")
        axes.set_ylabel("pairs")
        drawn["Differences of the titles"] = _uri(figure)
    return drawn


def _finding(one: CheckFinding) -> str:
    fix = f"<div class='fix'>Fix: {_text(one.fix)}.</div>" if one.fix else ""
    rows = "".join(f"<li>{_text(place)}</li>" for place in one.places)
    rows = f"<details><summary>{len(one.places):,} rows</summary><ul>{rows}</ul></details>" if rows else ""
    head = f"<span class='code'>{_text(one.severity)}: {_text(one.code)}</span>"
    return (
        f"<div class='finding {_text(one.severity)}'>{head}<div>{_text(one.message)}.</div>{fix}{rows}</div>"
    )


def _text(value: object) -> str:
    return escape(one_line(value), quote=True)


def _uri(figure: Any) -> str:
    buffer = BytesIO()
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(buffer, format="png", dpi=110)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
