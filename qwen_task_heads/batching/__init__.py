"""Text and sampling: examples to tensors."""
