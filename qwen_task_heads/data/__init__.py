"""Column layouts, checks and splits: rows to validated examples."""
