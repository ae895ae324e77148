"""Manifests, cards, exports: weights to a repo that others open."""
