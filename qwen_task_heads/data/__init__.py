"""Readers, checks and splits: bytes to validated examples."""
