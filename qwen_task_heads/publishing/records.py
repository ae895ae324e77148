"""What a hub says of a repo, and what a publish returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where a model was published, or staged.

    Args:
        repo_id: `owner/name`.
        hub: its name.
        url: of the commit's files; None where nothing was sent.
        commit: its id; None where nothing was sent.
        private: whether the repo is.
        unchanged: the repo held these very files already, and got no commit.
        notes: what else to know.
    """

    repo_id: str
    hub: str
    url: str | None = None
    commit: str | None = None
    private: bool = True
    unchanged: bool = False
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What to say on the screen."""
        if self.url is None:
            return ["Nothing was sent.", *self.notes]
        did = "Nothing to publish, the files are there already:" if self.unchanged else "Published:"
        who = "private" if self.private else "public"
        return [f"{did} {self.url} ({who}, commit {self.commit})", *self.notes]


@dataclass(frozen=True, kw_only=True)
class State:
    """What a repo holds.

    Args:
        private: whether the repo is.
        head: commit of the branch at hand, or the one that a new branch will begin at.
        branches, tags: name to commit.
        files: of `head`: path to the hub's own digest of it.
    """

    private: bool
    head: str | None = None
    branches: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
