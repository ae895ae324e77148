"""Errors: one type, one message format and a stable code for everything a user can get wrong.

A message reads ``where: problem. Expected X. Fix: Y.`` Readers collect a `Problem` per defect and raise once,
so that one run names every defect of a file. Code in `hubcode/` is published without this package and raises
`ValueError` in the same format.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MAX_SHOWN = 50  # problems printed in one message; `TaskHeadsError.problems` always holds all of them

# Stable codes of problems. Tools may match them; wording may change in any release.
CODES = {
    # Options and arguments
    "option-unknown": "an option or argument with a name that does not exist",
    "option-missing": "an option that the command needs was not given",
    "option-value": "a value that the option does not take",
    "option-range": "a number outside the accepted range",
    "option-conflict": "options that exclude each other",
    "option-unsupported": "an option that this model, task, data set or machine does not support",
    "argument-type": "a Python argument of the wrong type or shape",
    # Files
    "path-not-found": "a file or folder that does not exist",
    "path-exists": "an output that exists, is not empty or belongs to another run",
    "path-access": "a file or folder that cannot be read or written",
    "disk-full": "not enough space on a disk",
    "file-format": "a file of an unknown, malformed or unsupported format",
    "file-encoding": "bytes that are not text in the stated encoding",
    "file-truncated": "a file that ends too early",
    "file-empty": "a file or data set without rows",
    # Columns, values and rows
    "column-missing": "a column that the task needs is absent",
    "column-unknown": "a column with an unknown or misspelt name",
    "column-ambiguous": "columns of which only one can be read",
    "value-missing": "an empty, null or NaN value",
    "value-type": "a value of the wrong type",
    "value-range": "a value outside the accepted range",
    "value-conflict": "values of a row that contradict each other",
    "text-empty": "a text without characters",
    "text-too-long": "a text or prompt that does not fit the limit of tokens",
    "label-unknown": "a label that the label set does not have",
    "label-invalid": "a label set or label file that cannot be used",
    "label-conflict": "ids and names, or labels of files, that do not agree",
    "rows-too-few": "too few rows, groups or labels for the request",
    "rows-conflict": "rows that contradict each other",
    "rows-equal": "rows that are equal, or equal after truncation",
    "pairs-swapped": "preferred and rejected titles look swapped",
    "split-missing": "a split that is absent or cannot be found",
    "dataset-mismatch": "data sets whose columns, labels or kinds do not fit together",
    # Models
    "model-not-found": "a model, revision or file of a model that does not exist",
    "model-type": "a model of another kind than the request needs",
    "model-unsupported": "a model whose architecture does not support the request",
    "model-corrupted": "missing, extra, reshaped or changed tensors or files",
    "model-ambiguous": "a folder that holds more than one model",
    "base-changed": "the base of an adapter is absent or differs from the one in training",
    "tokenizer-invalid": "a tokenizer or template that the model cannot use",
    "config-invalid": "a config with values that cannot be used",
    "code-untrusted": "a repo that wants to run its own code or unpickle files",
    # Runs
    "checkpoint-incomplete": "a checkpoint that is incomplete or corrupted",
    "checkpoint-foreign": "a checkpoint of a run with other data, options or versions",
    "number-not-finite": "NaN or infinity in losses, features or weights",
    "processes-differ": "processes that are absent, or ranks that do not agree",
    "memory-exceeded": "not enough memory for the request",
    # Machines, packages and hubs
    "device-unavailable": "a device or dtype that this machine does not have",
    "package-missing": "a Python package that is not installed",
    "package-version": "a Python package of another version than is needed",
    "hub-unreachable": "a hub that does not answer",
    "hub-denied": "a hub that refuses: no login, no permission, a gated or private repo",
    "hub-invalid": "a repo id, branch or answer that a hub does not accept",
    # Requests to the server
    "request-invalid": "a request that the server cannot read",
    "request-denied": "a request without the bearer token of the server",
    "request-too-large": "a request with too many bytes or rows",
    "request-timeout": "a request that did not arrive in time",
    "server-busy": "a server with too much to do, or no answer in time",
    "server-error": "a defect of the server",
    "secret-found": "a secret in files that would leave the machine",
    "verification-failed": "an export or published model that does not equal the trained one",
}


@dataclass(frozen=True)
class Problem:
    """One defect: where it is, what is wrong, what was expected, how to fix it.

    Args:
        where: file and line (`train.jsonl:17`), option (`--pooling`) or tensor name.
        problem: what is wrong, such as `found 'avg'`; quote user text with `shorten`.
        expected: what would have been accepted.
        fix: what the user can do next, in the imperative; commands and options can be typed as they are.
        code: one of `CODES`.
    """

    where: str
    problem: str
    expected: str
    fix: str
    code: str = field(kw_only=True)

    def __str__(self) -> str:
        sentences = (self.problem, f"Expected {self.expected}", f"Fix: {self.fix}")
        return f"{self.where}: " + " ".join(f"{text.rstrip('.')}." for text in sentences)


class TaskHeadsError(ValueError):
    """Bad input, with all its problems.

    Example:
        >>> from qwen_task_heads.errors import Problem, TaskHeadsError
        >>> problem = Problem("--pooling", "found 'avg'", "last or mean", "choose one", code="option-value")
        >>> print(TaskHeadsError(problem))
        --pooling: found 'avg'. Expected last or mean. Fix: choose one.
    """

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        lines = [str(problem) for problem in self.problems[:MAX_SHOWN]]
        if len(self.problems) > MAX_SHOWN:
            lines.append(f"... and {len(self.problems) - MAX_SHOWN} more problems of the same run")
        if len(self.problems) > 1:
            lines.insert(0, f"{len(self.problems)} problems:")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[TaskHeadsError], tuple[tuple[Problem, ...]]]:
        """Return what pickle makes the error of, as processes send it to each other."""
        return type(self), (self.problems,)


def error_at(where: str, problem: str, expected: str, fix: str, *, code: str) -> TaskHeadsError:
    """Return one problem as an error; the arguments are those of `Problem`."""
    return TaskHeadsError(Problem(where, problem, expected, fix, code=code))


def shorten(value: object, limit: int = 60) -> str:
    """Return `repr(value)`, truncated to `limit` characters."""
    text = repr(value if not isinstance(value, str) else value[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def reason_of(error: Exception, limit: int = 160) -> str:
    """Return the first line of an error of another library, for a message.

    Example:
        >>> from qwen_task_heads.errors import reason_of
        >>> reason_of(OSError("no such repo\\nTraceback ..."))
        'no such repo'
    """
    return [*str(error).splitlines(), ""][0][:limit]


RESUME = "the same command with --resume_from_checkpoint true continues"


def least_problems(options: object, least: Mapping[str, float]) -> list[Problem]:
    """Return the problem of each option that is below its least value.

    Args:
        options: object with the options as attributes.
        least: option -> its least value.

    Example:
        >>> from types import SimpleNamespace
        >>> [str(problem) for problem in least_problems(SimpleNamespace(port=-1), {"port": 0})]
        ['--port: found -1. Expected 0 or more. Fix: raise it.']
    """
    return [
        Problem(f"--{name}", f"found {value}", f"{low} or more", "raise it", code="option-range")
        for name, low in least.items()
        if (value := vars(options)[name]) < low
    ]


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
