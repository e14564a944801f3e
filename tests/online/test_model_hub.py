"""Models come from a Hub at one commit, whole and verified, whatever goes wrong on the way."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr.online.model_hub import check_room
from tests.conftest import script
from tests.online.model_hub import COMMIT, LISTING, Fault, Hub, Outcome, download_many, hub_environment, serving
from utils import UserError

WEIGHTS = "model.safetensors"
FILES = {"config.json": b"{}" * 400, "tokenizer.json": b"[]" * 9000, WEIGHTS: random.Random(0).randbytes(600_000)}
CUT = 50_000
LIMIT = '"resolvers";r=0;t=1'

# What goes wrong with one answer after the other, by case and file.
ONCE: dict[str, dict[str, list[Fault]]] = {
    "whole": {},
    "busy": {LISTING: [Fault(429)], WEIGHTS: [Fault(429, {"Retry-After": "1"}), Fault(429, {"RateLimit": LIMIT})]},
    "hiccup": {LISTING: [Fault(500), Fault(503)], "tokenizer.json": [Fault(502)], WEIGHTS: [Fault(500), Fault(504)]},
    "cut": {WEIGHTS: [Fault(sent=CUT), Fault(sent=CUT)], "tokenizer.json": [Fault(sent=9)]},
    "cut-often": {WEIGHTS: [Fault(sent=CUT)] * 8},
    "cut-without-ranges": {WEIGHTS: [Fault(sent=CUT), Fault(whole=True)]},
    "altered-once": {WEIGHTS: [Fault(altered=True)], "config.json": [Fault(altered=True)]},
    "altered-after-a-cut": {WEIGHTS: [Fault(sent=CUT, altered=True)]},
    "bare-listing": {},
    "broken-off-before": {},
    "damaged-cache": {},
    "known-from-another-commit": {},
    "both-formats": {},
}
NO_SUCH = {"X-Error-Code": "RepoNotFound"}
GATED = {"X-Error-Code": "GatedRepo"}
BAD_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}
# What never passes, by case: the file, what goes wrong with it, and words of the error.
ALWAYS: dict[str, tuple[str, Fault, str]] = {
    "private": (LISTING, Fault(401, NO_SUCH), "nor a model on the Hub; a private one needs HF_TOKEN"),
    "bad-token": (LISTING, Fault(401, BAD_TOKEN), "in Authorization header); check the token in HF_TOKEN"),
    "forbidden": (WEIGHTS, Fault(403), "answered 403"),
    "gated": (WEIGHTS, Fault(403, GATED), "/case/gated, and put a token of that account into HF_TOKEN"),
    "gated-without-token": ("config.json", Fault(401, GATED), "it is gated: accept its conditions at http://"),
    "too-busy": (LISTING, Fault(429), "could not be downloaded: the Hub answered 429"),
    "down": (LISTING, Fault(500), "could not be downloaded: the Hub answered 500"),
    "half-down": (WEIGHTS, Fault(503), "could not be downloaded: the Hub answered 503"),
    "dead-line": (WEIGHTS, Fault(sent=0), "could not be downloaded: RemoteProtocolError"),
    "altered": (WEIGHTS, Fault(altered=True), f"{WEIGHTS} arrived twice with other bytes than the Hub lists"),
    "small-one-altered": ("config.json", Fault(altered=True), "config.json arrived twice with other bytes"),
    "no-room": (WEIGHTS, Fault(), "GB are needed"),
}


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class Visit:
    """A Hub with one model a case, and what came of downloading each of them, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "hf"
        self.hub = Hub({f"case/{case}": dict(FILES) for case in (*ONCE, *ALWAYS)})
        self.outcomes: dict[str, Outcome] = {}

    def cache(self, case: str) -> Path:
        return self.home / "hub" / f"models--case--{case}"

    def ranges(self, case: str, file: str = WEIGHTS) -> list[str]:
        return self.hub.ranges(f"case/{case}", file)

    def prepare(self) -> None:
        for case, faults in ONCE.items():
            self.hub.faults |= {(f"case/{case}", file): iter(row) for file, row in faults.items()}
        for case, (file, fault, _) in ALWAYS.items():
            self.hub.faults[f"case/{case}", file] = itertools.repeat(fault)
        self.hub.bare.add("case/bare-listing")
        self.hub.claimed["case/no-room", WEIGHTS] = 10**18
        self.hub.models["case/both-formats"] |= {"pytorch_model.bin": b"x" * 200, "tf_model.h5": b"x"}
        self.hub.models["case/whole"] |= {"README.md": b"x", "model.fp32-00001-of-00002.safetensors": b"x"}
        self.hub.models["case/whole"] |= {"original/model.safetensors": b"x", "run.py": b"x"}
        weights = FILES[WEIGHTS]
        for case, ending, there in (
            ("broken-off-before", ".partial", weights[:CUT]),
            ("damaged-cache", "", weights[:-1] + bytes([weights[-1] ^ 1])),
            ("known-from-another-commit", "", weights),
        ):
            (self.cache(case) / "blobs").mkdir(parents=True)
            (self.cache(case) / "blobs" / (hashlib.sha256(weights).hexdigest() + ending)).write_bytes(there)

    def download(self) -> None:
        cases = [*ONCE, *ALWAYS]
        wishes = [(f"case/{case}", "main") for case in cases] + [("case/whole", COMMIT), ("case/whole", "v9")]
        outcomes = download_many(wishes, self.hub.url, self.home)
        self.outcomes = dict(zip([*cases, "again", "no such revision"], outcomes, strict=True))


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    visit = Visit(tmp_path_factory.mktemp("hub"))
    visit.prepare()
    with serving(visit.hub):
        visit.download()
        yield visit


@pytest.mark.parametrize("case", ONCE)
def test_what_passes_is_waited_for(visit: Visit, case: str) -> None:
    """The very files come in the end, at the commit that the branch was, and lie where other tools find them."""
    outcome = visit.outcomes[case]
    assert (outcome.error, outcome.commit) == ("", COMMIT)
    assert {name: Path(file).read_bytes() for name, file in outcome.files.items()} == FILES
    assert content(visit.cache(case) / "snapshots" / COMMIT) == FILES
    assert not list(visit.cache(case).rglob("*.partial"))


@pytest.mark.parametrize("case", ALWAYS)
def test_what_does_not_pass_is_told(visit: Visit, case: str) -> None:
    """In one line without secrets, and what is not right is not left where other tools would find it."""
    outcome = visit.outcomes[case]
    assert ALWAYS[case][2] in outcome.error
    assert "\n" not in outcome.error
    assert [word for word in ("Signature", "hf_nothing") if word in outcome.error + outcome.log] == []
    assert ALWAYS[case][0] not in content(visit.cache(case) / "snapshots" / COMMIT)


def test_only_what_is_needed_is_fetched_and_once(visit: Visit) -> None:
    """Of two downloads."""
    assert visit.outcomes["again"].files == visit.outcomes["whole"].files
    assert sorted(visit.hub.fetched("case/whole")) == sorted(FILES)


def test_safetensors_before_pickles(visit: Visit) -> None:
    assert sorted(visit.hub.fetched("case/both-formats")) == sorted(FILES)


def test_a_token_goes_to_the_hub_alone(visit: Visit) -> None:
    """Not to the store that it sends us to for large files."""
    with_token = {asked.path.split("/")[1] for asked in visit.hub.asked if asked.token}
    assert with_token == {"api", "case"}
    assert any(asked.path.startswith("/cdn/") for asked in visit.hub.asked)


def test_a_cut_connection_goes_on_where_it_was(visit: Visit) -> None:
    assert visit.ranges("cut") == ["", f"bytes={CUT}-", f"bytes={2 * CUT}-"]
    assert visit.ranges("cut", "tokenizer.json") == ["", "bytes=9-"]
    assert visit.ranges("cut-without-ranges") == ["", f"bytes={CUT}-"]
    assert len(visit.ranges("cut-often")) == 9, "more than the tries while nothing arrives"


def test_a_download_that_broke_off_is_gone_on_with(visit: Visit) -> None:
    """In a later run; huggingface_hub would begin anew."""
    assert visit.ranges("broken-off-before") == [f"bytes={CUT}-"]


def test_wrong_bytes_are_fetched_again_once(visit: Visit) -> None:
    assert visit.ranges("altered-once") == ["", ""]
    assert visit.ranges("altered-after-a-cut") == ["", f"bytes={CUT}-", ""]
    assert visit.ranges("altered") == ["", ""]
    assert visit.ranges("damaged-cache") == [""]
    assert f"{WEIGHTS} is damaged in the Hub's cache" in visit.outcomes["damaged-cache"].log
    assert visit.ranges("known-from-another-commit") == []


def test_nothing_is_fetched_where_there_is_no_room(visit: Visit) -> None:
    assert visit.hub.fetched("case/no-room") == []


def test_tries_end(visit: Visit) -> None:
    """One more than there are waits; what is refused is not asked for again."""
    listings = [asked.path for asked in visit.hub.asked if asked.path.startswith("/api/models/")]
    assert listings.count("/api/models/case/down/revision/main") == 4
    assert listings.count("/api/models/case/private/revision/main") == 1
    assert len(visit.ranges("dead-line")) == 4
    assert visit.outcomes["down"].log.count("the Hub answered 500 (Internal Server Error); trying again in 0.01 s") == 3


def test_the_hub_may_ask_for_a_longer_wait(visit: Visit) -> None:
    """In either of the two headers that it has for that."""
    assert visit.outcomes["busy"].log.count("the Hub answered 429 (Too Many Requests); trying again in 1 s") == 2


def test_a_revision_that_is_not_there(visit: Visit) -> None:
    assert visit.outcomes["no such revision"].error.startswith("--model-revision v9: the model has no such branch")


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    with serving(Hub({})) as hub:
        closed = hub.url
    (outcome,) = download_many([("openai/whisper-small", "main")], closed, tmp_path / "hf")
    assert outcome.error.startswith("could not be downloaded: ConnectError: ")
    assert outcome.log.count("trying again") == 3


def test_room_is_counted_by_disk(tmp_path: Path) -> None:
    """Cache and bundle often stand on one disk, and then both must fit."""
    free = shutil.disk_usage(tmp_path).free
    check_room([(tmp_path / "cache" / "a", free // 3), (tmp_path / "bundle", free // 3)])
    with pytest.raises(UserError, match="GB are needed"):
        check_room([(tmp_path / "cache" / "a", free * 2 // 3), (tmp_path / "bundle", free * 2 // 3)])


# By the script


def run_download(name: str, bundle: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return script("download_model.py", "--model-name-or-path", name, "--bundle-dir", bundle, env=environment)


def test_download_by_the_script(mini_model: Path, tmp_path: Path) -> None:
    """Id, commit and size are told, and the commit is recorded with the bundle."""
    with serving(Hub({"someone/whisper-mini": content(mini_model)})) as hub:
        done = run_download("someone/whisper-mini", tmp_path / "bundle", hub_environment(hub.url, tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "bundle" / "model") == content(mini_model)
    assert f"downloading someone/whisper-mini at commit {COMMIT}" in done.stderr
    report = json.loads((tmp_path / "bundle" / "reports" / "model.json").read_text(encoding="utf-8"))
    assert report == {"base_model": "someone/whisper-mini", "revision": COMMIT, "audio_layout": None}


@pytest.mark.parametrize(
    ("name", "offline", "words"),
    [
        ("openai/whisper-smal", "0", "neither a folder here nor a model on the Hub"),
        # A mistyped path has more slashes than a Hub id can have.
        ("./models/whisper/small", "0", "neither a folder here"),
        ("openai/whisper-small", "1", "HF_HUB_OFFLINE is set: unset it, or give a folder"),
    ],
)
def test_what_cannot_be_had_is_one_line(tmp_path: Path, name: str, offline: str, words: str) -> None:
    with serving(Hub({})) as hub:
        environment = hub_environment(hub.url, tmp_path / "hf") | {"HF_HUB_OFFLINE": offline}
        done = run_download(name, tmp_path / "bundle", environment)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == done.stderr.splitlines()[-1:]
    assert f"error: --model-name-or-path {name}: {words}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "bundle" / "model").exists()
