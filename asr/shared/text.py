"""Text as it goes into labels and references."""

from __future__ import annotations

import unicodedata


def clean_text(text: str) -> str:
    """Return `text` in NFC, without control characters, with single spaces.

    NFC matters: the same Korean sentence in NFD is a different one for the tokenizer and for CER.
    """
    visible = "".join(" " if char.isspace() else char for char in text if not _is_control(char))
    return unicodedata.normalize("NFC", " ".join(visible.split()))


def _is_control(char: str) -> bool:
    # Cc: control characters; Cf: zero-width marks and the byte order mark. White space is kept, to become a space.
    return unicodedata.category(char) in ("Cc", "Cf") and not char.isspace()
