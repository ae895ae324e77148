"""Compute accuracy, precision, recall and F1 (macro, micro, weighted), log-loss and ECE for single labels."""

from qwen_task_heads.evaluate_modules import _base


class TaskHeadsClassification(_base.LabelMetric):
    """Metrics of a single-label classifier, from labels or from scores."""

    problem_type = "single_label_classification"
    inputs = """
    predictions: ids or names of labels; None with `prediction_scores`.
    references: the true labels, as ids or names.
    prediction_scores: logits or probabilities, one row of L numbers per text.
    labels: names in the order of the ids or columns.
"""
