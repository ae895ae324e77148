"""Task heads for Qwen and other decoders."""
