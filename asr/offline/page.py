"""The demo page: speak or upload, and read what the base model and the tuned one write."""

from __future__ import annotations

import gradio

from asr.offline.session import Session
from asr.shared.audio import AudioError, load_audio
from utils import UserError, log

HOST = "127.0.0.1"


def serve(session: Session, port: int) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C.

    Raises:
        UserError: the port is taken.
    """
    page = build_page(session)
    try:
        _, url, _ = page.launch(
            server_name=HOST, server_port=port or None, share=False, quiet=True, prevent_thread_lock=True
        )
    except OSError as error:
        raise UserError(f"--port {port}: {error}") from None
    log.info("the page is at %s (Ctrl-C stops it)", url)
    page.block_thread()


def build_page(session: Session) -> gradio.Blocks:
    """Lay out the page; Gradio's default theme fetches nothing from outside."""

    def transcribe(path: str | None) -> tuple[str, str]:
        if path is None:
            raise _told("먼저 파일을 올리거나 녹음하세요. / Upload or record something first.")
        try:
            waveform = load_audio(path)
        except AudioError as error:
            raise _told(f"오디오를 읽을 수 없습니다. / The audio cannot be read: {error}") from None
        with session.base() as base_model:
            base_text = base_model.transcribe([waveform])[0]
        return session.tuned.transcribe([waveform])[0], base_text

    with gradio.Blocks(title="Whisper", analytics_enabled=False) as page:
        gradio.Markdown(f"# 음성 인식 · Speech to text\n{session.bundle.base_name} + {session.run.path.name}")
        audio = gradio.Audio(sources=["upload", "microphone"], type="filepath", label="오디오 · Audio")
        button = gradio.Button("받아쓰기 · Transcribe", variant="primary")
        tuned = gradio.Textbox(label="미세 조정한 모델 · Tuned model", lines=3, interactive=False)
        base = gradio.Textbox(label="기본 모델 · Base model", lines=3, interactive=False)
        button.click(transcribe, audio, [tuned, base], api_name="transcribe")
    return page


def _told(message: str) -> gradio.Error:
    """An error that the page shows, and that is no traceback in the operator's log."""
    return gradio.Error(message, print_exception=False)
