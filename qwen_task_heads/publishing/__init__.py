"""Publishing: stage a finished run, verify it and push it to a hub."""
