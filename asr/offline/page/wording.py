"""The wording of the page, in English and in Korean."""

from __future__ import annotations

import re

ENGLISH, KOREAN = "en", "ko"

TEXTS: dict[str, dict[str, str]] = {
    ENGLISH: {
        "title": "Speech to text",
        "audio": "Recording",
        "transcribe": "Transcribe",
        "reference": "What is said (optional)",
        "reference_hint": "Type what was said, and the errors are counted.",
        "compare": "Beside it, the base model",
        "settings": "Settings",
        "line_width": "Characters of a subtitle line (0: any number)",
        "line_count": "Lines of a subtitle",
        "examples": "Examples from the test set",
        "evaluation": "How good is it? The run's evaluation",
        "empty_first": "Upload or record something first.",
        "empty_result": "The text appears here, with its times. Click a time to hear it.",
        "tuned": "Tuned model",
        "model": "Model",
        "base": "Base model",
        "said": "What is said",
        "silent": "(no speech)",
        "same": "Both write the same.",
        "errors": "{errors} of {length} characters wrong, CER {cer}",
        "legend_models": "Coloured: where the two models differ.",
        "legend_reference": "Coloured: other than what is said. A box is something missing.",
        "legend_pieces": "Of long texts the beginning alone is coloured.",
        "unplayable": "This browser does not play this kind of file; the text is not touched by that.",
        "times": "Times",
        "download": "Download",
        "looped": "the model repeated this {times} times",
        "note": "Note",
        "not_evaluated": "This run has no evaluation yet: python evaluate_model.py writes one.",
        "of_test": "{utterances} utterances of the test split, {minutes} minutes; intervals of 95 %",
        "full_report": "The whole report: {path}",
        "cer": "CER (characters, without spaces)",
        "wer": "WER (words)",
        "run": "Run",
        "language": "Language",
        "runs_on": "Runs on",
        "unreadable": "This file cannot be read as audio: {told}",
        "too_long": "The recording is longer than {minutes} minutes, the most that is taken here.",
        "gone": "The upload is not there any more: choose the file again.",
        "not_uploaded": "Only uploaded files are transcribed.",
        "no_such_format": "format is txt, srt, vtt, tsv or json; timestamps auto, none, segment or word.",
        "memory": "The machine has not enough memory for this now: try again, or a shorter recording.",
        "reading": "listening",
    },
    KOREAN: {
        "title": "음성 받아쓰기",
        "audio": "녹음",
        "transcribe": "받아쓰기",
        "reference": "말한 내용 (선택)",
        "reference_hint": "말한 내용을 적으면 오류율을 재어 보여 줍니다.",
        "compare": "기본 모델과 나란히 비교",
        "settings": "설정",
        "line_width": "자막 한 줄의 글자 수 (0: 제한 없음)",
        "line_count": "자막의 줄 수",
        "examples": "시험 데이터의 예",
        "evaluation": "얼마나 정확할까요? 이 학습의 평가",
        "empty_first": "먼저 파일을 올리거나 녹음하세요.",
        "empty_result": "여기에 글과 시각이 나타납니다. 시각을 누르면 그 부분을 들려줍니다.",
        "tuned": "미세 조정한 모델",
        "model": "모델",
        "base": "기본 모델",
        "said": "말한 내용",
        "silent": "(말소리 없음)",
        "same": "두 모델이 똑같이 받아썼습니다.",
        "errors": "{length}글자 중 {errors}글자 오류, CER {cer}",
        "legend_models": "색칠한 곳: 두 모델이 다르게 받아쓴 부분",
        "legend_reference": "색칠한 곳: 말한 내용과 다른 부분. 네모는 빠진 글자입니다.",
        "legend_pieces": "긴 글은 앞부분만 색칠합니다.",
        "unplayable": "이 브라우저에서는 이 형식의 파일을 재생할 수 없습니다. 받아쓴 글에는 영향이 없습니다.",
        "times": "시각",
        "download": "내려받기",
        "looped": "모델이 이 부분을 {times}번 되풀이했습니다",
        "note": "알림",
        "not_evaluated": "아직 평가하지 않았습니다. python evaluate_model.py로 평가할 수 있습니다.",
        "of_test": "시험 데이터의 발화 {utterances}개, {minutes}분; 95 % 신뢰 구간",
        "full_report": "전체 보고서: {path}",
        "cer": "CER (글자, 띄어쓰기 제외)",
        "wer": "WER (어절)",
        "run": "학습",
        "language": "언어",
        "runs_on": "실행 환경",
        "unreadable": "이 파일은 오디오로 읽을 수 없습니다: {told}",
        "too_long": "녹음이 너무 깁니다. 여기서는 {minutes}분까지 받습니다.",
        "gone": "올린 파일이 이미 지워졌습니다. 파일을 다시 고르세요.",
        "not_uploaded": "올린 파일만 받아쓸 수 있습니다.",
        "no_such_format": "format은 txt, srt, vtt, tsv, json, timestamps는 auto, none, segment, word 중 하나입니다.",
        "memory": "지금은 메모리가 모자랍니다. 다시 해 보거나 더 짧은 녹음을 쓰세요.",
        "reading": "듣는 중",
    },
}


class Refused(Exception):
    """The page does not do what was asked for.

    Args:
        why: name of a text, which says the reason.
        values: what stands in it.
    """

    def __init__(self, why: str, **values: object) -> None:
        super().__init__(text(ENGLISH, why, **values))
        self.why, self.values = why, values


def text(language: str, name: str, **values: object) -> str:
    """Return a text of the page."""
    return TEXTS[language][name].format(**values)


def language_of(accepted: str | None) -> str:
    """Return the page's language for a browser's Accept-Language; of those it can show, the one that is liked best.

    English where none is.
    """
    liked: list[tuple[float, str]] = []
    for entry in (accepted or "").lower().split(","):
        name, _, rest = entry.strip().partition(";")
        quality = re.fullmatch(r"\s*q=([01](?:\.\d{0,3})?)\s*", rest)
        code = name.partition("-")[0]
        if code in TEXTS:
            liked.append((-float(quality[1]) if quality else -1.0, code))
    best = min(liked, key=lambda entry: entry[0], default=(0.0, ENGLISH))
    return best[1] if best[0] < 0 else ENGLISH
