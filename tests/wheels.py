"""Wheels made by hand: real ones, which pip finds and installs, with nothing but a version in them."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path


def make_wheel(
    folder: Path, name: str, version: str, needs: tuple[str, ...] = (), tag: str = "py3-none-any", note: str = ""
) -> Path:
    """Write a wheel with one module.

    Args:
        name: with underscores.
        needs: its Requires-Dist.
        tag: Python, ABI and platform that it is for.
        note: something to make its content another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    depends = "".join(f"Requires-Dist: {need}\n" for need in needs)
    files = {
        f"{name}.py": f"version = {version!r}  # {note}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{depends}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = [f"{file},sha256={_digest(text)},{len(text.encode())}\n" for file, text in files.items()]
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"])
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


def make_index(folder: Path, wheels: list[Path], sha256: str | None = None) -> None:
    """Write a simple index (PEP 503) of wheels that lie in folder/files; `sha256` replaces what it says of them."""
    for wheel in wheels:
        name = wheel.name.split("-")[0].replace("_", "-")
        digest = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
        page = folder / "simple" / name / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        file = wheel.name.replace("+", "%2B")
        link = f'<a href="../../files/{file}#sha256={digest}">{wheel.name}</a><br>\n'
        with open(page, "a", encoding="utf-8") as listing:
            listing.write(link)


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
