"""Sources: a Common Voice release, as a folder or as the archive that Mozilla serves, becomes rows."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest

from asr.online.sources import Row, read_rows
from config import Data, Whisper
from utils import UserError

HEADER = "client_id\tpath\tsentence_id\tsentence\tup_votes\n"
SENTENCES = {
    "train": ['"따옴표"로 시작하는 문장', "쉼표, 그리고 '작은' 따옴표", '닫히지 않은 " 하나'],
    "dev": ["검증 문장"],
    "test": ["시험 문장", '""'],
}


def write_locale(folder: Path, sentences: dict[str, list[str]] = SENTENCES, header: str = HEADER) -> Path:
    """Write one language of a release: three tables and the clips that they name."""
    (folder / "clips").mkdir(parents=True)
    for split, texts in sentences.items():
        names = [f"common_voice_{split}_{number}.mp3" for number in range(len(texts))]
        lines = [
            f"speaker{n}\t{name}\tid{n}\t{text}\t2\n" for n, (name, text) in enumerate(zip(names, texts, strict=True))
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


def rows_of(source: Path | None, tmp_path: Path, locale: str = "ko") -> list[Row]:
    return list(read_rows(Data(common_voice=source), Whisper(language_abbr=locale), tmp_path / "unpacked"))


def assert_refused(source: Path | None, tmp_path: Path, *words: str, locale: str = "ko") -> None:
    with pytest.raises(UserError) as raised:
        rows_of(source, tmp_path, locale)
    message = str(raised.value)
    assert raised.value.exit_code == 2
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def assert_is_the_release(rows: list[Row]) -> None:
    assert [row.split for row in rows] == ["train"] * 3 + ["validation"] + ["test"] * 2
    assert [row.text for row in rows] == [text for texts in SENTENCES.values() for text in texts]
    assert all(row.audio.read_bytes() == sound(row.audio.name) for row in rows)


def test_nested_release(release: Path, tmp_path: Path) -> None:
    assert_is_the_release(rows_of(release, tmp_path))


def test_folder_of_the_language_itself(release: Path, tmp_path: Path) -> None:
    assert_is_the_release(rows_of(release / "ko", tmp_path))


def test_folder_around_the_release(release: Path, tmp_path: Path) -> None:
    assert_is_the_release(rows_of(release.parent, tmp_path))


def test_archive(archive: Path, tmp_path: Path) -> None:
    assert_is_the_release(rows_of(archive, tmp_path))


def test_quotation_marks_are_part_of_the_sentence(release: Path, tmp_path: Path) -> None:
    """Common Voice does not quote: a reader that did would swallow every row up to the next quotation mark."""
    texts = [row.text for row in rows_of(release, tmp_path)]
    assert texts[0] == '"따옴표"로 시작하는 문장'
    assert texts[2] == '닫히지 않은 " 하나'
    assert texts[-1] == '""'


def test_a_row_says_where_it_stands(release: Path, tmp_path: Path) -> None:
    second = rows_of(release, tmp_path)[1]
    assert second.source_id == "common_voice/train.tsv:3 common_voice_train_1.mp3"
    assert second.speaker == "speaker1"
    assert len({row.source_id for row in rows_of(release, tmp_path)}) == 6


def test_a_row_with_missing_cells_is_still_a_row(release: Path, tmp_path: Path) -> None:
    """Preparation drops and reports it; the reader neither fails nor skips."""
    (release / "ko" / "dev.tsv").write_text(HEADER + "speaker\n", encoding="utf-8")
    row = rows_of(release, tmp_path)[3]
    assert (row.split, row.text, row.speaker) == ("validation", "", "speaker")


def test_the_language_is_chosen_among_several(release: Path, tmp_path: Path) -> None:
    write_locale(release / "ja", {split: ["日本語"] for split in SENTENCES})
    assert_is_the_release(rows_of(release, tmp_path))
    assert {row.text for row in rows_of(release, tmp_path, locale="ja")} == {"日本語"}


def test_a_language_that_is_not_there_is_told_with_those_that_are(release: Path, tmp_path: Path) -> None:
    write_locale(release / "ja")
    assert_refused(release, tmp_path, "'sw'", "ja, ko", "--language-abbr", locale="sw")


def test_no_source_is_named(tmp_path: Path) -> None:
    assert_refused(None, tmp_path, "--common-voice", "--demo")


def test_nothing_is_there(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.tar.gz", tmp_path, str(tmp_path / "none.tar.gz"), "no such file")


def test_a_folder_that_is_no_release(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert_refused(tmp_path / "photos", tmp_path, "train.tsv", "no Common Voice release")


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_missing_table_is_named(release: Path, tmp_path: Path, split: str) -> None:
    (release / "ko" / f"{split}.tsv").unlink()
    assert_refused(release, tmp_path, f"{split}.tsv is missing")


@pytest.mark.parametrize("column", ["client_id", "path", "sentence"])
def test_a_missing_column_is_named(release: Path, tmp_path: Path, column: str) -> None:
    table = release / "ko" / "train.tsv"
    table.write_text(HEADER.replace(f"{column}\t", "other\t", 1), encoding="utf-8")
    assert_refused(release, tmp_path, str(table), f"column {column}")


def test_an_empty_table_lacks_its_columns(release: Path, tmp_path: Path) -> None:
    (release / "ko" / "train.tsv").write_text("")
    assert_refused(release, tmp_path, "train.tsv", "column")


def test_a_byte_order_mark_is_no_part_of_a_column(release: Path, tmp_path: Path) -> None:
    for table in (release / "ko").glob("*.tsv"):
        table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert_is_the_release(rows_of(release, tmp_path))


def test_a_table_that_is_not_utf_8_is_told(release: Path, tmp_path: Path) -> None:
    """As Excel saves it on a Korean Windows."""
    table = release / "ko" / "train.tsv"
    table.write_bytes(table.read_text(encoding="utf-8").encode("cp949"))
    assert_refused(release, tmp_path, str(table))


# Archives


def test_an_archive_is_unpacked_once(archive: Path, tmp_path: Path) -> None:
    first = rows_of(archive, tmp_path)
    mark = first[0].audio.parent / "mark"
    mark.touch()
    assert rows_of(archive, tmp_path) == first
    assert mark.exists()


def test_another_archive_of_the_same_name_is_unpacked_anew(archive: Path, release: Path, tmp_path: Path) -> None:
    rows_of(archive, tmp_path)
    (release / "ko" / "dev.tsv").write_text(HEADER, encoding="utf-8")
    archive_of(release, archive)
    assert [row.split for row in rows_of(archive, tmp_path)] == ["train"] * 3 + ["test"] * 2


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


def test_a_file_that_is_no_archive_is_told(tmp_path: Path) -> None:
    file = tmp_path / "song.mp3"
    file.write_bytes(b"ID3" + bytes(5000))
    assert_refused(file, tmp_path, str(file), "cannot be unpacked")
