"""Words of a text, each piece between spaces cut once: the thresholds of filters count words in this way.

datatrove's filters count the tokens of spaCy's English tokenizer, so punctuation marks are words of their own,
and `don't` is two. The rules here follow spaCy's (`spacy/lang/punctuation.py`, `spacy/lang/en`) but for most of
its abbreviations and for emoticons. Chinese and Japanese characters are words of their own, as by default in
Unicode's annex 29.
"""

from __future__ import annotations

import re
import string

# Sentence_Terminal of Unicode 15, and the signs of Khmer that end sections.
TERMINAL = frozenset(
    "!.?\u0589\u061d\u061e\u061f\u06d4\u0700\u0701\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965"
    "\u104a\u104b\u1362\u1367\u1368\u166e\u1735\u1736\u17d4\u17d5\u17d6\u17d9\u17da\u1803\u1809\u1944\u1945"
    "\u1aa8\u1aa9\u1aaa\u1aab\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d\u1b7e\u1c3b\u1c3c\u1c7e\u1c7f\u203c\u203d"
    "\u2047\u2048\u2049\u2e2e\u2e3c\u2e53\u2e54\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf"
    "\ua92f\ua9c8\ua9c9\uaa5d\uaa5e\uaa5f\uaaf0\uaaf1\uabeb\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"
    "\U00010a56\U00010a57\U00010f55\U00010f56\U00010f57\U00010f58\U00010f59\U00010f86\U00010f87\U00010f88"
    "\U00010f89\U00011047\U00011048\U000110be\U000110bf\U000110c0\U000110c1\U00011141\U00011142\U00011143"
    "\U000111c5\U000111c6\U000111cd\U000111de\U000111df\U00011238\U00011239\U0001123b\U0001123c\U000112a9"
    "\U0001144b\U0001144c\U000115c2\U000115c3\U000115c9\U000115ca\U000115cb\U000115cc\U000115cd\U000115ce"
    "\U000115cf\U000115d0\U000115d1\U000115d2\U000115d3\U000115d4\U000115d5\U000115d6\U000115d7\U00011641"
    "\U00011642\U0001173c\U0001173d\U0001173e\U00011944\U00011946\U00011a42\U00011a43\U00011a9b\U00011a9c"
    "\U00011c41\U00011c42\U00011ef7\U00011ef8\U00011f43\U00011f44\U00016a6e\U00016a6f\U00016af5\U00016b37"
    "\U00016b38\U00016b44\U00016e98\U0001bc9f\U0001da88"
)
# A word of these alone is punctuation: the marks of CCNet's list, terminal ones, and control characters.
PUNCTUATION = TERMINAL.union(
    string.punctuation,
    "´«»–—’“”„…∶━►、〈〉《》「」【】％（），１：；～\r",
    map(chr, [*range(9), 11, 12, *range(14, 32), *range(127, 160)]),
)

_MARKS = "…,:;!?¿؟¡()\\[\\]{}<>_#*&。？！，、；：～·।۔؛٪"
_QUOTES = "'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉"
_ICONS = (
    "¦©®°\u2195-\u2199\u219c-\u21f3\u2300-\u2307\u230c-\u2426\u249c-\u24e9\u2500-\u25f7"
    "\u2600-\u27bf\u2800-\u28ff\u2b00-\u2bff\ufffd\U0001f000-\U0001faff"
)
_LOWER, _UPPER, _LETTER = "a-zß-öø-ÿа-яё", "A-ZÀ-ÖØ-ÞА-ЯЁ", r"[^\W\d_]"
_UNITS = (
    "[kcdmµn]?m[²³]?|ha|yd|in|ft|[kmµ]?g|t|lb|oz|m/s|k?m/h|kmh|mph|[ap]m|[hkM]?Pa|mbar"
    "|[kKmMgGtT][bB]|[TGMK%]"
)
_HYPHEN = "[-–—~]"

_CLOSING_MARKS = frozenset(f"…{_MARKS}{_QUOTES}—–".replace("\\", ""))
_OPENING = re.compile(rf"\.\.+|\+(?!\d)|[{_MARKS}{_QUOTES}{_ICONS}§%=—–$£€¥₹₽]")
_CLOSING = re.compile(
    rf"(?:\.\.+|['’][sS]|[{_ICONS}]|(?<=\d)(?:\+|[$£€¥]|{_UNITS})"
    rf"|(?<=[\d{_LOWER}%²\-+{_MARKS}{_QUOTES}])\.|(?<=[{_UPPER}][{_UPPER}])\.)$"
)
# Characters of the longest ending that the expression above finds.
_LONGEST_CLOSING = 4
_WITHIN = re.compile(
    rf"(\.\.+|…|[{_ICONS}]|(?<=\d)[+\-*^](?=[\d-])"
    rf"|(?<=[{_LOWER}{_QUOTES}])\.(?=[{_UPPER}{_QUOTES}])|(?<={_LETTER}),(?={_LETTER})"
    rf"|(?<=[^\W_])(?:---?|——|{_HYPHEN})(?={_LETTER})|(?<=[^\W_])[:<>=/](?={_LETTER}))"
)
_CONTRACTED = re.compile(r"(can)(not)|(\w+?)(n['’]t|['’](?:m|ll|ve|re|d))", re.IGNORECASE)
_ADDRESS = re.compile(
    r"(?:[\w+.-]{2,}://)?(?:\S+@)?(?:[^\W_](?:[\w-]{0,62}[^\W_])?\.)+[a-z]{2,63}(?::\d{2,5})?(?:[/?#]\S*)?"
)
_ABBREVIATIONS = """
e.g. i.e. a.m. p.m. Mr. Mrs. Ms. Dr. Prof. St. Jr. Sr. Gen. Rev. vs. v.s. Inc. Ltd. Co. Corp. Bros. Mt. Ph.D.
Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec. C++ and/or ):
"""
_WHOLE = frozenset(_ABBREVIATIONS.split())
_SPACELESS = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    "|[^\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


# Longer pieces aren't compared with the pattern of addresses.
_LONGEST_ADDRESS = 1000


def cut_piece(piece: str) -> list[str]:
    """Cut what stands between two spaces into words and punctuation marks, in time linear in its length."""
    if piece.isalpha() and piece.isascii() and piece != "cannot":
        return [piece]
    before: list[str] = []
    after: list[str] = []
    start, end = 0, len(piece)
    while start < end and not _is_whole(piece, start, end):
        if mark := _OPENING.match(piece, start, end):
            before.append(mark.group())
            start = mark.end()
        elif piece[end - 1] in _CLOSING_MARKS:
            end -= 1
            after.append(piece[end])
        elif mark := _CLOSING.search(piece, max(start, end - _LONGEST_CLOSING), end):
            after.append(mark.group())
            end = mark.start()
        else:
            break
    if start < end:
        before.extend(_cut_core(piece[start:end]))
    return before + after[::-1]


def _is_whole(piece: str, start: int, end: int) -> bool:
    """Tell if what is left is an abbreviation; a letter with a full stop is one, or the number of a list."""
    if end - start > 5:
        return False
    left = piece[start:end]
    return left in _WHOLE or (len(left) == 2 and left[1] == "." and left[0].islower())


def _cut_core(piece: str) -> list[str]:
    if contracted := _CONTRACTED.fullmatch(piece):
        return [part for part in contracted.groups() if part]
    if (piece.isalnum() and piece.isascii()) or piece in _WHOLE:
        return [piece]
    if "." in piece and len(piece) <= _LONGEST_ADDRESS and _ADDRESS.fullmatch(piece):
        return [piece]
    parts = [part for part in _WITHIN.split(piece) if part]
    if piece.isascii():
        return parts
    return [word for part in parts for word in _SPACELESS.findall(part)]


# A full stop that is a word of its own, or another terminal mark; then closing marks, and another word.
_ABBREVIATED = "".join(
    rf"(?<!\b{word})" for word in ("e\\.g", "i\\.e", "Mr", "Mrs", "Ms", "Dr", "St", "vs")
)
_SENTENCE_END = re.compile(
    rf"(?:(?<=[\d{_LOWER}%²\-+{_MARKS}{_QUOTES}]){_ABBREVIATED}\.|(?<=[{_UPPER}][{_UPPER}])\.|[!?])"
    rf"(?:[{_MARKS}{_QUOTES}.]*\s|(?=[{_UPPER}{_QUOTES}]))[\W_]*(?=[^\W_])|[。！？｡।۔؟][\W_]*(?=[^\W_])"
)


def count_sentences(line: str) -> int:
    """Count the sentences of a line: one more than the terminal marks that a word follows."""
    return 1 + len(_SENTENCE_END.findall(line))
