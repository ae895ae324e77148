"""Errors of other libraries while a model is opened, as problems that name a place and a fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubcode.configuration_task_heads import TaskHeadError


@contextmanager
def as_our_errors() -> Iterator[None]:
    """Give errors of loading our type, which a recipe prints without a traceback.

    Raises:
        TaskHeadsError: in the place of an error of the code that travels with models, of safetensors, of a
            file that transformers or peft looks for, or of a package that is not installed.

    Example:
        >>> from qwen_task_heads.loading_errors import as_our_errors
        >>> with as_our_errors():
        ...     loaded = True
    """
    try:
        yield
    except TaskHeadError as error:
        problem = Problem(error.where, error.problem, error.expected, error.fix)
        raise TaskHeadsError(problem) from error
    except SafetensorError as error:
        remedy = "fetch or save it again"
        raise TaskHeadsError(
            Problem("*.safetensors", f"found a broken file ({error})", "whole tensors", remedy)
        ) from error
    except OSError as error:  # a file that transformers or peft looks for
        found = " ".join(str(error).split(". ")[0].split())[:200]
        remedy = "fetch or save it again, or check the network"
        raise TaskHeadsError(
            Problem("opening it", f"found {found}", "all files of a saved model", remedy)
        ) from error
    except ImportError as error:  # of bitsandbytes, flash-attn, ...
        found = f"a package that is not installed ({' '.join(str(error).split())[:200]})"
        accepted, remedy = "options whose packages are installed", "install it, or drop the option"
        raise TaskHeadsError(Problem("model options", f"found {found}", accepted, remedy)) from error


def config_problem(error: ValueError) -> Problem:
    """Give an error of a config, whose fields are options of a recipe, our type.

    Example:
        >>> from qwen_task_heads.loading_errors import config_problem
        >>> config_problem(ValueError("head_dropout: found 1; accepted: below 1; choose 0.1")).where
        '--head_dropout'
    """
    where, _, rest = str(error).partition(": ")
    found, accepted, remedy = [*rest.split("; ", 2), "", ""][:3]
    return Problem(f"--{where}", found, accepted or "see TaskHeadConfig", remedy or "correct the option")
