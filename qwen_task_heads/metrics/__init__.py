"""Metrics with confidence intervals, baselines, verdicts and calibration."""
