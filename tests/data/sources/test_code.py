"""Source files are read where the license of their tree allows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.sources.web_ranges import read, skipped, texts, whole_range
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.licenses import is_permissive, license_of

MIT = (
    "MIT License\n\nPermission is hereby granted, free of charge [...]\n\n"
    "# The above copyright notice and this\n"
    "# permission notice shall be included in all copies or\n# substantial portions of the Software.\n"
)
BSD = "Redistributions in binary form must reproduce the above copyright\n * notice, this list of conditions"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (MIT, "MIT"),
        (BSD, "BSD-2-Clause"),
        (BSD + "\n3. Neither the name of the University nor", "BSD-3-Clause"),
        ("Apache License\n   Version 2.0, January 2004", "Apache-2.0"),
        ("GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007", "GPL-3.0"),
        ("GNU GENERAL PUBLIC LICENSE\nVersion 2, June 1991", "GPL-2.0"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\nVersion 2.1", "LGPL-2.1"),
        (MIT + "Parts are under the GNU General Public License.", "GPL-2.0"),
        ("SPDX-License-Identifier: MIT OR GPL-2.0", "MIT OR GPL-2.0"),
        ("All rights reserved.", "unknown"),
    ],
)
def test_a_license_is_known_by_its_wording(text: str, name: str) -> None:
    assert license_of(text) == name


@pytest.mark.parametrize(
    ("expression", "permissive"),
    [
        ("MIT", True),
        ("MIT OR GPL-2.0", True),
        ("MIT AND GPL-2.0", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("missing", False),
    ],
)
def test_any_choice_of_an_expression_may_be_permissive(expression: str, permissive: bool) -> None:
    assert is_permissive(expression) is permissive


def tree(folder: Path, files: dict[str, str]) -> dict[str, InputRange]:
    """Write a tree below `folder` and return the ranges of its source files."""
    ranges = {}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        if path.suffix == ".py":
            ranges[name] = replace(whole_range(path, "py"), name=f"{folder.name}/{name}")
    return ranges


def test_the_nearest_license_file_counts_and_a_file_may_state_its_own(tmp_path: Path) -> None:
    # A license above the folder that was named says nothing about it.
    (tmp_path / "LICENSE").write_text(MIT)
    ranges = tree(
        tmp_path / "repositories",
        {
            "free/LICENSE": MIT,
            "free/a/b.py": "free = 1\n",
            "free/vendored/COPYING": "GNU General Public License version 3",
            "free/vendored/c.py": "copyleft = 1\n",
            "free/vendored/d.py": "# SPDX-License-Identifier: BSD-3-Clause\nown = 1\n",
            "unlicensed/e.py": "whose = 1\n",
        },
    )
    found = {name: read(span) for name, span in ranges.items()}
    assert texts(found["free/a/b.py"]) == ["free = 1\n"]
    assert skipped(found["free/vendored/c.py"]) == ["license GPL-3.0"]
    assert len(texts(found["free/vendored/d.py"])) == 1
    assert skipped(found["unlicensed/e.py"]) == ["license missing"]
    anyone = ranges["unlicensed/e.py"]
    anyone = replace(anyone, source=replace(anyone.source, license="any"))
    assert texts(read(anyone)) == ["whose = 1\n"]
