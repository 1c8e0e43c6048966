"""Which code this is: a commit where there is one, a digest of the sources where there isn't."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from raymill.reading import files_below, read_bytes, status

_PACKAGE = Path(__file__).resolve().parents[1]


def code_commit() -> str:
    """The git commit, with `+changes` if the package differs from it; without git, `sources-<digest>`."""
    root = _PACKAGE.parents[1]
    if status(root / ".git") is not None:
        commit = _git(root, "rev-parse", "HEAD")
        if commit:
            dirty = _git(root, "status", "--porcelain", "--", "platform", "conf", "jobs")
            return f"{commit}+changes" if dirty else commit
    return f"sources-{sources_digest()[:16]}"


def sources_digest() -> str:
    """sha256 over the package's Python files, by relative path."""
    digest = hashlib.sha256()
    for path in sorted(path for path in files_below(_PACKAGE) if path.suffix == ".py"):
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\0".encode())
        digest.update(read_bytes(path))
    return digest.hexdigest()


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
