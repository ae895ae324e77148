"""Load test of `qth serve` on loopback: clients at once, bad and hanging requests, a kill and a restart.

    python benchmarks/serving_load.py --model runs/intents --seconds 60 --clients 32

Good requests have one to eight texts of different lengths; their answers are compared with `Scorer`. Of all
requests 5% are invalid, 5% too large, and 5% stop in the middle. Halfway the server is killed and started
again; clients send an unanswered request again. Then the server answers `--memory_texts` texts while its
memory is read, and its throughput is compared with `pipeline("text-classification")`, one text per call.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORDS = [
    "why",
    "was",
    "my",
    "card",
    "transfer",
    "declined",
    "please",
    "top",
    "up",
    "cash",
    "为什么",
    "转账",
    "失败",
]


def main() -> None:
    """Run the load test and write `results/serving_load.json` and `.md`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a single-label classifier")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--memory_texts", type=int, default=100_000)
    parser.add_argument("--serial_texts", type=int, default=1000)
    args = parser.parse_args()
    texts = ragged_texts(2000)
    expected = offline(args.model, texts)
    server = Server(args.model)
    load = Load(server, texts, expected)
    restart = threading.Timer(args.seconds / 2, server.kill_and_restart)
    restart.start()
    with ThreadPoolExecutor(args.clients) as pool:
        list(pool.map(lambda seed: load.client(seed, args.seconds), range(args.clients)))
    restart.join()
    memory = measure_memory(server, texts, count=args.memory_texts, clients=args.clients)
    together = measure_throughput(server, texts, clients=args.clients)
    server.stop()
    alone = one_by_one(args.model, texts[: args.serial_texts])
    write(args, load, memory=memory, together=together, alone=alone)


def ragged_texts(count: int) -> list[str]:
    """Return texts of 3 to 100 words."""
    source = random.Random(0)
    return [" ".join(source.choices(WORDS, k=int(3 + 97 * source.random() ** 3))) for _ in range(count)]


def offline(model: str, texts: list[str]) -> list[list[float]]:
    """Return the probabilities of the `Scorer`."""
    from qwen_task_heads import Scorer

    return [list(row.probabilities.values()) for row in Scorer(model, progress=False).predict(texts)]


class Server:
    """A server process that can be killed and started again on its port."""

    def __init__(self, model: str) -> None:
        self.model, self.port, self.kills = model, 0, 0
        self._start()

    def _start(self) -> None:
        words = [sys.executable, str(ROOT / "recipes" / "serve.py"), "--model", self.model]
        self.process = subprocess.Popen(
            [*words, "--port", str(self.port), "--read_seconds", "2"], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # printed when it listens
        self.port = int(line.split(" at http://")[1].split(";")[0].rsplit(":", 1)[1])
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def kill_and_restart(self) -> None:
        """Kill the process without warning, and start it again."""
        self.process.kill()
        self.process.wait()
        self.kills += 1
        self._start()

    def stop(self) -> None:
        """Stop gracefully."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def rss(self) -> float:
        """Return the resident memory in MiB."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def send(self, body: Any, *, path: str = "/classify") -> tuple[int, Any]:
        """Send one request; return its status and its JSON."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


class Load:
    """Mixed requests of many clients, with what came back."""

    def __init__(self, server: Server, texts: list[str], expected: list[list[float]]) -> None:
        self.server, self.texts, self.expected = server, texts, expected
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.largest_difference = 0.0
        self.retries = 0
        self.unanswered = 0

    def client(self, seed: int, seconds: float) -> None:
        """Send requests for some seconds; a request that the server lost is sent again."""
        source, end = random.Random(seed), time.monotonic() + seconds
        while time.monotonic() < end:
            kind = source.choices(("good", "invalid", "large", "hanging"), (85, 5, 5, 5))[0]
            if kind == "hanging":
                self._hang()
                continue
            index = source.randrange(len(self.texts) - 8)
            rows = range(index, index + source.randint(1, 8))
            texts = [self.texts[row] for row in rows]
            body: Any = {"input": texts} if kind == "good" else {"input": [*texts, ""]}
            if kind == "large":
                body = {"input": ["x" * 5_000_000]}
            self._ask(kind, body, rows)

    def _ask(self, kind: str, body: Any, rows: range) -> None:
        for _ in range(600):
            start = time.monotonic()
            try:
                status, answer = self.server.send(body)
            except (OSError, HTTPException, ValueError):  # the server was killed
                self.retries += 1
                time.sleep(0.1)
                continue
            self.statuses[f"{kind} {status}"] += 1
            if kind == "good" and status == 200:
                self.seconds.append(time.monotonic() - start)
                for row, found in zip(rows, answer["data"], strict=True):
                    pairs = zip(found["probs"], self.expected[row], strict=True)
                    difference = max(abs(a - b) for a, b in pairs)
                    self.largest_difference = max(self.largest_difference, difference)
            return
        self.unanswered += 1

    def _hang(self) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=5) as connection:
                connection.sendall(b"POST /classify HTTP/1.1\r\nContent-Length: 50\r\n")
                time.sleep(0.05)
            self.statuses["hanging"] += 1
        except OSError:
            self.retries += 1


def measure_memory(server: Server, texts: list[str], *, count: int, clients: int) -> list[tuple[int, float]]:
    """Return (answered texts, MiB) while the server answers `count` texts, in requests of 50."""
    points = [(0, server.rss())]
    with ThreadPoolExecutor(clients) as pool:
        for start in range(0, count, count // 10):
            requests = [texts[index % 1900 :][:50] for index in range(start, start + count // 10, 50)]
            statuses = Counter(pool.map(lambda rows: server.send({"input": rows})[0], requests))
            assert set(statuses) == {200}, statuses
            points.append((start + count // 10, server.rss()))
    return points


def measure_throughput(server: Server, texts: list[str], *, clients: int) -> float:
    """Return texts per second of clients that send one text per request."""
    with ThreadPoolExecutor(clients) as pool:
        start = time.monotonic()
        list(pool.map(lambda text: server.send({"input": text}), texts))
        return len(texts) / (time.monotonic() - start)


def one_by_one(model: str, texts: list[str]) -> float:
    """Return texts per second of the pipeline of transformers, one text per call."""
    from transformers import pipeline

    import qwen_task_heads  # noqa: F401 - registers the classes

    classify = pipeline("text-classification", model=model, truncation=True, top_k=None)
    classify(texts[0])
    start = time.monotonic()
    for text in texts:
        classify(text)
    return len(texts) / (time.monotonic() - start)


def write(args: Any, load: Load, *, memory: list[tuple[int, float]], together: float, alone: float) -> None:
    """Write the results, and print them."""
    ordered = sorted(load.seconds)
    percentile = {p: ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] for p in (50, 95, 99)}
    result = {
        "machine": {"cpus": psutil.cpu_count(), "processor": platform.processor() or platform.machine()},
        "model": Path(args.model).name,
        "clients": args.clients,
        "seconds": args.seconds,
        "statuses": dict(sorted(load.statuses.items())),
        "kills": load.server.kills,
        "sent_again": load.retries,
        "unanswered": load.unanswered,
        "largest_difference": load.largest_difference,
        "milliseconds": {f"p{p}": round(value * 1000, 1) for p, value in percentile.items()},
        "memory_mib": [(texts, round(size, 1)) for texts, size in memory],
        "texts_per_second": {"server": round(together, 1), "pipeline one by one": round(alone, 1)},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "serving_load.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    times = ", ".join(f"{name} {value:,.0f} ms" for name, value in result["milliseconds"].items())
    statuses = ", ".join(f"{name}: {count:,}" for name, count in result["statuses"].items())
    lines = [
        "# `qth serve` under load",
        "",
        f"`python benchmarks/serving_load.py --model {result['model']}`: {args.clients} clients for"
        f" {args.seconds:g} s on loopback, {result['machine']['cpus']} cores. The server was killed and",
        "started again halfway.",
        "",
        "| measure | value |",
        "|---|---|",
        f"| requests by kind and status | {statuses} |",
        f"| largest difference to `Scorer`, in probability | {load.largest_difference:.1e} |",
        f"| requests without an answer | {load.unanswered} (sent again: {load.retries:,}) |",
        f"| latency of good requests | {times} |",
        f"| memory, from 10% to 100% of {args.memory_texts:,} texts | {memory[1][1]:,.0f} to"
        f" {memory[-1][1]:,.0f} MiB |",
        f"| texts per second, one text per request | {together:,.0f} |",
        f"| texts per second, `pipeline` one by one | {alone:,.0f} |",
    ]
    (RESULTS / "serving_load.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
