"""Prometheus metrics of the server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ServerMetrics:
    """Counters and histograms of one server, in a registry of its own.

    | metric | labels | meaning |
    |---|---|---|
    | `qth_requests_total` | `endpoint`, `status` | answered requests; status 499: the client left before |
    | `qth_request_seconds` | `endpoint` | from the headers to the answer |
    | `qth_rows_total`, `qth_tokens_total` | | rows and tokens that the model ran |
    | `qth_batch_rows`, `qth_batch_seconds` | | size and time of batches |
    | `qth_waiting_tokens` | | tokens of unfinished requests |
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "qth_requests", "Answered requests", ["endpoint", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "qth_request_seconds", "Seconds to an answer", ["endpoint"], buckets=SECONDS, registry=registry
        )
        self.rows = Counter("qth_rows", "Rows that the model ran", registry=registry)
        self.tokens = Counter("qth_tokens", "Tokens that the model ran", registry=registry)
        self.batch_rows = Histogram("qth_batch_rows", "Rows of a batch", buckets=ROWS, registry=registry)
        self.batch_seconds = Histogram(
            "qth_batch_seconds", "Seconds of a batch", buckets=SECONDS, registry=registry
        )
        self.waiting = Gauge("qth_waiting_tokens", "Tokens of unfinished requests", registry=registry)

    def observe_batch(self, rows: int, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self.rows.inc(rows)
        self.tokens.inc(tokens)
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def observe_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self.requests.labels(endpoint, str(status)).inc()
        self.request_seconds.labels(endpoint).observe(seconds)
