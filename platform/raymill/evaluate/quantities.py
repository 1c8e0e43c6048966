"""Numbers as people and LaTeX write them, with their units: `1{,}234`, `-3e2`, `28%`, fractions, powers.

Values are exact fractions; nothing is rounded and no arithmetic is done but that of one number's own writing,
such as that of a power of ten behind it. Text is what `plain` of latex.py makes of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from raymill.evaluate.latex import SEPARATOR, plain

_CHARACTERS = 100  # longer ones aren't read as numbers
_DIGITS = 1000  # of a power; larger ones aren't computed

_GROUPED = (
    rf"[1-9][0-9]{{0,2}}(?:(?:,[0-9]{{3}})+|(?:{SEPARATOR}[0-9]{{3}})+|(?: [0-9]{{3}})+)"
    r"(?![0-9])"
)
_NUMBER = rf"(?:(?:{_GROUPED}|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9]))?"
_GROUP = r"\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}"
_EXPONENT = r"\^\s*(?:\{\s*([+-]?[0-9]{1,4})\s*\}|([+-]?[0-9]{1,4}))"
_SIGN = re.compile(r"([+-]?)\s*([$€£¥]?)\s*([+-]?)\s*")
_MIXED = re.compile(
    r"([0-9]+)\s*(?:\\frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}"
    r"|\s([1-9][0-9]*)\s?/\s?([1-9][0-9]*))(?![0-9.,/])"
)
_FRACTION = re.compile(rf"\\frac\s*{_GROUP}\s*{_GROUP}")
_RATIO = re.compile(rf"({_NUMBER})\s*/\s*({_NUMBER})(?![/^])")
_SCIENTIFIC = re.compile(rf"({_NUMBER})\s*[×·*x]\s*10\s*{_EXPONENT}")
_POWER = re.compile(rf"({_NUMBER})\s*{_EXPONENT}")
_DECIMAL = re.compile(_NUMBER)

_PERCENT = "%"
# Each line is one unit.
_UNITS = """
% percent pct percentage
° degree degrees deg
$ dollar dollars usd
€ euro euros eur
£ gbp
¥ yen jpy
¢ cent cents
m meter meters metre metres
mm millimeter millimeters
cm centimeter centimeters centimetre centimetres
km kilometer kilometers kilometre kilometres
in inch inches
ft foot feet
yd yard yards
mi mile miles
s sec secs second seconds
min mins minute minutes
h hr hrs hour hours
g gram grams
kg kilogram kilograms
mg milligram milligrams
lb lbs pound pounds
oz ounce ounces
l L liter liters litre litres
ml mL milliliter milliliters millilitre millilitres
"""
_ALIASES = {word: line.split()[0] for line in _UNITS.splitlines() for word in line.split()}
# After a number they make another number of it, or no number at all.
_NUMBER_WORDS = """
hundred hundreds thousand thousands million millions billion billions trillion trillions mil mio mln lakh
lakhs crore crores dozen dozens score gross half halves third thirds quarter quarters fourth fourths fifth
fifths sixth sixths eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths
percentile squared cubed factorial plus minus times over divided multiplied added and nor not but than
through thru until from with without into out off above below under before after ago more less fewer most
least negative point root sqrt cbrt sin cos tan cot sec csc log exp mod div pmod choose inf nan abs max gcd
lcm base one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety zero was were are wrong
right correct incorrect false true also either neither instead except because since although though tau phi
infinity owed debt short remainder modulo power powers the
"""
_NO_UNIT = frozenset(_NUMBER_WORDS.split())
_UNIT_WORD = re.compile(r"([%°$€£¥¢]|[A-Za-z]+)(?:\^\{?(-?[0-9])\}?)?")
_UNIT_WORDS = 4
_TEMPERATURE = re.compile(r"(?:°|\bdegrees?)\s*([CF])(?:elsius|ahrenheit)?\b", re.IGNORECASE)
_PER = re.compile(r"\s*/\s*|\s+per\s+|\s+an?\s+")


@dataclass(frozen=True)
class Quantity:
    """A number and its unit: a word, a sign, words joined by spaces; empty where none is said."""

    value: Fraction
    unit: str = ""

    def same(self, other: Quantity) -> bool:
        """Tell whether both are one number, of one unit or of one that only one of them says.

        A percentage is also the same as the number that it is a hundredth part of: 28% and 0.28.
        """
        if self.unit == other.unit:
            return self.value == other.value
        if self.unit and other.unit:
            return False
        return not self._readings.isdisjoint(other._readings)

    @property
    def _readings(self) -> set[Fraction]:
        return {self.value, self.value / 100} if self.unit == _PERCENT else {self.value}


def as_number(text: str) -> Fraction | None:
    """The exact value of a number alone, with or without a currency's sign; None of anything else."""
    found = as_quantity(text)
    return found.value if found is not None and found.unit in ("", "$", "€", "£", "¥") else None


def as_quantity(text: str) -> Quantity | None:
    """A text that is one number and at most a unit; None of anything else."""
    return quantity(plain(text)) if len(text) <= 2 * _CHARACTERS else None


def quantity(text: str) -> Quantity | None:
    """As `as_quantity`, of text that is plain already."""
    text = text.strip().rstrip(".,;:").strip()
    if not text or len(text) > _CHARACTERS:
        return None
    before = _SIGN.match(text)
    assert before is not None  # it matches nothing, too
    first, currency, second = before.groups()
    if first and second:
        return None
    rest = text[before.end() :]
    for read in (_mixed, _fraction, _scientific, _power, _ratio, _decimal):
        found = read(rest)
        if found is None:
            continue
        value, end = found
        unit = _unit(rest[end:])
        if unit is None or (currency and unit not in ("", currency)):
            continue
        return Quantity(-value if "-" in (first, second) else value, currency or unit)
    return None


_Read = tuple[Fraction, int] | None  # a value, and where its writing ends


def _mixed(text: str) -> _Read:
    found = _MIXED.match(text)
    if found is None:
        return None
    whole, *parts = (int(part) for part in found.groups() if part is not None)
    above, below = parts
    return (whole + Fraction(above, below), found.end()) if 0 < above < below else None


def _fraction(text: str) -> _Read:
    found = _FRACTION.match(text)
    if found is None:
        return None
    above, below = (quantity(part) for part in found.groups())
    if above is None or below is None or above.unit or below.unit or not below.value:
        return None
    return above.value / below.value, found.end()


def _ratio(text: str) -> _Read:
    found = _RATIO.match(text)
    if found is None:
        return None
    above, below = (_exact(part) for part in found.groups())
    return (above / below, found.end()) if below else None


def _scientific(text: str) -> _Read:
    found = _SCIENTIFIC.match(text)
    if found is None:
        return None
    power = _to_the(Fraction(10), int(found[2] or found[3]))
    return None if power is None else (_exact(found[1]) * power, found.end())


def _power(text: str) -> _Read:
    found = _POWER.match(text)
    if found is None:
        return None
    power = _to_the(_exact(found[1]), int(found[2] or found[3]))
    return None if power is None else (power, found.end())


def _decimal(text: str) -> _Read:
    found = _DECIMAL.match(text)
    return None if found is None else (_exact(found[0]), found.end())


def _to_the(base: Fraction, exponent: int) -> Fraction | None:
    """base ** exponent, unless it is too large to be worth it, or is no number."""
    digits = len(str(base.numerator)) + len(str(base.denominator))
    if digits * abs(exponent) > _DIGITS or (not base and exponent <= 0):
        return None
    return base**exponent


def _exact(text: str) -> Fraction:
    return Fraction(re.sub(rf"[, {SEPARATOR}]", "", text))


def _unit(text: str) -> str | None:
    """The unit after a number, in one spelling: "" where nothing follows, None where something else does."""
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    text = _TEMPERATURE.sub(r" degree\1 ", text.replace("per cent", "percent"))
    text = _PER.sub(" / ", re.sub(r"([%°])", r" \1 ", text)).strip()
    if not text:
        return ""
    words = text.split()
    if len(words) > _UNIT_WORDS or words[0] == "/" or words[-1] == "/":
        return None
    named = [word if word == "/" else _word(word) for word in words]
    if None in named or (_PERCENT in named and len(named) > 1):
        return None
    return " ".join(word for word in named if word)


def _word(word: str) -> str | None:
    found = _UNIT_WORD.fullmatch(word.rstrip("."))
    if found is None:
        return None
    name, power = found[1], f"^{found[2]}" if found[2] else ""
    known = _ALIASES.get(name) or (_ALIASES.get(name.casefold()) if len(name) > 2 else None)
    if known is not None:
        return known + power
    name = name.casefold()
    if len(name) < 3 or name in _NO_UNIT:
        return None
    plural = len(name) > 3 and name.endswith("s") and not name.endswith("ss")
    return (name[:-1] if plural else name) + power
