"""The layout of the page, and what happens when something on it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gradio

from asr.offline.page.service import Service
from asr.offline.page.uploads import Uploads
from asr.offline.page.views import evaluation_html, header_html, result_html
from asr.offline.page.wording import ENGLISH, TEXTS, Refused, language_of, text
from asr.offline.subtitles import FORMATS, times_of
from asr.offline.transcripts import Shape

# The browser's scripts do these; see page.js.
KEEP = "(audio) => { window.recordings.keep(audio); }"
BRING = "async (audio, said, ...rest) => [await window.recordings.bring(audio, said), said, ...rest]"
SAID = "(said) => window.recordings.said(said)"
SHOW = "() => { window.recordings.show(); }"
WIDEST_LINE, MOST_LINES = 100, 4
TIMESTAMPS = ("auto", "none", "segment", "word")

# Gradio's own texts have names, too.
OURS = "whisper_"
translations = gradio.I18n(
    **{code: {OURS + name: told for name, told in texts.items()} for code, texts in TEXTS.items()}
)


@dataclass(frozen=True)
class Contents:
    """What a page is about.

    Attributes:
        service: transcribes.
        uploads: files that visitors brought.
        shape: of subtitles, unless a visitor wants another.
        facts: what runs here, by the names of their texts.
        evaluation: folder of the run's evaluation; None where there is no run.
        samples: paths of clips, each with what is said.
    """

    service: Service
    uploads: Uploads
    shape: Shape
    facts: dict[str, str]
    evaluation: Path | None
    samples: list[list[str]]


def build_page(contents: Contents) -> gradio.Blocks:
    """Return the page with its API; nothing on it is fetched from outside."""
    service, shape = contents.service, contents.shape
    together: dict[str, Any] = {"concurrency_limit": service.at_once, "concurrency_id": "transcribe"}
    with gradio.Blocks(title="Whisper", analytics_enabled=False) as page:
        head = gradio.HTML()
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                audio = gradio.Audio(
                    sources=["upload", "microphone"], type="filepath", label=_word("audio"), buttons=[], editable=False
                )
                button = gradio.Button(_word("transcribe"), variant="primary", elem_id="transcribe")
                compare = gradio.Checkbox(service.compares, label=_word("compare"), visible=service.compares)
                reference = gradio.Textbox(
                    label=_word("reference"), placeholder=_word("reference_hint"), lines=2, elem_id="reference"
                )
                if contents.samples:
                    _add_samples(contents.samples, audio, reference)
                with gradio.Accordion(_word("settings"), open=False):
                    width = _slider("line_width", 0, WIDEST_LINE, shape.line_width)
                    lines = _slider("line_count", 1, MOST_LINES, shape.lines)
            with gradio.Column(scale=4, min_width=300):
                result = gradio.HTML(elem_id="result")
                with gradio.Accordion(_word("evaluation"), open=False, visible=contents.evaluation is not None):
                    figures = gradio.HTML(elem_id="figures")
        audio.change(None, audio, js=KEEP)
        audio.input(None, reference, reference, js=SAID)
        inputs = [audio, reference, compare, width, lines]
        pressed = button.click(
            _answer_to_visitors(contents),
            inputs,
            result,
            js=BRING,
            api_visibility="private",
            **together,
        )
        pressed.success(None, js=SHOW)
        page.load(_greeting(contents), None, [head, figures, result], api_visibility="private", queue=False)
        gradio.api(_answer_to_programs(contents), api_name="transcribe", **together)
    return page


def _word(name: str) -> Any:
    """Return a text that the browser puts in its language."""
    return translations(OURS + name)


def _slider(name: str, least: int, most: int, value: int) -> gradio.Slider:
    # The command line may have asked for more.
    return gradio.Slider(least, max(most, value), value, step=1, label=_word(name))


def _add_samples(samples: list[list[str]], audio: gradio.Audio, reference: gradio.Textbox) -> None:
    gradio.Examples(
        samples,
        [audio, reference],
        label=_word("examples"),
        example_labels=[said for _, said in samples],
        cache_examples=False,
        api_visibility="private",
    )


def _greeting(contents: Contents) -> Callable[..., Any]:
    """Return what fills the page in the visitor's language."""

    def greet(request: gradio.Request) -> tuple[str, str, str]:
        language = _language(request)
        hint = f'<p class="hint">{text(language, "empty_result")}</p>'
        return header_html(contents.facts, language), evaluation_html(contents.evaluation, language), hint

    return greet


def _answer_to_visitors(contents: Contents) -> Callable[..., Any]:
    """Return what the button calls."""

    def answer(
        path: str | None,
        reference: str | None,
        compare: bool,
        width: int,
        lines: int,
        request: gradio.Request,
        progress: gradio.Progress = gradio.Progress(),  # noqa: B008 (Gradio finds it by its default)
    ) -> str:
        language = _language(request)
        shape = replace(contents.shape, line_width=int(width), lines=int(lines))

        def heard(share: float) -> None:
            progress(share, desc=text(language, "reading"))

        try:
            if path is None:
                raise Refused("empty_first")
            with _taken(contents, Path(path)) as file:
                transcript = contents.service.transcribe(file, file.name, shape, compare, heard)
        except Refused as refused:
            raise _told(text(language, refused.why, **refused.values)) from None
        return result_html(transcript, reference or "", shape, language, contents.service.compares)

    return answer


def _answer_to_programs(contents: Contents) -> Callable[..., Any]:
    """Return what the API calls."""

    def transcribe(
        audio: gradio.FileData,
        format: Literal["txt", "srt", "vtt", "tsv", "json"] = "txt",
        timestamps: Literal["auto", "none", "segment", "word"] = "auto",
        compare: bool = False,
    ) -> str:
        """Return what `python inference.py --format` writes of a recording; "json" holds everything, as text."""
        # Nothing has looked at these before.
        told = audio if isinstance(audio, dict) else {}
        path = Path(str(told.get("path")))
        try:
            with contents.uploads.using(path) as upload:
                if format not in [*FORMATS] or timestamps not in TIMESTAMPS:
                    raise Refused("no_such_format")
                name = str(told.get("orig_name") or path.name)
                transcript = contents.service.transcribe(upload, name, contents.shape, bool(compare))
        except Refused as refused:
            raise _told(text(ENGLISH, refused.why, **refused.values)) from None
        return FORMATS[format](transcript, times_of(timestamps, format), contents.shape)

    return transcribe


@contextmanager
def _taken(contents: Contents, path: Path) -> Iterator[Path]:
    """Give a visitor's file inside the block: an upload, which is deleted then, or a sample, which stays."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(contents.uploads.using(path))
        except Refused:
            if not _is_sample(contents, path):
                raise
            file = path
        yield file


def _is_sample(contents: Contents, path: Path) -> bool:
    """Whether a file has the content of a sample: Gradio serves copies of them."""
    if not contents.samples or not path.is_file():
        return False
    size = path.stat().st_size
    alike = [Path(sample) for sample, _ in contents.samples if Path(sample).stat().st_size == size]
    return any(sample.read_bytes() == path.read_bytes() for sample in alike)


def _language(request: gradio.Request) -> str:
    return language_of(request.headers.get("accept-language"))


def _told(message: str) -> gradio.Error:
    """An error that the page shows, and that is no traceback in the operator's log."""
    return gradio.Error(message, print_exception=False)
