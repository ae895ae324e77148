"""Inference: scorers, engines and batch prediction. Imports neither trl nor datasets."""
