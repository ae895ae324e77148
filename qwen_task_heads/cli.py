"""The console script: `qth COMMAND [options]` runs a recipe that is installed with the package.

Names of options are checked and `--help` is printed from `assets/options.json`, before torch is imported.
With `--accelerate_config` a command starts under `accelerate launch`; without, it runs in this process.
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import re
import runpy
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qwen_task_heads import option_catalog, registration
from qwen_task_heads.commands import COMMANDS, recipes
from qwen_task_heads.errors import Problem, TaskHeadsError, error_at, shorten

WIDTH = 100
PIPE_CLOSED = 141  # what shells report for SIGPIPE


PACKAGES = (
    "qwen-task-heads",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
    "numpy",
    "scikit-learn",
    "huggingface_hub",
    "modelscope",
    "vllm",
    "bitsandbytes",
)
HELP = ("help", "help_all")
PARSED_HERE = (*HELP, "config", "accelerate_config")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script.

    Args:
        argv: words after the name of the script; None for those of this process.

    Returns:
        The exit code: 0, 2 for bad input, or that of the recipe; `data`: 1 for errors, 3 for warnings.

    Example:
        >>> from qwen_task_heads.cli import main
        >>> main(["clasify"])  # prints: qth clasify: found an unknown command. Expected classify. ...
        2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(version("qwen-task-heads"))
        return 0
    try:
        code = run(words[0], words[1:])
        sys.stdout.flush()
        return code
    except TaskHeadsError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except BrokenPipeError:  # the reader of the pipe has ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def run(name: str, words: list[str]) -> int:
    """Run one command with the words that follow its name; return its exit code.

    Raises:
        TaskHeadsError: an unknown command, option, preset or accelerate config.
    """
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1) or list(COMMANDS)
        raise error_at(
            f"qth {name}",
            "found an unknown command",
            ", ".join(near),
            f"type qth {near[0]}" if len(near) == 1 else "choose one of them",
            code="option-unknown",
        )
    accelerate = None
    if COMMANDS[name].recipe:
        words, accelerate, preset = _resolve(words)
        name = _command_for(name, preset)
    command, options = COMMANDS[name], option_catalog.read().get(name)
    if command.first and words and not words[0].startswith("-"):
        words = [f"--{command.first}", *words]
    if {"-h", "--help", "--help_all"} & set(words) and (options is not None or not command.recipe):
        print(help_text(name, options or [], everything="--help_all" in words))
        return 0
    of_file = {"--input", "--config"}
    is_query = name == "predict" and not of_file & {word.split("=")[0] for word in words}
    problems = []
    if options is not None:
        problems = option_problems(words, options, parsed_here=PARSED_HERE if command.recipe else HELP)
        problems = problems or ([] if is_query else missing_options(words, options))
    if problems:
        raise TaskHeadsError(problems)
    if name == "env":
        print(environment())
        return 0
    if name == "data":
        return _check_data(words)
    script = str(recipes() / f"{command.recipe}.py")
    if is_query:
        return _ask(words)
    if accelerate is not None:
        from accelerate.commands.launch import launch_command, launch_command_parser

        launch = ["--quiet", "--config_file", accelerate, *_processes(words), script, *words]
        launch_command(launch_command_parser().parse_args(launch))
        return 0
    return _run_script(script, words)


def presets() -> dict[str, Path]:
    """Return the presets by name, as `--config NAME` takes them."""
    found = sorted((recipes() / "configs").glob("*.yaml"))
    return {path.stem: path for path in found if path.read_text(encoding="utf-8").startswith("# qth ")}


def accelerate_configs() -> dict[str, Path]:
    """Return the configs of accelerate by name, as `--accelerate_config NAME` takes them."""
    return {path.stem: path for path in sorted((recipes() / "accelerate").glob("*.yaml"))}


def overview() -> str:
    """Return the help of the console script: its commands, presets and accelerate configs."""
    lines = ["usage: qth COMMAND [--config NAME_OR_FILE] [--accelerate_config NAME_OR_FILE] [options]", ""]
    lines += [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    for title, names in (("--config", presets()), ("--accelerate_config", accelerate_configs())):
        lines += ["", f"Names for {title}:", *_wrapped(", ".join(names), indent=2)]
    return "\n".join([*lines, "", "qth COMMAND --help lists the options of a command."])


def help_text(name: str, options: list[dict[str, Any]], *, everything: bool) -> str:
    """Return the help of a command: the options of this package by group, and all others on demand.

    Args:
        name: of the command.
        options: from `option_catalog.read`.
        everything: include the options of transformers and trl.
    """
    lines = [f"usage: qth {name} {COMMANDS[name].usage}".rstrip(), "", COMMANDS[name].summary]
    inherited = [one for one in options if one["group"] == option_catalog.OTHERS]
    shown = options if everything else [one for one in options if one not in inherited]
    for group in dict.fromkeys(one["group"] for one in shown):
        lines += ["", group]
        for one in (one for one in shown if one["group"] == group):
            values = one["default"] if isinstance(one["default"], list) else [one["default"]]
            default = f" (default: {' '.join(map(str, values))})" if values not in ([], [None], [""]) else ""
            choices = "" if one["choices"] is None else f" One of: {', '.join(map(str, one['choices']))}."
            lines.append(f"  --{one['name']} {one['type']}")
            lines += _wrapped(f"{one['help']}{choices}{default}", indent=6)
    if inherited and not everything:
        lines += ["", f"--help_all also lists {len(inherited)} options of transformers and trl."]
    return "\n".join(lines)


def option_problems(
    words: Sequence[str], options: list[dict[str, Any]], *, parsed_here: Sequence[str] = PARSED_HERE
) -> list[Problem]:
    """Return the problems of a command line that need no import: unknown options, and values of a list.

    Args:
        words: of the command line, after the command.
        options: from `option_catalog.read`.
        parsed_here: options of `qth` itself.

    Example:
        >>> from qwen_task_heads import option_catalog
        >>> from qwen_task_heads.cli import option_problems
        >>> [problem] = option_problems(["--learning_rat", "1e-4"], option_catalog.read()["titles"])
        >>> problem.where, problem.expected
        ('--learning_rat', '--learning_rate')
    """
    known, problems = {one["name"]: one for one in options}, []
    names = {*known, *parsed_here}
    for word, following in zip(words, [*words, ""][1:], strict=True):
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name in parsed_here or name.removeprefix("no_") in parsed_here:
            continue
        one = known.get(name, known.get(name.removeprefix("no_")))
        value = value if equals else following
        if one is None:
            near = [f"--{one}" for one in difflib.get_close_matches(name, names, n=2)]
            expected = " or ".join(near) or "an option of --help"
            fix = "correct its name, or drop it" if near else "drop it"
            problems.append(
                Problem(f"--{name}", "found an unknown option", expected, fix, code="option-unknown")
            )
        elif one["choices"] and value not in one["choices"]:
            found, expected = f"found {shorten(value)}", ", ".join(one["choices"])
            problems.append(Problem(f"--{name}", found, expected, "choose one of them", code="option-value"))
    return problems


def missing_options(words: Sequence[str], options: list[dict[str, Any]]) -> list[Problem]:
    """Return a problem for each required option that neither the words nor a `--config` file can have."""
    given = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in words if word[:2] == "--"}
    return [
        Problem(f"--{one['name']}", "found nothing", one["help"], "name it", code="option-missing")
        for one in options
        if one.get("required") and not given & {one["name"], "config"}
    ]


def environment() -> str:
    """Return versions and hardware as lines of Markdown."""
    import torch

    lines = [f"- platform: {platform.platform()}", f"- python: {platform.python_version()}"]
    for name in PACKAGES:
        try:
            lines.append(f"- {name}: {version(name)}")
        except PackageNotFoundError:
            continue
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    lines.append(f"- CUDA: {', '.join(devices) or 'none'}")
    lines.append(f"- CPU: {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}")
    lines += ["", "Next: qth data FILE_OR_FOLDER checks your data; qth titles --config quick_start trains."]
    return "\n".join(lines)


def _check_data(words: list[str]) -> int:
    """Print what training reads of a source and what the checks found; return `DataInspection.exit_code`."""
    from transformers import HfArgumentParser

    from qwen_task_heads.data_checks.arguments import DataCheckArguments
    from qwen_task_heads.data_checks.inspection import inspect_data

    parser = HfArgumentParser(DataCheckArguments, prog="qth data")
    parser.add_argument("source", metavar="FILE_OR_FOLDER")
    parsed = vars(parser.parse_args(words))
    source, options = parsed.pop("source"), DataCheckArguments(**parsed)
    report = inspect_data(source, options)
    print(json.dumps(report.as_dict(), ensure_ascii=False, indent=2) if options.json else report)
    if options.output_dir and not report.problems and not options.json:
        print(f"Report: {Path(options.output_dir) / 'report.html'}")
    return report.exit_code


def _resolve(words: list[str]) -> tuple[list[str], str | None, Path | None]:
    """Return the words with a preset's name replaced by its file, the accelerate config, and that file."""
    found: list[str] = []
    accelerate, preset = None, None
    named = ("--config=", "--accelerate_config=")
    parts = iter(
        [part for word in words for part in (word.split("=", 1) if word.startswith(named) else [word])]
    )
    for word in parts:
        if word == "--config":
            preset = Path(_named(next(parts, ""), word, presets()))
            found += [word, str(preset)]
        elif word == "--accelerate_config":
            accelerate = _named(next(parts, ""), word, accelerate_configs())
        else:
            found.append(word)
    return found, accelerate, preset


def _command_for(name: str, preset: Path | None) -> str:
    """Return the command of a preset, which its first line names; `name` if it names none.

    A preset of `qth sweep` that states `task: titles` is also one of `qth titles`.
    """
    if preset is None:
        return name
    lines = preset.read_text(encoding="utf-8", errors="replace").splitlines()
    first = re.match(r"# qth (\w+):", lines[0] if lines else "")
    if first is None or first[1] == name:
        return name
    if f"task: {name}" in lines:
        print(f"{preset.stem} is a preset of qth {first[1]}.", flush=True)
        return first[1]
    raise error_at(
        "--config",
        f"found {preset.stem!r}, a preset of qth {first[1]}",
        f"a preset of qth {name}",
        f"type qth {first[1]} --config {preset.stem}",
        code="option-conflict",
    )


def _named(value: str, option: str, known: dict[str, Path]) -> str:
    if Path(value).is_file():
        return value
    if value in known:
        return str(known[value])
    near = difflib.get_close_matches(value, known, n=1)
    raise error_at(
        option,
        f"found {value!r}, which is neither a file nor a name",
        f"a YAML file, or {', '.join(known)}",
        f"type {option} {near[0]}" if near else "choose one of the names",
        code="path-not-found",
    )


def _processes(words: list[str]) -> list[str]:
    """Return `--num_processes N` for accelerate; the recipe keeps it, and fails if fewer start."""
    split = [part for word in words for part in word.split("=", 1)]
    if "--num_processes" not in split[:-1]:
        return []
    return ["--num_processes", split[split.index("--num_processes") + 1]]


def _run_script(script: str | None, words: list[str]) -> int:
    """Run a recipe, or the package itself for None, as the main module of this process."""
    registration.install()
    before, sys.argv = sys.argv, [script or str(__package__), *words]
    try:
        if script is None:
            runpy.run_module(str(__package__), run_name="__main__")
        else:
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return 0


def _ask(words: list[str]) -> int:
    """Answer texts of the command line: `qth predict --model MODEL TEXT ...`."""
    if "--model" in words[:-1]:
        place = words.index("--model")
        words = [words[place + 1], *words[:place], *words[place + 2 :]]
    return _run_script(None, words)


def _wrapped(text: str, *, indent: int) -> list[str]:
    space = " " * indent
    return textwrap.wrap(text, WIDTH, initial_indent=space, subsequent_indent=space)


if __name__ == "__main__":
    sys.exit(main())
