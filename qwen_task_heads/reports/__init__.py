"""Reports of a run: records, model cards, plots and comparisons."""
