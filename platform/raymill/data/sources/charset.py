"""Characters of a web page: the charset that it declares, UTF-8, or the one that its bytes resemble."""

from __future__ import annotations

import re
from collections.abc import Iterator

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
# Browsers look for a declaration in the first 1,024 bytes; pages put it later, too.
_HEAD_BYTES = 16_384
_DECLARED = (
    re.compile(rb"^\s*<\?xml\s[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]{1,40})"),
    re.compile(rb"<meta\s[^>]{0,400}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE),
)
# In these, nearly any bytes are text, so that decoding without an error proves nothing.
_ANY_BYTES = re.compile(r"cp125|cp866|iso8859|koi8|mac")
# Browsers read the characters of these supersets under the older names.
_WIDER = {"shift_jis": "cp932", "euc_kr": "cp949", "gbk": "gb18030"}


def decoded(content: bytes, declared: str | None = None) -> str:
    """Return the text of a page; `declared` is the charset of its HTTP header.

    A byte order mark comes first, then a declared charset in which the page is valid, then UTF-8, then the
    charset that is detected, with U+FFFD for what is invalid. Pages that are UTF-8 and declare a charset of
    single bytes, as servers do by default, are UTF-8: other text is hardly ever valid UTF-8 by accident.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, "replace")
    stated = map(_python_name, _labels(content, declared))
    names = [name for name in stated if name is not None]
    strict = [name for name in names if not _ANY_BYTES.match(name)]
    for candidate in dict.fromkeys([*strict, "utf-8", *names]):
        try:
            return content.decode(candidate)
        except (UnicodeError, LookupError):
            continue
    detected = detect_encoding(content) or "utf-8"
    try:
        return content.decode(detected, "replace")
    # Python lacks a few of the web's charsets.
    except LookupError:
        return content.decode("utf-8", "replace")


def _labels(content: bytes, declared: str | None) -> Iterator[str]:
    if declared:
        yield declared
    head = content[:_HEAD_BYTES]
    for pattern in _DECLARED:
        if found := pattern.search(head):
            yield found[1].decode("ascii", "replace")


def _python_name(label: str) -> str | None:
    """Return Python's name of the charset that browsers use for a label, None where there is none.

    A page whose ASCII declares UTF-16 isn't UTF-16.
    """
    name: str | None = map_encoding_to_html5(label.strip(), fallback_utf8=False)
    return None if name is None or name.startswith("utf-16") else _WIDER.get(name, name)
