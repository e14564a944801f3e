"""Retries: what to do when a server of the Hub's kind fails, and how to tell it when that does not help."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from utils import UserError, log

# Seconds between tries while nothing arrives; the Hub may ask for more when it has counted too many requests.
WAITS_S: tuple[float, ...] = (1, 2, 4, 8, 16, 30)
LONGEST_WAIT_S = 300.0
MAY_PASS = {408, 429, 500, 502, 503, 504}

T = TypeVar("T")


def keep_asking(ask: Callable[[], T], arrived: Callable[[], int] = lambda: 0) -> T:
    """Ask again after longer and longer waits, as long as the trouble may pass; what arrives renews the patience."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    tried, before = 0, arrived()
    while True:
        try:
            return ask()
        except (httpx2.TransportError, HfHubHTTPError) as error:
            if arrived() > before:
                tried, before = 0, arrived()
            if tried == len(WAITS_S) or not _may_pass(error):
                raise
            wait = max(WAITS_S[tried], _wait_asked_for(error))
            log.info("%s; trying again in %g s", _reason(error), wait)
            time.sleep(wait)
            tried += 1


def _may_pass(error: Exception) -> bool:
    from httpx2 import UnsupportedProtocol
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in MAY_PASS
    return not isinstance(error, UnsupportedProtocol)


def _wait_asked_for(error: Exception) -> float:
    """Return the seconds that the Hub asks for with a 429, or 0."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers

    if not isinstance(error, HfHubHTTPError) or error.response.status_code != 429:
        return 0
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers)
    asked = headers.get("Retry-After", "")
    seconds = int(asked) if asked.isdigit() else limit.reset_in_seconds if limit else 0
    return min(seconds, LONGEST_WAIT_S)


def _reason(error: Exception) -> str:
    """Tell an error in one line, without its address: that of a large file carries a signature."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        said = (error.server_message or error.response.reason_phrase).strip().splitlines()
        return f"the Hub answered {error.response.status_code}" + (f" ({said[0][:200]})" if said else "")
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def told_in_words(name: str, revision: str) -> Iterator[None]:
    """Turn what a download can raise into a UserError."""
    import httpx2
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except RevisionNotFoundError:
        raise UserError(f"--model-revision {revision}: the model has no such branch, tag or commit") from None
    except GatedRepoError:
        raise UserError(
            f"it is gated: accept its conditions at {ENDPOINT}/{name}, and put a token of that account into HF_TOKEN"
        ) from None
    except (HFValidationError, RepositoryNotFoundError):
        raise UserError("neither a folder here nor a model on the Hub; a private one needs HF_TOKEN") from None
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set: unset it, or give a folder instead of a Hub id") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)
        advice = "; check the token in HF_TOKEN" if refused else ""
        raise UserError(f"could not be downloaded: {_reason(error)}{advice}") from None
