"""A run's figure as `.eval_results/*.yaml`, the form in which the Hugging Face Hub reads results.

An entry names a data set of the hub, so one is written only where the figures were measured on such a set, or
on files of which the owner says so: an id that no hub has would be made up. The older `model-index` of the
card's metadata needs no id and is always written. Format: huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = ".eval_results"
TASK = "default"  # of a data set that names no tasks of its own


def write_eval_results(
    folder: str | Path, *, dataset_id: str, value: float, notes: str, task_id: str = TASK
) -> Path:
    """Write one result, by huggingface_hub's own class.

    Args:
        folder: of the run; the file goes to `.eval_results/` in it.
        dataset_id: `owner/name` on the hub.
        value: of the figure, as `metrics.json` has it.
        notes: what was measured and how, in one line.
        task_id: as the data set's `eval.yaml` calls it.

    Returns:
        The file.

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
