"""Compute micro and macro F1, mean average precision and subset accuracy for several labels per text."""

from qwen_task_heads.evaluate_modules import _base


class TaskHeadsMultilabel(_base.LabelMetric):
    """Metrics of a multi-label classifier, from labels or from scores."""

    problem_type = "multi_label_classification"
    several = True
    inputs = """
    predictions: rows of L zeros and ones, or lists of names; None with `prediction_scores`.
    references: the true labels, as ids or names.
    prediction_scores: logits or probabilities, one row of L numbers per text.
    labels: names in the order of the ids or columns.
    threshold: minimum P(label) of a predicted label, for `prediction_scores`.
"""
