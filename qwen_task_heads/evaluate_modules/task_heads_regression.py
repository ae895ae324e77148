"""Compute Pearson, Spearman, mean squared and absolute error and R² for one value per text."""

from qwen_task_heads.evaluate_modules import _base


class TaskHeadsRegression(_base.NumberMetric):
    """Metrics of a regression model."""

    problem_type = "regression"
    inputs = """
    predictions: one number per text.
    references: one number per text.
"""
