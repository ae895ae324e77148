"""A command line and its `--config` file before they are parsed, and what other parsers refuse of them."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from qwen_task_heads.errors import Problem, shorten
from qwen_task_heads.tokenization.templates import SHELL_TEXTS, from_shell


def unusable(argv: Sequence[str], reason: str) -> Problem:
    """Turn a refusal of transformers or trl into a problem of the option that it names.

    Args:
        argv: words of the command line.
        reason: text of their error; it may name an option, or quote a value.

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
    remedy = "see --help for what each option takes"
    remedy = remedy if where == "arguments" else f"drop it, or {remedy}"
    return Problem(where, f"found {shorten(' '.join(reason.split()), 300)}", "values as in --help", remedy)


def with_line_breaks(argv: Sequence[str]) -> list[str]:
    r"""Read `\n` and `\t` in `--instruction`, `--between` and `--boundary` as a shell hands them over.

    A YAML config holds real line breaks, and is left alone.

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


def stated_backbone(argv: Sequence[str], default: str) -> str:
    """Return the backbone of a command line, or the default."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model_name_or_path", "--model-name-or-path", default=default)
    return parser.parse_known_args([*argv])[0].model_name_or_path


def stated_value(name: str, argv: Sequence[str]) -> str | None:
    """Return what the command line, or else its `--config` file, states for one option; None for nothing.

    What is wrong with the file or the words is left to `read_config` and the parser.

    Example:
        >>> from qwen_task_heads.training.command_lines import stated_value
        >>> stated_value("task", ["--task", "titles"]), stated_value("task", ["--tasks", "titles"])
        ('titles', None)
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(f"--{name}")
    parser.add_argument("--config")
    try:
        found, _ = parser.parse_known_args([*argv])
        content = yaml.safe_load(Path(found.config).read_text(encoding="utf-8")) if found.config else {}
    except (argparse.ArgumentError, OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    value = vars(found)[name] or (content.get(name) if isinstance(content, dict) else None)
    return None if value is None else str(value)


def read_config(argv: Sequence[str], known: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """Read the file of `--config` before trl does: what it states, and its defects, all at once.

    Args:
        argv: words of the command line.
        known: names of all options.
    """
    if "--config" not in argv[:-1]:
        return {}, []
    path = Path(argv[[*argv].index("--config") + 1])
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.yaml"))[:8]) or "none"
        found = " ".join(str(error).split())[:200]
        remedy = f"check the path (YAML files there: {there})"
        return {}, [Problem(str(path), found, "a YAML file", remedy)]
    if not isinstance(content, dict):
        found, accepted = f"found {shorten(content)}", "a mapping, option: value"
        return {}, [Problem(str(path), found, accepted, "correct the file")]
    return content, [unknown_option(f"{path}: {key}", str(key), known) for key in content if key not in known]


def unknown_option(where: str, name: str, known: Sequence[str]) -> Problem:
    """Return the problem of an option or a key that is not known, with the nearest ones.

    Args:
        where: `--name`, or file and key.
        name: of the option.
        known: names of all options.
    """
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=2)
    return Problem(
        where,
        "found an unknown option",
        "" + (", ".join(near) or "those of --help"),
        "correct its name, or drop it" if near else "drop it",
    )
