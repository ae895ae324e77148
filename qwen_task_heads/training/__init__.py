"""Trainers, options, checkpoints and head sweeps: examples to weights."""
