"""Publishing to both hubs by their real clients over HTTP: one commit, plain refusals, and hubs that fail."""

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

from qwen_task_heads.errors import TaskHeadsError
from qwen_task_heads.publishing.hub import Hub
from qwen_task_heads.publishing.publish import HUBS
from qwen_task_heads.publishing.staging import files_of, seal, task_of

pytest.importorskip("modelscope_hub", reason="modelscope is not installed")
# The client's own, of its http library.
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

    def commits(self, repo: str = REPO) -> int:
        return len(self.server.repos[repo].commits)

    def forget(self) -> None:
        self.server.repos.clear()
        self.server.blobs.clear()
        self.server.calm()


@pytest.fixture(params=["huggingface", "modelscope"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A hub with nobody's repos, and a login of this test alone; waiting between tries costs nothing."""
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
    """A folder like a staged one: small files, a folder, and files that go beside git."""
    return write(tmp_path / "staged", {
        "config.json": b'{"model_type": "title_scorer"}', "README.md": b"---\nlicense: mit\n---\n# Titles\n",
        "manifest.json": b"{}", ".eval_results/a.yaml": b"- x: 1\n", "tokenizer.json": b"t" * 120_000,
        "model.safetensors": bytes(range(256)) * 10, "onnx/model.onnx": b"o" * 70_000,
    })  # fmt: skip


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


def refused(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(TaskHeadsError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_a_publish_is_one_commit_private_and_complete(place: Place, staged: Path) -> None:
    published = place.client.push(staged, repo_id=REPO)
    assert place.server.files(REPO) == contents(staged)
    assert place.commits() == 2  # and the one that the hub makes itself
    assert place.server.repos[REPO].private
    assert published.private
    assert published.commit == place.server.repos[REPO].branches[place.branch]
    assert published.url.startswith(place.server.endpoint)
    assert "private" in published.lines()[0]


def test_the_same_again_makes_no_commit(place: Place, staged: Path) -> None:
    first = place.client.push(staged, repo_id=REPO)
    again = place.client.push(staged, repo_id=REPO)
    assert (again.commit, again.unchanged) == (first.commit, True)
    assert place.commits() == 2


def test_an_update_removes_what_an_earlier_publish_left_and_nothing_else(place: Place, staged: Path) -> None:
    write(staged, {"old.png": b"plot", "NOTICE": b"of a base"})
    place.client.push(seal(staged), repo_id=REPO)
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
    place.client.push(seal(staged), repo_id=REPO)
    found = place.server.files(REPO)
    assert [found.pop(name) for name in by_hand] == [b"by hand"] * len(by_hand)
    assert found.pop("NOTICE") == b"of a base"  # terms are people's to take away
    assert found == contents(staged)
    assert place.commits() == before + 1


def test_a_model_of_another_task_is_replaced_only_where_that_is_asked_for(place: Place, staged: Path) -> None:
    client, said = place.client, list[str]()
    scores = {"problem_type": "regression", "id2label": {"0": "score"}}
    write(staged, {"config.json": json.dumps({"model_type": "title_scorer", **scores}).encode()})
    client.check_task(staged, repo_id=REPO)  # nothing there
    client.push(seal(staged), repo_id=REPO, say=said.append)
    stock = {"architectures": ["Qwen2ForSequenceClassification"], "model_type": "qwen2", **scores}
    write(staged, {"config.json": json.dumps(stock).encode(), "new.png": b"x"})
    write(staged, {"pooling_task_heads.py": b"", "handler.py": b""})
    client.push(seal(staged), repo_id=REPO, say=said.append)  # the same task in another form
    for name in ("onnx/model.onnx", "pooling_task_heads.py", "handler.py"):
        (staged / name).unlink()
    client.push(seal(staged), repo_id=REPO, say=said.append)
    begun = [line for line in said if line.startswith("me/titles")]
    assert begun == [
        f"me/titles ({place.branch}): replaces 2 files, adds 3.",
        f"me/titles ({place.branch}): replaces 1 file, adds 0, removes onnx/model.onnx and 2 code files.",
    ]
    before = place.server.files(REPO)
    labels = {"problem_type": "multi_label_classification", "id2label": {"1": "b", "0": "a"}}
    write(staged, {"config.json": json.dumps({"model_type": "pooled_classifier", **labels}).encode()})
    for call in (client.push, client.check_task):
        told = refused(call, seal(staged), repo_id=REPO)
        assert "me/titles: found a regression head of score; accepted: a repo without a model, or" in told
        assert "a multi label classification head of a, b; " in told
        assert "--replace" in told
    assert place.server.files(REPO) == before
    write(staged, {"config.json": json.dumps(stock | {"id2label": {"0": "cost"}}).encode()})
    assert "or with a regression head of cost" in refused(client.push, seal(staged), repo_id=REPO)
    client.push(seal(staged), repo_id=REPO, replace=True)
    assert place.server.files(REPO) == contents(staged)


def test_what_writes_labels_is_told_by_them_in_every_form(tmp_path: Path) -> None:
    prompt = json.dumps({"labels": {"names": ["a", "b"]}}).encode()
    adapter = write(tmp_path / "adapter", {"label_prompt.json": prompt})
    full = write(tmp_path / "full", {"label_prompt.json": prompt, "config.json": b'{"model_type": "qwen2"}'})
    assert task_of(adapter) == task_of(full) == "a language model that writes a, b"
    base = write(tmp_path / "base", {"config.json": b'{"architectures": ["Qwen2ForCausalLM"]}'})
    assert task_of(base) == "a Qwen2ForCausalLM"
    for content in (b"{}", b"[]", b"{", b'{"architectures": [3]}'):
        assert task_of(write(tmp_path / "none", {"config.json": content})) is None


@pytest.mark.parametrize("manifest", [b"{", b"[]", b'{"files": ["diagram.png"]}', None])
def test_a_repo_without_a_manifest_of_ours_loses_weights_alone(
    place: Place, staged: Path, manifest: bytes | None
) -> None:
    there = {"diagram.png": b"by hand", "model-00001-of-00002.safetensors": b"of another form"}
    place.server.put(REPO, there if manifest is None else {**there, "manifest.json": manifest})
    place.server.repos[REPO].private = True
    place.client.push(staged, repo_id=REPO)
    assert place.server.files(REPO) == {**contents(staged), "diagram.png": b"by hand"}


def test_a_tag_names_the_commit_and_is_not_moved(place: Place, staged: Path) -> None:
    first = place.client.push(staged, repo_id=REPO, tag="v1")
    assert place.server.repos[REPO].tags == {"v1": first.commit}
    assert place.client.push(staged, repo_id=REPO, tag="v1").commit == first.commit
    write(staged, {"config.json": CHANGED})
    assert "tag 'v1' of me/titles: found it at commit" in refused(
        place.client.push, staged, repo_id=REPO, tag="v1"
    )
    assert place.server.repos[REPO].branches[place.branch] == first.commit
    second = place.client.push(staged, repo_id=REPO, tag="v2")
    assert place.server.repos[REPO].tags == {"v1": first.commit, "v2": second.commit}
    assert place.server.files(REPO, "v1") != place.server.files(REPO, "v2") == contents(staged)


def test_a_revision_is_a_branch_and_leaves_the_main_one_alone(place: Place, staged: Path) -> None:
    first = place.client.push(staged, repo_id=REPO)
    write(staged, {"config.json": CHANGED})
    if place.name == "modelscope":  # its client makes no branch
        told = refused(place.client.push, staged, repo_id=REPO, revision="next")
        assert "no branch 'next'" in told
        place.server.repos[REPO].branches["next"] = first.commit
    place.client.push(staged, repo_id=REPO, revision="next")
    assert place.server.repos[REPO].branches[place.branch] == first.commit
    assert place.server.files(REPO, "next") == contents(staged)


def test_the_same_files_on_a_new_branch_are_named_by_the_commit_it_begins_at(
    place: Place, staged: Path
) -> None:
    first = place.client.push(staged, repo_id=REPO)
    if place.name == "modelscope":
        place.server.repos[REPO].branches["next"] = first.commit
    again = place.client.push(staged, repo_id=REPO, revision="next", tag="v1")
    assert (again.commit, again.unchanged) == (first.commit, True)
    there = place.server.repos[REPO]
    assert there.branches == {place.branch: first.commit, "next": first.commit}
    assert there.tags == {"v1": first.commit}


def test_a_public_repo_is_not_taken_for_a_private_one_nor_flipped(place: Place, staged: Path) -> None:
    place.server.create(REPO, private=False)
    told = refused(place.client.push, staged, repo_id=REPO)
    assert "me/titles: found a public repo; accepted: a private one, as was asked for" in told
    assert place.server.files(REPO) == {}
    assert not place.client.push(staged, repo_id=REPO, private=False).private
    place.server.repos[REPO].private = True
    kept = place.client.push(staged, repo_id=REPO, private=False)
    assert kept.private
    assert "left so" in " ".join(kept.lines())
    assert place.server.repos[REPO].private


def test_asked_early_the_hub_says_plainly_what_is_wrong(place: Place, monkeypatch: Any) -> None:
    token = {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[place.name]
    assert place.client.check(REPO) is None
    for name in ("titles", "me/a/b", "me/ti tles", "me/", "../x"):
        assert "--hub_model_id: found" in refused(place.client.check, name)
    monkeypatch.setenv(token, "not-this-one-at-all")
    told = refused(place.client.check, REPO)
    assert "does not accept" in told
    assert "log in by" in told
    monkeypatch.delenv(token)
    assert "nobody logged in" in refused(place.client.check, REPO)
    monkeypatch.setenv(token, place.server.token)
    place.server.fail(at=1, how="503", lasting=True)
    assert "found a hub that failed or is out of reach" in refused(place.client.check, REPO)


def test_asked_early_the_hub_says_what_the_repo_will_not_take(place: Place, staged: Path) -> None:
    client, server = place.client, place.server
    assert client.check(REPO, tag="v1") is None  # no such repo yet
    first = client.push(staged, repo_id=REPO, tag="v1")
    assert client.check(REPO, tag="v2") is None
    assert "tag 'v1' of me/titles: found it at commit" in refused(client.check, REPO, tag="v1")
    assert client.check(REPO, tag="v1", again=True) is None  # the commit may have been this very publish
    write(staged, {"config.json": CHANGED})
    client.push(staged, repo_id=REPO)
    server.repos[REPO].private = False
    told = refused(client.check, REPO, tag="v1", again=True, revision="next")
    assert "found a public repo" in told
    assert f"found it at commit {first.commit}" in told
    assert ("no branch 'next'" in told) == (place.name == "modelscope")
    assert client.check(REPO, private=False) is None
    if place.name == "modelscope":
        assert "master" in refused(client.check, "me/new", revision="next")
        assert "no branch" in refused(client.push, staged, repo_id="me/new", revision="next")
    assert list(server.repos) == [REPO]


def test_somebody_elses_name_is_refused(place: Place, staged: Path) -> None:
    assert "you/titles: found " in refused(place.client.push, staged, repo_id="you/titles")
    assert "you/titles" not in place.server.repos


def test_rights_on_the_hugging_face_hub(place: Place) -> None:
    if place.name != "huggingface":
        pytest.skip("ModelScope says no when it is asked to write")
    server = place.server
    server.orgs = [{"name": "lab", "roleInOrg": "write"}, {"name": "press", "roleInOrg": "read"}]
    assert place.client.check("lab/titles") is None
    assert "may write for me, lab" in refused(place.client.check, "press/titles")
    server.role = "read"
    assert "a token that may only read" in refused(place.client.check, REPO)
    server.role = "fineGrained"
    assert "without repo.write" in refused(place.client.check, REPO)
    for grant in (
        {"scoped": [{"entity": {"type": "user", "name": "me"}, "permissions": ["repo.write"]}]},
        {"scoped": [{"entity": {"type": "model", "name": REPO}, "permissions": ["repo.write"]}]},
        {"global": ["repo.write"]},
    ):
        server.grants = grant
        assert place.client.check(REPO) is None


def test_offline_and_unreachable_are_said(place: Place, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    if place.name == "huggingface":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    assert "out of reach" in refused(place.client.check, REPO)


@pytest.mark.parametrize(
    ("status", "told"),
    [("400", "mend the metadata on top of README.md"), ("403", "storage left"), ("404", "check the names"),
     ("409", "look at what is there now"), ("412", "look at what is there now"), ("429", "wait some minutes"),
     ("500", "check the network")],
)  # fmt: skip
def test_a_refusal_is_told_by_what_to_do_and_with_the_hubs_own_words(
    place: Place, staged: Path, status: str, told: str
) -> None:
    place.server.fail(at=2, how=status, lasting=True)
    found = refused(place.client.push, staged, repo_id=REPO)
    assert told in found
    retried = place.name == "modelscope" and status in ("429", "500")  # its client keeps no answer then
    assert ("no server here" in found) != retried
    assert "publish again" in found or status in ("403", "404")


def test_somebody_elses_commit_in_between_is_not_overwritten(
    place: Place, staged: Path, monkeypatch: Any
) -> None:
    if place.name != "huggingface":
        pytest.skip("ModelScope's commits name no parent")
    client = place.client
    client.push(staged, repo_id=REPO)
    look, write_there = client._state, place.server.put

    def look_and_lose(*args: Any) -> Any:
        state = look(*args)
        write_there(REPO, {"config.json": b"somebody's"})
        return state

    monkeypatch.setattr(client, "_state", look_and_lose)
    write(staged, {"config.json": CHANGED})
    assert "found another commit, made meanwhile (A commit has happened" in refused(
        client.push, staged, repo_id=REPO
    )
    assert place.server.files(REPO)["config.json"] == b"somebody's"


def test_a_card_that_the_hub_does_not_take_is_named(place: Place, staged: Path) -> None:
    if place.name != "huggingface":
        pytest.skip("ModelScope looks at no card")
    write(staged, {"README.md": b"---\n- no table\n---\n"})
    told = refused(place.client.push, staged, repo_id=REPO)
    assert "metadata is no table" in told
    assert "mend the metadata on top of README.md" in told
    assert place.server.files(REPO) == {}


# Check 26


def calls_of_a_publish(place: Place, staged: Path) -> int:
    place.forget()
    before = len(place.server.log)
    place.client.push(staged, repo_id=REPO, tag="v1")
    calls = len(place.server.log) - before
    place.forget()
    return calls


def sweep(place: Place, staged: Path, *, faults: Any, old: dict[str, bytes]) -> int:
    """Fail at every call in turn; what is visible is the old state or the new one; the retry is identical."""
    calls, told = calls_of_a_publish(place, staged), []
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
                place.client.push(staged, repo_id=REPO, tag="v1")
            except TaskHeadsError as error:
                told.append("".join(traceback.format_exception(error)))
            place.server.calm()
            assert place.server.files(REPO) in (old, whole), (how, at)
            published = place.client.push(staged, repo_id=REPO, tag="v1")
            assert place.server.files(REPO) == whole, (how, at)
            # the hub's own first commit, somebody's files, and one of ours however often it was tried
            assert place.commits() == 2 + bool(old), (how, at)
            assert place.server.repos[REPO].tags == {"v1": published.commit}, (how, at)
            assert place.server.repos[REPO].private
    assert not any(place.server.token in text for text in told)
    return len(told)


def test_a_hub_that_fails_at_any_call_shows_no_half_of_a_model(place: Place, staged: Path) -> None:
    assert sweep(place, staged, faults=[("cut", True)], old={}) > 4


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [True, False])
def test_every_way_to_fail_at_every_call(place: Place, staged: Path, lasting: bool) -> None:
    old = {
        "README.md": b"# Old\n",
        "config.json": b"{}",
        "model.safetensors": b"old",
        "tokenizer.json": b"{}",
        "onnx/model.onnx": b"o",
    }
    for before in ({}, old):
        sweep(place, staged, faults=[(how, lasting) for how in FAULTS], old=before)
