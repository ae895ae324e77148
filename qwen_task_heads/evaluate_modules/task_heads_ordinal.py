"""Compute mean absolute error in steps, quadratic kappa and class metrics for ordered labels."""

from qwen_task_heads.evaluate_modules import _base


class TaskHeadsOrdinal(_base.LabelMetric):
    """Metrics of an ordinal model, from labels or from scores."""

    problem_type = "ordinal"
    inputs = """
    predictions: ids of labels in their order, or names with `labels`; None with `prediction_scores`.
    references: the true labels, as ids or names.
    prediction_scores: log-probabilities or probabilities, one row of L numbers per text.
    labels: names in the order of the ids or columns.
"""
