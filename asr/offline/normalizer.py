"""The normaliser: texts brought to a form in which only what was heard still differs.

Public Korean figures differ by half for the same model because of spaces and normalisation, so the rules are few, are
applied to reference and output alike, and are told with every figure (`Normalizer.describe`).

Numerals stay as they are written: 3시 and 세 시 count as different. Which reading a number has (세 시 삼십 분, 스물한
명, 공일공) hangs on the word behind it, and no library that was tried reads it reliably: num2words knows Sino-Korean
alone (21명 would be 이십일명), and the grammars of nemo_text_processing 1.2 read 사과 3개 as 삼 개, 6월 10일 as 유월
십일, and bring 650 MB that Windows has no build of. A wrong reading would add errors that nobody made.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache

from asr.shared.text import clean_text

# Width forms by their tag in the Unicode data, and the two degree signs that hold a letter. Other compatibility
# characters stay: NFKC would turn ㅋㅋ into initial consonants, and join ㄱㅏ into 가.
WIDTH_TAGS = ("<wide>", "<narrow>", "<square>")
DEGREES = {"℃": "°C", "℉": "°F"}
# Characters that show nothing and are no control characters: joiners, Hangul fillers, variation selectors.
INVISIBLE = re.compile("[\u034f\u115f\u1160\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# What stands inside a word: with it goes no space, so that '나'는 stays one word, as does Wi-Fi. Brackets and
# quotation marks are found by their category; ㆍ is a letter to Unicode, and a middle dot to who writes today.
INSIDE_WORDS = frozenset("'\"`´＇＂-‐‑·‧・ㆍ")
ENCLOSING = ("Ps", "Pe", "Pi", "Pf")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
AFTER_NUMBERS = frozenset("%‰°")

RAW = "NFC; control and zero-width characters go, white space becomes single spaces; nothing else is changed."


@dataclass(frozen=True)
class Normalizer:
    """Brings a text to its normal form; called with a text, it returns another, which it would not change again.

    Attributes:
        fold_width: full-width, half-width and squared characters become the usual ones.
        fold_case: capitals become small letters.
        strip_signs: punctuation and symbols go, but for signs of a number that are read aloud.
    """

    fold_width: bool = True
    fold_case: bool = True
    strip_signs: bool = True

    def __call__(self, text: str) -> str:
        """Return `text` in its normal form."""
        text = INVISIBLE.sub("", clean_text(text))
        if self.fold_width:
            text = INVISIBLE.sub("", unicodedata.normalize("NFC", "".join(map(_usual_width, text))))
        if self.fold_case:
            text = unicodedata.normalize("NFC", text).casefold()
        if self.strip_signs:
            text = _without_signs(text)
        return clean_text(text)

    def describe(self) -> list[str]:
        """Return the rules that are applied, in their order, one sentence each."""
        rules = ["NFC; control, zero-width and other invisible characters go."]
        if self.fold_width:
            rules.append(
                "Full-width, half-width and squared forms become the usual characters (Ａ to A, ﾡ to ㄱ, ㎞ to km, "
                "℃ to °C); compatibility jamo such as ㅋ stay."
            )
        if self.fold_case:
            rules.append("Capitals become small letters (Unicode case folding).")
        if self.strip_signs:
            rules.append(
                "Punctuation and symbols (Unicode categories P and S) go: quotation marks, brackets, apostrophes, "
                "hyphens and middle dots without a trace, all others leave a space. What is read aloud with a number "
                "stays: a full stop between digits (3.5), % ‰ ° behind a digit, a currency sign beside one; the comma "
                "of thousands goes without a trace (1,000 to 1000)."
            )
        rules.append("White space becomes single spaces.")
        rules.append("Numerals stay as they are written: 3시 and 세 시 count as different.")
        return rules


@cache
def _usual_width(char: str) -> str:
    if char in DEGREES:
        return DEGREES[char]
    tag, _, codes = unicodedata.decomposition(char).partition(" ")
    return "".join(chr(int(code, 16)) for code in codes.split()) if tag in WIDTH_TAGS else char


def _without_signs(text: str) -> str:
    # What goes without a trace goes first: it may stand between a digit and its sign.
    joined = THOUSANDS.sub("", "".join(char for char in text if not _is_inside_words(char)))
    return "".join(" " if _is_sign(char) and not _is_read_aloud(joined, at) else char for at, char in enumerate(joined))


@cache
def _is_inside_words(char: str) -> bool:
    return char in INSIDE_WORDS or unicodedata.category(char) in ENCLOSING


@cache
def _is_sign(char: str) -> bool:
    return unicodedata.category(char)[0] in "PS"


def _is_read_aloud(text: str, at: int) -> bool:
    """Whether the sign at `at` belongs to a number."""
    char = text[at]
    if char == ".":
        return text[:at][-1:].isdecimal() and text[at + 1 : at + 2].isdecimal()
    number_before = text[:at].rstrip()[-1:].isdecimal()
    if char in AFTER_NUMBERS:
        return number_before
    return unicodedata.category(char) == "Sc" and (number_before or text[at + 1 :].lstrip()[:1].isdecimal())
