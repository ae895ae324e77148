"""Verification: load a published model again in a clean process and compare it with the trained one."""
