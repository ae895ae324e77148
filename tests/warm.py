"""Work that every run does once in its process; the fork server does it before it forks."""

from __future__ import annotations

import io

from matplotlib.figure import Figure
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from qwen_task_heads import throughput

throughput.SIDE["cpu"] = 256  # as in model_fixtures
get_checkpoint_conversion_mapping("qwen2")  # compiles a thousand expressions
figure = Figure(layout="constrained")
figure.subplots().set_title("fonts are found and read")
figure.savefig(io.BytesIO())
