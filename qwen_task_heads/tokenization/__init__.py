"""Templates, prompts and collators: examples to tensors."""
