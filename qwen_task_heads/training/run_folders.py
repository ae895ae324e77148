"""Output folder of a run without `--output_dir`: `runs/titles`, `runs/titles-2`, and so on.

The number is one above the highest existing one, so that the newest run always has the highest number, even
if a folder in between was deleted. `--resume_from_checkpoint true` selects that newest folder, because the
message of an interrupted run names the same command with this option.

Every process selects the folder itself before the process group exists. No folder is created until all
processes have joined the group, so that all see the same folders.
"""

from __future__ import annotations

import re
from pathlib import Path

RUNS = "runs"
WORDS = {"true": True, "auto": True, "false": False, "none": False, "": False}


def read_resume(value: str | bool | None) -> str | bool:
    """Return the value of `--resume_from_checkpoint`: False, True (the newest checkpoint) or a path.

    Example:
        >>> from qwen_task_heads.training.run_folders import read_resume
        >>> read_resume("true"), read_resume(None), read_resume("runs/x/checkpoint-5")
        (True, False, 'runs/x/checkpoint-5')
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    return WORDS.get(value.strip().lower(), value)


def default_folder(name: str, resume: str | bool | None = None, *, root: str | Path = RUNS) -> str:
    """Return the output folder of a run that names none; nothing is created.

    Args:
        name: name of the runs of a recipe, such as `titles`.
        resume: the value of `--resume_from_checkpoint`: True selects the newest folder, if there is one; the
            path of a checkpoint selects its parent folder.
        root: folder of all runs.

    Example:
        >>> import pathlib, tempfile
        >>> from qwen_task_heads.training.run_folders import default_folder
        >>> with tempfile.TemporaryDirectory() as root:
        ...     pathlib.Path(root, "titles").mkdir()
        ...     new, newest = (default_folder("titles", resume, root=root) for resume in (False, True))
        >>> pathlib.Path(new).name, pathlib.Path(newest).name
        ('titles-2', 'titles')
    """
    asked = read_resume(resume)
    if isinstance(asked, str):
        return str(Path(asked).parent)
    pattern = re.compile(rf"{re.escape(name)}(?:-([1-9]\d*))?")
    matches = [pattern.fullmatch(path.name) for path in Path(root).iterdir()] if Path(root).is_dir() else []
    numbers = [int(match[1] or 1) for match in matches if match]
    number = max(numbers, default=0) + (0 if asked and numbers else 1)
    return str(Path(root, name if number == 1 else f"{name}-{number}"))
