"""Commands in the README and in docs/ exist, with options, values and files; blocks of Python compile.

`test_pages_run.py` runs the blocks.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from documentation import CHINESE, ENGLISH, NEEDS, PAGES, REPO, Block, blocks_of, name_of

from qwen_task_heads import cli, option_catalog

COMMANDS = [
    pytest.param(words, id=f"{name_of(page)}: {' '.join(words)}")
    for page in PAGES
    for block in blocks_of(page)
    if block.language == "bash"
    for words in block.commands
]
PROJECT = (REPO / "pyproject.toml").read_text(encoding="utf-8")
LAUNCHERS = {path.stem for path in (REPO / "recipes" / "accelerate").glob("*.yaml")}
MAKEFILE = (REPO / "Makefile").read_text(encoding="utf-8")
# Commands of other programs, whose options are not checked.
OTHER_PROGRAMS = ("hf", "vllm", "llama-server", "transformers", "curl", "export", ".venv/bin/pre-commit")
# Options of `accelerate launch` and of servers that the text of a page names.
OTHER_OPTIONS = {
    "config_file", "num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port",
    "quiet", "help", "help_all", "config", "accelerate_config", "nproc_per_node", "max-model-len",
    "no-deps", "logdir", "dtype", "version", "full", "qwen",
}  # fmt: skip
# Data of the reader, in blocks that need a GPU.
READERS_FILES = {"reviews.jsonl", "reviews_test.jsonl", "clicks.jsonl", "clicks_test.jsonl", "big.jsonl"}
INPUTS = {
    "--dataset_name",
    "--dev_dataset",
    "--test_dataset",
    "--mix",
    "--labels",
    "--input",
    "--model",
    "--reward_model",
    "--init_head",
    "--engines",
}
OUTPUTS = {"--output_dir", "--output", "--dry_run", "--feature_cache"}
FILE = re.compile(r"(runs|recipes|staged[\w-]*)/[\w./-]+|[\w-]+\.(jsonl|json|yaml|csv|txt|py)")

NOT_YET = {"hubcode/families_task_heads.py", "data/schema.py"}  # files that a page names in advance


class Parsed(Exception):
    """Options were parsed without an error."""


def parsed_by_the_recipe(words: list[str], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether a recipe with a parser of its own accepts the words; it then ends."""
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parse(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    try:
        cli.main(words)
    except Parsed:
        return True
    return False


def values_of(words: list[str]) -> list[tuple[str, list[str]]]:
    """Return (option, its values) in order; words before the first option belong to ""."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for word in words:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            found.append((option, [value] if equals else []))
        else:
            found[-1][1].append(word)
    return found


def wrong_options(words: list[str], options: list[dict[str, Any]], *, texts: bool = False) -> list[str]:
    """Return the options that a command does not have, and values of another type or none of the choices.

    Args:
        words: of the command line, after the command.
        options: from `option_catalog.read`.
        texts: whether texts may follow the value of an option.
    """
    known = {f"--{one['name']}": one for one in options}
    patterns = {"N": r"-?\d+", "X": r"-?\d+(\.\d+)?(e-?\d+)?", "true|false": "true|false"}
    wrong = []
    for name, values in values_of(words)[1:]:
        if name in ("--config", "--accelerate_config"):
            known_names = {*cli.presets(), *LAUNCHERS}
            wrong += [f"{name} {value}" for value in values if value not in known_names]
        elif (option := known.get(name)) is None:
            wrong.append(name)
        elif values or option["type"] != "true|false":
            kind = option["type"].removesuffix(" ...")
            pattern = patterns.get(kind, "(?s).+")
            if option["choices"] is not None and kind not in patterns:
                pattern = "|".join(re.escape(str(choice)) for choice in option["choices"])
            if not values or (len(values) > 1 and not (texts or option["type"].endswith("..."))):
                wrong.append(f"{name} {values}")
            checked = values if option["type"].endswith("...") and not texts else values[:1]
            wrong += [f"{name} {value}" for value in checked if not re.fullmatch(pattern, value)]
    return wrong


def command_of(command: str, words: list[str]) -> str:
    """Return the command whose options apply: that of the preset, if one is named."""
    preset = dict(values_of(words)).get("--config", [""])[0]
    if preset not in cli.presets():
        return command
    lines = cli.presets()[preset].read_text(encoding="utf-8").splitlines()
    [named] = re.findall(r"^# qth (\w+):", lines[0])
    assert named == command or f"task: {command}" in lines
    return named


# An earlier test may have imported the module.
@pytest.mark.filterwarnings("ignore:'qwen_task_heads.__main__' found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("words", COMMANDS)
def test_commands_exist_with_their_options(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program, *rest = words
    if program == "accelerate":
        [place] = [n for n, word in enumerate(rest) if re.fullmatch(r"recipes/\w+\.py", word)]
        recipe = Path(rest[place]).stem
        [command] = [name for name, one in cli.COMMANDS.items() if one.recipe == recipe]
        program, rest = "qth", [command, *rest[place + 1 :]]
    if program == "qth":
        command, *rest = rest
        assert command in cli.COMMANDS
        options = option_catalog.read().get(command_of(command, rest))
        if options is None:
            assert command == "env" or parsed_by_the_recipe([command, *rest], monkeypatch)
        else:
            assert wrong_options(rest, options, texts=command == "predict") == []
    elif program == "pip":
        assert rest[0] == "install"
        extras = [name for word in rest for name in re.findall(r"^qwen-task-heads\[(.*)\]$", word)]
        assert all(f"\n{extra} = [" in PROJECT for names in extras for extra in names.split(","))
        pinned = [word for word in rest if "==" in word]
        assert all(f"\n{word} " in (REPO / "weights.txt").read_text(encoding="utf-8") for word in pinned)
    elif program == "make":
        assert re.search(rf"^{rest[0]}\b.*:", MAKEFILE, re.MULTILINE)
    else:
        assert program in OTHER_PROGRAMS


@pytest.mark.parametrize(
    "line",
    ["--no_such_option 1", "--max_steps many", "--use_peft maybe", "--lr_scheduler_type no", "--config no"],
)
def test_a_wrong_option_is_found(line: str) -> None:
    assert wrong_options(line.split(), option_catalog.read()["classify"]) != []


def files_of_commands(block: Block) -> tuple[set[str], set[str]]:
    """Return the files and folders that the commands of a block read, and those that they write."""
    read, written = set(), set()
    for words in block.commands:
        if words[0] not in ("qth", "accelerate"):
            continue
        for option, values in values_of(words):
            if option in OUTPUTS:
                written |= set(values)
                continue
            if option == "--engines":
                values = [value.partition("=")[2] for value in values]
            elif option in INPUTS:
                read |= {value for value in values[:1] if "/" not in value}
            read |= {value for value in values if FILE.fullmatch(value)}
    return read - {"embedded"}, written


def files_of_python(block: Block) -> tuple[set[str], set[str]]:
    """Return the files and folders that a block of Python reads, and those that it writes."""
    read, written = set(), set()
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and FILE.fullmatch(node.value):
            read.add(node.value)
        if not isinstance(node, ast.Call):
            continue
        texts = [
            one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)
        ]
        function = ast.unparse(node.func)
        if function.endswith("Config") or (function == "open" and texts[1:] == ["w"]):
            written.add(texts[0])
        elif function.endswith(".mkdir"):
            written.add(function.removeprefix("Path('").removesuffix("').mkdir"))
        written |= {
            str(word.value.value)
            for word in node.keywords
            if word.arg == "folder" and isinstance(word.value, ast.Constant)
        }
    return read - written, written


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_exist_or_an_earlier_block_writes_them(page: Path) -> None:
    there: set[str] = set()
    for block in blocks_of(page):
        if block.language not in ("bash", "python"):
            continue
        read, written = files_of_commands(block) if block.language == "bash" else files_of_python(block)
        there |= written | (READERS_FILES if block.needs else set())
        missing = {
            path
            for path in read
            if not (REPO / path).exists() and not {path, *map(str, Path(path).parents)} & there
        }
        assert missing == set(), block.text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_of_python_compile_and_their_imports_exist(page: Path) -> None:
    for block in blocks_of(page):
        if block.language != "python":
            continue
        compile(block.text, page.name, "exec")
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qwen_task_heads"):
                module = importlib.import_module(node.module or "")
                assert [one.name for one in node.names if one.name not in dir(module)] == [], node.module


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_the_text_exist(page: Path) -> None:
    known = {one["name"] for options in option_catalog.read().values() for one in options} | OTHER_OPTIONS
    sources = [*(REPO / "recipes").glob("*.py"), REPO / "qwen_task_heads" / "__main__.py"]
    known |= {name for path in sources for name in re.findall(r'"--(\w+)"', path.read_text(encoding="utf-8"))}
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = {
        option for span in re.findall(r"`([^`]+)`", text) for option in re.findall(r"--([a-z][\w-]*)", span)
    }
    # `--lora_*` names several options.
    starts = {option for option in named if option.endswith("_")}
    assert sorted(named - known - starts) == []
    assert all(any(name.startswith(start) for name in known) for start in starts)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_of_the_repository_in_the_text_exist(page: Path) -> None:
    roots = (REPO, REPO / "qwen_task_heads")
    folders = {path.name for root in roots for path in root.iterdir() if path.is_dir()} - {"runs"}
    spans = re.findall(r"`(\w+/[\w/*.-]*)`", page.read_text(encoding="utf-8"))
    missing = [
        span
        for span in spans
        if span.split("/")[0] in folders and not any(any(root.glob(span)) for root in roots)
    ]
    assert set(missing) <= NOT_YET


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_marked_by_known_needs(page: Path) -> None:
    blocks = blocks_of(page)
    assert {block.needs for block in blocks} <= {"", *NEEDS}
    marks = re.findall(r"^<!-- needs:.*", page.read_text(encoding="utf-8"), re.MULTILINE)
    in_blocks = [
        line for block in blocks for line in block.text.splitlines() if line.startswith("<!-- needs")
    ]
    assert len(marks) - len(in_blocks) == sum(bool(block.needs) for block in blocks)
    languages = {block.language for block in blocks}
    assert languages <= {"bash", "python", "json", "yaml", "text"}
    assert "qth " not in "".join(block.text for block in blocks if block.language == "text")


def without_comments(block: Block) -> object:
    """Return what a block does."""
    if block.language == "bash":
        return block.commands
    return ast.dump(ast.parse(block.text)) if block.language == "python" else block.text


@pytest.mark.parametrize("page", PAGES[2:], ids=name_of)
def test_a_chinese_page_has_the_same_blocks(page: Path) -> None:
    english, chinese = blocks_of(page), blocks_of(CHINESE / page.relative_to(ENGLISH))
    assert [(one.language, one.needs) for one in chinese] == [(one.language, one.needs) for one in english]
    for one, other in zip(english, chinese, strict=True):
        if one.language in ("bash", "python"):
            assert without_comments(other) == without_comments(one)


def test_every_chinese_page_has_an_english_one() -> None:
    pages = {path.relative_to(CHINESE) for path in CHINESE.rglob("*.md")}
    assert pages == {page.relative_to(ENGLISH) for page in PAGES[2:]}
