"""Scorers: weights to answers. Imports neither trl nor datasets."""
