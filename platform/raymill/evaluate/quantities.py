"""Parser of numbers as written by people and in LaTeX, with units: `1{,}234`, `-3e2`, `28%`, fractions, powers.

Values are exact fractions. Nothing is rounded, and the only arithmetic is the one that a number's notation
implies, such as multiplying by a power of ten. Text is first normalized by `plain` of latex.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from raymill.evaluate.latex import SEPARATOR, plain

# Longer texts aren't parsed as numbers.
_CHARACTERS = 100
# Powers with more digits aren't computed.
_DIGITS = 1000

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
# Each line lists the spellings of one unit.
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
# Words that aren't units: after a number they change its value, or make the text no number at all.
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
    """Number with its unit: a word, a sign, or words joined by spaces; empty where none is written."""

    value: Fraction
    unit: str = ""

    def same(self, other: Quantity) -> bool:
        """Tell whether both are the same number with the same unit, or with a unit that only one of them has.

        A percentage also equals its value as a fraction: 28% and 0.28.
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
    """Return the exact value of a lone number, with or without a currency sign; None for any other text."""
    parsed = as_quantity(text)
    return parsed.value if parsed is not None and parsed.unit in ("", "$", "€", "£", "¥") else None


def as_quantity(text: str) -> Quantity | None:
    """Parse a text that is one number with at most one unit; None for any other text."""
    return quantity(plain(text)) if len(text) <= 2 * _CHARACTERS else None


def quantity(text: str) -> Quantity | None:
    """Parse as `as_quantity` does, for text that is normalized already."""
    text = text.strip().rstrip(".,;:").strip()
    if not text or len(text) > _CHARACTERS:
        return None
    sign = _SIGN.match(text)
    assert sign is not None, "the pattern also matches the empty string"
    first, currency, second = sign.groups()
    if first and second:
        return None
    rest = text[sign.end() :]
    for parse in (_mixed, _fraction, _scientific, _power, _ratio, _decimal):
        parsed = parse(rest)
        if parsed is None:
            continue
        value, end = parsed
        unit = _unit(rest[end:])
        if unit is None or (currency and unit not in ("", currency)):
            continue
        return Quantity(-value if "-" in (first, second) else value, currency or unit)
    return None


# A value, and the end of its text.
_Parsed = tuple[Fraction, int] | None


def _mixed(text: str) -> _Parsed:
    match = _MIXED.match(text)
    if match is None:
        return None
    whole, *parts = (int(part) for part in match.groups() if part is not None)
    numerator, denominator = parts
    if not 0 < numerator < denominator:
        return None
    return whole + Fraction(numerator, denominator), match.end()


def _fraction(text: str) -> _Parsed:
    match = _FRACTION.match(text)
    if match is None:
        return None
    numerator, denominator = (quantity(part) for part in match.groups())
    if numerator is None or denominator is None or numerator.unit or denominator.unit:
        return None
    return (numerator.value / denominator.value, match.end()) if denominator.value else None


def _ratio(text: str) -> _Parsed:
    match = _RATIO.match(text)
    if match is None:
        return None
    numerator, denominator = (_exact(part) for part in match.groups())
    return (numerator / denominator, match.end()) if denominator else None


def _scientific(text: str) -> _Parsed:
    match = _SCIENTIFIC.match(text)
    if match is None:
        return None
    power = _raised(Fraction(10), int(match[2] or match[3]))
    return None if power is None else (_exact(match[1]) * power, match.end())


def _power(text: str) -> _Parsed:
    match = _POWER.match(text)
    if match is None:
        return None
    power = _raised(_exact(match[1]), int(match[2] or match[3]))
    return None if power is None else (power, match.end())


def _decimal(text: str) -> _Parsed:
    match = _DECIMAL.match(text)
    return None if match is None else (_exact(match[0]), match.end())


def _raised(base: Fraction, exponent: int) -> Fraction | None:
    """Return base ** exponent, or None where it has too many digits or is undefined."""
    digits = len(str(base.numerator)) + len(str(base.denominator))
    if digits * abs(exponent) > _DIGITS or (not base and exponent <= 0):
        return None
    return base**exponent


def _exact(text: str) -> Fraction:
    return Fraction(re.sub(rf"[, {SEPARATOR}]", "", text))


def _unit(text: str) -> str | None:
    """Return the unit after a number in its normal spelling, "" if nothing follows, None if it is no unit."""
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
    """Return a word of a unit in its normal spelling; None for a word that is no unit."""
    match = _UNIT_WORD.fullmatch(word.rstrip("."))
    if match is None:
        return None
    name, power = match[1], f"^{match[2]}" if match[2] else ""
    alias = _ALIASES.get(name) or (_ALIASES.get(name.casefold()) if len(name) > 2 else None)
    if alias is not None:
        return alias + power
    # Unknown words count as units if they are long enough and don't change the number.
    name = name.casefold()
    if len(name) < 3 or name in _NO_UNIT:
        return None
    plural = len(name) > 3 and name.endswith("s") and not name.endswith("ss")
    return (name[:-1] if plural else name) + power
