"""The life of a run, from a command line to a published model: one class per task."""
