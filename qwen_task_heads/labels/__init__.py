"""Sets of labels, and the files that state them."""
