"""Losses of pairs, groups and texts, and their registry."""
