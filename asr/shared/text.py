"""Text as it goes into labels and references."""

from __future__ import annotations

import re
import unicodedata

# What subtitles say about the sound: (웃음), [음악], ♪, a dash before each speaker, >> before a new one.
BRACKETED = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|（[^（）]*）|［[^［］]*］|【[^【】]*】")
DEEPEST_BRACKETS = 4
SPEAKER_DASH = re.compile(r"(^|\s)[-‐‑–—―]\s*(?=[^\s\d])")
MARKS = re.compile(r">>+|[♪♩♫♬]")


def clean_text(text: str) -> str:
    """Return `text` in NFC, without control characters, with single spaces.

    NFC matters: the same Korean sentence in NFD is a different one for the tokenizer and for CER.
    """
    visible = "".join(" " if char.isspace() else char for char in text if not _is_control(char))
    return unicodedata.normalize("NFC", " ".join(visible.split()))


def strip_caption_marks(text: str) -> str:
    """Take out of a clean text what subtitles add to speech: sounds in brackets, notes, dashes and >> of speakers."""
    without = text
    for _ in range(DEEPEST_BRACKETS):
        without = BRACKETED.sub(" ", without)
    without = MARKS.sub(" ", without)
    return " ".join(SPEAKER_DASH.sub(r"\1", without).split())


def count_syllables(text: str) -> int:
    """Return about how many syllables reading `text` aloud takes.

    A Hangul syllable, a kana and a Chinese character are one each, and so is a digit; a Latin word has as many as it
    has groups of vowels.
    """
    blocks = sum(1 for char in text if char.isdigit() or _is_syllable(char))
    words = re.findall(r"[A-Za-z]+", text)
    return blocks + sum(max(1, len(re.findall(r"[aeiouyAEIOUY]+", word))) for word in words)


def _is_syllable(char: str) -> bool:
    return "가" <= char <= "힣" or "ぁ" <= char <= "ヿ" or "一" <= char <= "鿿"


def _is_control(char: str) -> bool:
    # Cc: control characters; Cf: zero-width marks and the byte order mark. White space is kept, to become a space.
    return unicodedata.category(char) in ("Cc", "Cf") and not char.isspace()
