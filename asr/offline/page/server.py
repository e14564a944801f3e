"""The server of the page: opens the models, lets in who may come, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hmac
import ipaddress
import os
import signal
import socket
import ssl
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import utils
from asr.offline.choice import Choice, choose
from asr.offline.transcripts import Shape
from config import Inference, Page
from utils import UserError, log

# torch compiles a kernel of 256 kB for each shape of a batch, visitors bring every shape, and it would keep 1,024.
KERNELS_KEPT = "64"
KEEP_HOUSE_S = 5.0
FONTS = ["Pretendard", "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR", "Noto Sans CJK KR", "sans-serif"]


def serve(config: Inference, shape: Shape) -> None:
    """Serve the page until Ctrl-C or SIGTERM; uploads lie in a folder of the process' own, and go with it.

    Args:
        config: model, device and page.
        shape: of subtitles.

    Raises:
        UserError: there is no such model, the address or the port cannot be had, or a file of the page is wrong.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS_KEPT)
    users = read_users(config.page.auth_file) if config.page.auth_file else {}
    _require_address(config.page)
    wanted = config.transcribing
    choice = choose(config, with_base=wanted.model is None and wanted.engine != "ctranslate2")
    # A kill -9 leaves the folder, which nobody but its owner can read.
    with tempfile.TemporaryDirectory(prefix="whisper-page-", ignore_cleanup_errors=True) as folder, _stoppable():
        # Gradio reads this when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = folder
        _serve(config, choice, shape, users, Path(folder))


def _serve(config: Inference, choice: Choice, shape: Shape, users: dict[str, str], folder: Path) -> None:
    from asr.offline.page.layout import Contents, build_page
    from asr.offline.page.samples import samples_of
    from asr.offline.page.service import open_service
    from asr.offline.page.uploads import Uploads

    batch, minutes = config.decoding.per_device_eval_batch_size, config.page.max_upload_minutes
    closed = threading.Event()
    with tempfile.TemporaryDirectory(dir=folder) as kept, open_service(choice, batch, minutes) as service:
        uploads = Uploads(folder)
        run_dir = choice.system.run_dir
        contents = Contents(
            service=service,
            uploads=uploads,
            shape=shape,
            facts=facts_of(choice),
            evaluation=run_dir and run_dir / "evaluation",
            samples=samples_of(choice.bundle, Path(kept), config.page.samples),
        )
        page = build_page(contents).queue(max_size=config.page.max_queue)
        # Else what stays for ever, of torch and the like, keeps the collector from looking at what visitors leave.
        gc.freeze()
        threading.Thread(target=_keep_house, args=(uploads, closed), daemon=True).start()
        try:
            log.info("the page is at %s (Ctrl-C stops it)", _launch(page, config.page, users, uploads))
            # Windows breaks off no wait without an end.
            while not closed.wait(1.0):
                pass
        except KeyboardInterrupt:
            log.info("the page is closed")
        finally:
            closed.set()
            page.close(verbose=False)


def _keep_house(uploads: Any, closed: threading.Event) -> None:
    """Now and then delete uploads that nobody uses, and give back the memory of those that are gone."""
    while not closed.wait(KEEP_HOUSE_S):
        uploads.clean()
        if sys.platform == "linux":
            # What many threads have freed, glibc keeps; musl knows no such thing.
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL("libc.so.6").malloc_trim(0)


def _launch(page: Any, settings: Page, users: dict[str, str], uploads: Any) -> str:
    """Start to serve, and return the address."""
    import gradio
    from starlette.middleware import Middleware

    from asr.offline.page.layout import translations
    from asr.offline.page.uploads import UploadsSeen

    here = Path(__file__).parent
    script = (here / "page.js").read_text(encoding="utf-8")
    utils.allow_own_address(settings.host)
    _warn(settings, users)
    try:
        _, url, _ = page.launch(
            server_name=f"[{settings.host}]" if ":" in settings.host else settings.host,
            server_port=settings.port or None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            auth=_check(users) if users else None,
            ssl_certfile=settings.ssl_certfile and str(settings.ssl_certfile),
            ssl_keyfile=settings.ssl_keyfile and str(settings.ssl_keyfile),
            # It asks itself once, and knows itself.
            ssl_verify=False,
            max_file_size=settings.max_upload_mb * 1_000_000,
            app_kwargs={"middleware": [Middleware(UploadsSeen, uploads=uploads)]},
            # What Gradio keeps of each visitor is nothing that the page needs.
            state_session_capacity=settings.max_queue,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            i18n=translations,
            theme=gradio.themes.Default(primary_hue="green", font=FONTS, font_mono=["monospace"]),
            css=(here / "page.css").read_text(encoding="utf-8"),
            head=f"<script>{script}</script>",
        )
    except OSError as error:
        raise UserError(f"--host {settings.host} --port {settings.port}: {error}") from None
    return url


def facts_of(choice: Choice) -> dict[str, str]:
    """Return what runs here, by the names of their texts."""
    system = choice.system
    formats = choice.opener.conditions(system)
    runs_on = [formats.get(name) for name in ("device", "quantization", "compute_type")]
    facts = {"model": choice.bundle.base_name if choice.bundle and system.run_dir else system.called}
    if system.run_dir:
        facts["run"] = system.run_dir.name
    facts["language"] = choice.opener.speaking.language
    facts["runs_on"] = ", ".join(str(one) for one in runs_on if one and one != "none")
    return facts


# Who may come


def read_users(file: Path) -> dict[str, str]:
    """Return the passwords of a file by name.

    Raises:
        UserError: it cannot be read, others can read it, or a line is not name:password.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--auth-file {file} cannot be read: {error}") from None
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"--auth-file {file} can be used by others than its owner: chmod 600 {file}")
    users = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, password = line.partition(":")
        if not name or not colon or not password:
            raise UserError(f"--auth-file {file}, line {number}: it must be name:password")
        users[name] = password
    if not users:
        raise UserError(f"--auth-file {file} names nobody: a line is name:password")
    return users


def _check(users: dict[str, str]) -> Callable[[str, str], bool]:
    def may_come(name: str, password: str) -> bool:
        known = users.get(name, "")
        # As long for a name that is not there.
        return hmac.compare_digest(known.encode(), password.encode("utf-8", "surrogatepass")) and bool(known)

    return may_come


def _require_address(settings: Page) -> None:
    """See that the address can be had and the certificate be used, before models are opened.

    Raises:
        UserError: it is not so.
    """
    for flag, file in (("--ssl-certfile", settings.ssl_certfile), ("--ssl-keyfile", settings.ssl_keyfile)):
        if file and not file.is_file():
            raise UserError(f"{flag} {file}: there is no such file")
    if settings.ssl_certfile:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                settings.ssl_certfile, settings.ssl_keyfile, password=""
            )
        except (ssl.SSLError, OSError, ValueError) as error:
            files = f"--ssl-certfile {settings.ssl_certfile} and --ssl-keyfile {settings.ssl_keyfile}"
            raise UserError(f"{files} cannot be used: {error}") from None
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        told = error.strerror or str(error)
        raise UserError(f"--host {settings.host} --port {settings.port} cannot be had: {told}") from None


def _warn(settings: Page, users: dict[str, str]) -> None:
    """Tell what it means that other machines reach the page."""
    if ipaddress.ip_address(settings.host).is_loopback:
        return
    if not users:
        log.warning("whoever reaches this machine may use the page; --auth-file lets in those that it names")
    if not settings.ssl_certfile:
        log.warning(
            "without --ssl-certfile, passwords and recordings travel in the clear, and browsers of other machines give "
            "the page no microphone"
        )


@contextmanager
def _stoppable() -> Iterator[None]:
    """End inside the block at SIGTERM as at Ctrl-C, so that uploads go then, too."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
