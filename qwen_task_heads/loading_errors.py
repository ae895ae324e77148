"""Convert errors of other libraries while a model is loaded into problems with a place and a fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from qwen_task_heads.errors import Problem, TaskHeadsError, error_at
from qwen_task_heads.hubcode.errors_task_heads import TaskHeadError


@contextmanager
def as_our_errors() -> Iterator[None]:
    """Raise errors of loading as `TaskHeadsError`, which a recipe prints without a traceback.

    Raises:
        TaskHeadsError: instead of an error of `hubcode`, of safetensors, of a file that transformers or peft
            needs, or of a package that is not installed.

    Example:
        >>> from qwen_task_heads.loading_errors import as_our_errors
        >>> with as_our_errors():
        ...     loaded = True
    """
    try:
        yield
    except TaskHeadError as error:
        problem = Problem(error.where, error.problem, error.expected, error.fix, code=error.code)
        raise TaskHeadsError(problem) from error
    except SafetensorError as error:
        raise error_at(
            "*.safetensors",
            f"the file is corrupted ({error})",
            "complete tensors",
            "fetch or save it again",
            code="model-corrupted",
        ) from error
    except OSError as error:  # a file that transformers or peft needs
        reason = " ".join(str(error).split(". ")[0].split())[:200]
        raise error_at(
            "model files",
            reason,
            "all files of a saved model",
            "fetch or save it again, or check the network",
            code="model-not-found",
        ) from error
    except ImportError as error:  # of bitsandbytes, flash-attn, ...
        raise error_at(
            "model options",
            f"a package is not installed ({' '.join(str(error).split())[:200]})",
            "options whose packages are installed",
            "install it, or drop the option",
            code="package-missing",
        ) from error


def config_problem(error: ValueError) -> Problem:
    """Convert an error of a config, whose fields are options of a recipe.

    Args:
        error: a `TaskHeadError` of a field, or a validation error of transformers.

    Example:
        >>> from qwen_task_heads.hubcode.errors_task_heads import refuse
        >>> from qwen_task_heads.loading_errors import config_problem
        >>> config_problem(refuse("head_dropout", 1, "below 1", "choose 0.1", code="option-range")).where
        '--head_dropout'
    """
    if isinstance(error, TaskHeadError):
        return Problem(f"--{error.where}", error.problem, error.expected, error.fix, code=error.code)
    return Problem(
        "config",
        " ".join(str(error).split()),
        "values of the types in TaskHeadConfig",
        "correct the option",
        code="config-invalid",
    )
