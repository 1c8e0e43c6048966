"""Web archives of Debian's HTML documentation, in many languages: a real corpus for experiments.

    .venv/bin/python bench/corpus/debian_warc.py FOLDER [--megabytes 300] [--packages debian-handbook …]

Packages are downloaded by name (`apt-get download`), unpacked, and their pages written as answers of a web
server into FOLDER/debian-NN.warc.gz by warcio, as a crawler would; translations and versions of one text are
near-duplicates. The packages take turns file by file, so that every archive holds all of them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

PACKAGES = (
    "debian-handbook", "installation-guide-amd64", "postgresql-doc-15", "python3.11-doc",
    "libreoffice-help-de", "libreoffice-help-fr", "libreoffice-help-es", "libreoffice-help-ja",
    "libreoffice-help-ru", "libreoffice-help-en-us", "debian-reference", "debian-reference-de",
    "debian-reference-fr", "debian-reference-ja", "debian-reference-it", "maint-guide-de",
    "maint-guide-fr", "developers-reference-de", "developers-reference-fr", "rust-doc",
)  # fmt: skip
# Bytes of HTML in one archive.
ARCHIVE_BYTES = 64 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--packages", nargs="+", default=PACKAGES)
    arguments = parser.parse_args()
    unpacked = [unpack(name, arguments.folder / "packages") for name in arguments.packages]
    written = write_archives(
        arguments.folder, [*filter(None, unpacked)], arguments.megabytes * 10**6
    )
    print(f"{written[0]:,} pages, {written[1] / 1e6:.0f} MB of HTML in {arguments.folder}")


def unpack(package: str, folder: Path) -> Path | None:
    """Return the folder with a package's files; None where the distribution has no such package."""
    target = folder / package
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    download = ["apt-get", "download", package]
    if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode:
        print(f"{package}: not in this distribution, left out")
        return None
    [archive] = folder.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", archive.name, package], cwd=folder, check=True)
    archive.unlink()
    return target


def pages(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the address and contents of a package's pages, in an order that mixes its parts."""
    paths = [
        path
        for path in folder.rglob("*")
        if path.name.endswith((".html", ".htm", ".xhtml", ".html.gz"))
        and path.is_file()
        and not path.is_symlink()
    ]
    for path in sorted(paths, key=lambda path: hashlib.sha256(path.as_posix().encode()).digest()):
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        name = path.relative_to(folder).as_posix().removesuffix(".gz")
        yield f"https://{folder.name}.example/{name}", content


def write_archives(folder: Path, packages: list[Path], limit: int) -> tuple[int, int]:
    """Write at most about `limit` bytes of HTML, the packages in turns; return pages and bytes."""
    turns = [pages(package) for package in packages]
    written = count = number = 0
    while turns and written < limit:
        size = 0
        with (folder / f"debian-{number:02d}.warc.gz").open("wb") as file:
            writer = WARCWriter(file, gzip=True)
            writer.write_record(writer.create_warcinfo_record(file.name, {"software": "warcio"}))
            while turns and size < ARCHIVE_BYTES and written + size < limit:
                for turn in [*turns]:
                    found = next(turn, None)
                    if found is None:
                        turns.remove(turn)
                        continue
                    headers = StatusAndHeaders(
                        "200 OK", [("Content-Type", "text/html")], "HTTP/1.1"
                    )
                    record = writer.create_warc_record(
                        found[0], "response", io.BytesIO(found[1]), http_headers=headers
                    )
                    writer.write_record(record)
                    size += len(found[1])
                    count += 1
        written, number = written + size, number + 1
    return count, written


if __name__ == "__main__":
    main()
