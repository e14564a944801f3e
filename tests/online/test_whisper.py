"""The base model comes into the bundle complete, as safetensors alone, from a folder or from a Hub."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from asr.online.whisper import fetch_whisper
from config import Whisper
from tests.conftest import DEMO_MODEL, script
from utils import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def own(mini_model: Path, tmp_path: Path) -> Path:
    """A copy of the small model, to be changed."""
    return shutil.copytree(mini_model, tmp_path / "given" / "whisper-own")


def fetch(source: Path | str, tmp_path: Path) -> Path:
    target = tmp_path / "bundle" / "model"
    fetch_whisper(Whisper(model_name_or_path=str(source)), target)
    return target


def assert_refused(source: Path, tmp_path: Path, *words: str) -> None:
    """Refused in one line that names the model and the trouble, and nothing stays behind."""
    with pytest.raises(UserError) as raised:
        fetch(source, tmp_path)
    message = str(raised.value)
    assert raised.value.exit_code == 2
    assert "\n" not in message
    assert [word for word in (f"--model-name-or-path {source}", *words) if word not in message] == []
    assert not list((tmp_path / "bundle").iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# From a folder


def test_local_folder_comes_whole(mini_model: Path, tmp_path: Path) -> None:
    assert content(fetch(mini_model, tmp_path)) == content(mini_model)


def test_the_embedded_model_comes_whole(tmp_path: Path) -> None:
    copied = content(fetch(DEMO_MODEL, tmp_path))
    assert copied == {
        name: data for name, data in content(DEMO_MODEL).items() if name.endswith((".json", ".safetensors"))
    }


def test_plain_transformers_opens_it(mini_model: Path, tmp_path: Path) -> None:
    from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor

    target = fetch(mini_model, tmp_path)
    model, report = WhisperForConditionalGeneration.from_pretrained(target, output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.d_model == 64
    processor = WhisperProcessor.from_pretrained(target)
    ids = processor.tokenizer("안녕하세요").input_ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "안녕하세요"
    assert GenerationConfig.from_pretrained(target).is_multilingual


def test_only_what_is_needed_is_copied(own: Path, tmp_path: Path) -> None:
    """Nothing that could run code when it is opened (pickles, scripts), and no second copy of the weights."""
    unwanted = ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.fp32-00001-of-00002.safetensors"]
    unwanted += ["flax_model.msgpack", "tf_model.h5", "modeling_whisper.py", "README.md", ".gitattributes"]
    unwanted += ["runs/events.out", "checkpoint-10/model.safetensors", "checkpoint-10/config.json"]
    wanted = content(own)
    for name in unwanted:
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_bytes(b"x")
    assert content(fetch(own, tmp_path)) == wanted


def test_weights_in_several_files_come_with_their_index(own: Path, tmp_path: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(own)
    (own / "model.safetensors").unlink()
    model.save_pretrained(own, max_shard_size="200KB")
    shards = {file.name for file in own.glob("*.safetensors*")}
    assert len(shards) > 2
    target = fetch(own, tmp_path)
    assert {file.name for file in target.glob("*.safetensors*")} == shards
    _, report = WhisperForConditionalGeneration.from_pretrained(target, output_loading_info=True)
    assert not report["missing_keys"]


def test_a_new_model_replaces_the_old_one(own: Path, mini_model: Path, tmp_path: Path) -> None:
    target = fetch(mini_model, tmp_path)
    (own / "preprocessor_config.json").unlink(missing_ok=True)
    assert content(fetch(own, tmp_path)) == content(own)
    assert list(target.parent.iterdir()) == [target]


def test_a_refused_model_leaves_the_old_one(own: Path, mini_model: Path, tmp_path: Path) -> None:
    target = fetch(mini_model, tmp_path)
    (own / "generation_config.json").unlink()
    with pytest.raises(UserError):
        fetch(own, tmp_path)
    assert content(target) == content(mini_model)


def cut(name: str, share: float = 0.5) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        file = folder / name
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return spoil


def without(pattern: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return spoil


def becomes(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "another model": (becomes("config.json", '{"model_type": "bert"}'), "'bert'"),
    "no config": (without("config.json"), "config.json is missing"),
    "broken config": (cut("config.json"), "config.json"),
    "no generation_config": (without("generation_config.json"), "generation_config.json is missing"),
    "broken generation_config": (cut("generation_config.json"), "generation_config.json"),
    "no safetensors": (without("*.safetensors"), ".safetensors"),
    "weights cut short": (cut("model.safetensors"), "safetensors"),
    "a shard is missing": (lose_a_shard, "model-00002-of-00002.safetensors"),
    "no tokenizer": (without("tokenizer.json"), "tokenizer"),
    "broken tokenizer": (cut("tokenizer.json"), "tokenizer"),
    "empty tokenizer": (becomes("tokenizer.json", "{}"), "tokenizer"),
    "no feature settings": (without("*processor_config.json"), "processor"),
}


@pytest.mark.parametrize("trouble", SPOILT)
def test_a_folder_that_is_not_a_whole_whisper_is_refused(own: Path, tmp_path: Path, trouble: str) -> None:
    """Now, where it can be fetched again; on the air-gapped box it would be too late."""
    spoil, word = SPOILT[trouble]
    spoil(own)
    assert_refused(own, tmp_path, word)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert_refused(tmp_path / "nothing", tmp_path, "config.json is missing")


# From a Hub


@dataclass
class Hub:
    """As much of the Hugging Face Hub as a download asks for, on loopback.

    Attributes:
        models: name of a model to its files; every other name is answered as the Hub answers it.
        asked: methods and paths of all requests.
    """

    models: dict[str, dict[str, bytes]]
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a path."""
        for name, files in self.models.items():
            if path.startswith(f"/api/models/{name}/revision/"):
                siblings = [{"rfilename": file} for file in files]
                return 200, {}, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
            if path.startswith(f"/api/models/{name}/tree/{COMMIT}"):
                entries = [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in files.items()
                ]
                return 200, {}, json.dumps(entries).encode()
            file = path.removeprefix(f"/{name}/resolve/{COMMIT}/")
            if file in files:
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"'}
                return 200, headers, files[file]
        return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            status, headers, body = hub.answer(self.path.partition("?")[0])
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()


def hub_environment(url: str, tmp_path: Path) -> dict[str, str]:
    """Variables that point a download at a stand-in, and nowhere else."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def assert_download_refused(name: str, hub_url: str, tmp_path: Path, *words: str) -> None:
    done = script(
        "download_model.py", "--model-name-or-path", name, "--bundle-dir", tmp_path / "bundle",
        env=hub_environment(hub_url, tmp_path),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in done.stderr
    assert [word for word in (f"--model-name-or-path {name}", *words) if word not in lines[-1]] == []
    assert not (tmp_path / "bundle" / "model").exists()


def test_a_name_that_the_hub_does_not_know(tmp_path: Path) -> None:
    with serving(Hub({})) as hub:
        assert_download_refused(
            "openai/whisper-smal", hub.url, tmp_path, "neither a folder here nor a model on the Hub"
        )
    assert hub.asked


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    with serving(Hub({})) as hub:
        closed = hub.url
    assert_download_refused("openai/whisper-small", closed, tmp_path, "could not be downloaded")


def test_a_name_that_can_be_no_model(tmp_path: Path) -> None:
    """A mistyped path has more slashes than a Hub id can have."""
    with serving(Hub({})) as hub:
        assert_download_refused("./models/whisper/small", hub.url, tmp_path, "neither a folder here")


def test_download_from_a_hub(mini_model: Path, tmp_path: Path) -> None:
    """The very files come, none that is not wanted is even asked for, and both the Hub id and the size are told."""
    wanted = content(mini_model)
    unwanted = {"pytorch_model.bin": b"x", "README.md": b"x", "original/model.safetensors": b"x"}
    with serving(Hub({"someone/whisper-mini": wanted | unwanted})) as hub:
        done = script(
            "download_model.py", "--model-name-or-path", "someone/whisper-mini", "--bundle-dir", tmp_path / "bundle",
            env=hub_environment(hub.url, tmp_path), check=True,
        )  # fmt: skip
    assert content(tmp_path / "bundle" / "model") == wanted
    assert "someone/whisper-mini" in done.stderr
    fetched = {request.rpartition(f"/resolve/{COMMIT}/")[2] for request in hub.asked if "/resolve/" in request}
    assert fetched == set(wanted)
