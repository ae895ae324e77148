"""An HTTP server for task heads: batching of concurrent requests, limits, metrics, graceful stop."""
