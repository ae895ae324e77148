"""Write the main metric of a run to `.eval_results/*.yaml`, the format of the Hugging Face Hub for results.

An entry names a dataset of the hub. It is written only if the metric was measured on such a dataset, or on
files whose dataset id the owner states. The older `model-index` of the card's metadata needs no id and is
always written. Format: huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = ".eval_results"
EVAL_RESULTS = f"{FOLDER}/*.yaml"
TASK = "default"  # task of a dataset without named tasks


def write_eval_results(
    folder: str | Path, *, dataset_id: str, value: float, notes: str, task_id: str = TASK
) -> Path:
    """Write one result with the class of huggingface_hub.

    Args:
        folder: of the run; the file is written to `.eval_results/` in it.
        dataset_id: `owner/name` on the hub.
        value: of the metric, as in `metrics.json`.
        notes: one line on the metric and its measurement.
        task_id: name of the task in the dataset's `eval.yaml`.

    Returns:
        Path of the file.

    Example:
        >>> import tempfile
        >>> from qwen_task_heads.reports.eval_results import write_eval_results
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_eval_results(folder, dataset_id="me/titles", value=0.627, notes="pair accuracy")
        ...     print(path.name, path.read_text(), sep=chr(10))
        me__titles.yaml
        - dataset:
            id: me/titles
            task_id: default
          value: 0.627
          notes: pair accuracy
        <BLANKLINE>
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    entry = EvalResultEntry(dataset_id=dataset_id, task_id=task_id, value=value, notes=notes)
    path = Path(folder) / FOLDER / (re.sub(r"[^\w.-]", "__", dataset_id) + ".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")
    return path
