"""Code that is copied into every published model: flat modules on transformers and its dependencies."""

from pathlib import Path

CODE = sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
