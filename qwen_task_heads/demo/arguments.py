"""Options of `qth demo`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from qwen_task_heads.errors import Problem, TaskHeadsError, least_problems
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.inference.arguments import CommandLineOptions
from qwen_task_heads.serving.arguments import is_loopback

LOGIN = "QWEN_TASK_HEADS_DEMO_LOGIN"
PASSWORD = "python -c 'import secrets; print(secrets.token_urlsafe())'"


@dataclass(kw_only=True)
class DemoArguments(CommandLineOptions):
    """Options of the demo.

    Args:
        model: folder or repo id of a classifier or title scorer, also an adapter.
        compare: a second model of the same kind, whose answers are shown next to the first.
        host: address to listen on; others than loopback need a login in the environment.
        port: port; 0 for a free one.
        mcp: also serve the functions of the page as tools of an MCP server.
        space: write the files of a Hugging Face Space to this folder, and start nothing.
        hub: hub of repo ids.
        revision: branch, tag or commit of `model`.
        device: `auto` for the GPU if there is one.
        dtype: dtype of the backbone; `auto` as saved.
        max_titles: most titles of a list.
        max_characters: most characters of a text, or of a list of titles and its prompt.
        max_words: most words of a text whose words are attributed.

    Raises:
        TaskHeadsError: a number out of range, an address other than loopback without a login, a Space of a
            folder, or packages of the demo that are not installed; all in one error.

    Example:
        >>> from qwen_task_heads import DemoArguments
        >>> DemoArguments(model="me/news", compare="me/news-small", port=0).host
        '127.0.0.1'
    """

    model: str = field(metadata={"help": "Folder or repo id of a classifier or title scorer."})
    compare: str | None = field(
        default=None, metadata={"help": "Second model of the same kind, shown next to the first."}
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": f"Address to listen on; another than loopback needs user:password in {LOGIN}."},
    )
    port: int = field(default=7860, metadata={"help": "Port; 0 for a free one."})
    mcp: bool = field(default=False, metadata={"help": "Also serve an MCP server with the same functions."})
    space: str | None = field(
        default=None, metadata={"help": "Write the files of a Hugging Face Space here, and start nothing."}
    )
    hub: str = field(default=HUGGINGFACE, metadata={"choices": list(HUBS), "help": "Hub to load from."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    device: str = field(default="auto", metadata={"help": "Device; auto: the GPU if there is one."})
    dtype: str = field(
        default="auto",
        metadata={"choices": ["auto", "float32", "bfloat16", "float16"], "help": "auto: as saved."},
    )
    max_titles: int = field(default=100, metadata={"help": "Most titles of a list."})
    max_characters: int = field(
        default=20_000, metadata={"help": "Most characters of a text, or of a list of titles."}
    )
    max_words: int = field(default=100, metadata={"help": "Most words of a text whose words are attributed."})

    def __post_init__(self) -> None:
        """Validate the numbers, the login for addresses other than loopback, the Space and the packages."""
        least = {"port": 0, "max_titles": 1, "max_characters": 1, "max_words": 1}
        problems = least_problems(self, least)
        if self.port > 65535:
            found = f"found {self.port}"
            problems.append(Problem("--port", found, "at most 65535", "lower it", code="option-range"))
        if self.space is not None:
            problems += self._space_problems(self.space)
        elif os.environ.get(LOGIN) and self.login is None:
            fix = f"export {LOGIN}=demo:$({PASSWORD})"
            problems.append(Problem(LOGIN, "found another format", "user:password", fix, code="option-value"))
        elif not is_loopback(self.host) and self.login is None:
            problem = f"found {self.host!r} without user:password in {LOGIN}"
            expected = "a login, since other machines can open the page"
            fix = f"export {LOGIN}=demo:$({PASSWORD})"
            problems.append(Problem("--host", problem, expected, fix, code="option-missing"))
        if self.mcp and self.space is None and self.login is not None:
            problem, expected = f"found with a login in {LOGIN}", "no login, since no MCP client can log in"
            fix = f"drop it, or unset {LOGIN}"
            problems.append(Problem("--mcp", problem, expected, fix, code="option-conflict"))
        # A Space gets the version of gradio that is installed here, and installs mcp by itself.
        packages = {"gradio": "qwen-task-heads[demo]", **({"mcp": "gradio[mcp]"} if self.mcp else {})}
        for package, needed in packages.items():
            if find_spec(package) is None and not (self.space and package == "mcp"):
                problem, fix = f"{package} is not installed", f"pip install '{needed}'"
                where = "--mcp" if package == "mcp" else "qth demo"
                problems.append(Problem(where, problem, needed, fix, code="package-missing"))
        if problems:
            raise TaskHeadsError(problems)

    def _space_problems(self, folder: str) -> list[Problem]:
        problems = []
        for option, name in (("--model", self.model), ("--compare", self.compare)):
            if name is not None and Path(name).exists():
                expected = "a repo id, since a Space loads its model from a hub"
                fix = "publish it, and give its id"
                problems.append(
                    Problem(option, f"found the folder {name!r}", expected, fix, code="option-value")
                )
        path = Path(folder)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            fix = "name another folder, or empty it"
            problems.append(
                Problem("--space", f"found {folder!r}", "a new or empty folder", fix, code="path-exists")
            )
        return problems

    @property
    def login(self) -> tuple[str, str] | None:
        """User and password of the environment; None without both."""
        user, _, password = os.environ.get(LOGIN, "").partition(":")
        return (user, password) if user and password else None
