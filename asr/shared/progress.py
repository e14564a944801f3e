"""Progress bars: lively on a terminal, a line now and then in a log file."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Return a tqdm bar on standard error; `options` are tqdm's."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(items, mininterval=0.1, file=sys.stderr, dynamic_ncols=True, **options)
    return tqdm(items, mininterval=SECONDS_BETWEEN_LINES, file=_Lines(), ncols=0, **options)


class _Lines:
    """Standard error for a log file: what would be drawn over what was there becomes a line of its own."""

    def write(self, text: str) -> None:
        line = re.sub(r"\x1b\[A", "", text).strip()
        if line:
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()
