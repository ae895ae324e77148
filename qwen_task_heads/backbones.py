"""The name under which the package's own backbone and sample data are used."""

EMBEDDED = "embedded"
