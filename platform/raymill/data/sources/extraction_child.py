"""Child process that extracts pages, each within limits of processor time and memory.

    python -m raymill.data.sources.extraction_child <file descriptor of a connection>

The kernel ends the process when a page exceeds its time; the parent counts that page and starts another child.
"""

from __future__ import annotations

import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from raymill.data.sources.extraction import Page, PageRefusedError, page_text
from raymill.schema.extraction_section import ExtractionConfig

# First byte of an answer; the rest is text in UTF-8.
TEXT, REFUSED, FAILED, OUT_OF_MEMORY = b"T", b"R", b"F", b"M"
READY = b"ready"
_PAGE_BYTES = resource.getpagesize()


def main(descriptor: int) -> None:
    """Receive the configuration and then lists of pages; answer page by page until the parent is gone."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(descriptor)
    try:
        config: ExtractionConfig = connection.recv()
        # Libraries are loaded before the first page's time begins.
        page_text(Page(b"<p>text"), config)
        connection.send_bytes(READY)
        while True:
            for page in connection.recv():
                answer = _answer(page, config)
                connection.send_bytes(answer)
                if answer[:1] == OUT_OF_MEMORY:
                    return
    except (EOFError, OSError):
        return


def _answer(page: Page, config: ExtractionConfig) -> bytes:
    _limit_memory(config.max_memory_bytes)
    # The signal's default is to end the process, which no library can catch or delay.
    signal.setitimer(signal.ITIMER_PROF, config.max_cpu_s)
    try:
        text = page_text(page, config)
        return TEXT + text.encode("utf-8", "replace")
    except PageRefusedError as error:
        return REFUSED + str(error).encode()
    except MemoryError:
        return OUT_OF_MEMORY
    # Whatever a library raises says something about this page only.
    except Exception as error:  # noqa: BLE001
        return FAILED + f"{type(error).__name__}: {error}"[:200].encode("utf-8", "replace")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(limit: int) -> None:
    """Allow `limit` bytes more than the process has now, so that earlier pages don't count."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = now + limit if hard == resource.RLIM_INFINITY else min(now + limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


if __name__ == "__main__":
    main(int(sys.argv[1]))
