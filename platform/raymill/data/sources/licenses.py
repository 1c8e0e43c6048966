"""License of a source tree, found in its license file or in a file's own SPDX line."""

from __future__ import annotations

import re

# Names of license files, in the order in which they count.
LICENSE_NAMES = (
    "LICENSE", "LICENSE.txt", "LICENSE.md", "LICENSE.rst", "LICENCE", "LICENCE.txt", "LICENCE.md",
    "license", "license.txt", "License.txt", "COPYING", "COPYING.txt", "COPYING.md", "UNLICENSE",
    "LICENSE-MIT", "LICENSE-APACHE", "MIT-LICENSE", "MIT-LICENSE.txt", "LICENSES/LICENSE",
)  # fmt: skip
# SPDX identifiers that allow use without conditions on works that are made of it.
PERMISSIVE = frozenset(
    ("MIT", "MIT-0", "X11", "ISC", "0BSD", "BSD-2-Clause", "BSD-3-Clause", "BSD-4-Clause", "BSD-1-Clause",
     "Apache-1.1", "Apache-2.0", "Unlicense", "CC0-1.0", "Zlib", "BSL-1.0", "PSF-2.0", "Python-2.0", "WTFPL",
     "PostgreSQL", "NCSA", "HPND", "bzip2-1.0.6", "libpng-2.0", "curl", "TCL", "UPL-1.0", "BlueOak-1.0.0"),
)  # fmt: skip
UNKNOWN, MISSING = "unknown", "missing"
_SPDX = re.compile(
    r"SPDX-License-Identifier:[ \t]*\(?([A-Za-z0-9.+-]+(?: (?:OR|AND|WITH) [A-Za-z0-9.+-]+)*)"
)
# Wording that only one license has, more specific ones first; texts are lower case with single spaces.
_WORDING = (
    ("AGPL-3.0", "gnu affero general public license"),
    ("LGPL-3.0", "gnu lesser general public license version 3"),
    ("LGPL-2.1", "gnu lesser general public license"),
    ("LGPL-2.0", "gnu library general public license"),
    ("GPL-3.0", "gnu general public license version 3"),
    ("GPL-2.0", "gnu general public license"),
    ("MPL-2.0", "mozilla public license"),
    ("EPL-2.0", "eclipse public license"),
    ("CDDL-1.0", "common development and distribution license"),
    ("EUPL-1.2", "eupl"),
    ("Apache-2.0", "apache license version 2.0"),
    ("CC0-1.0", "cc0 1.0 universal"),
    ("Unlicense", "this is free and unencumbered software released into the public domain"),
    ("BSL-1.0", "boost software license"),
    ("PSF-2.0", "python software foundation license version 2"),
    ("WTFPL", "do what the fuck you want to public license"),
    ("MIT-0", "mit no attribution"),
    ("MIT", "the above copyright notice and this permission notice shall be included in all copies or"
            " substantial portions of the software"),
    ("ISC", "permission to use copy modify and/or distribute this software for any purpose with or without"
            " fee is hereby granted provided that the above copyright notice and this permission notice"),
    ("0BSD", "permission to use copy modify and/or distribute this software for any purpose with or without"
             " fee is hereby granted"),
    ("Zlib", "this notice may not be removed or altered from any source distribution"),
    ("BSD-4-Clause", "all advertising materials mentioning features or use of this software"),
    ("BSD-3-Clause", "neither the name of"),
    ("BSD-2-Clause", "redistributions in binary form must reproduce the above copyright notice"),
)  # fmt: skip


def license_of(text: str) -> str:
    """Return the SPDX identifier of the text of a license file, UNKNOWN for any other text.

    The text may hold several licenses: those that aren't permissive are found first.
    """
    if stated := stated_license(text):
        return stated
    # Wording is compared without punctuation, case and the marks of comments.
    plain = " ".join(re.sub(r"[^a-z0-9./-]+", " ", text.lower()).split())
    plain = plain.replace(". ", " ").replace("license v2.0", "license version 2.0")
    return next((name for name, wording in _WORDING if wording in plain), UNKNOWN)


def stated_license(text: str) -> str | None:
    """Return the SPDX expression that a file states about itself, None where it states none."""
    found = _SPDX.search(text)
    return found[1] if found else None


def is_permissive(expression: str) -> bool:
    """Return whether an SPDX expression allows a permissive choice: any of `OR`, all of `AND`."""
    for choice in expression.split(" OR "):
        names = [part.partition(" WITH ")[0].strip("()") for part in choice.split(" AND ")]
        if all(name in PERMISSIVE for name in names):
            return True
    return False
