"""The HTTP server on loopback: equal to the `Scorer`, refusals with codes, limits, metrics."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest
import torch
import uvicorn
from records import QUESTIONS

from qwen_task_heads import Scorer, build, load_tokenizer
from qwen_task_heads.export.servers import Served
from qwen_task_heads.inference.identity import identity_of
from qwen_task_heads.serving.app import create_app
from qwen_task_heads.serving.limits import HeaderTimeoutProtocol
from qwen_task_heads.serving.request_limits import RequestLimits

LIMITS = RequestLimits(body_bytes=20_000, rows=50, tokens=8000, read_seconds=0.5, answer_seconds=20)
TEXTS = [f"Why was transfer {number} declined? " + "please " * (number % 17) for number in range(64)]


class Client:
    """Requests to one server."""

    def __init__(self, port):
        self.port = port

    def send(self, path, body=None, *, headers=None, raw=None):
        """Send one request; return its status and its JSON, or the text of other answers."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json", **(headers or {})}
        chunked = "Transfer-Encoding" in headers
        connection.request("GET" if data is None else "POST", path, data, headers, encode_chunked=chunked)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.getheader("content-type", "").startswith("application/json")
        return answer.status, json.loads(content) if is_json else content.decode()


@contextmanager
def running(scorer, *, token=None, limits=LIMITS, buffer=None, **options):
    """Serve a model on a free port of loopback; `buffer` is the size of the kernel's buffer of answers."""
    app = create_app(scorer, name="model", limits=limits, token=token, **options)
    protocol = type("Protocol", (HeaderTimeoutProtocol,), {"read_seconds": limits.read_seconds})
    server = uvicorn.Server(uvicorn.Config(app, http=protocol, ws="none", log_level="error"))
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    if buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Client(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def scorer_of(**options):
    torch.manual_seed(0)
    return Scorer(build("embedded", **options), tokenizer=load_tokenizer("embedded"))


@pytest.fixture(scope="module")
def classifier():
    """A classifier with three labels."""
    return scorer_of(task="pooled_classifier", labels=["card", "cash", "transfer"])


@pytest.fixture(scope="module")
def ranker():
    """A title scorer."""
    return scorer_of()


@pytest.fixture(scope="module")
def client(classifier):
    """A served classifier."""
    with running(classifier) as client:
        yield client


@pytest.fixture(scope="module")
def titles(ranker):
    """A served title scorer."""
    with running(ranker) as client:
        yield client


def codes(answer):
    """Return the codes and places of a refusal."""
    return [(problem["code"], problem["where"]) for problem in answer["error"]["problems"]]


def test_classify_equals_the_scorer(client, classifier):
    status, answer = client.send("/classify", {"input": TEXTS[:40]})
    assert status == 200
    for row, expected in zip(answer["data"], classifier.predict(TEXTS[:40]), strict=True):
        assert row["label"] == expected.label
        assert row["num_classes"] == 3
        assert row["probs"] == pytest.approx(list(expected.probabilities.values()), abs=1e-6)
    assert answer["usage"]["prompt_tokens"] > 0


def test_clients_at_once_get_the_answers_of_their_own_texts(client, classifier):
    expected = classifier.predict(TEXTS)

    def ask(index):
        return client.send("/classify", {"input": TEXTS[index]})

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(64)))
    for (status, answer), prediction in zip(answers, expected, strict=True):
        assert status == 200
        probabilities = list(prediction.probabilities.values())
        assert answer["data"][0]["probs"] == pytest.approx(probabilities, abs=1e-6)
    _, metrics = client.send("/metrics")
    rows = sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("qth_rows_total"))
    batches = [line for line in metrics.splitlines() if line.startswith("qth_batch_rows_count")]
    assert float(batches[0].split()[-1]) < rows  # requests ran together


def test_rank_equals_the_scorer(titles, ranker):
    names = ["A plain title", "One Weird Title", "You won't believe this"]
    for prompt in ("", "An article about titles"):
        status, answer = titles.send("/rank", {"titles": names, "prompt": prompt, "top_k": 2})
        expected = ranker.rank(names, prompt=prompt, top_k=2)
        assert status == 200
        assert [row["title"] for row in answer["data"]] == [row.title for row in expected]
        for row, title in zip(answer["data"], expected, strict=True):
            assert row["score"] == pytest.approx(title.score, abs=1e-5)
            assert row["rank"] == title.rank
            assert row["probability"] == pytest.approx(title.probability, abs=1e-6)


def test_predict_answers_requests_of_inference_endpoints(client, classifier):
    status, answer = client.send("/predict", {"inputs": TEXTS[0], "parameters": {"top_k": 1}})
    best = classifier.predict(TEXTS[:1])[0].ranked[0]
    assert status == 200
    assert answer == [{"label": best[0], "score": pytest.approx(best[1], abs=1e-6)}]


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "where"),
    [
        ("/classify", {"input": ["good", "  "]}, 400, "request-invalid", "inputs[1].text"),
        ("/classify", {"input": []}, 400, "request-invalid", "inputs"),
        ("/classify", {"text": "x"}, 400, "request-invalid", "body.input"),
        ("/classify", {"input": "x", "top_k": 1}, 400, "request-invalid", "body.top_k"),
        ("/classify", {"input": ["x"] * 51}, 413, "request-too-large", "inputs"),
        ("/predict", {"inputs": {"text": 3}}, 400, "request-invalid", "inputs[0].text"),
        ("/predict", {"inputs": "x", "parameters": {"top_k": 0}}, 400, "request-invalid", "parameters.top_k"),
        ("/rank", {"titles": ["x"]}, 404, "request-invalid", "'/rank'"),
        ("/classify", {"input": [0] * 60}, 413, "request-too-large", "inputs"),
        ("/classify", {"input": [0]}, 400, "request-invalid", "inputs[0]"),
        ("/classify", {"input": "x " * 9000}, 413, "request-too-large", "inputs"),
        (
            "/predict",
            {"inputs": "x", "parameters": {"top_k": True}},
            400,
            "request-invalid",
            "parameters.top_k",
        ),
        ("/nothing", None, 404, "request-invalid", "'/nothing'"),
        ("/classify", None, 405, "request-invalid", "'/classify'"),
    ],
)
def test_bad_requests_are_refused_with_a_code_and_a_place(client, path, body, status, code, where):
    answered, answer = client.send(path, body)
    assert (answered, codes(answer)[0]) == (status, (code, where))
    assert client.send("/classify", {"input": "good"})[0] == 200  # the next request is answered


def test_all_problems_of_a_request_are_listed_with_their_fields(client, titles):
    bad = [0, "", "Fix: x. Expected y. z: w.", {"text": "a", "text_pair": 3}] + [" "] * 20
    status, answer = client.send("/predict", {"inputs": bad, "parameters": {"top_k": 0, "unknown": 1}})
    places = [
        "inputs[0]",
        "inputs[1].text",
        "inputs[3].text_pair",
        *(f"inputs[{n}].text" for n in range(4, 24)),
    ]
    assert status == 400
    assert codes(answer) == [
        ("request-invalid", where) for where in ("parameters.top_k", "parameters.unknown", *places)
    ]
    problem = answer["error"]["problems"][3]
    assert problem["problem"] == "found ''"
    assert all(problem[field] for field in ("expected", "fix"))
    assert str(len(places) + 2 - 10) in answer["error"]["message"].splitlines()[-1]
    lists = [{"titles": ["a", "Expected. b"]}, {"titles": ["", "b", 3], "prompt": 1}, {"titles": []}]
    status, answer = titles.send("/predict", {"inputs": lists})
    places = ["inputs[1].titles[0]", "inputs[1].titles[2]", "inputs[1].prompt", "inputs[2]"]
    assert codes(answer) == [("request-invalid", where) for where in places]


def test_a_value_that_looks_like_a_message_stays_one_field(client):
    value = ". Expected a. Fix: b.\nc: d. Expected e. Fix: f."
    status, answer = client.send("/predict", {"inputs": "x", "parameters": {"top_k": value, value: 1}})
    problems = answer["error"]["problems"]
    assert status == 400
    assert [problem["where"] for problem in problems] == ["parameters.top_k", f"parameters.{value}"]
    assert all(problem["problem"].startswith("found ") for problem in problems)
    assert problems[1]["problem"] == "found 1"


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b'{"input": "\\ud800"}', b"NaN"])
def test_bodies_that_are_no_requests_are_refused(client, raw):
    status, answer = client.send("/classify", raw=raw)
    assert status == 400
    assert answer["error"]["code"] == "request-invalid"


HALF = "\\ud800"  # half of a character, which JSON can hold and UTF-8 cannot


@pytest.mark.parametrize(
    ("path", "raw"),
    [
        ("/predict", '{"inputs": "x", "parameters": {"HALF": 1}}'),
        ("/predict", '{"inputs": "x", "parameters": {"top_k": "HALF"}}'),
        ("/predict", '{"inputs": {"text": "x", "HALF": 1}}'),
        ("/classify", '{"input": "x", "HALF": 1}'),
        ("/predict", '{"inputs": "x", "parameters": {"top_k": NaN}}'),
        ("/predict", '{"inputs": "x", "parameters": {"top_k": ' + "9" * 5000 + "}}"),
        ("/classify", '{"input": [Infinity, 1e999]}'),
        ("/classify", '{"input": ' + "[" * 900 + "]" * 900 + "}"),
        ("/classify", '{"input": ' + "[" * 9000 + "]" * 9000 + "}"),
        ("/v1/systemone", '{"state": "HALF", "questions": {"card": {"type": "noul"}}}'),
        ("/v1/systemone", '{"state": "x", "questions": {"HALF": {"type": "noul"}}}'),
        ("/v1/systemone", '{"state": "x", "questions": {"card": {"type": ["noul"]}}}'),
    ],
)
def test_values_that_json_can_hold_and_no_answer_can(client, path, raw):
    status, answer = client.send(path, raw=raw.replace("HALF", HALF).encode())
    assert (status, answer["error"]["code"]) == (400, "request-invalid")


def test_the_name_of_a_question_is_a_key_of_the_answer():
    with running(scorer_of(task="pooled_classifier", labels=["no", "yes"])) as client:  # any name is asked
        for name, expected in (("is it so?", 200), (HALF, 400)):
            raw = '{"state": "x", "questions": {"NAME": {"type": "noul"}}}'.replace("NAME", name)
            assert client.send("/v1/systemone", raw=raw.encode())[0] == expected


@pytest.mark.parametrize("path", ["/classify", "/predict"])
def test_many_fields_are_one_problem(client, path):
    fields = {f"field {number}": number for number in range(100)}
    body = {"inputs": "x", "parameters": fields} if path == "/predict" else {"input": "x", **fields}
    status, answer = client.send(path, body)
    assert (status, codes(answer)) == (400, [("request-invalid", "body")])


def bad_request():
    """Return a small request with a large answer: a problem for each row."""
    body = json.dumps({"inputs": [0] * 50}).encode()
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_a_client_that_does_not_read_is_disconnected(classifier):
    def answered():
        lines = client.send("/metrics")[1].splitlines()
        return [line for line in lines if line.startswith('qth_requests_total{endpoint="/predict"')]

    with running(classifier, buffer=4096) as client, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)  # ends the test if the server waits for ever
        connection.connect(("127.0.0.1", client.port))
        connection.sendall(bad_request() * 1000)
        found = None
        while found != (found := answered()):
            time.sleep(2 * LIMITS.read_seconds)
        content = b""
        while part := connection.recv(65536):
            content += part
        assert 0 < content.count(b"HTTP/1.1 400") < 1000
        assert client.send("/classify", {"input": "good"})[0] == 200


def test_a_client_that_is_far_ahead_of_its_answers_is_disconnected(classifier):
    with running(classifier, limits=RequestLimits(read_seconds=60)) as client:
        connection = socket.create_connection(("127.0.0.1", client.port))
        with connection, pytest.raises(ConnectionError):
            connection.sendall(bad_request() * 100_000)
        assert client.send("/classify", {"input": "good"})[0] == 200


def test_requests_in_one_packet_are_answered_in_their_order(client, classifier):
    requests = b""
    for text in TEXTS[:8]:
        body = json.dumps({"inputs": text, "parameters": {"top_k": 1}}).encode()
        requests += b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        requests += b"Content-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(requests + b"not HTTP\r\n\r\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
    scores = [float(part.partition(b"}")[0]) for part in answer.split(b'"score":')[1:]]
    expected = [prediction.ranked[0][1] for prediction in classifier.predict(TEXTS[:8])]
    assert scores == pytest.approx(expected, abs=1e-6)
    assert answer.count(b"HTTP/1.1 400") == 1


def test_health_names_the_model(client, classifier):
    _, answer = client.send("/health")
    assert answer["model"] == "model"
    assert {name: answer[name] for name in ("model_revision", "model_hash")} == identity_of(classifier)


def test_large_bodies_are_refused(client):
    status, answer = client.send("/classify", {"input": "x" * 30_000})
    assert (status, answer["error"]["code"]) == (413, "request-too-large")
    assert client.send("/classify", {"input": "x" * 10_000_000})[0] == 413
    chunks = iter([b"x" * 5_000] * 10)  # chunked: without a length
    status, answer = client.send("/classify", raw=chunks, headers={"Transfer-Encoding": "chunked"})
    assert (status, answer["error"]["code"]) == (413, "request-too-large")


def test_slow_clients_are_disconnected(client):
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\n"
    for sent in (b"", head, head + b"Content-Length: 100\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
            connection.sendall(sent)
            answer = b""
            while part := connection.recv(4096):  # b"" once the server has closed
                answer += part
            assert (b"408" in answer.split(b"\r\n")[0]) == sent.endswith(b"{")
    assert client.send("/health")[0] == 200


def test_a_client_that_leaves_does_not_affect_others(client):
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            body = json.dumps({"input": TEXTS[:20]}).encode()
            head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert client.send("/classify", {"input": "good"})[0] == 200


class HeldScorer(Scorer):
    """A scorer that records its rows; each batch waits for `release`."""

    def hold(self):
        self.rows, self.release = [], threading.Event()
        return self

    def run_ids(self, rows):
        self.rows += rows
        assert self.release.wait(30)
        return super().run_ids(rows)


def wait_for(is_true):
    """Wait until a condition holds, at most 20 seconds."""
    end = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_rows_of_clients_that_left_do_not_run_and_are_counted(classifier):
    scorer = HeldScorer(classifier.model, tokenizer=classifier.tokenizer).hold()
    left = 'qth_requests_total{endpoint="/classify",status="499"} '

    def sent(text, *, missing=0):
        connection = socket.create_connection(("127.0.0.1", client.port))
        body = json.dumps({"input": [text] * 4}).encode()
        head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % (len(body) + missing) + body)
        return connection

    def waiting():
        return client.send("/health")[1]["waiting_tokens"]

    with running(scorer) as client, ThreadPoolExecutor(1) as pool:
        try:
            stays = pool.submit(client.send, "/classify", {"input": "I stay"})
            wait_for(lambda: scorer.rows)
            alone = waiting()
            leaving = [sent("I leave")]
            wait_for(lambda: waiting() > alone)
            one = waiting() - alone
            leaving += [sent("I leave") for _ in range(2)]
            wait_for(lambda: waiting() == alone + 3 * one)
            leaving.append(sent("I leave before the end", missing=10))
            time.sleep(0.05)
            for connection in leaving:
                connection.close()
            wait_for(lambda: waiting() == alone)  # while the model is busy
        finally:
            scorer.release.set()
        assert stays.result()[0] == 200
        assert client.send("/classify", {"input": "good"})[0] == 200
        metrics = client.send("/metrics")[1]
        assert len(scorer.rows) == 2
        assert waiting() == 0
    assert left + "3.0" in metrics
    assert 'endpoint="other",status="499"} 1.0' in metrics


def test_the_token_opens_every_path_and_health_is_open(classifier):
    with running(classifier, token="secret") as client:
        assert client.send("/health")[0] == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            status, answer = client.send("/classify", {"input": "x"}, headers=headers)
            assert (status, answer["error"]["code"]) == (401, "request-denied")
            assert client.send("/metrics", headers=headers)[0] == 401
        headers = {"Authorization": "Bearer secret"}
        assert client.send("/classify", {"input": "x"}, headers=headers)[0] == 200
        _, metrics = client.send("/metrics", headers=headers)
    assert 'status="401"' in metrics
    assert 'endpoint="/classify",status="200"' in metrics


def test_a_request_without_an_answer_in_time_gets_503(classifier):
    limits = RequestLimits(answer_seconds=0.001)
    with running(classifier, limits=limits) as client:
        status, answer = client.send("/classify", {"input": TEXTS})
        assert (status, answer["error"]["code"]) == (503, "server-busy")


def test_pairs_of_texts_are_read(classifier, client):
    status, answer = client.send("/classify", {"input": {"text": "one", "text_pair": "two"}})
    expected = classifier.predict(["one"], text_pairs=["two"])[0]
    assert status == 200
    probabilities = list(expected.probabilities.values())
    assert answer["data"][0]["probs"] == pytest.approx(probabilities, abs=1e-6)


def test_questions_are_answered_as_by_transformers_serve(client, classifier):
    criteria = dict.fromkeys(["transfer", "card", "cash"])
    questions = {"intent": {"type": "choice", "criteria": criteria}, "card": {"type": "noul"}}
    status, answer = client.send("/v1/systemone", {"state": TEXTS[0], "questions": questions})
    known = classifier.predict(TEXTS[:1])[0].probabilities
    assert status == 200
    assert answer["answers"]["intent"]["probabilities"] == pytest.approx(known, abs=1e-6)
    assert answer["answers"]["card"]["noul"] == pytest.approx(known["card"], abs=1e-6)


def test_several_questions_are_answered_by_their_names():
    scorer = scorer_of(task="pooled_classifier", questions=QUESTIONS)
    with running(scorer) as client:
        served = Served(architecture="PooledClassifier", questions=QUESTIONS)
        path, body, _ = served.request("model")  # as a card states it
        status, answer = client.send(path, {**body, "state": TEXTS[0]})
        assert status == 200
        [row] = client.send("/predict", {"inputs": TEXTS[:1]})[1]
        assert client.send("/classify", {"input": TEXTS[:1]})[0] == 404  # a text has no label
        other = client.send("/v1/systemone", {"state": "x", "questions": {"spam": {"type": "noul"}}})
        assert (other[0], other[1]["error"]["code"]) == (400, "request-invalid")
    for name, known in scorer.predict(TEXTS[:1])[0].answers.items():
        found = {one["label"]: one["score"] for one in row[name]}
        assert found == pytest.approx(known.probabilities, abs=1e-6)
        if name != "refund":
            shares = [*answer["answers"][name]["probabilities"].values()]
            assert shares == pytest.approx([*known.probabilities.values()], abs=1e-6)
    assert answer["answers"]["refund"]["noul"] == pytest.approx(found["true"], abs=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        {"state": "x", "questions": {}},
        {"state": "", "questions": {"card": {"type": "noul"}}},
        {"state": "x", "questions": {"card": {"type": "essay"}}},
        {"state": "x", "questions": {"weather": {"type": "choice", "criteria": {"rain": None}}}},
    ],
)
def test_bad_questions_are_refused(client, body):
    status, answer = client.send("/v1/systemone", body)
    assert (status, answer["error"]["code"]) == (400, "request-invalid")


def test_requests_for_vllm_are_answered(client):
    body = {"model": "model", "input": TEXTS[:1], "truncate_prompt_tokens": -1, "user": "me"}
    assert client.send("/classify", body)[0] == 200


def test_many_questions_are_refused(client):
    questions = {f"card {number}": {"type": "noul"} for number in range(65)}
    status, answer = client.send("/v1/systemone", {"state": "x", "questions": questions})
    assert (status, answer["error"]["code"]) == (413, "request-too-large")


def test_logits_that_are_not_finite_are_no_answer():
    scorer = scorer_of(task="pooled_classifier", labels=["card", "cash", "transfer"])
    with torch.no_grad():
        scorer.model.score.weight.fill_(float("nan"))
    with running(scorer) as client:
        status, answer = client.send("/classify", {"input": "x"})
        assert (status, answer["error"]["code"]) == (500, "server-error")
        assert 'status="500"' in client.send("/metrics")[1]


def test_long_rows_are_answered_as_by_the_scorer():
    options = {"truncation": "windows", "max_seq_length": 24, "window_overlap": 8}
    scorer = scorer_of(task="pooled_classifier", labels=["card", "cash", "transfer"], **options)
    texts = ["please help me " * 60, "short"]
    with running(scorer) as client:
        status, answer = client.send("/classify", {"input": texts})
    assert status == 200
    for row, expected in zip(answer["data"], scorer.predict(texts), strict=True):
        assert row["probs"] == pytest.approx(list(expected.probabilities.values()), abs=1e-6)
