"""One error type and one message format for everything a user can get wrong.

Every message reads ``where: what was found; what is accepted; what to do``. Readers collect a
`Problem` per defect and raise once, so that one run names every defect of a file.
Code in `hubcode/` travels without this package and raises `ValueError` in the same format.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_SHOWN = 50  # problems printed in one message; `TaskHeadsError.problems` always holds all of them


@dataclass(frozen=True)
class Problem:
    """One defect: where it is, what was found, what is accepted, what to do.

    Args:
        where: file and line (`train.jsonl:17`), option (`--pooling`) or tensor name.
        found: what stands there now; quote user text with `repr` and keep it short.
        accepted: what would have been accepted.
        remedy: what the user should do next.
    """

    where: str
    found: str
    accepted: str
    remedy: str

    @classmethod
    def of(cls, where: str, found: str, accepted: str, remedy: str) -> Problem:
        """Make one with the usual words: `found …; accepted: …`."""
        return cls(where, f"found {found}", f"accepted: {accepted}", remedy)

    def __str__(self) -> str:
        return f"{self.where}: {self.found}; {self.accepted}; {self.remedy}"


class TaskHeadsError(ValueError):
    """Bad input, with all its problems.

    Example:
        >>> from qwen_task_heads.errors import Problem, TaskHeadsError
        >>> print(TaskHeadsError(Problem("--pooling", "found 'avg'", "accepted: last, mean", "choose one")))
        --pooling: found 'avg'; accepted: last, mean; choose one
    """

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        lines = [str(problem) for problem in self.problems[:MAX_SHOWN]]
        if len(self.problems) > MAX_SHOWN:
            lines.append(f"... and {len(self.problems) - MAX_SHOWN} more problems of the same run")
        if len(self.problems) > 1:
            lines.insert(0, f"{len(self.problems)} problems:")
        super().__init__("\n".join(lines))

    @classmethod
    def of(cls, where: str, found: str, accepted: str, remedy: str) -> TaskHeadsError:
        """Make one of a single `Problem.of`."""
        return cls(Problem.of(where, found, accepted, remedy))


def shorten(value: object, limit: int = 60) -> str:
    """Quote a value for a message: `repr`, cut in the middle of nothing, at most `limit` characters."""
    text = repr(value if not isinstance(value, str) else value[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


RESUME = "the same command with --resume_from_checkpoint true continues"


def run_recipe(main: Callable[[], None], *, interrupted: str = RESUME) -> int:
    """Run a recipe; bad input ends it with its message alone and exit code 2, Ctrl-C with how to go on.

    Anything but a `TaskHeadsError` is a defect of ours or of the machine and keeps its traceback.
    """
    try:
        main()
    except TaskHeadsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        return 130  # what shells report for SIGINT
    return 0
