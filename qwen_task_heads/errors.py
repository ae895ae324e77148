"""One error type and one message format for everything a user can get wrong.

Every message reads ``where: what was found; what is accepted; what to do``. Readers collect a
`Problem` per defect and raise once, so that one run names every defect of a file.
Code in `hubcode/` travels without this package and raises `ValueError` in the same format.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    Under accelerate's launcher of one process the message is the last line; see `end_launcher`.
    """
    # Exit functions run in reverse order: those that `main` registers, such as a tracker's, come first.
    atexit.register(end_launcher)
    try:
        main()
    except TaskHeadsError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr, flush=True)
        end_launcher()  # now: the launcher got the signal too, and prints its traceback after 0.25 seconds
        return 130  # what shells report for SIGINT
    atexit.unregister(end_launcher)
    return 0


def end_launcher() -> None:
    """End the `accelerate launch` that waits for this process and would print a traceback after our message.

    When the script ends with another code than 0, accelerate 1.15 (`simple_launcher`) raises a
    CalledProcessError unless it was given `--quiet`. Neither the script nor a variable of the environment can
    set that, exit code 0 would hide the failure from a Makefile, and SIGINT prints a traceback too. SIGTERM
    prints nothing, and the launcher's exit code stays other than 0: 143 in a shell.

    Only a parent is ended that is known to be this launcher: its command line names accelerate and ends with
    exactly the words that started this process. Left alone are `accelerate launch --quiet`, which exits with
    code 1, and torchrun and accelerate's launchers of several processes, which report on their own.
    """
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    import psutil  # comes with accelerate

    own = sys.orig_argv[1:]
    try:
        launcher = psutil.Process(os.getppid())
        words = launcher.cmdline()
        begin, end = words[: -len(own)], words[-len(own) :]
        names = {"accelerate", "accelerate-launch", "accelerate.commands.accelerate_cli"}
        names |= {"accelerate.commands.launch"}
        if end == own and names & {Path(word).name for word in begin} and not {"-q", "--quiet"} & set(begin):
            launcher.terminate()
    except psutil.Error:  # it has ended, or belongs to another user
        return
