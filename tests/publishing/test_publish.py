"""Tests of publishing to both hubs by their real clients over HTTP: commits, errors and failing hubs."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hf_server
import modelscope_server
import pytest
from loopback import FAULTS, no_waiting

from qwen_task_heads.errors import Problem, TaskHeadsError
from qwen_task_heads.hubs import HUBS, Hub
from qwen_task_heads.publishing import upload as uploading
from qwen_task_heads.publishing.staging import files_of, task_of, update_manifest

pytest.importorskip("modelscope_hub", reason="modelscope is not installed")
# A warning of the client's HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "me/titles"
CHANGED = b'{"model_type": "title_scorer", "pooling": "mean"}'
MAIN = {"huggingface": "main", "modelscope": "master"}


class Place:
    """A hub under test: its server, and the class that publishes to it."""

    def __init__(self, name: str, server: Any) -> None:
        self.name, self.server, self.branch = name, server, MAIN[name]

    @property
    def client(self) -> Hub:
        return HUBS[self.name]()

    def push(self, staged: Path, **options: Any) -> Any:
        return uploading.upload(self.client, staged, **options)

    def check(self, repo_id: str, **options: Any) -> None:
        uploading.check_repo(self.client, repo_id, **options)

    def check_task(self, staged: Path, **options: Any) -> None:
        uploading.check_task(self.client, staged, **options)

    def commits(self, repo: str = REPO) -> int:
        return len(self.server.repos[repo].commits)

    def forget(self) -> None:
        self.server.repos.clear()
        self.server.blobs.clear()
        self.server.calm()


@pytest.fixture(params=["huggingface", "modelscope"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """An empty hub with a login of this test; retries do not wait."""
    no_waiting(monkeypatch)
    if request.param == "huggingface":
        with hf_server.serve() as server:
            hf_server.point_client(server, monkeypatch, cache=tmp_path / "cache")
            yield Place("huggingface", server)
    else:
        with modelscope_server.serve() as server:
            modelscope_server.point_client(server, monkeypatch, cache=tmp_path / "cache")
            yield Place("modelscope", server)


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """A folder like a staged one: small files, a subfolder, and LFS files."""
    return write(
        tmp_path / "staged",
        {
            "config.json": b'{"model_type": "title_scorer"}',
            "README.md": b"---\nlicense: mit\n---\n# Titles\n",
            "manifest.json": b"{}",
            ".eval_results/a.yaml": b"- x: 1\n",
            "tokenizer.json": b"t" * 120_000,
            "model.safetensors": bytes(range(256)) * 10,
            "onnx/model.onnx": b"o" * 70_000,
        },
    )


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


def refused(call: Any, *args: Any, **kwargs: Any) -> tuple[Problem, ...]:
    with pytest.raises(TaskHeadsError) as caught:
        call(*args, **kwargs)
    return caught.value.problems


def codes(problems: tuple[Problem, ...]) -> list[tuple[str, str]]:
    """Code and place of every problem."""
    return [(problem.code, problem.where) for problem in problems]


def test_a_publish_is_one_commit_private_and_complete(place: Place, staged: Path) -> None:
    published = place.push(staged, repo_id=REPO)
    assert place.server.files(REPO) == contents(staged)
    assert place.commits() == 2  # with the first commit of the hub
    assert place.server.repos[REPO].private
    assert published.private
    assert published.commit == place.server.repos[REPO].branches[place.branch]
    assert published.url.startswith(place.server.endpoint)
    assert "private" in published.messages()[0]


def test_publishing_the_same_files_again_makes_no_commit(place: Place, staged: Path) -> None:
    first = place.push(staged, repo_id=REPO)
    again = place.push(staged, repo_id=REPO)
    assert (again.commit, again.unchanged) == (first.commit, True)
    assert place.commits() == 2


def test_an_update_removes_only_files_of_an_earlier_publish(place: Place, staged: Path) -> None:
    write(staged, {"old.png": b"plot", "NOTICE": b"of a base"})
    place.push(update_manifest(staged), repo_id=REPO)
    by_hand = ("LICENCE-of-ours.txt", "demo/app.py", "LICENSE", "diagram.png", ".eval_results/community.yaml")
    place.server.put(REPO, {**dict.fromkeys(by_hand, b"by hand"), "adapter_config.json": b"of another form"})
    for name in ("model.safetensors", "old.png", ".eval_results/a.yaml", "NOTICE"):
        (staged / name).unlink()
    write(
        staged,
        {
            "model-00001-of-00001.safetensors": b"a" * 100,
            "config.json": b'{"model_type": "title_scorer", "x": 1}',
        },
    )
    before = place.commits()
    place.push(update_manifest(staged), repo_id=REPO)
    found = place.server.files(REPO)
    assert [found.pop(name) for name in by_hand] == [b"by hand"] * len(by_hand)
    assert found.pop("NOTICE") == b"of a base"  # licence files are never removed
    assert found == contents(staged)
    assert place.commits() == before + 1


def test_a_model_of_another_task_is_replaced_only_with_replace(place: Place, staged: Path) -> None:
    messages: list[str] = []
    scores = {"problem_type": "regression", "id2label": {"0": "score"}}
    write(staged, {"config.json": json.dumps({"model_type": "title_scorer", **scores}).encode()})
    place.check_task(staged, repo_id=REPO)  # the repo does not exist
    place.push(update_manifest(staged), repo_id=REPO, log=messages.append)
    stock = {"architectures": ["Qwen2ForSequenceClassification"], "model_type": "qwen2", **scores}
    write(staged, {"config.json": json.dumps(stock).encode(), "new.png": b"x"})
    write(staged, {"pooling_task_heads.py": b"", "handler.py": b""})
    place.push(update_manifest(staged), repo_id=REPO, log=messages.append)  # the same task in another form
    for name in ("onnx/model.onnx", "pooling_task_heads.py", "handler.py"):
        (staged / name).unlink()
    place.push(update_manifest(staged), repo_id=REPO, log=messages.append)
    summaries = [line for line in messages if line.startswith("me/titles")]
    assert summaries == [
        f"me/titles ({place.branch}): replaces 2 files, adds 3.",
        f"me/titles ({place.branch}): replaces 1 file, adds 0, removes onnx/model.onnx and 2 code files.",
    ]
    before = place.server.files(REPO)
    labels = {"problem_type": "multi_label_classification", "id2label": {"1": "b", "0": "a"}}
    write(staged, {"config.json": json.dumps({"model_type": "pooled_classifier", **labels}).encode()})
    for call in (place.push, place.check_task):
        [problem] = refused(call, update_manifest(staged), repo_id=REPO)
        assert (problem.code, problem.where) == ("path-exists", REPO)
        assert "a regression head of score" in problem.problem
        assert "a multi label classification head of a, b" in problem.expected
        assert "--replace" in problem.fix
    assert place.server.files(REPO) == before
    write(staged, {"config.json": json.dumps(stock | {"id2label": {"0": "cost"}}).encode()})
    [problem] = refused(place.push, update_manifest(staged), repo_id=REPO)
    assert "a regression head of cost" in problem.expected
    place.push(update_manifest(staged), repo_id=REPO, replace=True)
    assert place.server.files(REPO) == contents(staged)


def test_a_generative_classifier_is_described_by_its_labels(tmp_path: Path) -> None:
    prompt = json.dumps({"labels": {"names": ["a", "b"]}}).encode()
    adapter = write(tmp_path / "adapter", {"label_prompt.json": prompt})
    full = write(tmp_path / "full", {"label_prompt.json": prompt, "config.json": b'{"model_type": "qwen2"}'})
    assert task_of(adapter) == task_of(full) == "a generative classifier of a, b"
    base = write(tmp_path / "base", {"config.json": b'{"architectures": ["Qwen2ForCausalLM"]}'})
    assert task_of(base) == "a Qwen2ForCausalLM"
    for content in (b"{}", b"[]", b"{", b'{"architectures": [3]}'):
        assert task_of(write(tmp_path / "none", {"config.json": content})) is None


@pytest.mark.parametrize("manifest", [b"{", b"[]", b'{"files": ["diagram.png"]}', None])
def test_only_weights_are_removed_without_a_manifest_of_this_library(
    place: Place, staged: Path, manifest: bytes | None
) -> None:
    there = {"diagram.png": b"by hand", "model-00001-of-00002.safetensors": b"of another form"}
    place.server.put(REPO, there if manifest is None else {**there, "manifest.json": manifest})
    place.server.repos[REPO].private = True
    place.push(staged, repo_id=REPO)
    assert place.server.files(REPO) == {**contents(staged), "diagram.png": b"by hand"}


def test_a_tag_names_the_commit_and_is_never_moved(place: Place, staged: Path) -> None:
    first = place.push(staged, repo_id=REPO, tag="v1")
    assert place.server.repos[REPO].tags == {"v1": first.commit}
    assert place.push(staged, repo_id=REPO, tag="v1").commit == first.commit
    write(staged, {"config.json": CHANGED})
    problems = refused(place.push, staged, repo_id=REPO, tag="v1")
    assert codes(problems) == [("path-exists", "tag 'v1' of me/titles")]
    assert place.server.repos[REPO].branches[place.branch] == first.commit
    second = place.push(staged, repo_id=REPO, tag="v2")
    assert place.server.repos[REPO].tags == {"v1": first.commit, "v2": second.commit}
    assert place.server.files(REPO, "v1") != place.server.files(REPO, "v2") == contents(staged)


def test_a_revision_is_a_branch_next_to_the_main_one(place: Place, staged: Path) -> None:
    first = place.push(staged, repo_id=REPO)
    write(staged, {"config.json": CHANGED})
    if place.name == "modelscope":  # its client cannot create a branch
        [problem] = refused(place.push, staged, repo_id=REPO, revision="next")
        assert (problem.code, problem.where) == ("hub-invalid", REPO)
        assert "'next'" in problem.problem
        place.server.repos[REPO].branches["next"] = first.commit
    place.push(staged, repo_id=REPO, revision="next")
    assert place.server.repos[REPO].branches[place.branch] == first.commit
    assert place.server.files(REPO, "next") == contents(staged)


def test_the_same_files_on_a_new_branch_have_the_commit_that_it_starts_at(place: Place, staged: Path) -> None:
    first = place.push(staged, repo_id=REPO)
    if place.name == "modelscope":
        place.server.repos[REPO].branches["next"] = first.commit
    again = place.push(staged, repo_id=REPO, revision="next", tag="v1")
    assert (again.commit, again.unchanged) == (first.commit, True)
    there = place.server.repos[REPO]
    assert there.branches == {place.branch: first.commit, "next": first.commit}
    assert there.tags == {"v1": first.commit}


def test_the_visibility_of_an_existing_repo_is_checked_and_kept(place: Place, staged: Path) -> None:
    place.server.create(REPO, private=False)
    problems = refused(place.push, staged, repo_id=REPO)
    assert codes(problems) == [("option-conflict", REPO)]
    assert place.server.files(REPO) == {}
    assert not place.push(staged, repo_id=REPO, private=False).private
    place.server.repos[REPO].private = True
    kept = place.push(staged, repo_id=REPO, private=False)
    assert kept.private
    assert "stays private" in " ".join(kept.messages())
    assert place.server.repos[REPO].private


def test_check_reports_names_logins_and_unreachable_hubs(place: Place, monkeypatch: Any) -> None:
    token = {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[place.name]
    assert place.check(REPO) is None
    for name in ("titles", "me/a/b", "me/ti tles", "me/", "../x"):
        assert codes(refused(place.check, name)) == [("hub-invalid", "--hub_model_id")]
    monkeypatch.setenv(token, "not-this-one-at-all")
    [problem] = refused(place.check, REPO)
    assert (problem.code, problem.where) == ("hub-denied", place.client.title)
    assert "log in by" in problem.fix
    monkeypatch.delenv(token)
    assert codes(refused(place.check, REPO)) == [("hub-denied", place.client.title)]
    monkeypatch.setenv(token, place.server.token)
    place.server.fail(at=1, how="503", lasting=True)
    assert codes(refused(place.check, REPO)) == [("hub-unreachable", REPO)]


def test_check_reports_all_conflicts_with_the_repo(place: Place, staged: Path) -> None:
    server = place.server
    assert place.check(REPO, tag="v1") is None  # the repo does not exist yet
    first = place.push(staged, repo_id=REPO, tag="v1")
    assert place.check(REPO, tag="v2") is None
    assert codes(refused(place.check, REPO, tag="v1")) == [("path-exists", "tag 'v1' of me/titles")]
    assert place.check(REPO, tag="v1", again=True) is None  # the commit may be of the same files
    write(staged, {"config.json": CHANGED})
    place.push(staged, repo_id=REPO)
    server.repos[REPO].private = False
    problems = refused(place.check, REPO, tag="v1", again=True, revision="next")
    branch = [("hub-invalid", REPO)] if place.name == "modelscope" else []
    assert codes(problems) == [("option-conflict", REPO), *branch, ("path-exists", "tag 'v1' of me/titles")]
    assert str(first.commit) in problems[-1].problem
    assert place.check(REPO, private=False) is None
    if place.name == "modelscope":
        [problem] = refused(place.check, "me/new", revision="next")
        assert problem.expected == "master"
        assert codes(refused(place.push, staged, repo_id="me/new", revision="next")) == [
            ("hub-invalid", "me/new")
        ]
    assert list(server.repos) == [REPO]


def test_a_repo_of_another_owner_is_refused(place: Place, staged: Path) -> None:
    problems = refused(place.push, staged, repo_id="you/titles")
    assert codes(problems) == [("hub-denied", "you/titles")]
    assert "you/titles" not in place.server.repos


def test_permissions_on_the_hugging_face_hub(place: Place) -> None:
    if place.name != "huggingface":
        pytest.skip("ModelScope reports permissions only when it writes")
    server = place.server
    server.orgs = [{"name": "lab", "roleInOrg": "write"}, {"name": "press", "roleInOrg": "read"}]
    assert place.check("lab/titles") is None
    [problem] = refused(place.check, "press/titles")
    assert (problem.code, problem.where) == ("hub-denied", "press/titles")
    assert "me, lab" in problem.problem
    for role in ("read", "fineGrained"):
        server.role = role
        assert codes(refused(place.check, REPO)) == [("hub-denied", REPO)]
    for grant in (
        {"scoped": [{"entity": {"type": "user", "name": "me"}, "permissions": ["repo.write"]}]},
        {"scoped": [{"entity": {"type": "model", "name": REPO}, "permissions": ["repo.write"]}]},
        {"global": ["repo.write"]},
    ):
        server.grants = grant
        assert place.check(REPO) is None


def test_check_reports_an_offline_or_unreachable_hub(place: Place, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    if place.name == "huggingface":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    assert codes(refused(place.check, REPO)) == [("hub-unreachable", REPO)]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("400", "hub-invalid"),
        ("403", "hub-denied"),
        ("404", "hub-invalid"),
        ("409", "hub-invalid"),
        ("412", "hub-invalid"),
        ("429", "hub-unreachable"),
        ("500", "hub-unreachable"),
    ],
)
def test_an_error_has_the_code_of_its_status_and_the_message_of_the_hub(
    place: Place, staged: Path, status: str, code: str
) -> None:
    place.server.fail(at=2, how=status, lasting=True)
    [problem] = refused(place.push, staged, repo_id=REPO)
    assert (problem.code, problem.where) == (code, REPO)
    # After its retries, the client of ModelScope has no message of the hub.
    retried = place.name == "modelscope" and status in ("429", "500")
    assert ("no server here" in problem.problem) != retried
    assert "publish again" in problem.fix or status in ("403", "404")


def test_a_concurrent_commit_is_not_overwritten(place: Place, staged: Path, monkeypatch: Any) -> None:
    if place.name != "huggingface":
        pytest.skip("commits of ModelScope have no parent")
    place.push(staged, repo_id=REPO)
    read_state, put = HUBS[place.name].state, place.server.put

    def read_state_before_commit(*args: Any) -> Any:
        state = read_state(*args)
        put(REPO, {"config.json": b"concurrent"})
        return state

    monkeypatch.setattr(HUBS[place.name], "state", read_state_before_commit)
    write(staged, {"config.json": CHANGED})
    [problem] = refused(place.push, staged, repo_id=REPO)
    assert (problem.code, problem.where) == ("hub-invalid", REPO)
    assert "A commit has happened" in problem.problem
    assert place.server.files(REPO)["config.json"] == b"concurrent"


def test_a_card_that_the_hub_rejects_is_reported(place: Place, staged: Path) -> None:
    if place.name != "huggingface":
        pytest.skip("ModelScope does not validate cards")
    write(staged, {"README.md": b"---\n- no table\n---\n"})
    [problem] = refused(place.push, staged, repo_id=REPO)
    assert (problem.code, problem.where) == ("hub-invalid", REPO)
    assert "metadata is no table" in problem.problem
    assert "README.md" in problem.fix
    assert place.server.files(REPO) == {}


# Failures at every call


def calls_of_a_publish(place: Place, staged: Path) -> int:
    place.forget()
    before = len(place.server.log)
    place.push(staged, repo_id=REPO, tag="v1")
    calls = len(place.server.log) - before
    place.forget()
    return calls


def sweep(place: Place, staged: Path, *, faults: Any, old: dict[str, bytes]) -> int:
    """Fail at every call in turn: the old or the new state is visible, and the retry gives the same files."""
    calls, tracebacks = calls_of_a_publish(place, staged), []
    assert calls >= 8
    whole = contents(staged)
    for how, lasting in faults:
        for at in range(1, calls + 1):
            place.forget()
            if old:
                place.server.create(REPO, private=True)
                place.server.put(REPO, old)
            place.server.fail(at=at, how=how, lasting=lasting)
            try:
                place.push(staged, repo_id=REPO, tag="v1")
            except TaskHeadsError as error:
                tracebacks.append("".join(traceback.format_exception(error)))
            place.server.calm()
            assert place.server.files(REPO) in (old, whole), (how, at)
            published = place.push(staged, repo_id=REPO, tag="v1")
            assert place.server.files(REPO) == whole, (how, at)
            # the first commit of the hub, the old files, and one commit of the publish despite retries
            assert place.commits() == 2 + bool(old), (how, at)
            assert place.server.repos[REPO].tags == {"v1": published.commit}, (how, at)
            assert place.server.repos[REPO].private
    assert not any(place.server.token in text for text in tracebacks)
    return len(tracebacks)


def test_a_hub_that_fails_at_any_call_never_has_a_partial_model(place: Place, staged: Path) -> None:
    assert sweep(place, staged, faults=[("cut", True)], old={}) > 4


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [True, False])
def test_every_failure_at_every_call(place: Place, staged: Path, lasting: bool) -> None:
    old = {
        "README.md": b"# Old\n",
        "config.json": b"{}",
        "model.safetensors": b"old",
        "tokenizer.json": b"{}",
        "onnx/model.onnx": b"o",
    }
    for before in ({}, old):
        sweep(place, staged, faults=[(how, lasting) for how in FAULTS], old=before)
