"""Paths of audio files: as a table has them, and as they are on this machine."""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath


class PathMap:
    """Turns audio paths as a table has them into paths of this machine.

    Args:
        rules: FROM=TO; the longest FROM that a path begins with, by whole components, is replaced by TO. Slashes and
            backslashes are the same in FROM, and so are upper and lower case in what looks like Windows.
        root: where relative paths start.
    """

    def __init__(self, rules: tuple[str, ...], root: Path) -> None:
        pairs = [rule.partition("=")[::2] for rule in rules]
        self.rules = sorted(((_components(old), new) for old, new in pairs), key=lambda rule: -len(rule[0]))
        self.root = root

    def __call__(self, written: str) -> Path:
        """Return the path on this machine for one that a table has."""
        components = _components(written)
        for old, new in self.rules:
            if components[: len(old)] == old or (_is_windows(written) and _same_letters(components[: len(old)], old)):
                return Path(new).joinpath(*components[len(old) :])
        if os.name != "nt" and "\\" in written and not _is_windows(written):
            # A relative path that was written on Windows.
            mapped = self.root / written
            # Not Path.exists: it raises for a name that is too long.
            return mapped if os.path.exists(mapped) else self.root / "/".join(components)
        return self.root / written


def _components(path: str) -> list[str]:
    """Split a path; doubled slashes and dots within it say nothing, the slashes that it begins with do."""
    parts = path.replace("\\", "/").split("/")
    root = next((place for place, part in enumerate(parts) if part), len(parts) - 1)
    return parts[:root] + [part for part in parts[root:] if part not in ("", ".")] or ["."]


def _is_windows(path: str) -> bool:
    return path.startswith("\\\\") or bool(PureWindowsPath(path).drive)


def _same_letters(left: list[str], right: list[str]) -> bool:
    return [part.casefold() for part in left] == [part.casefold() for part in right]
