"""Losses, metrics, trainers, checkpoints: tensors to weights."""
