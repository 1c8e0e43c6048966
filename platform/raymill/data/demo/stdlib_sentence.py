"""Turn a docstring's first sentence into a sentence about its name.

Docstrings are commands ("Return the sine of x.") or noun phrases ("Base class for warnings.").
After a name they read: "`math.sin` returns the sine of x.", "`Warning` is a base class for
warnings."
"""

from __future__ import annotations

import re

# First words of commands; words that are nouns more often (hook, time) are left out.
VERBS = (
    "abort accept acquire act activate adapt add adjust advance allocate allow alter announce "
    "append apply arrange ask assert assign associate attach attempt authenticate begin bind "
    "block bring build byte-compile byteswap calculate call cancel canonicalize cast cause change "
    "check choose clean clear clone close collapse collect combine compare compile complete "
    "compose compress compute concatenate configure connect construct control convert copy count "
    "create customize deactivate decide declare decode decompress decrement define deiconify "
    "delay delegate delete dequeue describe deserialize destroy detach detect determine disable "
    "disassemble discard dispatch display divide do draw drop dump duplicate edit emit emulate "
    "enable encapsulate encode end enqueue ensure enter erase escape establish estimate evaluate "
    "examine execute exit expand explain expunge extend extract fail feed fetch fill filter find "
    "finish flash flush fold force fork format forward freeze gather generate get give guess "
    "handle hash hide identify ignore implement import increment indent indicate inform inhibit "
    "initialize initiate insert install instruct interact interpret interrupt invalidate invert "
    "invoke isolate issue iterate join kill launch let list listen load locate lock log login "
    "look lower make manage manipulate map mark merge mix modify move multiply normalize notify "
    "obtain offer omit open optimize override pack pad parse partition pass patch pause perform "
    "permit pickle place poll pop populate post prepare pretty-print prevent print process "
    "produce prompt protect provide pull push put query queue quit quote raise read rebuild "
    "receive recognize reconfigure record redo redirect reduce register release reload remember "
    "remove rename render reopen replace report represent request require reschedule reset resize "
    "resolve restore restrict resume retrieve return reveal reverse rewind roll rotate round run "
    "save scale scan schedule scroll search seek select send separate serialize serve set shift "
    "show shuffle shut signal simulate skip sleep sort spawn specify split start steal stop store "
    "strip submit subscribe subtract summarize support suspend switch synchronize take tell "
    "temporarily terminate test tidy toggle tokenize trace transfer transform translate traverse "
    "truncate try turn unbind undo unescape unfreeze uninstall unlink unlock unmap unmark unpack "
    "unpickle unpost unquote unregister unset unsubscribe update upgrade use validate verify wait "
    "wake walk wrap write yield"
)
_TWO_WORDS = {"lookup": "look up", "setup": "set up", "shutdown": "shut down"}
# "Process object": not a command.
NOUN_FOLLOWS = (
    "case class command error exception function handler manager object objects mode name type"
)
IS_A = (
    "abstract adapter asynchronous base basic buffered class codec collection common concrete "
    "context convenience coroutine decorator default dictionary dummy error exception factory "
    "formatter function generic handler interface iterator list loader mapping metaclass method "
    "mix-in mixin module object predicate property proxy replacement selector sequence server "
    "simple special string subclass tool tuple type typed variant version widget wrapper"
)
IS_THE = (
    "address character current data day directory exponent file height id maximum message minimum "
    "month number name offset path position result second size square sum text time total user "
    "value width year"
)
_VERBS = frozenset(VERBS.split())
_NOUN_FOLLOWS = frozenset(NOUN_FOLLOWS.split())
_ARTICLES = frozenset(("a", "an", "the"))
_IS_A = frozenset(IS_A.split())
_IS_THE = frozenset(IS_THE.split())
_OPENINGS = {
    "called": "is called",
    "raised": "is raised",
    "used": "is used",
    "same as": "is the same as",
    "true if": "is true if",
    "true when": "is true when",
    "whether": "tells whether",
    "is": "tells whether",
}
_ALSO_RETURN = re.compile(r"(\b(?:and|or|then|otherwise,?|else)|,) (return|raise)\b")
_AND_VERB = re.compile(r"\band ([a-z-]+) (?:it|them|the|a|an|its|their|all|any|this)\b")
_INFINITIVE = re.compile(r"\b(?:to|that|which|can|may|must|should|will|would|not|by|for)\b")
# A clause has its own verb, and can't follow "is".
_CLAUSE = re.compile(
    r"^[^,;]*? (?:is|are|was|were|has|have|must|can|may|will|should|affects?|occurred|failed|takes?|"
    r"contains?|does|gets?|specifies|refused|returns?|dispatch|provides?|supports?|displays?|defines?|"
    r"implements?|allows?|represents?|feels|wraps|interrupted|enforces|uses|consists|describes)\b"
)
_RELATIVE = re.compile(
    r" (?:that|which|whose|who|when|where|to|if|by|raised|of|whether|for|from|with|in|on"
    r"|indicating|representing|describing|containing|holding|providing|using|implementing) "
)


def sentence_about(name: str, text: str) -> str:
    """Return `text`, a first sentence, as a sentence that begins with the name in backticks."""
    does = predicate(text)
    return f"`{name}` {does}" if does else f"`{name}`: {text}"


def predicate(text: str) -> str | None:
    """Turn "Return the sine of x." into "returns the sine of x."; None for other forms of text."""
    first, _, rest = text.partition(" ")
    word = first.lower().strip(",")
    following = rest.partition(" ")[0].strip(",.;").lower()
    comma = "," if first.endswith(",") else ""
    if word in _TWO_WORDS:
        verb, _, particle = _TWO_WORDS[word].partition(" ")
        return f"{_third(verb)} {particle}{comma} {_coordinate(rest)}"
    # "Recursively delete x" puts its verb second.
    if word.endswith("ly") and following in _VERBS:
        verb, _, rest = rest.partition(" ")
        return f"{word} {_third(verb)} {_coordinate(rest)}"
    if word in _VERBS and following not in _NOUN_FOLLOWS:
        return f"{_third(word)}{comma} {_coordinate(rest)}"
    if _base(word) in _VERBS:
        return f"{word}{comma} {rest}"
    for opening, replacement in _OPENINGS.items():
        if text.lower().startswith(f"{opening} "):
            return replacement + text[len(opening) :]
    noun = word in _ARTICLES | _IS_A | _IS_THE and not following[:1].isdigit()
    if noun and not _is_clause(text):
        article = "the " if word in _IS_THE else "an " if word[0] in "aeio" else "a "
        return f"is {'' if word in _ARTICLES else article}{text[0].lower()}{text[1:]}"
    return None


def _coordinate(rest: str) -> str:
    """Inflect further verbs like the first, in "Create and return" and in a later "and return"."""
    words = rest.split(" ")
    second = words[1].lower() if len(words) > 2 and words[0] in ("and", "or", "then") else ""
    if second.strip(",") in _VERBS:
        words[1] = _third(second.strip(",")) + "," * second.endswith(",")
    text = _ALSO_RETURN.sub(lambda match: f"{match[1]} {match[2]}s", " ".join(words))
    later = _AND_VERB.search(text)
    if later and later[1] in _VERBS and not _INFINITIVE.search(text[: later.start()]):
        text = f"{text[: later.start(1)]}{_third(later[1])}{text[later.end(1) :]}"
    return text


def _third(verb: str) -> str:
    if re.search(r"(?:s|x|z|ch|sh|o)$", verb):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if re.search(r"[^aeiou]y$", verb) else f"{verb}s"


def _base(word: str) -> str:
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if re.search(r"(?:ss|x|zz|ch|sh|o)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") else ""


def _is_clause(text: str) -> bool:
    """Return whether a text can't follow "is": a clause, or a plural such as "The dialog
    classes"."""
    head = _RELATIVE.split(text)[0].rstrip(".")
    plural = re.search(r"(?<![sui'])s$", re.split(r" (?:used|as) |,", head)[0])
    return plural is not None or _CLAUSE.search(head) is not None
