"""Task heads for Qwen and other decoders: a plugin for transformers and trl.

Importing this package registers `title_scorer` and `pooled_classifier` with AutoConfig, AutoModel and
AutoModelForSequenceClassification, and `pipeline("title-ranking")`, so that saved models load without
`trust_remote_code` and the code in their folders is not run. Native model types are left alone.
The public names are those of `__init__.pyi`; each is imported on first use.
"""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from qwen_task_heads import registration

__version__ = "0.1.0"

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
# The module of each public name.
_MODULES = {
    alias.name: str(node.module)
    for node in _STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = sorted(_MODULES)

if "qth" not in sys.modules:  # the console script registers after it has checked its options
    registration.install()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
