"""`constraints.txt` and `uv.lock` have the same versions."""

from __future__ import annotations

import re

from sources import REPO


def test_uv_lock_has_the_versions_of_the_constraints() -> None:
    """Lock again by `uv lock -P NAME==VERSION` for each changed line of `constraints.txt`."""
    lock = (REPO / "uv.lock").read_text(encoding="utf-8")
    locked = dict(re.findall(r'^name = "(.*)"\nversion = "(.*)"$', lock, re.MULTILINE))
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = dict(line.split("==") for line in lines if not line.startswith("#"))
    normal = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in wanted.items()}
    assert len(normal) > 100
    assert {name: locked.get(name) for name in normal} == normal


def test_uv_lock_names_only_public_hosts() -> None:
    lock = (REPO / "uv.lock").read_text(encoding="utf-8")
    hosts = set(re.findall(r'"https?://([^/"]+)', lock))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
