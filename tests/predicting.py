"""Call `predict_file` in tests: for a loaded or named model, as one of several simulated processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qwen_task_heads import LabelScorer, Scorer
from qwen_task_heads.inference.arguments import PredictArguments
from qwen_task_heads.inference.batch_prediction import predict_file


def processes(count: int = 1, *, index: int = 0, wait: Callable[[], Any] = lambda: None) -> Any:
    """Return what `predict_file` reads of an `accelerate.PartialState`."""
    return SimpleNamespace(num_processes=count, process_index=index, wait_for_everyone=wait, device="cpu")


def predict(
    model: str | Scorer | LabelScorer, *, source: str, output: Path, state: Any = None, **options: Any
) -> Any:
    """Predict for a file with a name or a scorer; return the report."""
    name, scorer = (model, None) if isinstance(model, str) else ("loaded", model)
    arguments = PredictArguments(model=name, input=source, output=str(output), **options)
    return predict_file(arguments, scorer=scorer, state=state or processes())
