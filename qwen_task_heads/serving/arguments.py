"""Options of `qth serve`."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from qwen_task_heads.errors import Problem, TaskHeadsError, least_problems
from qwen_task_heads.hubs import HUBS, HUGGINGFACE
from qwen_task_heads.inference.arguments import CommandLineOptions
from qwen_task_heads.serving.request_limits import RequestLimits

TOKEN = "QWEN_TASK_HEADS_API_KEY"


@dataclass(kw_only=True)
class ServeArguments(CommandLineOptions):
    """Options of the server.

    Args:
        model: folder or repo id of a classifier or title scorer, also an adapter.
        host: address to listen on; others than loopback need the token in the environment.
        port: port; 0 for a free one.
        hub: hub of repo ids.
        revision: branch, tag or commit.
        device: `auto` for the GPU if there is one.
        dtype: dtype of the backbone; `auto` as saved.
        int8: on a CPU, multiply in int8.
        batch_tokens: tokens per batch.
        max_waiting_tokens: tokens that may wait before requests are refused with 503.
        max_body_bytes: largest request.
        max_rows: most texts or titles of a request.
        read_seconds: time in which a request must arrive.
        answer_seconds: time in which it must be answered.
    """

    model: str = field(metadata={"help": "Folder or repo id of a classifier or title scorer."})
    host: str = field(
        default="127.0.0.1",
        metadata={"help": f"Address to listen on; another than loopback needs the variable {TOKEN}."},
    )
    port: int = field(default=8000, metadata={"help": "Port; 0 for a free one."})
    hub: str = field(default=HUGGINGFACE, metadata={"choices": list(HUBS), "help": "Hub to load from."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    device: str = field(default="auto", metadata={"help": "Device; auto: the GPU if there is one."})
    dtype: str = field(
        default="auto",
        metadata={"choices": ["auto", "float32", "bfloat16", "float16"], "help": "auto: as saved."},
    )
    int8: bool = field(
        default=False, metadata={"help": "On a CPU: multiply in int8; answers may change slightly."}
    )
    batch_tokens: int = field(default=8192, metadata={"help": "Tokens per batch."})
    max_waiting_tokens: int = field(
        default=1_000_000, metadata={"help": "Tokens that may wait; beyond it requests get HTTP 503."}
    )
    max_body_bytes: int = field(
        default=RequestLimits.body_bytes, metadata={"help": "Largest request in bytes."}
    )
    max_rows: int = field(default=RequestLimits.rows, metadata={"help": "Most texts or titles of a request."})
    read_seconds: float = field(
        default=RequestLimits.read_seconds, metadata={"help": "Seconds in which a request must arrive."}
    )
    answer_seconds: float = field(
        default=RequestLimits.answer_seconds, metadata={"help": "Seconds in which it must be answered."}
    )

    def __post_init__(self) -> None:
        """Validate the numbers, and the token for addresses other than loopback."""
        least = {"port": 0, "batch_tokens": 1, "max_waiting_tokens": 1, "max_body_bytes": 1, "max_rows": 1}
        problems = least_problems(self, least)
        if self.port > 65535:
            found = f"found {self.port}"
            problems.append(Problem("--port", found, "at most 65535", "lower it", code="option-range"))
        problems += [
            Problem(f"--{name}", f"found {value:g}", "more than 0", "raise it", code="option-range")
            for name in ("read_seconds", "answer_seconds")
            if not (value := vars(self)[name]) > 0
        ]
        if not is_loopback(self.host) and not self.token:
            problems.append(
                Problem(
                    "--host",
                    f"found {self.host!r} without a token",
                    f"a bearer token in {TOKEN}, since other machines can send requests",
                    f"export {TOKEN}=$(python -c 'import secrets; print(secrets.token_urlsafe())')",
                    code="option-missing",
                )
            )
        if problems:
            raise TaskHeadsError(problems)

    @property
    def token(self) -> str | None:
        """Bearer token of the environment; None if there is none."""
        return os.environ.get(TOKEN) or None

    @property
    def limits(self) -> RequestLimits:
        """Limits of a request."""
        return RequestLimits(
            body_bytes=self.max_body_bytes,
            rows=self.max_rows,
            read_seconds=self.read_seconds,
            answer_seconds=self.answer_seconds,
        )


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def public_name(model: str) -> str:
    """Return the name of a model without the path of its folder, which is no matter of clients.

    Example:
        >>> from qwen_task_heads.serving.arguments import public_name
        >>> public_name("me/titles")
        'me/titles'
    """
    path = Path(model)
    return path.resolve().name if path.is_dir() else model
