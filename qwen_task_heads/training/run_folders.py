"""The folder of a run without `--output_dir`: `runs/titles`, `runs/titles-2`, and so on.

The number is one above the highest there is, so that the newest run always has the highest number, also
where a folder in between was deleted. With `--resume_from_checkpoint true` that newest folder is taken,
because the message of an interrupted run asks for the same command with this option.

Under several processes each one chooses for itself, before the processes form a group: no folder is
made until all of them have joined it, so that all see the same ones.
"""

from __future__ import annotations

import re
from pathlib import Path

RUNS = "runs"
WORDS = {"true": True, "auto": True, "false": False, "none": False, "": False}


def read_resume(value: str | bool | None) -> str | bool:
    """Return what `--resume_from_checkpoint` asks for: False, True (the newest checkpoint) or a path.

    Example:
        >>> from qwen_task_heads.training.run_folders import read_resume
        >>> read_resume("true"), read_resume(None), read_resume("runs/x/checkpoint-5")
        (True, False, 'runs/x/checkpoint-5')
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    return WORDS.get(value.strip().lower(), value)


def default_folder(name: str, resume: str | bool | None = None, *, root: str | Path = RUNS) -> str:
    """Choose the output folder of a run that names none; nothing is created.

    Args:
        name: what the recipe calls its runs, such as `titles`.
        resume: the value of `--resume_from_checkpoint`: True takes the newest folder, if there is one; the
            path of a checkpoint takes the folder that holds it.
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
    there = [pattern.fullmatch(path.name) for path in Path(root).iterdir()] if Path(root).is_dir() else []
    numbers = [int(match[1] or 1) for match in there if match]
    number = max(numbers, default=0) + (0 if asked and numbers else 1)
    return str(Path(root, name if number == 1 else f"{name}-{number}"))
