"""Asking Mozilla Data Collective: what its package's errors mean, and patience with those that pass.

The errors of `datacollective` may quote the key and signed addresses, so that none of them leaves this module.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import sleep
from typing import Any, TypeVar

from utils import UserError, WhisperError, log

Result = TypeVar("Result")

KEY_PAGE = "https://mozilladatacollective.com/profile/credentials"
INSTEAD = "or download a release in a browser and give it with --common-voice"
ATTEMPTS = 6
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 300.0


class PassingTrouble(Exception):
    """A request failed in a way that may be over in a while.

    Args:
        reason: what happened, without addresses.
        status: of the answer, or 0 where there was none.
        wait_s: seconds that the server asks to be left alone.
    """

    def __init__(self, reason: str, status: int = 0, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.status = status
        self.wait_s = wait_s


def check_key() -> None:
    """Look whether the environment holds a key, before anything long begins.

    Raises:
        UserError: it does not, or holds what cannot be one.
    """
    key = os.environ.get("MDC_API_KEY", "")
    if not key:
        raise UserError(
            f"no speech is named: set MDC_API_KEY to download Common Voice (a free key: {KEY_PAGE}), "
            "or give a release on disk with --common-voice PATH, or another --source, or try --demo"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"MDC_API_KEY holds a space, a line break or the like: copy the key again from {KEY_PAGE}")


def patiently(action: Callable[[], Result], reached: Callable[[], int] = lambda: 0) -> Result:
    """Repeat an action, after growing pauses, until it works or has failed too often in a row.

    Args:
        action: raises PassingTrouble when it is worth another attempt.
        reached: how far it has come; an attempt that came further than any before starts the count anew.

    Raises:
        WhisperError: it failed too often, or the server asks for a longer pause than a run should make.
    """
    farthest, failed = reached(), 0
    while True:
        try:
            return action()
        except PassingTrouble as trouble:
            failed = 1 if reached() > farthest else failed + 1
            farthest = max(farthest, reached())
            if trouble.wait_s > LONGEST_PAUSE_S or failed == ATTEMPTS:
                raise WhisperError(_give_up(trouble, failed)) from None
            pause = max(FIRST_PAUSE_S * 2 ** (failed - 1), trouble.wait_s)
            log.info("Mozilla Data Collective: %s; attempt %d of %d in %.0f s", trouble, failed + 1, ATTEMPTS, pause)
            sleep(pause)


def _give_up(trouble: PassingTrouble, failed: int) -> str:
    if trouble.wait_s > LONGEST_PAUSE_S:
        asked = f"and asks to wait {trouble.wait_s / 3600:.1f} hours (a quota of downloads)"
        return f"Mozilla Data Collective: {trouble}, {asked}: run the same command again then, {INSTEAD}"
    return f"Mozilla Data Collective: {trouble}, {failed} times in a row: run the same command again later, {INSTEAD}"


def ask(call: Callable[..., Result], *arguments: Any, terms: str = "", **options: Any) -> Result:
    """Call a function of the package.

    Args:
        call: the function; the rest are its arguments.
        terms: which terms it needs, and where they are accepted; "" for the catalogue, which needs none.

    Raises:
        PassingTrouble: it is worth another attempt.
        UserError: the key, the terms or the disk need the user.
        WhisperError: the server refuses for another reason.
    """
    try:
        return call(*arguments, **options)
    except Exception as error:
        raise _meaning(error, terms) from None


def _meaning(error: Exception, terms: str) -> BaseException:
    """Return what an error of the package means, in our own kinds."""
    import requests
    from datacollective.errors import DownloadError

    transfer = isinstance(error, DownloadError)
    cause = (error.__cause__ or error) if transfer else error
    if isinstance(cause, KeyboardInterrupt):
        return KeyboardInterrupt()
    status = _status_of(cause)
    if transfer and status:
        # The storage knows neither key nor terms: an address that is signed anew may do.
        return PassingTrouble(f"the storage answers {status}", status)
    if status:
        return _meaning_of_answer(status, cause, terms)
    if isinstance(cause, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(cause):
        return UserError(
            "the certificate of Mozilla Data Collective is not trusted here: "
            "behind a proxy that opens TLS, set REQUESTS_CA_BUNDLE to the file with its certificate"
        )
    lost = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    if isinstance(cause, (*lost, requests.exceptions.ContentDecodingError, ConnectionError, TimeoutError)):
        return PassingTrouble(f"the connection failed ({type(cause).__name__})")
    if isinstance(cause, OSError) and cause.strerror:
        return UserError(f"{cause.filename or 'the download'} cannot be written: {cause.strerror}")
    return WhisperError(
        f"Mozilla Data Collective gave an answer that cannot be used ({type(cause).__name__}): "
        f"look at MDC_API_URL and at proxies, {INSTEAD}"
    )


def _status_of(error: BaseException) -> int:
    """Return the HTTP status that an error of the package stands for, or 0."""
    import requests
    from datacollective.errors import AuthenticationError, RateLimitError, ResourceRemovedError

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code
    if isinstance(error, OSError) and error.errno:
        return 0
    # 410 is a kind of 404 there, so it comes first.
    kinds: dict[type[BaseException], int] = {AuthenticationError: 401, PermissionError: 403, ResourceRemovedError: 410}
    kinds |= {FileNotFoundError: 404, RateLimitError: 429}
    return next((status for kind, status in kinds.items() if isinstance(error, kind)), 0)


def _meaning_of_answer(status: int, error: BaseException, terms: str) -> Exception:
    """Return what an answer of the server itself means."""
    if status in (408, 425, 429) or status >= 500:
        return PassingTrouble(f"the server answers {status}", status, _asked_wait(error))
    if status == 401:
        return UserError(f"MDC_API_KEY is not accepted (wrong, expired or revoked): make a new key at {KEY_PAGE}")
    said = f" (it says: {_said(error)})" if _said(error) else ""
    if status == 403 and terms:
        return UserError(
            f"Mozilla Data Collective refuses the download{said}: open {terms} in a browser, signed in as the owner of "
            "the key, accept the terms there, and run the same command again"
        )
    told = {404: "does not know that dataset", 410: "has taken that dataset back"}.get(status, f"answers {status}")
    return WhisperError(f"Mozilla Data Collective {told}{said}: look at MDC_API_URL and at proxies, {INSTEAD}")


def _said(error: BaseException) -> str:
    """Return the server's own words, which stand behind a dash in the package's."""
    words = " ".join(str(error).partition(" — ")[2].split())
    return words.replace(os.environ.get("MDC_API_KEY") or "\n", "***")[:200]


def _asked_wait(error: BaseException) -> float:
    """Return for how many seconds an answer asks to be left alone; 0 where it does not say."""
    response = getattr(error, "response", None)
    value = response.headers.get("Retry-After", "") if response is not None else ""
    if value.isdecimal():
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    return 0.0
