"""Result of a publish."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """Result of a publish or of a dry run.

    Args:
        repo_id: `owner/name`.
        hub: name of the hub.
        url: URL of the commit's files; None if nothing was uploaded.
        commit: id of the commit; None if nothing was uploaded.
        private: whether the repo is private.
        unchanged: whether the repo had the same files already, so that no commit was made.
        notes: further messages for the user.
    """

    repo_id: str
    hub: str
    url: str | None = None
    commit: str | None = None
    private: bool = True
    unchanged: bool = False
    notes: tuple[str, ...] = ()

    def messages(self) -> list[str]:
        """Return the lines to print."""
        if self.url is None:
            return ["Nothing was uploaded.", *self.notes]
        action = "Nothing to publish, the repo has the same files:" if self.unchanged else "Published:"
        visibility = "private" if self.private else "public"
        return [f"{action} {self.url} ({visibility}, commit {self.commit})", *self.notes]
