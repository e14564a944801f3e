"""Greedy decoding: token for token what transformers' own `generate` writes, whatever becomes of the batch."""

from __future__ import annotations

import pytest
import torch

from asr.offline.encoder_window import encoder_window
from asr.offline.greedy import FIRST_ROOM, GreedyDecoder
from asr.offline.precision import Precision
from asr.offline.whisper import attach_lora, load_whisper, without_adapter
from asr.shared.audio import load_audio
from asr.shared.features import LogMel
from asr.shared.processor import load_processor
from config import Lora
from tests.conftest import DEMO_CORPUS, DEMO_MODEL

CPU = Precision("cpu", "none", torch.float32)
FRAMES = 400


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return load_processor(DEMO_MODEL, "Korean", "transcribe").tokenizer.prefix_tokens


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    """Windows of six clips of the demo: texts of different lengths, so that the batch shrinks."""
    log_mel = LogMel()
    clips = [DEMO_CORPUS / "clips" / f"common_voice_ko_test_{number:04}.mp3" for number in range(6)]
    return torch.stack([log_mel(torch.from_numpy(load_audio(clip)[: FRAMES * 160]), FRAMES) for clip in clips])


@pytest.fixture
def model():
    """The demo's Whisper, which goes on writing over noise for as long as it may."""
    return load_whisper(DEMO_MODEL, CPU).eval()


def noise(clips: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(clips, 80, FRAMES, generator=torch.Generator().manual_seed(seed))


def generated(model, features: torch.Tensor, prompt: list[int], most: int) -> list[list[int]]:
    """What transformers writes, without the prompt and from the end token on."""
    ids = model.generate(input_features=features, max_new_tokens=most, language="korean", task="transcribe")
    end = model.generation_config.eos_token_id
    texts = [row[len(prompt) :] if row[: len(prompt)] == prompt else row for row in ids.tolist()]
    return [row[: row.index(end)] if end in row else row for row in texts]


def written(model, features: torch.Tensor, prompt: list[int], most: int) -> list[list[int]]:
    with torch.no_grad():
        return GreedyDecoder(model, prompt, most)(features)


@pytest.mark.parametrize("quantization", ["none", "8bit"])
def test_writes_what_generate_writes_of_real_speech(speech, prompt, quantization):
    model = load_whisper(DEMO_MODEL, Precision("cpu", quantization, torch.float32)).eval()
    with encoder_window(model, FRAMES):
        ours = written(model, speech, prompt, 60)
        assert ours == generated(model, speech, prompt, 60)
    assert len({len(text) for text in ours}) > 2, "texts of one length would not shrink the batch"
    assert max(map(len, ours)) < 60, "each came to its own end"


def test_an_utterance_does_not_hang_on_its_batch(speech, prompt):
    """Rows are moved as others end; each must keep its own past."""
    model = load_whisper(DEMO_MODEL, CPU).eval()
    with encoder_window(model, FRAMES):
        together = written(model, speech, prompt, 60)
        assert together == [written(model, row[None], prompt, 60)[0] for row in speech]
        assert written(model, speech.flip(0), prompt, 60) == together[::-1]


def test_adapters_are_heard_while_they_are_switched_on(model, prompt):
    features = noise(3, 1)
    with encoder_window(model, FRAMES):
        plain = written(model, features, prompt, 20)
        tuned = attach_lora(model, Lora(target_modules=("q_proj", "v_proj", "fc1")))
        torch.manual_seed(1)
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
        tuned.eval()
        with_adapter = written(tuned, features, prompt, 20)
        assert with_adapter == generated(tuned, features, prompt, 20)
        assert with_adapter != plain
        with without_adapter(tuned):
            assert written(tuned, features, prompt, 20) == plain


def test_text_outgrows_its_first_room(model, prompt):
    most = 2 * FIRST_ROOM + 10
    model.generation_config.suppress_tokens = [model.generation_config.eos_token_id]
    with encoder_window(model, FRAMES):
        ours = written(model, noise(2, 2), prompt, most)
        assert [len(text) for text in ours] == [most, most]
        assert ours == generated(model, noise(2, 2), prompt, most)
    assert all(len(set(text)) > 10 for text in ours), "a text that repeats one token would prove little"


def test_suppressed_tokens_are_not_written(model, prompt):
    """Some never, some only not as the first."""
    with encoder_window(model, FRAMES):
        free = written(model, noise(2, 3), prompt, 12)
        first, other = free[0][0], next(token for token in free[0] if token != free[0][0])
        model.generation_config.suppress_tokens = [other]
        model.generation_config.begin_suppress_tokens = [first]
        bound = written(model, noise(2, 3), prompt, 12)
        assert bound == generated(model, noise(2, 3), prompt, 12)
    assert bound[0][0] != first
    assert not any(other in text for text in bound)


def test_a_text_may_end_before_it_begins(model, prompt):
    with encoder_window(model, FRAMES):
        (first,) = written(model, noise(1, 4), prompt, 1)[0]
        model.generation_config.eos_token_id = first
        assert written(model, noise(1, 4), prompt, 12) == [[]]


def test_half_precision_under_autocast(model, prompt):
    """As on a GPU, where the weights are half and what is computed with them is cast."""
    model = model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), encoder_window(model, FRAMES):
        ours = written(model, noise(3, 5).to(torch.bfloat16), prompt, 20)
        assert ours == generated(model, noise(3, 5).to(torch.bfloat16), prompt, 20)
