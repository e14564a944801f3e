"""Sampling: every clip once an epoch, whatever the layout, the ranks and the way a step is cut."""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from accelerate import skip_first_batches
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import WhisperConfig

from asr.offline import layouts
from asr.offline.layouts import GAP_FRAMES, Lengths, deal, pack, spread
from asr.offline.sampling import Heard, Window, WindowDataset, WindowSampler, fitted_frames, lengths_of
from asr.offline.trainer import WindowLoader
from asr.shared.features import frames_for
from config import Augmentation, TrainOffline
from tests.conftest import MEASURING_DATA
from utils import UserError, WhisperError

LAYOUTS = ("packed", "trimmed", "padded")
WINDOW, TOKENS = 3000, 448


def configuration(batch: int = 8, accumulation: int = 1, speed: float = 0.0, **training: object) -> TrainOffline:
    config = TrainOffline(augmentation=Augmentation(speed_perturb=speed))
    knobs = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, **training}
    return replace(config, training=replace(config.training, **knobs))


def lengths(frames: list[int], tokens: list[int] | None = None) -> Lengths:
    return Lengths(np.array(frames), np.array(tokens or [20] * len(frames)), WINDOW, TOKENS)


def speech(clips: int, seed: int = 0) -> Lengths:
    """Clips as long as Korean ones are, 3.3 s on average."""
    frames = np.random.default_rng(seed).gamma(4.6, 71, clips).clip(30, 3000).astype(int)
    return Lengths(frames, frames // 15 + 6, WINDOW, TOKENS)


def clips_of(batches: list[list[Window]]) -> list[int]:
    return [clip for batch in batches for window in batch for clip in window.clips]


def steps_of(batches: list[list[Window]], parts: int) -> list[list[Window]]:
    """The windows of each optimiser step of `parts` micro-batches, in a fixed order."""
    steps = [batches[start : start + parts] for start in range(0, len(batches), parts)]
    return [sorted((w for batch in step for w in batch), key=lambda w: w.clips) for step in steps]


some_clips = st.lists(st.tuples(st.integers(1, WINDOW), st.integers(6, TOKENS)), min_size=1, max_size=60)
settings_of_a_step = {
    "layout": st.sampled_from(LAYOUTS),
    "batch": st.integers(1, 9),
    "accumulation": st.integers(1, 5),
    "world": st.integers(1, 4),
    "epoch": st.integers(0, 3),
}


@settings(deadline=None, max_examples=200)
@given(clips=some_clips, speed=st.sampled_from([0.0, 0.1, 0.5]), **settings_of_a_step)
def test_a_plan_is_whole_and_within_limits(clips, speed, layout, batch, accumulation, world, epoch):
    """Each clip once on one rank; ranks with equally many micro-batches, none empty; no window over its limits."""
    known = lengths([c[0] for c in clips], [c[1] for c in clips])
    samplers = [
        WindowSampler(known, configuration(batch, accumulation, speed), layout, rank, world) for rank in range(world)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    ranks = [list(sampler) for sampler in samplers]

    assert {len(batches) for batches in ranks} == {len(samplers[0])}
    assert all(one for batches in ranks for one in batches)
    for each in samplers:
        assert each.steps_per_epoch == math.ceil(len(clips) / (batch * accumulation * world))
        assert math.ceil(len(each) / each.accumulation) == each.steps_per_epoch
        assert 1 <= each.accumulation <= accumulation

    counts = Counter(clip for batches in ranks for clip in clips_of(batches))
    assert counts.keys() == set(range(len(clips)))
    # As with torch's DistributedSampler, some come again where the last step has fewer windows than ranks.
    assert sum(counts.values()) - len(clips) < world

    for window in (window for batches in ranks for one in batches for window in one):
        frames = fitted_frames(known.frames[list(window.clips)], np.array(window.speeds), WINDOW)
        assert frames.sum() + GAP_FRAMES * (len(window.clips) - 1) <= WINDOW
        assert known.tokens[list(window.clips)].sum() <= TOKENS
        assert len(window.clips) == 1 or layout == "packed"
        assert not (window.timestamps and len(window.clips) == 1) or known.tokens[window.clips[0]] < TOKENS


@settings(deadline=None, max_examples=100)
@given(clips=st.integers(1, 150), **settings_of_a_step)
def test_steps_have_as_many_clips_as_the_batch_says(clips, layout, batch, accumulation, world, epoch):
    """Exactly, or where windows are packed, on average, and for each step as near as whole windows let it."""
    sampler = WindowSampler(speech(clips), configuration(batch, accumulation), layout, 0, world)
    sampler.set_epoch(epoch)
    size = sampler.step_size
    steps = steps_of(sampler.epoch.batches, sampler.accumulation * world)
    counts = [sum(len(window.clips) for window in step) for step in steps]
    whole = clips // size
    assert sum(counts[:whole]) == whole * size
    if layout != "packed":
        assert counts[:whole] == [size] * whole
    else:
        windows = [len(step) for step in steps[:whole]]
        assert not windows or max(windows) - min(windows) <= 1


@settings(deadline=None, max_examples=60)
@given(skipped=st.integers(0, 20), **settings_of_a_step)
def test_a_resumed_epoch_goes_on_with_the_same_windows(skipped, layout, batch, accumulation, world, epoch):
    """As Trainer resumes: a fresh sampler, the first batches skipped, the epoch told afterwards."""
    known, config = speech(50), configuration(batch, accumulation)
    sampler = WindowSampler(known, config, layout, world - 1, world)
    sampler.set_epoch(epoch)
    whole = list(sampler)
    fresh = WindowLoader(Keys(), batch_sampler=WindowSampler(known, config, layout, world - 1, world), collate_fn=list)
    rest = skip_first_batches(fresh, min(skipped, len(whole)))
    rest.batch_sampler.batch_sampler.set_epoch(epoch)
    assert list(rest) == whole[skipped:]


class Keys:
    """A data set that gives back what it is asked for."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, window: Window) -> Window:
        return window


@pytest.mark.parametrize("layout", LAYOUTS)
def test_epochs_differ_and_repeat_with_their_seed(layout):
    """Order, company, times and augmentation are drawn anew; the same seed draws the same."""

    def plans(seed: int) -> list[list[list[Window]]]:
        config = configuration()
        sampler = WindowSampler(speech(256), replace(config, run=replace(config.run, seed=seed)), layout)
        found = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            found.append(list(sampler))
        return found

    first = plans(1)
    assert first == plans(1)
    assert first != plans(2)
    # Of 32 batches; the longest clips may well meet again in `trimmed`.
    most = 4 if layout == "trimmed" else 0
    company = [{frozenset(clips_of([batch])) for batch in epoch} for epoch in first]
    assert len(company[0] & company[1]) <= most
    assert len(company[1] & company[2]) <= most
    assert len({window.seed for epoch in first for batch in epoch for window in batch}) == sum(
        len(batch) for epoch in first for batch in epoch
    )


def test_going_back_to_an_epoch_gives_its_windows_again():
    sampler = WindowSampler(speech(64), configuration(), "packed")
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("clips", [96, 90])
def test_a_step_is_the_same_however_it_is_cut(layout, clips):
    """Two ranks of 8, one of 16, one of 8 twice, one of 4 four times; the times and the seeds, too."""
    known = lengths(np.random.default_rng(1).integers(800, 1600, clips).tolist())
    plans = []
    for batch, accumulation, world in ((8, 1, 2), (16, 1, 1), (8, 2, 1), (4, 4, 1), (2, 4, 2)):
        config = configuration(batch, accumulation, speed=0.1, timestamp_probability=0.5)
        sampler = WindowSampler(known, config, layout, 0, world)
        plans.append(steps_of(sampler.epoch.batches, sampler.accumulation * world))
    assert plans[0] == plans[1] == plans[2] == plans[3] == plans[4]


def test_the_last_step_gives_every_rank_something():
    """One clip for three ranks: the epoch's first windows come again."""
    for layout in LAYOUTS:
        samplers = [WindowSampler(lengths([100] * 7), configuration(2), layout, rank, 3) for rank in range(3)]
        assert [len(sampler) for sampler in samplers] == [2, 2, 2]
        last = [list(sampler)[-1] for sampler in samplers]
        first = [next(iter(sampler)) for sampler in samplers]
        assert [len(batch) for batch in last] == [1, 1, 1]
        again = [batch[0] for batch in last if batch[0] in [window for one in first for window in one]]
        assert len(again) == 2


def test_fewer_clips_than_ranks():
    """Even a single clip reaches every rank."""
    for layout in LAYOUTS:
        found = [clips_of(list(WindowSampler(lengths([100]), configuration(), layout, r, 4))) for r in range(4)]
        assert found == [[0], [0], [0], [0]]


def test_packed_windows_need_fewer_micro_batches_than_the_settings_say():
    """1 x 16 clips fill two windows. As 16 micro-batches they would be 16 windows, nine tenths of them silent."""
    sampler = WindowSampler(speech(320), configuration(1, 16), "packed")
    assert (sampler.accumulation, len(sampler), sampler.steps_per_epoch) == (2, 40, 20)
    assert {len(batch) for batch in sampler} == {1}
    assert sampler.silent_share < 0.15
    plain = WindowSampler(speech(320), configuration(1, 16), "trimmed")
    assert (plain.accumulation, len(plain)) == (16, 320)


@pytest.mark.parametrize(("seconds", "batch"), [(3.3, 1), (3.3, 2), (3.3, 4), (16, 1), (16, 4), (28, 2)])
def test_micro_batches_hold_no_more_windows_than_the_batch_has_clips(seconds, batch):
    """So packed windows ask no more of the memory than padded ones do, however long the clips are."""
    frames = np.random.default_rng(3).normal(100 * seconds, 60, 400).clip(30, 3000).astype(int)
    sampler = WindowSampler(lengths(frames.tolist()), configuration(batch, 8), "packed")
    assert max(map(len, sampler)) <= batch


def test_times_are_told_as_often_as_asked():
    known = speech(4000)
    for layout in LAYOUTS:
        for share in (0.0, 0.2, 1.0):
            sampler = WindowSampler(known, configuration(timestamp_probability=share), layout)
            told = [window.timestamps for batch in sampler for window in batch]
            assert np.mean(told) == pytest.approx(share, abs=0.05)


def test_times_are_left_out_where_a_label_has_no_room_for_them():
    """They make a lone clip's label one token longer than the 448 that the decoder writes."""
    known = lengths([2000, 2000, 2000], [448, 447, 100])
    for layout in LAYOUTS:
        windows = [w for batch in WindowSampler(known, configuration(timestamp_probability=1.0), layout) for w in batch]
        assert {w.clips[0]: w.timestamps for w in windows} == {0: False, 1: True, 2: True}


def test_speeds_are_drawn_before_clips_are_packed():
    """Each clip its own, anew in each epoch, and a clip that fills the window never outgrows it."""
    known = lengths([WINDOW] * 4 + [400] * 60)
    sampler = WindowSampler(known, configuration(speed=0.1), "packed")
    seen = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        speeds = {c: s for batch in sampler for w in batch for c, s in zip(w.clips, w.speeds, strict=True)}
        assert all(0.9 <= speed <= 1.1 for speed in speeds.values())
        assert all(speeds[clip] >= 1 for clip in range(4))
        assert len(set(speeds.values())) > 60
        seen.append(speeds)
    assert seen[0] != seen[1]
    slow = fitted_frames(np.array([400, 400, WINDOW]), np.array([1.0, 0.9, 0.9]), WINDOW)
    assert slow.tolist() == [400, 445, WINDOW]


def test_chosen_batches_are_yielded_as_they_are():
    """The pre-flight runs the largest batch first."""
    sampler = WindowSampler(speech(64), configuration(), "packed")
    batches = list(sampler)
    sampler.choose([batches[3], batches[3], batches[0]])
    sampler.set_epoch(5)
    assert len(sampler) == 3
    assert list(sampler) == [batches[3], batches[3], batches[0]]


# How much of it is silence


@pytest.mark.parametrize(("mean", "batch", "most"), [(3.3, 8, 0.13), (3.3, 16, 0.08), (5.0, 8, 0.07), (5.0, 32, 0.07)])
def test_little_of_a_packed_epoch_is_silent(mean, batch, most):
    """Eight clips of 3.3 s are 26.4 s: the rest of their 30 s is silent in any arrangement."""
    frames = np.random.default_rng(0).gamma(4.6, 100 * mean / 4.6, 2000).clip(30, 3000).astype(int)
    shares = {
        layout: WindowSampler(lengths(frames.tolist()), configuration(batch), layout).silent_share for layout in LAYOUTS
    }
    assert shares["packed"] < most
    assert shares["trimmed"] < 0.13
    assert shares["padded"] == pytest.approx(1 - mean / 30, abs=0.01)


def test_silence_is_counted_as_the_encoder_meets_it():
    """By hand: gaps, the end of the window, and in `trimmed` what the longest of a micro-batch leaves to the others."""
    known = lengths([1000, 400, 500])
    heard = 1900
    packed, trimmed, padded = (WindowSampler(known, configuration(3), layout) for layout in LAYOUTS)
    assert packed.silent_share == pytest.approx(1 - heard / 3000)
    assert padded.silent_share == pytest.approx(1 - heard / 9000)
    assert trimmed.silent_share == pytest.approx(1 - heard / (3 * frames_for(160_000, WINDOW)))
    assert packed.shape_of(packed.epoch.batches[0])[:2] == (1, 3000)
    assert trimmed.shape_of(trimmed.epoch.batches[0])[:2] == (3, 1020)
    assert (packed.windows_per_step, trimmed.windows_per_step) == (1, 3)


def test_little_of_a_real_epoch_is_silent():
    """Clips of 3.3 s, and of 5 s made of neighbours."""
    table = MEASURING_DATA / "korean-speech" / "transcripts.tsv"
    if not table.is_file():
        pytest.skip("the measuring data are not here")
    with table.open(encoding="utf-8") as file:
        seconds = [float(row["duration_s"]) for row in csv.DictReader(file, delimiter="\t")]
    joined = [sum(seconds[i : i + 1 + (i % 3 != 0)]) for i in range(0, len(seconds) - 1, 2)]
    assert np.mean(joined) == pytest.approx(5.4, abs=0.3)
    for clips, batch, most in ((seconds, 8, 0.13), (seconds, 16, 0.08), (joined, 8, 0.08)):
        known = lengths([math.ceil(100 * one) for one in clips])
        assert WindowSampler(known, configuration(batch), "packed").silent_share < most
        assert WindowSampler(known, configuration(batch), "trimmed").silent_share < 0.13


def test_clips_of_like_length_come_together():
    """Silence behind the shorter ones of a trimmed batch is what would be computed for nothing."""
    known = speech(2000)
    sampler = WindowSampler(known, configuration(), "trimmed")
    spread_of = [np.ptp(known.frames[clips_of([batch])]) / known.frames[clips_of([batch])].max() for batch in sampler]
    assert np.mean(spread_of) < 0.15


def test_long_and_short_batches_follow_each_other_at_random():
    """Trained from short to long, a model would forget the one for the other."""
    known = speech(4096)
    mean = np.array([known.frames[clips_of([b])].mean() for b in WindowSampler(known, configuration(), "trimmed")])
    assert abs(np.corrcoef(np.arange(len(mean)), mean)[0, 1]) < 0.15


# The parts of a plan


@given(clips=some_clips, number=st.integers(1, 20))
def test_packing_keeps_every_clip_once_and_within_limits(clips, number):
    known = lengths([c[0] for c in clips], [c[1] for c in clips])
    number = min(number, len(clips))
    for windows in (pack(known, list(range(len(clips)))), spread(known, list(range(len(clips))), number)):
        assert sorted(clip for window in windows for clip in window) == list(range(len(clips)))
        for window in windows:
            assert known.frames[list(window)].sum() + GAP_FRAMES * (len(window) - 1) <= WINDOW
            assert known.tokens[list(window)].sum() <= TOKENS
    assert len(windows) >= number


def test_each_clip_goes_where_least_room_is_left():
    """Two open windows with room for 1,480 and 980: a clip of 900 goes into the second, one of 1,400 into the first."""
    known = lengths([1500, 2000, 900, 1400])
    assert pack(known, [0, 1, 2, 3]) == [(0, 3), (1, 2)]


def test_a_clip_that_fits_to_the_frame_is_laid_there():
    assert pack(lengths([2000, WINDOW - 2000 - GAP_FRAMES]), [0, 1]) == [(0, 1)]
    assert pack(lengths([2000, WINDOW - 2000 - GAP_FRAMES + 1]), [0, 1]) == [(0,), (1,)]


def test_labels_that_are_too_long_together_are_not_packed_together():
    """The window with least room has no tokens left: the next one gets the clip."""
    known = lengths([1500, 1600, 100], [100, 440, 100])
    assert pack(known, [0, 1, 2]) == [(0, 2), (1,)]


def test_spread_fills_windows_evenly():
    windows = spread(lengths([700] * 12), list(range(12)), 4)
    assert [len(window) for window in windows] == [3, 3, 3, 3]


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=60), shares=st.integers(1, 12))
def test_dealing_is_even(sizes, shares):
    shares = min(shares, len(sizes))
    windows = [tuple(range(size)) for size in sizes]
    dealt = deal(windows, shares, size=len)
    assert sorted(window for share in dealt for window in share) == sorted(windows)
    assert {len(share) for share in dealt} <= {len(sizes) // shares, -(-len(sizes) // shares)}
    assert len(dealt) == shares


def test_dealing_pairs_the_full_with_the_empty():
    dealt = deal([(1,) * n for n in (9, 8, 1, 2)], 2, size=len)
    assert sorted(sum(map(len, share)) for share in dealt) == [10, 10]


def test_long_data_are_planned_in_buffers(monkeypatch):
    """So that windows do not only depend on the whole data's lengths, and planning stays quick."""
    monkeypatch.setattr(layouts, "BUFFER_CLIPS", 32)
    assert list(layouts._buffers(100, 8)) == [4, 4, 4, 1]
    assert list(layouts._buffers(7, 8)) == [1]
    assert list(layouts._buffers(1000, 100)) == [1] * 10
    for layout in LAYOUTS:
        sampler = WindowSampler(speech(100), configuration(), layout)
        assert sorted(clips_of(list(sampler))) == list(range(100))


# Where the lengths come from


MODEL = WhisperConfig()


def rows(*clips: tuple[float, int]) -> Dataset:
    return Dataset.from_list(
        [
            {"duration_s": seconds, "labels": [1] * tokens, "source_id": f"row {number}", "audio": None}
            for number, (seconds, tokens) in enumerate(clips)
        ]
    )


def test_lengths_are_read_from_the_split():
    known = lengths_of(rows((1.0, 7), (0.001, 8), (29.9999, 448)), MODEL)
    assert known.frames.tolist() == [100, 1, 3000]
    assert known.tokens.tolist() == [7, 8, 448]
    assert (known.window_frames, known.max_tokens) == (3000, 448)


def test_lengths_of_a_part_of_a_split_are_those_of_the_part():
    assert lengths_of(rows((1, 7), (2, 8), (3, 9)).select([2, 0]), MODEL).tokens.tolist() == [9, 7]


def test_a_label_that_the_model_cannot_write_is_refused():
    """Whisper's decoder has 448 positions. Cut labels would teach it to stop early."""
    with pytest.raises(UserError) as raised:
        WindowSampler.of(rows((1, 7), (2, 449)), configuration(), MODEL, "packed")
    told = str(raised.value)
    assert "row 1" in told
    assert "449" in told
    assert "448" in told
    assert "\n" not in told


def test_no_clips_are_an_error_of_one_line():
    with pytest.raises(WhisperError, match="no training clips"):
        WindowSampler.of(rows((1, 7)).select([]), configuration(), MODEL, "packed")


def test_windows_travel_to_a_worker_and_bring_their_rows():
    """Through a real worker: a pipe there, and one back."""
    window = Window((2, 0), (1.0, 0.9), True, 5)
    loader = DataLoader(
        WindowDataset(rows((1, 7), (2, 8), (3, 9))), batch_sampler=[[window]], num_workers=1, collate_fn=list
    )
    ((heard,),) = loader
    assert heard == Heard(window, heard.rows)
    assert [row["source_id"] for row in heard.rows] == ["row 2", "row 0"]
