"""The served page: endpoints that equal the `Scorer`, errors as text, limits, the login, MCP tools."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from importlib.util import find_spec
from typing import Any

import gradio as gr
import pytest
from demo_models import LABELS, scorer_of
from problem_assertions import raises_problem

from qwen_task_heads import DemoArguments
from qwen_task_heads.demo.answers import DemoModel
from qwen_task_heads.demo.arguments import LOGIN
from qwen_task_heads.demo.endpoints import shown
from qwen_task_heads.demo.pages import page_of
from qwen_task_heads.demo.server import DemoServer, app_of
from qwen_task_heads.errors import error_at

# Gradio 6.31 calls pandas 3 in deprecated ways when it counts the calls of an endpoint.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TEXT = "Why was my transfer declined twice today?"
TITLES = ["A plain title", "10 ways to make tea", "You won't believe this"]


class Client:
    """Requests to a demo."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie = ""

    def send(self, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """Send JSON, or bytes as they are; return the status and the text of the answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = "Content-Type" not in headers
        data = json.dumps(body).encode() if content and body is not None else body
        headers = {"Content-Type": "application/json", "Cookie": self.cookie, **headers}
        connection.request("GET" if data is None else "POST", path, data, headers)
        answer = connection.getresponse()
        self.cookie = self.cookie or "; ".join(
            value.split(";")[0] for name, value in answer.getheaders() if name.lower() == "set-cookie"
        )
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def call(self, name: str, *values: Any) -> tuple[str, Any]:
        """Call an endpoint; return its last event and the data of the event."""
        status, text = self.send(f"/gradio_api/call/{name}", {"data": list(values)})
        assert status == 200, text
        _, events = self.send(f"/gradio_api/call/{name}/{json.loads(text)['event_id']}")
        event, data = events.strip().split("\n\n")[-1].splitlines()
        return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


@contextmanager
def running(*models: DemoModel, **options: Any) -> Iterator[Client]:
    """Serve models on a free port of loopback."""
    args = DemoArguments(model="x", max_characters=2000, **options)

    async def made() -> Any:  # without a loop Gradio makes some, and does not close them
        return app_of(page_of(models), args)

    server = DemoServer(asyncio.run(made()))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Client(listener.getsockname()[1])
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def classifiers() -> list[DemoModel]:
    """Two classifiers of the same kind."""
    return [DemoModel(scorer_of("single", seed=seed), name=f"runs/{seed}") for seed in (0, 1)]


@pytest.fixture(scope="module")
def client(classifiers: list[DemoModel]) -> Iterator[Client]:
    """Two classifiers side by side."""
    with running(*classifiers) as client:
        yield client


def test_endpoints_of_both_models_equal_the_scorer(client: Client, classifiers: list[DemoModel]) -> None:
    answers = []
    for name, model in zip(("classify", "classify_2"), classifiers, strict=True):
        event, [answer] = client.call(name, TEXT, "", None)
        [wanted] = model.scorer.predict([TEXT])
        assert event == "complete"
        assert answer["answer"] == wanted.label
        assert answer["probabilities"] == pytest.approx(wanted.probabilities, abs=6e-5)
        answers.append(answer)
    assert answers[0]["probabilities"] != answers[1]["probabilities"]
    _, [answer] = client.call("classify_2", TEXT, "", 1.0)
    assert answer["answer"] not in LABELS
    _, [answer] = client.call("attribute_words", TEXT, "")
    assert [word for word, _ in answer["words"]] == TEXT.split()


def test_titles_are_ranked() -> None:
    model = DemoModel(scorer_of("titles"), name="titles")
    with running(model) as client:
        _, [rows] = client.call("rank", "\n".join(TITLES), "An article")
        assert [row["title"] for row in rows] == [
            row.title for row in model.scorer.rank(TITLES, prompt="An article")
        ]
        event, answer = client.call("rank", "\n", "")
        assert event == "error"
        assert "titles" in answer["error"]
        assert list(json.loads(client.send("/gradio_api/info")[1])["named_endpoints"]) == ["/rank"]


def test_errors_are_escaped() -> None:
    """`gr.Error` renders HTML."""

    def refuse(text: str) -> None:
        raise error_at("x", text, "a & b", "none", code="option-value")

    with pytest.raises(gr.Error) as caught:
        shown(refuse)("found <img src=x onerror=alert(1)>\nand more")
    assert "<img" not in caught.value.message
    assert "&lt;img src=x onerror=alert(1)&gt;<br>and" in caught.value.message
    assert not caught.value.print_exception


def test_only_models_of_a_kind_are_compared() -> None:
    models = [DemoModel(scorer_of(kind), name=kind) for kind in ("single", "pairs", "titles", "ordinal")]
    for other in models[1:3]:
        with raises_problem("model-type", "--compare"):
            page_of([models[0], other])

    async def compared() -> gr.Blocks:
        return page_of([models[0], models[3]])

    assert asyncio.run(compared()).title == "Classifier"


def test_large_requests_and_files_are_refused(client: Client) -> None:
    event, answer = client.call("classify", "a" * 20_001, "", None)  # within the limit of the request
    assert event == "error"
    assert "20,000" in answer["error"]
    status, text = client.send("/gradio_api/call/classify", {"data": ["a" * 200_000]})
    assert status == 413
    assert json.loads(text)["error"]["code"] == "request-too-large"
    form = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nabc\r\n--b--\r\n'
    status, _ = client.send("/gradio_api/upload", form, **{"Content-Type": "multipart/form-data; boundary=b"})
    assert status == 413


def test_a_login_is_needed_for_the_page_and_the_endpoints(
    classifiers: list[DemoModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOGIN, "ann:se:cret")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    with running(classifiers[0]) as client:
        for path in ("/config", "/gradio_api/info"):
            assert client.send(path)[0] == 401
        for path in ("/gradio_api/call/classify", "/gradio_api/run/classify", "/gradio_api/upload"):
            basic = b64encode(b"ann:se:cret").decode()
            assert client.send(path, {"data": [TEXT]}, Authorization=f"Basic {basic}")[0] == 401
        assert client.send("/login", b"username=ann&password=secret", **form)[0] == 400
        assert client.send("/login", b"username=ann&password=se:cret", **form)[0] == 200
        assert client.call("classify", TEXT, "", None)[0] == "complete"


@pytest.mark.skipif(find_spec("mcp") is None, reason="the package mcp is not installed")
def test_endpoints_are_tools_of_an_mcp_server(
    classifiers: list[DemoModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set for the whole process when a server of an earlier test ended.
    monkeypatch.setattr("sse_starlette.sse.AppStatus.should_exit", False)
    accepted = {"Accept": "application/json, text/event-stream"}
    with running(*classifiers, mcp=True) as client:

        def ask(method: str, **params: Any) -> Any:
            message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            _, text = client.send("/gradio_api/mcp/", message, **accepted)
            [data] = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
            return json.loads(data)["result"]

        tools = {tool["name"]: tool for tool in ask("tools/list")["tools"]}
        assert set(tools) == {"classify", "attribute_words", "classify_2", "attribute_words_2"}
        assert set(tools["classify"]["inputSchema"]["properties"]) == {"text", "second_text", "threshold"}
        answer = ask("tools/call", name="classify", arguments={"text": TEXT})
        assert classifiers[0].classify(TEXT).answer in answer["content"][0]["text"]
        assert ask("tools/call", name="classify", arguments={"text": " "})["isError"]
