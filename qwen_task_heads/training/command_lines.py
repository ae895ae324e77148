"""Command lines and their `--config` files: problems that other parsers do not report, and parsing."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

from qwen_task_heads.errors import Problem, TaskHeadsError, shorten
from qwen_task_heads.tokenization.templates import SHELL_TEXTS, from_shell
from qwen_task_heads.training.backbone_defaults import options_for


def parse_groups(groups: Sequence[Any], argv: Sequence[str] | None, *, recipe: str | None = None) -> Any:
    """Parse the command line and the `--config` YAML into dataclasses; the command line wins.

    Args:
        groups: dataclasses of options.
        argv: words of the command line; None for those of this process.
        recipe: key of `backbone_defaults.py`, whose options precede the defaults of the dataclasses.

    Returns:
        An object of each dataclass.

    Raises:
        TaskHeadsError: the config file is missing or not a mapping, a key is unknown, or a value is not
            usable.
    """
    known = sorted({item.name for group in groups for item in fields(group)} | {"env", "config"})
    words, stated = checked_words(sys.argv[1:] if argv is None else argv, known)
    try:
        parser = TrlParser(groups)
        if recipe is not None:
            usual = stated.get("model_name_or_path", parser.get_default("model_name_or_path"))
            backbone = stated_value("model_name_or_path", words) or usual
            parser.set_defaults_with_config(**options_for(recipe, backbone))
        return parser.parse_args_and_config(words)
    except TaskHeadsError:
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise TaskHeadsError(unusable(words, str(error))) from error


def unusable(argv: Sequence[str], reason: str) -> Problem:
    """Turn an error of transformers or trl into a problem of the option that it names.

    Args:
        argv: words of the command line.
        reason: text of the error, which may name an option or quote a value.

    Example:
        >>> from qwen_task_heads.training.command_lines import unusable
        >>> unusable(["--warmup_steps", "-1"], "Got warmup_steps = -1.0").where
        '--warmup_steps'
    """
    words = set(re.findall(r"[\w.-]+", reason))
    named = [word for word in argv if word.startswith("--") and words & {word, word[2:].replace("-", "_")}]
    quoted = [
        option
        for option, value in pairwise(argv)
        if option.startswith("--") and len(value) > 2 and value in words
    ]
    where, *_ = [*named, *reversed(quoted), "arguments"]
    fix = "see --help for the values of each option"
    return Problem(
        where,
        f"found {shorten(' '.join(reason.split()), 300)}",
        "a value that --help lists",
        fix if where == "arguments" else f"drop it, or {fix}",
        code="option-value",
    )


def with_line_breaks(argv: Sequence[str]) -> list[str]:
    r"""Unescape `\n` and `\t` in `--instruction`, `--between` and `--boundary` of a shell.

    YAML files contain real line breaks and are not changed.

    Example:
        >>> from qwen_task_heads.training.command_lines import with_line_breaks
        >>> with_line_breaks(["--between", r"\n", "--output_dir", r"C:\new"])[1::2] == [chr(10), r"C:\new"]
        True
    """
    options = tuple(f"--{name}" for name in SHELL_TEXTS)
    words: list[str] = []
    for before, word in zip(["", *argv], argv, strict=False):
        option, equals, value = word.partition("=")
        if before in options:
            word = from_shell(word)
        elif option in options and equals:
            word = option + equals + from_shell(value)
        words.append(word)
    return words


def stated_value(name: str, argv: Sequence[str]) -> str | None:
    """Return the value of one option in the command line, else in its `--config` file, else None.

    Problems of the file or the words are left to `read_config` and the parser.

    Example:
        >>> from qwen_task_heads.training.command_lines import stated_value
        >>> stated_value("task", ["--task", "titles"]), stated_value("task", ["--tasks", "titles"])
        ('titles', None)
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}")
    parser.add_argument("--config")
    try:
        parsed, _ = parser.parse_known_args([*argv])
        content = yaml.safe_load(Path(parsed.config).read_text(encoding="utf-8")) if parsed.config else {}
    except (argparse.ArgumentError, OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    value = vars(parsed)[name] or (content.get(name) if isinstance(content, dict) else None)
    return None if value is None else str(value)


def read_config(argv: Sequence[str], known: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """Read the file of `--config` before trl does, and return its content and all of its problems.

    Args:
        argv: words of the command line.
        known: names of all options.

    Returns:
        Option to value, and the problems; the mapping is empty without a readable file.
    """
    if "--config" not in argv[:-1]:
        return {}, []
    path = Path(argv[[*argv].index("--config") + 1])
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        files = ", ".join(sorted(file.name for file in path.parent.glob("*.yaml"))[:8]) or "none"
        problem = " ".join(str(error).split())[:200]
        codes = {FileNotFoundError: "path-not-found", UnicodeDecodeError: "file-encoding"}
        code = codes.get(type(error), "path-access" if isinstance(error, OSError) else "file-format")
        fix = f"check the path (YAML files there: {files})"
        return {}, [Problem(str(path), problem, "a YAML file", fix, code=code)]
    if not isinstance(content, dict):
        problem, expected = f"found {shorten(content)}", "a mapping of option to value"
        return {}, [Problem(str(path), problem, expected, "correct the file", code="file-format")]
    return content, [unknown_option(f"{path}: {key}", str(key), known) for key in content if key not in known]


def unknown_option(where: str, name: str, known: Sequence[str]) -> Problem:
    """Return the problem of an unknown option or key, with the nearest known names.

    Args:
        where: `--name`, or file and key.
        name: name of the option.
        known: names of all options.
    """
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=2)
    return Problem(
        where,
        "the option is unknown",
        ", ".join(near) or "an option that --help lists",
        "correct its name, or drop it" if near else "drop it",
        code="option-unknown",
    )


def checked_words(argv: Sequence[str], known: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the words of a command line as trl's parser takes them, and the content of its `--config` file.

    Args:
        argv: words of the command line.
        known: names of all options.

    Raises:
        TaskHeadsError: a file that cannot be read, and all unknown options and keys.
    """
    # trl accepts --config as a word of its own and treats `--config=file` as an unknown option.
    words = [
        part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])
    ]
    words = with_line_breaks(words)
    stated, problems = read_config(words, known)
    problems += [
        unknown_option(f"--{name}", name, known)
        for name in (word[2:].split("=")[0] for word in words if word.startswith("--"))
        if not {name.replace("-", "_"), name.replace("-", "_").removeprefix("no_"), name} & {*known, "help"}
    ]
    if problems:
        raise TaskHeadsError(problems)
    return words, stated
