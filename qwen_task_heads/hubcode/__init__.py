"""The only code copied into published models: flat, on transformers, its dependencies and siblings."""

from pathlib import Path

CODE = sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
