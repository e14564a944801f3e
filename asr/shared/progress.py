"""Progress bars: lively on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Return a tqdm bar on standard error; `options` are tqdm's."""
    from tqdm import tqdm

    pace = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    return tqdm(items, mininterval=pace, file=sys.stderr, dynamic_ncols=True, **options)
