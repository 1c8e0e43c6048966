"""Identity of the running code: its git commit, or a digest of the sources without git."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from raymill.reading import files_below, read_bytes, status

_PACKAGE = Path(__file__).resolve().parents[1]


def code_commit() -> str:
    """Return the git commit, with `+changes` if the package differs from it; without git `sources-<digest>`."""
    root = _PACKAGE.parents[1]
    if status(root / ".git") is not None:
        commit = _git(root, "rev-parse", "HEAD")
        if commit:
            # Other files of the repository, such as notes, don't change a run.
            dirty = _git(root, "status", "--porcelain", "--", "platform", "conf", "jobs")
            return f"{commit}+changes" if dirty else commit
    return f"sources-{sources_digest()[:16]}"


def sources_digest() -> str:
    """Return the sha256 over the package's Python files, with their relative paths."""
    digest = hashlib.sha256()
    for path in sorted(path for path in files_below(_PACKAGE) if path.suffix == ".py"):
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\0".encode())
        digest.update(read_bytes(path))
    return digest.hexdigest()


def _git(root: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            # A network file system may make git hang; the commit isn't worth waiting for.
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
