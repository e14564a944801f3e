"""Common Voice: a release, as a folder or as the archive that Mozilla serves, becomes rows."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.online.sources.common_voice import check, read
from asr.online.sources.row import Row
from config import CommonVoice
from utils import UserError

HEADER = "client_id\tpath\tsentence_id\tsentence\tup_votes\n"
SENTENCES = {
    "train": ['"따옴표"로 시작하는 문장', "쉼표, 그리고 '작은' 따옴표", '닫히지 않은 " 하나'],
    "dev": ["검증 문장"],
    "test": ["시험 문장", '""'],
}
MALFORMED = "malformed row"


def write_locale(folder: Path, sentences: dict[str, list[str]] = SENTENCES, header: str = HEADER) -> Path:
    """Write one language of a release: three tables and the clips that they name."""
    (folder / "clips").mkdir(parents=True)
    for split, texts in sentences.items():
        names = [f"common_voice_{split}_{number}.mp3" for number in range(len(texts))]
        lines = [
            f"{split}_speaker{n}\t{name}\tid{n}\t{text}\t2\n"
            for n, (name, text) in enumerate(zip(names, texts, strict=True))
        ]
        (folder / f"{split}.tsv").write_text(header + "".join(lines), encoding="utf-8")
        for name in names:
            (folder / "clips" / name).write_bytes(sound(name))
    return folder


def sound(name: str) -> bytes:
    """Bytes that, like mp3, cannot be packed any tighter."""
    return random.Random(name).randbytes(3000)


def archive_of(release: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(release, release.name)
    return archive


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release as it unpacks: cv-corpus-…/ko/."""
    return write_locale(tmp_path / "cv-corpus-27.0" / "ko").parent


@pytest.fixture
def archive(release: Path, tmp_path: Path) -> Path:
    return archive_of(release, tmp_path / "cv-corpus-27.0-ko.tar.gz")


def rows_of(source: Path, tmp_path: Path, *further: str, locale: str = "ko") -> list[Row]:
    return list(read(CommonVoice(source, further), locale, tmp_path / "unpacked"))


def assert_told(raised: pytest.ExceptionInfo[UserError], *words: str) -> None:
    """One line that holds all these words."""
    message = str(raised.value)
    assert raised.value.exit_code == 2
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def assert_refused(source: Path, tmp_path: Path, *words: str, locale: str = "ko") -> None:
    with pytest.raises(UserError) as raised:
        rows_of(source, tmp_path, locale=locale)
    assert_told(raised, *words)


def assert_is_the_release(rows: list[Row]) -> None:
    assert [row.split for row in rows] == ["train"] * 3 + ["validation"] + ["test"] * 2
    assert [row.text for row in rows] == [text for texts in SENTENCES.values() for text in texts]
    assert all(row.source == "common-voice" and not row.refused for row in rows)
    for row in rows:
        assert isinstance(row.audio, Path)
        assert row.audio.read_bytes() == sound(row.audio.name)


def test_nested_release(release: Path, tmp_path: Path) -> None:
    assert_is_the_release(rows_of(release, tmp_path))


def test_folder_of_the_language_itself(release: Path, tmp_path: Path) -> None:
    assert_is_the_release(rows_of(release / "ko", tmp_path))


def test_folder_around_the_release(release: Path, tmp_path: Path) -> None:
    assert_is_the_release(rows_of(release.parent, tmp_path))


def test_archive(archive: Path, tmp_path: Path) -> None:
    assert_is_the_release(rows_of(archive, tmp_path))


def test_the_language_is_chosen_among_several(release: Path, tmp_path: Path) -> None:
    write_locale(release / "ja", {split: ["日本語"] for split in SENTENCES})
    assert_is_the_release(rows_of(release, tmp_path))
    assert {row.text for row in rows_of(release, tmp_path, locale="ja")} == {"日本語"}


def test_a_language_that_is_not_there_is_told_with_those_that_are(release: Path, tmp_path: Path) -> None:
    write_locale(release / "ja")
    assert_refused(release, tmp_path, "'sw'", "ja, ko", "--language-abbr", locale="sw")


def test_a_folder_that_is_no_release(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert_refused(tmp_path / "photos", tmp_path, "train.tsv", "no Common Voice release")


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_missing_table_is_named(release: Path, tmp_path: Path, split: str) -> None:
    (release / "ko" / f"{split}.tsv").unlink()
    assert_refused(release, tmp_path, f"{split}.tsv is missing")


# Checking


def test_a_release_passes_the_check(release: Path, archive: Path) -> None:
    check(CommonVoice(release), "ko")
    check(CommonVoice(archive), "ko")


def assert_fails_the_check(wanted: CommonVoice, *words: str) -> None:
    with pytest.raises(UserError) as raised:
        check(wanted, "ko")
    assert_told(raised, *words)


def test_without_a_release_and_without_a_key_all_ways_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MDC_API_KEY", raising=False)
    ways = ("MDC_API_KEY", "https://mozilladatacollective.com", "--common-voice", "--source", "--demo")
    assert_fails_the_check(CommonVoice(), *ways)


def test_a_key_is_enough_for_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks nobody: nothing listens where it would have to ask."""
    monkeypatch.setenv("MDC_API_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MDC_API_KEY", "secret-key")
    check(CommonVoice(), "ko")


@pytest.mark.parametrize("key", ["secret-key\n", " secret-key", "비밀", "secret key"])
def test_a_key_that_was_copied_badly_is_told_without_it(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MDC_API_KEY", key)
    with pytest.raises(UserError, match="MDC_API_KEY holds a space") as raised:
        check(CommonVoice(), "ko")
    assert key.strip() not in str(raised.value)


def test_nothing_is_there(tmp_path: Path) -> None:
    assert_fails_the_check(CommonVoice(tmp_path / "none.tar.gz"), str(tmp_path / "none.tar.gz"), "no such file")


def test_a_folder_without_a_table_fails_the_check(release: Path) -> None:
    assert_fails_the_check(CommonVoice(release, ("other",)), "--common-voice-splits other", "other.tsv is missing")
    (release / "ko" / "test.tsv").unlink()
    assert_fails_the_check(CommonVoice(release), "test.tsv is missing")


@pytest.mark.parametrize("content", [b"", b"ID3" + bytes(5000), b"\x1f\x8b" + bytes(5000), b"\x1f\x8b\x08"])
def test_a_file_that_is_no_archive_is_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "song.mp3"
    file.write_bytes(content)
    assert_fails_the_check(CommonVoice(file), str(file), "cannot be unpacked")
    assert_refused(file, tmp_path, str(file), "cannot be unpacked")


# Tables


def test_quotation_marks_are_part_of_the_sentence(release: Path, tmp_path: Path) -> None:
    """Common Voice does not quote: a reader that did would swallow every row up to the next quotation mark."""
    texts = [row.text for row in rows_of(release, tmp_path)]
    assert texts[0] == '"따옴표"로 시작하는 문장'
    assert texts[2] == '닫히지 않은 " 하나'
    assert texts[-1] == '""'


def test_a_row_says_where_it_stands(release: Path, tmp_path: Path) -> None:
    second = rows_of(release, tmp_path)[1]
    assert second.source_id == "common_voice/train.tsv:3 common_voice_train_1.mp3"
    assert second.speaker == "train_speaker1"
    assert len({row.source_id for row in rows_of(release, tmp_path)}) == 6


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ("speaker", MALFORMED, "1 cells, but the header has 5"),
        ("speaker\tclip.mp3\tid\ttext", MALFORMED, "4 cells, but the header has 5"),
        ("speaker\tclip.mp3\tid\ttext\twith a tab\t2", MALFORMED, "6 cells, but the header has 5"),
        ("speaker\t../../secret.mp3\tid\ttext\t2", MALFORMED, "nothing in the folder"),
        ("speaker\t/etc/secret.mp3\tid\ttext\t2", MALFORMED, "nothing in the folder"),
        ("speaker\tclip\0.mp3\tid\ttext\t2", MALFORMED, "nothing in the folder"),
        ("speaker\t \tid\ttext\t2", "no audio named", "column path"),
        (f"speaker\tclip.mp3\tid\t{'긴 문장 ' * 50_000}\t2", "", ""),
        ("speaker\tclip.mp3\tid\tone\rline\t2\r", "", ""),
        ("speaker\tclip.mp3\tid\tNUL \0 and line separator \u2028\t2", "", ""),
    ],
    ids=[
        "one",
        "few",
        "many",
        "parent",
        "absolute",
        "NUL in path",
        "no path",
        "longer than csv takes",
        "carriage return",
        "NUL",
    ],
)
def test_a_bad_line_is_a_refused_row_and_the_others_stand(
    release: Path, tmp_path: Path, line: str, reason: str, detail: str
) -> None:
    table = release / "ko" / "dev.tsv"
    table.write_bytes(f"{table.read_text(encoding='utf-8')}{line}\n\nlast\tlast.mp3\tid\tlast\t0".encode())
    first, bad, last = (row for row in rows_of(release, tmp_path) if row.split == "validation")
    assert (bad.refused, detail in bad.detail) == (reason, True)
    assert bad.source_id.startswith("common_voice/dev.tsv:3")
    assert reason or bad.text == line.split("\t")[3]
    assert (first.refused, last.refused, last.text, last.source_id) == (
        "",
        "",
        "last",
        "common_voice/dev.tsv:5 last.mp3",
    )


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.text(st.sampled_from('a가\t\t\t\r\v\x85\u2028"\\,\0 /.'), max_size=12), max_size=8))
def test_every_line_is_announced_and_comes_as_one_row(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    """Whatever is in it: kept whole, or refused; the number that was announced is the number that comes."""
    folder = write_locale(tmp_path_factory.mktemp("release") / "ko")
    (folder / "train.tsv").write_bytes((HEADER + "\n".join(lines)).encode())
    announced: list[int] = []
    rows = list(read(CommonVoice(folder), "ko", folder / "work", announced.append))
    train = [row for row in rows if row.split == "train"]
    written = [line.rstrip("\r") for line in lines if line.rstrip("\r")]
    assert announced == [len(written), 1, 2]
    assert len(train) == len(written)
    for row, line in zip(train, written, strict=True):
        cells = line.split("\t")
        if len(cells) != 5:
            assert row.refused == MALFORMED
        elif cells[1].strip() and not set(cells[1]) & set("./\0"):
            assert (row.refused, row.text) == ("", cells[3])
        else:
            assert row.refused in ("", "no audio named", MALFORMED)


@pytest.mark.parametrize("column", ["client_id", "path", "sentence"])
def test_a_missing_column_is_named(release: Path, tmp_path: Path, column: str) -> None:
    table = release / "ko" / "train.tsv"
    table.write_text(HEADER.replace(f"{column}\t", "other\t", 1), encoding="utf-8")
    assert_refused(release, tmp_path, str(table), f"column {column}")


def test_an_empty_table_lacks_its_columns(release: Path, tmp_path: Path) -> None:
    (release / "ko" / "train.tsv").write_text("")
    assert_refused(release, tmp_path, "train.tsv", "column")


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(release: Path, tmp_path: Path) -> None:
    for table in (release / "ko").glob("*.tsv"):
        table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    assert_is_the_release(rows_of(release, tmp_path))


@pytest.mark.parametrize("encoding", ["cp949", "utf-16"])
def test_a_table_that_is_not_utf_8_is_told(release: Path, tmp_path: Path, encoding: str) -> None:
    """As Excel saves it on a Korean Windows."""
    table = release / "ko" / "train.tsv"
    table.write_bytes(table.read_text(encoding="utf-8").encode(encoding))
    assert_refused(release, tmp_path, str(table), "line", "UTF-8")


# Further tables


def write_table(release: Path, name: str, *rows: tuple[str, str]) -> None:
    """Write a further table of (speaker, clip) rows."""
    lines = [f"{speaker}\t{clip}\tid\t문장 {clip}\t0\n" for speaker, clip in rows]
    (release / "ko" / f"{name}.tsv").write_text(HEADER + "".join(lines), encoding="utf-8")


@pytest.fixture
def rich_release(release: Path) -> Path:
    """One with validated.tsv, which holds what train, dev and test hold, and other.tsv."""
    given = [("train_speaker0", "common_voice_train_0.mp3"), ("dev_speaker0", "common_voice_dev_0.mp3")]
    write_table(
        release, "validated", *given, ("new", "v0.mp3"), ("test_speaker1", "v1.mp3"), ("train_speaker2", "v2.mp3")
    )
    write_table(release, "other", ("new", "o0.mp3"), ("dev_speaker0", "o1.mp3"), ("newer", "v0.mp3"))
    return release


def test_further_tables_add_training_rows_but_nothing_of_dev_and_test(rich_release: Path, tmp_path: Path) -> None:
    rows = rows_of(rich_release, tmp_path, "validated", "other")
    assert_is_the_release(rows[:6])
    told = [(row.source_id.split()[-1], row.split, row.refused, row.detail) for row in rows[6:]]
    assert told == [
        ("common_voice_train_0.mp3", "train", "already in another table", "train.tsv"),
        ("common_voice_dev_0.mp3", "train", "already in another table", "dev.tsv"),
        ("v0.mp3", "train", "", ""),
        ("v1.mp3", "train", "speaker is in dev or test", "test.tsv"),
        ("v2.mp3", "train", "", ""),
        ("o0.mp3", "train", "", ""),
        ("o1.mp3", "train", "speaker is in dev or test", "dev.tsv"),
        ("v0.mp3", "train", "already in another table", "validated.tsv"),
    ]


def test_further_tables_are_read_only_when_asked_for(rich_release: Path, tmp_path: Path) -> None:
    assert_is_the_release(rows_of(rich_release, tmp_path))


def test_a_table_that_is_named_twice_is_read_once(rich_release: Path, tmp_path: Path) -> None:
    assert rows_of(rich_release, tmp_path, "other", "other") == rows_of(rich_release, tmp_path, "other")


def test_a_speaker_of_a_dropped_dev_row_is_held_out_too(rich_release: Path, tmp_path: Path) -> None:
    """The row has no audio, but who speaks in dev is still known."""
    table = rich_release / "ko" / "dev.tsv"
    table.write_text(table.read_text(encoding="utf-8") + "new\t\tid\t문장\t0\n", encoding="utf-8")
    refused = {row.source_id.split()[-1]: row.refused for row in rows_of(rich_release, tmp_path, "other")[7:]}
    assert refused["o0.mp3"] == "speaker is in dev or test"


def test_each_table_is_announced_before_its_first_row(rich_release: Path, tmp_path: Path) -> None:
    story: list[object] = []
    wanted = CommonVoice(rich_release, ("other",))
    for row in read(wanted, "ko", tmp_path / "work", story.append):
        story.append(row.split)
    assert story == [3, *["train"] * 3, 1, "validation", 2, *["test"] * 2, 3, *["train"] * 3]


def test_a_further_table_that_is_not_there_is_told_with_those_that_are(rich_release: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        rows_of(rich_release, tmp_path, "invalidated")
    assert_told(raised, "--common-voice-splits invalidated", "other, validated")


# Archives


def test_an_archive_is_unpacked_once(archive: Path, tmp_path: Path) -> None:
    first = rows_of(archive, tmp_path)
    assert isinstance(first[0].audio, Path)
    mark = first[0].audio.parent / "mark"
    mark.touch()
    assert rows_of(archive, tmp_path) == first
    assert mark.exists()


def test_another_archive_of_the_same_name_is_unpacked_anew(archive: Path, release: Path, tmp_path: Path) -> None:
    rows_of(archive, tmp_path)
    (release / "ko" / "dev.tsv").write_text(HEADER, encoding="utf-8")
    archive_of(release, archive)
    assert [row.split for row in rows_of(archive, tmp_path)] == ["train"] * 3 + ["test"] * 2


def test_an_archive_without_compression_is_taken_too(release: Path, tmp_path: Path) -> None:
    archive = tmp_path / "cv.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(release, release.name)
    assert_is_the_release(rows_of(archive, tmp_path))


def hostile(kind: str, tmp_path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """A member that would write or read outside the folder that it is unpacked to."""
    member = tarfile.TarInfo("cv/ko/clips/evil")
    if kind == "parent":
        member.name = "../../evil"
    elif kind == "absolute link":
        member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path)
    elif kind == "link, then through it":
        member.type, member.linkname = tarfile.SYMTYPE, "../../../../.."
        return [(member, b""), (tarfile.TarInfo("cv/ko/clips/evil/evil"), b"evil")]
    elif kind == "hard link":
        member.type, member.linkname = tarfile.LNKTYPE, "../../../outside"
    elif kind == "device":
        member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 1, 3
    return [(member, b"evil" if member.isreg() else b"")]


@pytest.mark.parametrize("kind", ["parent", "absolute link", "link, then through it", "hard link", "device"])
def test_an_archive_that_leaves_its_folder_is_refused(release: Path, tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(release, release.name)
        for member, content in hostile(kind, tmp_path):
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    before = {path for path in tmp_path.rglob("*") if "unpacked" not in path.parts}
    assert_refused(archive, tmp_path, str(archive), "cannot be unpacked")
    assert {path for path in tmp_path.rglob("*") if "unpacked" not in path.parts} == before
    assert not list((tmp_path / "unpacked").glob("evil.tar.gz*"))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.98])
def test_an_archive_that_was_cut_short_is_told_and_fetching_it_again_helps(
    archive: Path, tmp_path: Path, share: float
) -> None:
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(share * len(whole))])
    assert_refused(archive, tmp_path, str(archive), "fetch it again")
    archive.write_bytes(whole)
    assert_is_the_release(rows_of(archive, tmp_path))


@pytest.mark.parametrize("at", [0.3, 0.5, 0.7])
def test_an_archive_with_a_damaged_byte_is_told(archive: Path, tmp_path: Path, at: float) -> None:
    """Sound hardly compresses, so gzip stores it as it is: only the checksum at the very end shows the damage."""
    damaged = bytearray(archive.read_bytes())
    damaged[int(at * len(damaged))] ^= 0xFF
    archive.write_bytes(damaged)
    assert_refused(archive, tmp_path, str(archive), "fetch it again")


def test_an_archive_whose_compressed_part_is_damaged_is_told(release: Path, tmp_path: Path) -> None:
    (release / "ko" / "validated.tsv").write_text(HEADER * 3000, encoding="utf-8")
    archive = archive_of(release, tmp_path / "cv.tar.gz")
    whole = archive.read_bytes()
    for at in range(200, len(whole), len(whole) // 20):
        archive.write_bytes(whole[:at] + bytes(byte ^ 0xFF for byte in whole[at : at + 8]) + whole[at + 8 :])
        assert_refused(archive, tmp_path, str(archive), "fetch it again")
