"""Readers, doctor and splits: bytes to validated examples."""
