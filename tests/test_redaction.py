"""Secrets are found in all files that are published, and no message contains them."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from problem_assertions import raises_problem
from transformers import TrainingArguments

from qwen_task_heads import build, load_tokenizer, save
from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.files import hash_files
from qwen_task_heads.publishing.publish import publish
from qwen_task_heads.publishing.staging import files_of
from qwen_task_heads.redaction import CHUNK, known_secrets, redact, scan
from qwen_task_heads.reports.run_manifest import settings_of

# Joined here, so that no file of this repo contains the shape of a token.
TOKENS = {
    "a Hugging Face token": "hf_" + "aB3" * 12,
    "a ModelScope token": "ms-" + "0a1b2c3d-" + "4e5f-6a7b-8c9d-" + "0a1b2c3d4e5f",
    "a GitHub or GitLab token": "ghp_" + "x9" * 18,
    "an API key (sk-...)": "sk-" + "proj-1a2b3c4d5e6f7g8h9i0j",
    "a cloud key": "AKIA" + "ABCDEFGH12345678",
    "a Slack, PyPI or npm token": "xoxb-" + "123456789012-abcdef",
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a signed token (JWT)": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NTY3.SflKxwRJSMeKKF2QT4",
    "a password in an address": "https://me:" + "hunter22" + "@example.org/data.jsonl",
}


@pytest.mark.parametrize("kind", TOKENS)
def test_texts_with_the_shape_of_a_token_are_found_and_not_printed(kind: str, tmp_path: Path) -> None:
    secret = TOKENS[kind]
    (tmp_path / "notes.md").write_text(f"one\ntwo\n{secret}\n")
    (found,) = scan(tmp_path, secrets={})
    assert (found.where, found.problem) == ("notes.md:3", f"found {kind}")
    assert secret not in str(found)
    assert secret not in redact(f"GET {secret} failed", {})


@pytest.mark.parametrize(
    "text",
    [
        "task-heads-and-other-long-names-12",
        "a hf_ prefix",
        "ask-me-anything-about-models-3",
        "https://a.org/x:y",
        "git@github.com:me/x.git",
        "TOKENIZERS_PARALLELISM=false",
        "eyJhbGciOi",
        "mailto:me@example.org",
    ],
)
def test_ordinary_texts_are_not_redacted(text: str, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text(text)
    assert scan(tmp_path, secrets={}) == []
    assert redact(text, {}) == text


def test_tokens_of_this_process_are_found_by_their_value(tmp_path: Path, monkeypatch: Any) -> None:
    values = {"HF_TOKEN": "not-of-any-shape-1", "MY_API_KEY": "another one", "DB_PASSWORD": "correct horse"}
    for name, value in {**values, "TOKENIZERS_PARALLELISM": "false-and-long", "A_SECRET": "short"}.items():
        monkeypatch.setenv(name, value)
    known = known_secrets()
    assert {f"${name}": value for name, value in values.items()}.items() <= known.items()
    assert not {"$TOKENIZERS_PARALLELISM", "$A_SECRET"} & known.keys()
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = scan(tmp_path)
    assert sorted(problem.problem for problem in found) == sorted(
        f"found the value of ${name}" for name in ("DB_PASSWORD", "HF_TOKEN", "MY_API_KEY")
    )
    assert not any(value in str(problem) for value in values.values() for problem in found)


def test_names_of_variables_with_secrets_and_with_folders(monkeypatch: Any) -> None:
    secret = ("PGPASSWORD", "MYSQL_PWD", "OPENAI_API_KEY_2", "HF_TOKEN_10", "db_password_1")
    other = ("PWD", "OLDPWD", "PWD_2", "TOKENIZERS_2", "PASSWORD_FILE")
    for name in (*secret, *other):
        monkeypatch.setenv(name, f"/of/{name}/itself")
    known = known_secrets()
    assert {f"${name}" for name in secret} <= known.keys()
    assert not {f"${name}" for name in other} & known.keys()


@pytest.mark.parametrize("word", ["password", "Postgres", "PRODUCTION", "12345678", "********", "abababab"])
def test_passwords_that_are_ordinary_words_are_not_searched_for(word: str, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "README.md"):
        (tmp_path / name).write_text(f"the {word} of it")
    assert scan(tmp_path, secrets={"$DB_PASSWORD": word}) == []


def test_values_without_a_digit_are_not_searched_for_in_vocabularies(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_text(json.dumps({"get_user_name": 1, "another-7-one": 2}))
    found = scan(tmp_path, secrets={"$A_SECRET": "get_user_name", "$B_SECRET": "another-7-one"})
    assert [(problem.where, problem.problem) for problem in found] == [
        ("config.json:1", "found the value of $A_SECRET"),
        ("config.json:1", "found the value of $B_SECRET"),
        ("tokenizer.json:1", "found the value of $B_SECRET"),
    ]
    assert "unset A_SECRET and publish again" in str(found[0])


def test_a_token_across_two_chunks_or_deep_in_weights_is_found(tmp_path: Path) -> None:
    secret = TOKENS["a Hugging Face token"]
    edge = b"\n" * 7 + b" " * (CHUNK - 17) + secret.encode()
    (tmp_path / "a.json").write_bytes(edge)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * (CHUNK + 9) + b"my secret value")
    found = scan(tmp_path, secrets={"$X_TOKEN": "my secret value"})
    assert [problem.where for problem in found] == ["a.json:8", "model.safetensors:1"]


def test_a_secret_in_the_name_of_a_file_is_found_and_not_printed(tmp_path: Path) -> None:
    secret = TOKENS["a Hugging Face token"]
    (tmp_path / f"{secret}.md").touch()
    (found,) = scan(tmp_path, secrets={})
    assert secret not in str(found)


def canaries(monkeypatch: Any) -> dict[str, str]:
    """Return one secret of each origin: environment, arguments, config, data."""
    found = {origin: "hf_" + origin * 3 + "Z9" * 15 for origin in ("environ", "argument", "config", "data")}
    monkeypatch.setenv("HF_TOKEN", found["environ"])
    return found


@pytest.fixture
def run_folder(tmp_path: Path, bases: Any, monkeypatch: Any) -> tuple[Path, dict[str, str]]:
    """A finished run with a canary in every place that a run can write."""
    secrets = canaries(monkeypatch)
    torch.manual_seed(0)
    folder = save(build(bases["qwen2"]), tokenizer=load_tokenizer(bases["qwen2"]), folder=tmp_path / "run")
    args = TrainingArguments(output_dir=str(tmp_path), hub_token=secrets["argument"], report_to=[])
    torch.save(args, folder / "training_args.bin")
    settings = settings_of(args, {"dataset_name": "pairs"})
    (folder / "README.md").write_text("# Titles\n\nNothing to see.\n")
    for name in ("predictions.jsonl", "errors.md", "reference.json"):
        (folder / name).write_text(json.dumps({"text": f"my token is {secrets['data']}"}))
    content = {"settings": settings, "seed": 0, "files": hash_files(folder)}
    (folder / "manifest.json").write_text(json.dumps(content))
    (folder / ".env").write_text(f"HF_TOKEN={secrets['environ']}\n")
    checkpoint = folder / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(secrets["config"])
    return folder, secrets


def leaks(folder: Path, secrets: dict[str, str]) -> list[tuple[str, str]]:
    return [
        (name, origin)
        for name in files_of(folder)
        for origin, secret in secrets.items()
        if secret.encode() in (folder / name).read_bytes() or secret in name
    ]


def test_no_canary_is_staged(run_folder: Any, tmp_path: Path) -> None:
    folder, secrets = run_folder
    assert {origin for _, origin in leaks(folder, secrets)} == set(secrets)  # the run contains all of them
    published = publish(folder, repo_id="me/x", verify=False, dry_run=tmp_path / "staged")
    assert leaks(tmp_path / "staged", secrets) == []
    assert not any(secret in line for line in published.messages() for secret in secrets.values())


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "README.md", "manifest.json"])
def test_a_canary_in_a_published_file_is_an_error_without_the_canary(
    run_folder: Any, tmp_path: Path, name: str
) -> None:
    folder, secrets = run_folder
    for origin in ("environ", "config"):
        text = (folder / name).read_text()
        with_canary = text.replace("{", f'{{"x_{origin}": "{secrets[origin]}",', 1)
        (folder / name).write_text(with_canary if with_canary != text else text + secrets[origin])
    manifest = json.loads((folder / "manifest.json").read_text())  # as if the run had written it
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": hash_files(folder)}))
    with pytest.raises(TaskHeadsError, match=name) as caught:
        publish(folder, repo_id="me/x", verify=False, dry_run=tmp_path / "staged")
    assert {problem.code for problem in caught.value.problems} == {"secret-found"}
    printed = "".join(traceback.format_exception(caught.value))
    assert not any(secret in printed for secret in secrets.values())


def test_rows_with_a_secret_are_not_published(run_folder: Any, tmp_path: Path) -> None:
    folder, secrets = run_folder
    with raises_problem("secret-found", match="a Hugging Face token") as problems:
        publish(folder, repo_id="me/x", verify=False, rows=True, dry_run=tmp_path / "staged")
    assert not any(secret in str(problem) for problem in problems for secret in secrets.values())
    assert {problem.where for problem in problems} == {"errors.md:1", "predictions.jsonl:1"}
