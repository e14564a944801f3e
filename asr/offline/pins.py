"""Pins: what requirements.txt asks for against what is installed, with the standard library alone."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path


def read_pins(requirements: Path) -> dict[str, str]:
    """Return the version that a requirements file pins for each package."""
    lines = [line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    found = (re.fullmatch(r"([\w.-]+)(?:\[.*\])?==([^\s;]+).*", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def compare_with(pins: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the packages that are missing, and in words those of another version than pinned.

    A local version, as in 2.13.0+cu126, tells how a package was built: it is no other version.
    """
    missing, others = [], []
    for name, pinned in pins.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if version.partition("+")[0] != pinned:
            others.append(f"{name} {version} (pinned: {pinned})")
    return missing, others


def first_that_cannot_be_imported(names: Iterable[str]) -> str:
    """Import packages in their order; return "name: why" of the first that fails, or nothing."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            # Not only ImportError: a shared library that does not load is an OSError, and more is thinkable.
            return f"{name}: {first_line(error)}"
    return ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
