"""Search for secrets in files that are about to be published, and redact them in messages.

Two kinds of secrets are found: tokens that this process could use (environment, logins), by their value; and
any text with the shape of a token or key. Files are searched as bytes, so that a token in a plot's metadata
or in the header of the weights is found too. No message contains the secret.

A value that is an ordinary word or number is not searched for, because it occurs in unrelated texts and in
the vocabulary of every tokenizer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from qwen_task_heads.errors import Problem
from qwen_task_heads.hubs import HUBS

HIDDEN = "***"
MIN_LENGTH = 8  # a shorter value is not a token and would occur in ordinary words
CHUNK, OVERLAP = 1 << 23, 1 << 12  # bytes; a secret across the boundary of two chunks is in the overlap
# Shorter values of only letters in one case, or of only digits, count as words or numbers.
WORD_LENGTH, FEW_CHARACTERS = 16, 4
# Vocabularies, in which values without a digit are not searched for.
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
)
# After the header of tensors only known values are searched for, which takes a tenth of the time.
TENSORS = (".safetensors", ".onnx", ".data")
_SECRET_WORDS = {"TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS"}
_SECRET_ENDS = (
    "API_KEY",
    "APIKEY",
    "ACCESS_KEY",
    "ACCESS_KEY_ID",
    "PRIVATE_KEY",
    "AUTH_KEY",
    "PASSWORD",
    "_PWD",  # PGPASSWORD, MYSQL_PWD; PWD and OLDPWD are folders
)
# Every pattern starts with literal characters, which Python finds a hundred times as fast.
SHAPES: dict[str, tuple[bytes, ...]] = {
    **{kind: shapes for hub in HUBS.values() for kind, shapes in hub.token_shapes.items()},
    "a GitHub or GitLab token": (
        rb"gh[pousr]_[A-Za-z0-9]{36}",
        rb"github_pat_\w{22}",
        rb"glpat-[\w-]{20}",
    ),
    "an API key (sk-...)": (rb"sk-(?=[\w-]*[0-9])[\w-]{20,}",),
    "a cloud key": (rb"AKIA[0-9A-Z]{16}\b", rb"ASIA[0-9A-Z]{16}\b", rb"AIza[\w-]{35}\b"),
    "a Slack, PyPI or npm token": (rb"xox[abprs]-[\w-]{10,}", rb"pypi-[\w-]{50,}", rb"npm_[A-Za-z0-9]{36}"),
    "a private key": (rb"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----",),
    "a signed token (JWT)": (rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",),
    "a password in an address": (rb"://[^\s/:@\"'<>]{1,64}:[^\s/@\"'<>]{3,200}@",),
}
_SHAPES = [(name, re.compile(pattern)) for name, patterns in SHAPES.items() for pattern in patterns]


def known_secrets() -> dict[str, str]:
    """Return the tokens that this process could use, by their source.

    Sources are environment variables, selected by name, and the logins of all hubs.

    Example:
        >>> import os
        >>> from qwen_task_heads.redaction import known_secrets
        >>> os.environ["EXAMPLE_API_KEY"] = "no-key-at-all"
        >>> known_secrets()["$EXAMPLE_API_KEY"]
        'no-key-at-all'
        >>> del os.environ["EXAMPLE_API_KEY"]
    """
    found = {f"${name}": value for name, value in os.environ.items() if _names_secret(name)}
    for hub in HUBS.values():
        found |= hub.logins()
    by_value: dict[str, str] = {}
    for source, value in found.items():  # a login may equal a variable that is listed already
        by_value.setdefault(value.strip(), source)
    return {source: value for value, source in by_value.items() if len(value) >= MIN_LENGTH}


def scan(folder: str | Path, *, secrets: Mapping[str, str] | None = None) -> list[Problem]:
    """Search for secrets in all files of a folder, and in their names.

    Args:
        folder: the folder to publish.
        secrets: values by their source; None for `known_secrets`. Ordinary words are ignored.

    Returns:
        A problem per file and kind of secret, with the line and without the secret.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from qwen_task_heads.redaction import scan
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "notes.md").write_text("fine" + chr(10) + "mine is hf_" + "a" * 34)
        >>> print(scan(folder)[0].problem)
        found a Hugging Face token
    """
    folder = Path(folder)
    known = known_secrets() if secrets is None else secrets
    by_value = {source: value.encode() for source, value in known.items() if not _is_word(value)}
    odd = {source: value for source, value in by_value.items() if any(48 <= byte <= 57 for byte in value)}
    problems = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found = {kind: 0 for kind, _ in _found(name.encode(), by_value)}
        if path.is_file():
            for kind, line in _search(path, odd if path.name in VOCABULARIES else by_value):
                found.setdefault(kind, line)
        problems += [_problem(name, kind, line) for kind, line in found.items()]
    return problems


def redact(text: str, secrets: Mapping[str, str] | None = None) -> str:
    """Replace secrets in a message; `secrets` as in `scan`.

    Example:
        >>> from qwen_task_heads.redaction import redact
        >>> redact("GET /x?token=abcdefgh", {"$T": "abcdefgh"})
        'GET /x?token=***'
    """
    for value in (known_secrets() if secrets is None else secrets).values():
        text = text.replace(value, HIDDEN)
    raw = text.encode("utf-8", "replace")
    for _, pattern in _SHAPES:
        raw = pattern.sub(lambda match: HIDDEN.encode() if _begins(match) else match[0], raw)
    return raw.decode("utf-8", "replace")


def _names_secret(name: str) -> bool:
    """Return whether an environment variable is a secret: HF_TOKEN is, TOKENIZERS_PARALLELISM is not."""
    name = re.sub(r"_\d+$", "", name.upper())  # OPENAI_API_KEY_2
    return name.split("_")[-1] in _SECRET_WORDS or name.endswith(_SECRET_ENDS)


def _is_word(value: str) -> bool:
    """Return whether a value cannot be distinguished from the same word, name or number in other texts."""
    one_kind = value.isdigit() or (value.isalpha() and value in (value.lower(), value.upper(), value.title()))
    return (one_kind and len(value) < WORD_LENGTH) or len(set(value)) <= FEW_CHARACTERS


def _found(
    content: bytes, by_value: Mapping[str, bytes], *, shapes: bool = True
) -> Iterator[tuple[str, int]]:
    """Yield the kind of each secret and the position of its first occurrence."""
    for source, value in by_value.items():
        if (at := content.find(value)) >= 0:
            yield f"the value of {source}", at
    for kind, pattern in _SHAPES if shapes else ():
        begins = (match.start() for match in pattern.finditer(content) if _begins(match))
        if (begin := next(begins, None)) is not None:
            yield kind, begin


def _begins(match: re.Match[bytes]) -> bool:
    """Return whether a match starts a word: `task-` ends with the start of a key, `sk-`."""
    start = match.start()
    return start == 0 or match[0].startswith(b"://") or not match.string[start - 1 : start].isalnum()


def _search(path: Path, by_value: Mapping[str, bytes]) -> Iterator[tuple[str, int]]:
    """Yield (kind, line) of the secrets in a file; later chunks may repeat a kind."""
    lines, before, first = 1, b"", True
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            content = before + chunk
            for kind, at in _found(content, by_value, shapes=first or path.suffix not in TENSORS):
                yield kind, lines + content.count(b"\n", 0, at)
            before, first = content[-OVERLAP:], False
            lines += content.count(b"\n") - before.count(b"\n")


def _problem(name: str, kind: str, line: int) -> Problem:
    fix = "take it out and publish again; if others may have seen it, revoke it"
    source = kind.removeprefix("the value of ")
    if source.startswith("$"):
        fix += f"; if the match is a coincidence, unset {source[1:]} and publish again"
    where = redact(f"{name}:{line}" if line else name)
    return Problem(where, f"found {kind}", "files without secrets", fix, code="secret-found")
