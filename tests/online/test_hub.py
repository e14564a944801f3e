"""Datasets on the Hub become rows: every layout that is read, and one line for everything that can go wrong.

Reading runs in a process of its own, because huggingface_hub looks at its variables when it is imported.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asr.online.sources import hub as hub_source
from asr.online.sources.hub_files import _told_in_words
from config import SOURCES, Data, HubDataset
from tests.conftest import ROOT
from tests.online.fake_hub import EXPIRED, Dataset, FakeHub, card, commit_of, parquet, serving, wav
from utils import UserError

TOKEN = "hf_secret"
# Between the sizes of the files made here, so that some are large.
SMALL = 15_000
TEXTS = ["안녕하세요", "20분 정도 걸립니다.", "네"]
SPLITS = {"train": "data/train-*", "test": "data/test-*"}


# Reading in another process


@dataclass
class Answer:
    """What reading a dataset came to.

    Attributes:
        rows: each as a dictionary, its audio as `sha256` and whether it is a file.
        announced: how many rows each split was said to have.
        error: what a UserError said, or "".
        log: what was logged meanwhile, by us and by huggingface_hub.
        torchcodec: whether it was imported.
    """

    rows: list[dict[str, Any]]
    announced: list[int]
    error: str
    log: str
    torchcodec: bool

    def column(self, name: str) -> list[Any]:
        assert not self.error
        assert not self.torchcodec
        return [row[name] for row in self.rows]


Read = Callable[..., Answer]


def answer_cases() -> None:
    """Read what each line of standard input describes, and answer with a line: the other side of `reading`."""
    from asr.online import retries
    from asr.online.sources import hub_files
    from utils import log, set_up_logging

    retries.WAITS_S = (0.02, 0.02)
    hub_files.SMALL = SMALL
    set_up_logging()
    for line in sys.stdin:
        case = json.loads(line)
        os.environ["HF_TOKEN"] = case["token"]
        told: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record, told=told: told.append(record.getMessage())  # type: ignore[method-assign]
        log.handlers[:] = [handler]
        logging.getLogger("huggingface_hub").handlers[:] = [handler]
        print(json.dumps(_answer(case) | {"log": "\n".join(told)}), flush=True)


def _answer(case: dict[str, Any]) -> dict[str, Any]:
    announced: list[int] = []
    rows: list[dict[str, Any]] = []
    error = ""
    named = dict(case["named"])
    wanted = hub_source.preset(case["preset"]) if case["preset"] else hub_source.HubSource("hub", **case["wanted"])
    try:
        hub_source.check(wanted)
        for row in hub_source.read(wanted, named, announced.append):
            data = row.audio if isinstance(row.audio, bytes) else Path(row.audio).read_bytes()
            digest = hashlib.sha256(data).hexdigest() if data else ""
            rows.append(vars(row) | {"audio": None, "sha256": digest, "is_file": isinstance(row.audio, Path)})
    except UserError as raised:
        error = str(raised)
    # Other sources of the same run read with it too.
    assert named == case["named"]
    loaded = any(name.partition(".")[0] == "torchcodec" for name in sys.modules)
    return {"rows": rows, "announced": announced, "error": error, "torchcodec": loaded}


@contextmanager
def reading(url: str, home: Path, **more: str) -> Iterator[Read]:
    """Give a function that reads a dataset in a process that knows only the stand-in."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        **more,
    }
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", "from tests.online.test_hub import answer_cases; answer_cases()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", cwd=ROOT, env=environment,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    def read(
        name: str = "", token: str = "", preset: str = "", named: dict[str, str] | None = None, **wanted: Any
    ) -> Answer:
        case = {"token": token, "preset": preset, "named": named or {}, "wanted": {"id": name, **wanted}}
        process.stdin.write(json.dumps(case) + "\n")
        process.stdin.flush()
        return Answer(**json.loads(process.stdout.readline()))

    try:
        yield read
    finally:
        process.stdin.close()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with serving(FakeHub()) as served:
        yield served


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def read(hub: FakeHub, home: Path) -> Iterator[Read]:
    with reading(hub.url, home) as function:
        yield function


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def table(*numbers: int, **more: list[Any]) -> bytes:
    """A parquet file with a clip for each number."""
    return parquet({"audio": [wav(n) for n in numbers], "text": [TEXTS[n % 3] for n in numbers], **more})


def plain() -> dict[str, bytes]:
    """A dataset of three train rows in two files, and one test row."""
    return {
        "README.md": card(default=SPLITS),
        ".gitattributes": b"",
        "data/train-00000-of-00002.parquet": table(0, 1, speaker_id=[7, 8]),
        "data/train-00001-of-00002.parquet": table(2, speaker_id=[7]),
        "data/test-00000-of-00001.parquet": table(3, speaker_id=[9]),
    }


def publish(hub: FakeHub, name: str, files: dict[str, bytes], **more: Any) -> str:
    hub.datasets[name] = Dataset({"main": files}, **more)
    return name


def assert_refused(answer: Answer, name: str, *words: str) -> None:
    """Refused in one line that names the dataset and the trouble."""
    assert "\n" not in answer.error
    assert [word for word in (f"--hub-dataset {name}", *words) if word not in answer.error] == []


# Parquet


def test_parquet(hub: FakeHub, read: Read) -> None:
    """The very bytes, texts and speakers, split by split, numbered from 1 across files; torchcodec is left alone."""
    sizes = [len(data) for name, data in plain().items() if name.startswith("data/train")]
    assert sizes[0] > SMALL > sizes[1]
    answer = read(publish(hub, "someone/plain", plain()))
    assert answer.column("sha256") == [sha256(wav(n)) for n in range(4)]
    assert answer.column("text") == [*TEXTS, TEXTS[0]]
    assert answer.column("speaker") == ["7", "8", "7", "9"]
    assert answer.column("split") == ["train"] * 3 + ["test"]
    ids = ["train:1", "train:2", "train:3", "test:1"]
    assert answer.column("source_id") == [f"hub/someone/plain/{end}" for end in ids]
    assert set(answer.column("source")) == {"hub"}
    assert answer.announced == [3, 1]
    assert commit_of("main") in answer.log


def test_bad_rows_are_refused_and_counted(hub: FakeHub, read: Read) -> None:
    """No audio, and audio that is only a path on its author's machine: rows with a reason, not holes."""
    import pyarrow as pa

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = [
        {"bytes": wav(0), "path": None},
        None,
        {"bytes": None, "path": "/etc/hostname"},
        {"bytes": b"", "path": ""},
    ]
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"audio": pa.array(cells, kind), "text": ["a", "b", "c", "d"]}), sink)
    answer = read(publish(hub, "someone/bad", {"train.parquet": sink.getvalue().to_pybytes()}))
    assert answer.column("refused") == ["", "no audio named", "audio not in the dataset", "no audio named"]
    assert answer.rows[2]["detail"] == "/etc/hostname"
    assert answer.announced == [4]


@pytest.mark.parametrize("told", [True, False])
def test_audio_is_known_by_its_type(hub: FakeHub, read: Read, told: bool) -> None:
    """A column called path beside audio of another name does not win."""
    columns = {"path": ["x.wav"], "speech": [wav(5)], "sentence": ["네"]}
    name = publish(hub, f"someone/typed-{told}", {"train.parquet": parquet(columns, audio=("speech",), told=told)})
    assert read(name).column("sha256") == [sha256(wav(5))]


def test_columns_can_be_named(hub: FakeHub, read: Read) -> None:
    columns = {"a": [wav(1)], "b": [wav(2)], "ko": ["예"], "text": ["no"], "who": ["kim"], "call": [3]}
    name = publish(hub, "someone/columns", {"train.parquet": parquet(columns, audio=("a", "b"))})
    assert_refused(read(name), name, "--audio-column", "a, b, ko")
    named = {"audio": "b", "text": "ko", "speaker": "who", "group": "call"}
    answer = read(name, named=named)
    assert answer.column("sha256") == [sha256(wav(2))]
    assert answer.column("text") == ["예"]
    assert (answer.column("speaker"), answer.column("group")) == (["kim"], ["3"])
    assert_refused(read(name, named={"text": "kor"}), name, "'kor'", "--text-column")


def test_a_column_called_split_counts_only_where_it_is_named(hub: FakeHub, read: Read) -> None:
    name = publish(hub, "someone/split-column", {"train.parquet": table(0, 1, 2, split=["dev", "test", "fold3"])})
    assert read(name).column("split") == ["train"] * 3
    answer = read(name, named={"split": "split"})
    assert [row["split"] for row in answer.rows if not row["refused"]] == ["validation", "test"]
    assert answer.rows[2]["refused"] == "unknown split"


def test_files_that_differ_in_columns(hub: FakeHub, read: Read) -> None:
    other = parquet({"audio": [wav(1)], "sentence": ["네"]})
    files = {"data/train-00000-of-00002.parquet": table(0), "data/train-00001-of-00002.parquet": other}
    name = publish(hub, "someone/differ", files)
    assert_refused(read(name), name, "data/train-00001-of-00002.parquet", "'text'")


@pytest.mark.parametrize("kept", [0, 100, -40])
def test_broken_parquet(hub: FakeHub, read: Read, kept: int) -> None:
    name = publish(hub, f"someone/broken{kept}", {"data/train.parquet": b"PAR1" + table(*range(40))[:kept]})
    assert_refused(read(name), name, "data/train.parquet")


# Audio folders


def folder(split: str, lines: list[dict[str, str]], *numbers: int) -> dict[str, bytes]:
    metadata = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    return {f"{split}/metadata.jsonl": metadata, **{f"{split}/clips/{n}.wav": wav(n) for n in numbers}}


def test_audio_folder(hub: FakeHub, read: Read) -> None:
    """Files are handed over as files; one without a line and a line without its file are rows that are dropped."""
    lines = [{"file_name": f"clips/{n}.wav", "transcription": TEXTS[n], "speaker": "kim"} for n in (0, 1, 2)]
    files = folder("train", lines, 0, 1, 5) | folder("test", [{"file_name": "clips/3.wav", "transcription": "네"}], 3)
    answer = read(publish(hub, "someone/folder", {**files, ".gitattributes": b""}))
    assert answer.column("sha256") == [sha256(wav(0)), sha256(wav(1)), "", sha256(wav(5)), sha256(wav(3))]
    assert answer.column("text") == [*TEXTS, "", "네"]
    assert answer.column("refused") == ["", "", "audio not in the dataset", "", ""]
    assert answer.column("is_file") == [True, True, False, True, True]
    assert answer.column("split") == ["train"] * 4 + ["test"]
    assert answer.column("source_id")[-1] == "hub/someone/folder/test:1"
    assert answer.announced == [4, 1]


def test_metadata_above_the_splits(hub: FakeHub, read: Read) -> None:
    """One metadata.csv for all folders; names of one spelling here and of the other there; the viewer's column name."""
    name = "한국어.wav"
    lines = f"file_name,sentence\ntrain/{name},가\ntest/b.wav,나\ntest/gone.wav,다\n"
    files = {f"train/{unicodedata.normalize('NFD', name)}": wav(1), "test/b.wav": wav(2)}
    publish(hub, "someone/above", {"metadata.csv": lines.encode(), **files})
    answer = read("someone/above", named={"audio": "audio"})
    good = [(row["split"], row["text"], row["sha256"]) for row in answer.rows if not row["refused"]]
    assert good == [("train", "가", sha256(wav(1))), ("test", "나", sha256(wav(2)))]
    assert {row["text"] for row in answer.rows if row["refused"]} == {"다"}


def test_audio_without_metadata(hub: FakeHub, read: Read) -> None:
    name = publish(hub, "someone/mute", {"train/a.wav": wav(1), "train/b.wav": wav(2)})
    assert_refused(read(name), name, "metadata.jsonl")


# Splits, configurations, revisions


def test_splits_can_be_mapped_and_others_stay_there(hub: FakeHub, read: Read) -> None:
    files = {f"data/{name}-00000-of-00001.parquet": table(n) for n, name in enumerate(("clean", "other", "dev", "big"))}
    layout = {name: f"data/{name}-*" for name in ("clean", "other", "dev", "big")}
    name = publish(hub, "someone/splits", {"README.md": card(default=layout), **files})
    assert_refused(read(name), name, "clean, other, dev, big", "--hub-splits")
    assert_refused(read(name, splits={"train": "cleen"}), name, "'cleen'", "clean, other, dev, big")
    assert not [path for path in hub.paths(name) if path.endswith(".parquet")]
    answer = read(name, splits={"train": "clean+other", "validation": "dev"})
    assert answer.column("split") == ["train", "train", "validation"]
    assert [one.rpartition("/")[2] for one in answer.column("source_id")] == ["clean:1", "other:1", "dev:1"]
    assert "data/big-00000-of-00001.parquet" not in hub.fetched(name)


def test_configurations(hub: FakeHub, read: Read) -> None:
    files = {"ko/train.parquet": table(0), "en/train.parquet": table(1)}
    layout = card(ko={"train": "ko/*"}, en={"train": "en/*"})
    name = publish(hub, "someone/configs", {"README.md": layout, **files})
    assert_refused(read(name), name, "--hub-config", "ko, en")
    assert_refused(read(name, config="jp"), name, "'jp'", "ko, en")
    assert read(name, config="ko").column("sha256") == [sha256(wav(0))]
    assert "en/train.parquet" not in hub.fetched(name)


def test_a_revision_is_kept_to(hub: FakeHub, read: Read) -> None:
    """Everything comes from the commit that is named, though main has moved on."""
    commit = "ab" * 20
    name = publish(hub, "someone/pinned", {"train.parquet": table(1)})
    hub.datasets[name].revisions |= {commit: {"train.parquet": table(2)}, "v1": {"train.parquet": table(3)}}
    assert read(name, revision=commit).column("sha256") == [sha256(wav(2))]
    paths = hub.paths(name)
    assert paths
    assert all(commit in path for path in paths)
    assert read(name, revision="v1").column("sha256") == [sha256(wav(3))]
    assert read(name).column("sha256") == [sha256(wav(1))]
    assert_refused(read(name, revision="v9"), name, "'v9'", "--hub-revision")
    assert_refused(read(name, revision="cd" * 20), name, "cd" * 20, "--hub-revision")


def test_a_loading_script_is_not_run(hub: FakeHub, read: Read) -> None:
    """Its parquet copy is named, and can be read where the Hub keeps it: in folders, without a card."""
    name = publish(hub, "someone/scripted", {"scripted.py": b"raise SystemExit", "data.tar.gz": b"x"})
    copy = {f"{config}/train/000{n}.parquet": table(n) for config, n in (("ko_kr", 0), ("ko_kr", 1), ("en_us", 2))}
    hub.datasets[name].revisions["refs/convert/parquet"] = {".gitattributes": b"", **copy}
    assert_refused(read(name, config="ko_kr"), name, "scripted.py", "--hub-revision refs/convert/parquet", "ko_kr")
    answer = read(name, config="ko_kr", revision="refs/convert/parquet")
    assert answer.column("sha256") == [sha256(wav(0)), sha256(wav(1))]
    assert_refused(read(name, revision="refs/convert/parquet"), name, "--hub-config", "ko_kr, en_us")
    assert_refused(read(name, revision="refs/convert/parquet", config="jp"), name, "'jp'", "ko_kr, en_us")


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"train.jsonl": b"{}"}, "stored as json"),
        ({"train.zip": b""}, "stored as zip archives"),
        ({"README.md": b"nothing here"}, "no parquet files and no audio folder"),
        ({"README.md": card(default={"train": "gone/*"}), "train.parquet": b""}, "no parquet files"),
        ({"README.md": b"---\nconfigs: [\n---\n", "train.parquet": b""}, "its card"),
    ],
)
def test_what_is_stored_in_another_way(hub: FakeHub, read: Read, files: dict[str, bytes], word: str) -> None:
    name = publish(hub, f"someone/other{sha256(str(files).encode())[:8]}", files)
    assert_refused(read(name), name, word)


# Access


def test_a_private_dataset_needs_the_token(hub: FakeHub, read: Read) -> None:
    name = publish(hub, "someone/private", plain(), token=TOKEN)
    assert_refused(read(name), name, "HF_TOKEN", "private")
    refused = read(name, token="hf_other")
    assert_refused(refused, name, "HF_TOKEN")
    assert "hf_other" not in refused.error + refused.log
    hub.asked.clear()
    answer = read(name, token=TOKEN)
    assert len(answer.column("text")) == 4
    assert TOKEN not in answer.log
    assert {token for _, path, token in hub.asked if name in path} == {TOKEN}


@pytest.mark.parametrize("token", ["", "hf_other"])
def test_a_gated_dataset_says_where_its_terms_are(hub: FakeHub, read: Read, token: str) -> None:
    name = publish(hub, f"someone/gated{token}", plain(), token=TOKEN, gated=True)
    assert_refused(read(name, token=token), name, f"https://huggingface.co/datasets/{name}", "terms", "HF_TOKEN")


def test_an_expired_token(hub: FakeHub, read: Read) -> None:
    name = publish(hub, "someone/open", plain())
    assert_refused(read(name, token=EXPIRED), name, "HF_TOKEN", "expired")


def test_what_the_hub_does_not_have(read: Read) -> None:
    assert_refused(read("someone/nothing"), "someone/nothing", "no such dataset")


@pytest.mark.parametrize("name", ["./data", "a/b/c", "https://huggingface.co/datasets/a/b", "a b", ""])
def test_an_id_that_can_be_none(name: str) -> None:
    with pytest.raises(UserError, match=r"--hub-dataset .*an id is needed"):
        hub_source.check(hub_source.HubSource("hub", name))


# Trouble on the way


def test_what_may_pass_is_waited_for(hub: FakeHub, read: Read) -> None:
    """A busy Hub, a connection that breaks off, bytes that change on the way: all rows arrive in the end."""
    name = publish(hub, "someone/shaky", plain())
    hub.troubles[f"api/datasets/{name}/revision"] = [500, 503]
    hub.troubles[f"{name}/resolve/{commit_of('main')}/data/train-00000"] = [500, "cut", "damage"]
    hub.troubles[f"{name}/resolve/{commit_of('main')}/data/test"] = ["cut"]
    answer = read(name)
    assert answer.column("sha256") == [sha256(wav(n)) for n in range(4)]
    assert not any(hub.troubles.values())
    assert "http" not in answer.log
    again = hub.fetched(name)
    assert again["data/train-00000-of-00002.parquet"] > 1
    assert again["data/train-00001-of-00002.parquet"] == 1


def test_what_does_not_pass_is_told(hub: FakeHub, read: Read) -> None:
    """Before the first row, and what has arrived is not fetched again by the next run."""
    name = publish(hub, "someone/down", plain())
    file = f"{name}/resolve/{commit_of('main')}/data/test"
    hub.troubles[file] = [500] * 50
    down = read(name)
    assert_refused(down, name, "500")
    assert not down.rows
    hub.troubles[file] = ["damage"] * 2
    assert_refused(read(name), name, "data/test-00000-of-00001.parquet", "twice")
    hub.troubles.clear()
    assert len(read(name).column("text")) == 4
    assert hub.fetched(name)["data/train-00000-of-00002.parquet"] == 1


def test_damage_in_the_cache_is_mended(hub: FakeHub, read: Read, home: Path) -> None:
    name = publish(hub, "someone/mended", plain())
    read(name)
    file = home / "hub" / "datasets--someone--mended" / "snapshots" / commit_of("main")
    (file / "data/test-00000-of-00001.parquet").resolve().write_bytes(b"x" * 3000)
    answer = read(name)
    assert answer.column("sha256") == [sha256(wav(n)) for n in range(4)]
    assert "damaged" in answer.log


def test_a_full_disk() -> None:
    told = r"--hub-dataset a/b: .*No space left.*HF_HOME"
    with pytest.raises(UserError, match=told), _told_in_words("a/b", "main", "--hub-dataset a/b"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("more", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_without_a_network(hub: FakeHub, read: Read, home: Path, more: dict[str, str]) -> None:
    """What is in the cache is read, at the commit it has; what is not there is told, and why."""
    names = [publish(hub, "someone/kept", plain()), "someone/kept-folder"]
    publish(hub, names[1], folder("train", [{"file_name": "clips/0.wav", "text": "네"}], 0))
    before = [read(name) for name in names]
    read(publish(hub, "someone/part", plain()), splits={"test": "test"})
    with serving(FakeHub()) as other:
        closed = other.url
    with reading(closed, home, **more) as read_again:
        after = [read_again(name) for name in names]
        assert [answer.rows for answer in after] == [answer.rows for answer in before]
        assert all("cached" in answer.log and commit_of("main") in answer.log for answer in after)
        assert len(before[0].rows) == 4
        word = "HF_HUB_OFFLINE" if more else "cannot be reached"
        assert_refused(read_again("someone/new"), "someone/new", word)
        assert len(read_again("someone/part", splits={"test": "test"}).rows) == 1
        if more:
            assert_refused(read_again("someone/part"), "someone/part", word)


# What is wanted


def test_flags_become_a_dataset() -> None:
    pairs = ("train=train", "validation=dev", "train=other")
    data = Data(hub=HubDataset(hub_dataset="a/b", hub_config="ko", hub_revision="v1", hub_splits=pairs))
    wanted = hub_source.described(data)
    assert (wanted.name, wanted.id, wanted.config, wanted.revision) == ("hub", "a/b", "ko", "v1")
    assert wanted.splits == {"train": "train+other", "validation": "dev"}
    assert not wanted.columns


def zeroth() -> dict[str, bytes]:
    def rows(*numbers: int) -> bytes:
        ids = [f"{n}_003_{n:04}" for n in numbers]
        texts = [f"문장 {n}" for n in numbers]
        columns = {"id": ids, "speaker_id": [100 + n for n in numbers], "chapter_id": [3] * len(ids)}
        columns |= {"path": [f"{one}.flac" for one in ids], "audio": [wav(n) for n in numbers], "text": texts}
        return parquet(columns)

    files = {"data/train-00000-of-00002.parquet": rows(0), "data/train-00001-of-00002.parquet": rows(1)}
    return {"README.md": card(default=SPLITS), **files, "data/test-00000-of-00001.parquet": rows(2)}


def fleurs() -> dict[str, bytes]:
    def rows(number: int) -> bytes:
        columns = {"id": [number], "num_samples": [1600], "path": ["x.wav"], "audio": [wav(number)]}
        columns |= {
            "transcription": [f"문장 {number} normalised"],
            "raw_transcription": [f"문장 {number}"],
            "gender": [1],
        }
        return parquet({**columns, "lang_id": [50], "language": ["Korean"], "lang_group_id": [6]})

    names = ("train", "validation", "test")
    layout = {name: f"ko_kr/{name}-*" for name in names}
    files = {f"ko_kr/{name}-00000-of-00001.parquet": rows(n) for n, name in enumerate(names)}
    english = {"en_us/train-00000-of-00001.parquet": table(9)}
    return {"README.md": card(en_us={"train": "en_us/train-*"}, ko_kr=layout), **files, **english}


def kss() -> dict[str, bytes]:
    def rows(*numbers: int) -> bytes:
        columns = {"audio": [wav(n) for n in numbers], "original_script": [f"문장 {n}" for n in numbers]}
        columns |= {name: ["문장 영" for _ in numbers] for name in ("expanded_script", "decomposed_script")}
        return parquet({**columns, "duration": [3.5 for _ in numbers], "english_translation": ["x" for _ in numbers]})

    files = {"data/train-00000-of-00002.parquet": rows(0), "data/train-00001-of-00002.parquet": rows(1, 2)}
    return {"README.md": b"---\nlicense: cc-by-nc-sa-4.0\n---\n", "dataset_infos.json": b"{}", **files}


PRESETS = {
    "zeroth-korean": (zeroth, ["train", "train", "test"], ["100", "101", "102"]),
    "fleurs-ko": (fleurs, ["train", "validation", "test"], ["", "", ""]),
    "kss": (kss, ["train", "train", "train"], ["", "", ""]),
}


def test_every_preset_is_a_source() -> None:
    assert set(hub_source.PRESETS) <= set(SOURCES)
    assert {name: wanted.name for name, wanted in hub_source.PRESETS.items()} == {name: name for name in PRESETS}


@pytest.mark.parametrize("name", hub_source.PRESETS)
def test_presets(hub: FakeHub, read: Read, name: str) -> None:
    """Each reads a dataset of the very layout that its id has on the Hub; a column that is named outranks its own."""
    files, splits, speakers = PRESETS[name]
    wanted = hub_source.preset(name)
    publish(hub, wanted.id, files())
    answer = read(preset=name)
    assert answer.column("text") == [f"문장 {n}" for n in range(3)]
    assert answer.column("sha256") == [sha256(wav(n)) for n in range(3)]
    assert answer.column("split") == splits
    assert answer.column("speaker") == speakers
    assert set(answer.column("source")) == {name}
    assert all(one.startswith(f"hub/{wanted.id}/") for one in answer.column("source_id"))
    other = {"zeroth-korean": "id", "fleurs-ko": "transcription", "kss": "expanded_script"}[name]
    assert read(preset=name, named={"text": other}).column("text") != answer.column("text")
    assert f"--source {name} ({wanted.id})" in read(preset=name, named={"text": "gone"}).error
