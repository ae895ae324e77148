"""Better labels: audit and review, pseudo-labels, and rows to label next."""
