"""Verification: what is published is opened again in a clean process and compared."""
