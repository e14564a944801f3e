"""Listening: every system hears every clip, with the windows that were asked for, and nothing is heard twice."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.offline.journal import Journal
from asr.offline.listening import Cut, Piece, listen
from asr.offline.systems import Opener, Speaking, System, find_systems
from asr.offline.test_sets import TestSet, bundle_test_set, open_test_set
from asr.shared.audio import SAMPLE_RATE
from asr.shared.bundle import open_bundle
from config import Decoding, Device, TableColumns, UseRuns
from tests.conftest import DEMO_MODEL

DECODING = Decoding(per_device_eval_batch_size=1, generation_max_length=16)


@pytest.fixture(scope="module")
def system() -> System:
    (found,) = find_systems(UseRuns(model=(DEMO_MODEL,)), None)
    return found


@pytest.fixture(scope="module")
def clips(mini_bundle) -> TestSet:
    return bundle_test_set(open_bundle(mini_bundle))


@pytest.fixture
def opener() -> Opener:
    return Opener(Device(cuda_visible_devices=""), DECODING, Speaking("Korean", "transcribe"))


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Names of the systems that were opened, which costs the loading of a model."""
    names: list[str] = []
    open_it = Opener._opened
    monkeypatch.setattr(Opener, "_opened", lambda self, one: names.append(one.name) or open_it(self, one))
    return names


def heard(system: System, clips: TestSet, opener: Opener, trimmed: bool) -> list[str]:
    """What the model makes of the clips as plain waveforms."""
    with opener.open(system) as transcriber:
        transcriber.trimmed = trimmed
        return transcriber.transcribe([clips.waveform(at) for at in range(len(clips))])


@pytest.mark.parametrize(
    ("own", "windows", "expected"),
    [
        ("padded", "auto", ["padded"]),
        ("trimmed", "auto", ["trimmed", "padded"]),
        ("trimmed", "own", ["trimmed"]),
        ("padded", "both", ["padded", "trimmed"]),
    ],
)
def test_windows_are_those_that_were_asked_for(system, clips, opener, tmp_path, own, windows, expected):
    (outputs,) = listen([replace(system, window=own)], [clips], opener, windows, tmp_path)
    assert [output.window for output in outputs] == expected
    for output in outputs:
        assert output.texts == heard(system, clips, opener, output.window == "trimmed")
        assert output.decode_s > 0


def test_own_windows_of_all_come_before_the_others(system, clips, opener, tmp_path):
    """The first output of a system is the one that counts for it."""
    systems = [replace(system, name="a", window="trimmed"), replace(system, name="b", window="trimmed")]
    (outputs,) = listen(systems, [clips], opener, "auto", tmp_path)
    order = [(output.system, output.window) for output in outputs]
    assert order == [("a", "trimmed"), ("b", "trimmed"), ("a", "padded"), ("b", "padded")]


def test_nothing_is_decoded_twice(system, clips, opener, opened, tmp_path):
    """Nor by another name: the base of two runs is one. Each set has outputs of its own."""
    other = replace(clips, fingerprint="other")
    first = listen([system], [clips, other], opener, "own", tmp_path)
    assert opened == [system.name]
    again = listen([replace(system, name="base")], [clips, other], opener, "own", tmp_path)
    assert opened == [system.name]
    assert [one[0].texts for one in again] == [one[0].texts for one in first]
    assert [one[0].decode_s for one in again] == [one[0].decode_s for one in first]
    listen([system], [clips], opener, "own", tmp_path, fresh=True)
    assert len(opened) == 2, "unless it is wanted"


@pytest.mark.parametrize(
    "change",
    [
        lambda system, opener: replace(system, weights={**system.weights, "model.safetensors": "0"}),
        lambda system, opener: replace(system, window="trimmed"),
        lambda system, opener: setattr(opener.decoding, "per_device_eval_batch_size", 3),
        lambda system, opener: setattr(opener.decoding, "generation_max_length", 15),
        lambda system, opener: setattr(opener, "speaking", Speaking("English", "transcribe")),
        lambda system, opener: setattr(opener, "speaking", Speaking("Korean", "translate")),
        lambda system, opener: opener._chosen.update(lora=replace(opener.precision(system), quantization="8bit")),
    ],
)
def test_what_the_texts_hang_on_is_not_taken_from_the_journal(system, clips, opener, opened, tmp_path, change):
    opener.decoding = replace(DECODING)
    table = replace(clips, language=None, task=None)
    listen([system], [table], opener, "own", tmp_path)
    changed = change(system, opener) or system
    listen([changed], [table], opener, "own", tmp_path)
    assert len(opened) == 2


def test_goes_on_after_an_end_at_any_batch(system, clips, opener, tmp_path, monkeypatch):
    """With the texts of an evaluation that was never stopped, and no batch decoded twice."""
    ((whole,),) = listen([system], [clips], opener, "own", tmp_path / "whole")
    decoded: list[int] = []
    add = Journal.add

    def stop_after_one(self, entry):
        add(self, entry)
        decoded.append(len(entry.pieces))
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", stop_after_one)
    for _ in range(len(clips)):
        with pytest.raises(KeyboardInterrupt):
            listen([system], [clips], opener, "own", tmp_path / "stopped")
    monkeypatch.undo()
    ((stopped,),) = listen([system], [clips], opener, "own", tmp_path / "stopped")
    assert decoded == [1] * len(clips)
    assert stopped.texts == whole.texts
    assert len(set(whole.texts)) > 1


def test_a_clip_longer_than_the_window_is_heard_in_parts(mini_model, opener, tmp_path):
    """12 s for a window of 5 s, beside a short one: nothing is left out, and the parts stand in their order."""
    (system,) = find_systems(UseRuns(model=(mini_model,)), None)
    random = np.random.default_rng(1)
    for name, seconds in (("long", 12), ("short", 2)):
        soundfile.write(tmp_path / f"{name}.wav", random.normal(0, 0.1, seconds * SAMPLE_RATE), SAMPLE_RATE)
    table = tmp_path / "calls.csv"
    table.write_text("path,text\nlong.wav,가\nshort.wav,나\n", encoding="utf-8")
    calls = open_test_set(table, TableColumns(), "--data")
    with opener.open(system) as transcriber:
        cut = Cut(calls, transcriber, tmp_path)
        expected = transcriber.transcribe([calls.waveform(0), calls.waveform(1)])
    *parts, short = cut.pieces
    assert [(piece.clip, piece.part) for piece in parts] == [(0, number) for number in range(len(parts))]
    ends = [piece.start + piece.samples for piece in parts]
    assert [piece.start for piece in parts] == [0, *ends[:-1]]
    assert ends[-1] == 12 * SAMPLE_RATE
    assert short == Piece(1, 0, None, 2 * SAMPLE_RATE)
    ((output,),) = listen([system], [calls], opener, "own", tmp_path / "journals")
    assert output.texts == expected
    assert len(set(expected)) == 2


def test_a_long_recording_is_read_once(mini_model, opener, tmp_path, monkeypatch):
    """Not for each of its parts: an hour would be decoded a hundred times."""
    (system,) = find_systems(UseRuns(model=(mini_model,)), None)
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(1).normal(0, 0.1, 40 * SAMPLE_RATE), SAMPLE_RATE)
    (tmp_path / "calls.csv").write_text("path,text\nlong.wav,가\n", encoding="utf-8")
    calls = open_test_set(tmp_path / "calls.csv", TableColumns(), "--data")
    read: list[int] = []
    waveform = TestSet.waveform
    monkeypatch.setattr(TestSet, "waveform", lambda self, at: read.append(at) or waveform(self, at))
    listen([system], [calls], opener, "own", tmp_path / "journals")
    assert read == [0]


def test_one_model_at_a_time_is_in_memory(system, clips, opener, tmp_path, monkeypatch):
    """A GPU that holds either of two models alone must do."""
    alive: list[list[bool]] = []
    models: list[weakref.ref] = []
    open_it = Opener._opened

    def opened(self, one):
        gc.collect()
        alive.append([model() is not None for model in models])
        transcriber = open_it(self, one)
        models.append(weakref.ref(transcriber.writer.model))
        return transcriber

    monkeypatch.setattr(Opener, "_opened", opened)
    others = [replace(system, name=name, weights={"model": name}) for name in ("a", "b", "c")]
    listen(others, [clips], opener, "own", tmp_path)
    assert alive == [[], [False], [False, False]]


def test_details_tell_what_was_used(system, clips, opener, tmp_path: Path):
    ((output,),) = listen([system], [clips], opener, "own", tmp_path)
    assert output.details["kind"] == "whisper"
    assert output.details["compute_type"] == "float32"
    assert output.details["decoding"] == {"search": "greedy", "batch_size": 1, "max_length": 16}
    assert output.details["engine"].keys() >= {"torch", "transformers"}
