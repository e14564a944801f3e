"""Checkpoints: written beside, verified, renamed; and which of them a resume takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import asr.offline.checkpoints
from asr.offline.checkpoints import (
    GROWING,
    NoRoom,
    checkpoint_bytes,
    mark_complete,
    newest_complete,
    put_in_place,
    remove_old,
    require_room,
)
from utils import WhisperError


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    for step in (5, 10, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(b"state %d" % step)
        mark_complete(folder)
    return tmp_path


def grow(folder: Path, step: int) -> Path:
    """Write what Trainer writes."""
    grown = folder / GROWING / f"checkpoint-{step}"
    grown.mkdir(parents=True)
    save_file({"weight": torch.ones(1000)}, grown / "adapter_model.safetensors")
    torch.save({"moment": torch.ones(1000)}, grown / "optimizer.pt")
    (grown / "trainer_state.json").write_text("{}")
    return grown


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[11:]) for path in folder.glob("checkpoint-*"))


def test_newest_checkpoint_counts_by_number(checkpoints):
    assert newest_complete(checkpoints).name == "checkpoint-20"


@pytest.mark.parametrize("damage", ["unmarked", "missing", "cut", "half a mark"])
def test_incomplete_checkpoint_is_passed_over(checkpoints, damage):
    newest = checkpoints / "checkpoint-20"
    if damage == "unmarked":
        (newest / "complete.json").unlink()
    elif damage == "missing":
        (newest / "optimizer.pt").unlink()
    elif damage == "cut":
        (newest / "optimizer.pt").write_bytes(b"sta")
    else:
        (newest / "complete.json").write_text('{"optimizer.pt": "12')
    assert newest_complete(checkpoints).name == "checkpoint-10"


def test_no_checkpoint_at_all(tmp_path):
    assert newest_complete(tmp_path / "none") is None


def test_what_has_grown_becomes_the_newest_checkpoint(tmp_path):
    put_in_place(grow(tmp_path, 30), tmp_path, keep=2)
    assert newest_complete(tmp_path).name == "checkpoint-30"
    listed = json.loads((tmp_path / "checkpoint-30" / "complete.json").read_text())
    assert set(listed) == {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json"}


def test_the_oldest_go_by_number(checkpoints):
    """By date, as Trainer does it, a copied run would lose the wrong ones."""
    put_in_place(grow(checkpoints, 100), checkpoints, keep=2)
    assert steps(checkpoints) == [20, 100]


def test_old_ones_stay_until_the_new_one_is_there(checkpoints, monkeypatch):
    """A crash at any moment finds as many whole ones as before."""
    removed = []

    def remove(path: Path, **_: object) -> None:
        removed.append(path.name)
        if not path.name.startswith("."):
            assert newest_complete(checkpoints).name == "checkpoint-100"

    monkeypatch.setattr(asr.offline.checkpoints.shutil, "rmtree", remove)
    put_in_place(grow(checkpoints, 100), checkpoints, keep=2)
    assert {"checkpoint-5", "checkpoint-10"} <= set(removed)


def test_damaged_ones_of_later_steps_push_none_out(checkpoints):
    """Passed over at a resume from step 10, they must not count among those that are kept."""
    for step in (20, 30):
        (checkpoints / "checkpoint-20").mkdir(exist_ok=True)
        (checkpoints / f"checkpoint-{step}").mkdir(exist_ok=True)
        (checkpoints / f"checkpoint-{step}" / "complete.json").write_text('{"optimizer.pt": "damaged"}')
    put_in_place(grow(checkpoints, 15), checkpoints, keep=2)
    assert newest_complete(checkpoints).name == "checkpoint-15"
    assert steps(checkpoints) == [10, 15, 20, 30]
    put_in_place(grow(checkpoints, 20), checkpoints, keep=2)
    assert newest_complete(checkpoints).name == "checkpoint-20", "it took the damaged one's place"


def test_what_a_crash_left_of_the_oldest_goes_at_a_resume(checkpoints):
    """After the last step, no other checkpoint would remove it."""
    (checkpoints / "checkpoint-5" / "complete.json").unlink()
    remove_old(checkpoints / "checkpoint-20", keep=2)
    assert steps(checkpoints) == [10, 20]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt"])
def test_a_file_that_was_cut_short_makes_no_checkpoint(checkpoints, name):
    """A disk that lies about what it wrote; the old ones all stay."""
    grown = grow(checkpoints, 100)
    content = (grown / name).read_bytes()
    (grown / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(WhisperError, match=f"{name} cannot be read back"):
        put_in_place(grown, checkpoints, keep=2)
    assert steps(checkpoints) == [5, 10, 20]


def test_room_is_asked_for_before_anything_is_written(tmp_path):
    model = torch.nn.Linear(1000, 1000)
    assert checkpoint_bytes(model) == pytest.approx(3 * 4 * 1_001_000, abs=10_000_000)
    model.requires_grad_(False)
    assert checkpoint_bytes(model) < 10_000_000, "what is not trained is not written"
    free = shutil.disk_usage(tmp_path).free
    require_room(tmp_path, free // 2)
    with pytest.raises(NoRoom):
        require_room(tmp_path, 2 * free)
