"""The house: what may import what, what stands where, and what no file of ours may do."""

from __future__ import annotations

import ast
import itertools
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = [
    "run_online_setup.py",
    "download_data.py",
    "download_model.py",
    "train_offline.py",
    "evaluate_model.py",
    "inference.py",
]
OFFLINE_SCRIPTS = SCRIPTS[3:]
CODE = sorted(
    file for pattern in ("*.py", "asr/**/*.py", "demo/**/*.py", "benchmarks/**/*.py") for file in ROOT.glob(pattern)
)
LONGEST_FUNCTION = 80

# What fetches from a network. Of the Hub's own package only the parts that download are forbidden.
NETWORK_MODULES = (
    "asr.online",
    "requests",
    "httpx",
    "httpx2",
    "aiohttp",
    "urllib.request",
    "urllib3",
    "datacollective",
)
DOWNLOADS = {"snapshot_download", "hf_hub_download", "hf_hub_url", "HfApi", "HfFileSystem", "load_dataset"}


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def of_ours(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


# Imports


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, functions included, but not what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_run_time(child)


def imports_of(tree: ast.Module, package: list[str]) -> Iterator[str]:
    """Yield the names that a module imports anywhere, `from a import b` as both a and a.b."""
    for node in at_run_time(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            yield from (str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))


def downloads_of(tree: ast.Module) -> Iterator[str]:
    """Yield the download functions that a module names, however it came by them."""
    for node in at_run_time(tree):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name in DOWNLOADS:
            yield name
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.name in DOWNLOADS)


def files_of(name: str, root: Path) -> list[tuple[str, Path]]:
    """Return our modules that an import of `name` runs: its packages and itself, as far as they are ours."""
    parts = name.split(".")
    prefixes = [parts[:count] for count in range(1, len(parts) + 1)]
    places = [(".".join(prefix), root.joinpath(*prefix)) for prefix in prefixes]
    found = [(known, file) for known, place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return [(known, file) for known, file in found if file.is_file()]


def chains_to_the_network(script: Path, root: Path) -> list[str]:
    """Return each way in which a script reaches the network through our own modules, as a chain of imports."""
    found, seen, waiting = [], {script.stem}, [(script.stem, script, [script.name])]
    while waiting:
        name, file, chain = waiting.pop(0)
        tree = parsed(file)
        package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        imported = list(imports_of(tree, package))
        bad = [target for target in imported if any(f"{target}.".startswith(f"{net}.") for net in NETWORK_MODULES)]
        found += [" -> ".join([*chain, target]) for target in dict.fromkeys([*bad, *downloads_of(tree)])]
        ours = [module for target in imported if target not in bad for module in files_of(target, root)]
        for known, place in ours:
            if known not in seen:
                seen.add(known)
                waiting.append((known, place, [*chain, known]))
    return found


@pytest.mark.parametrize("name", OFFLINE_SCRIPTS)
def test_an_offline_script_reaches_nothing_that_fetches(name: str) -> None:
    chains = chains_to_the_network(ROOT / name, ROOT)
    assert not chains, "imports that lead to the network:\n" + "\n".join(chains)


def test_the_walk_comes_through_the_whole_offline_half() -> None:
    """Were it to stop early, the test above would pass for nothing. The setup's steps on the box count too."""
    names = {
        ".".join(module.relative_to(ROOT).with_suffix("").parts)
        for folder in ("offline", "shared")
        for module in (ROOT / "asr" / folder).rglob("[!_]*.py")
    }
    reached: set[str] = set()
    waiting = [ROOT / name for name in (*OFFLINE_SCRIPTS, "run_online_setup.py")]
    while waiting:
        file = waiting.pop()
        for target in imports_of(parsed(file), []):
            for known, place in files_of(target, ROOT):
                if known not in reached:
                    reached.add(known)
                    waiting.append(place)
    assert names - reached == set()


PLANTED = {
    "import requests": "requests",
    "import urllib.request as u": "urllib.request",
    "from urllib import request": "urllib.request",
    "from urllib.request import urlopen": "urllib.request.urlopen",
    "import httpx._client": "httpx._client",
    "from asr import online": "asr.online",
    "from asr.online.whisper import fetch_whisper": "asr.online.whisper",
    "from ...online import whisper": "asr.online",
    "import importlib\nimportlib.import_module('aiohttp')": "aiohttp",
    "from huggingface_hub import snapshot_download": "snapshot_download",
    "import huggingface_hub\nhuggingface_hub.hf_hub_download('a', 'b')": "hf_hub_download",
    "import datasets\ndatasets.load_dataset('a')": "load_dataset",
}


def plant(root: Path, line: str) -> Path:
    """Write a project whose script imports, two modules deep and inside a function, what it must not."""
    body = "".join(f"    {part}\n" for part in line.splitlines())
    for name, code in {
        "script.py": "def main():\n    from asr.offline import first\n",
        "asr/__init__.py": "",
        "asr/offline/__init__.py": "",
        "asr/offline/first.py": "import asr.offline.deep.second\n",
        "asr/offline/deep/__init__.py": "",
        "asr/offline/deep/second.py": f"def later():\n{body}",
        "asr/online/__init__.py": "import requests\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(code)
    return root / "script.py"


@pytest.mark.parametrize("line", PLANTED)
def test_the_walk_finds_what_is_planted_and_tells_the_chain(tmp_path: Path, line: str) -> None:
    chains = chains_to_the_network(plant(tmp_path, line), tmp_path)
    assert f"script.py -> asr.offline.first -> asr.offline.deep.second -> {PLANTED[line]}" in chains


@pytest.mark.parametrize("line", ["import json", "from urllib.parse import quote", "import huggingface_hub.errors"])
def test_the_walk_lets_the_harmless_pass(tmp_path: Path, line: str) -> None:
    assert chains_to_the_network(plant(tmp_path, line), tmp_path) == []


def test_the_walk_passes_over_what_only_a_type_checker_reads(tmp_path: Path) -> None:
    line = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import requests"
    assert chains_to_the_network(plant(tmp_path, line), tmp_path) == []


def top_level_imports(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports_of(parsed(file), []) if name}


@pytest.mark.parametrize("name", ["utils.py", "config.py"])
def test_utils_and_config_need_the_standard_library_alone(name: str) -> None:
    assert top_level_imports(ROOT / name) - sys.stdlib_module_names == set()


def test_the_halves_share_no_code_but_what_is_shared() -> None:
    """asr.shared leans on neither half, and neither half on the other."""
    for half, others in {"shared": ("online", "offline"), "online": ("offline",), "offline": ("online",)}.items():
        for file in (ROOT / "asr" / half).rglob("*.py"):
            imported = set(imports_of(parsed(file), list(file.relative_to(ROOT).parent.parts)))
            wrong = {name for name in imported for other in others if f"{name}.".startswith(f"asr.{other}.")}
            assert wrong == set(), of_ours(file)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_imports_heavy_things_inside_functions_only(name: str) -> None:
    """So that --help is there at once, and a missing package is told in one line."""
    top: list[ast.stmt] = [node for node in parsed(ROOT / name).body if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {target.partition(".")[0] for target in imports_of(ast.Module(top, []), [])}
    assert imported - sys.stdlib_module_names <= {"asr", "config", "utils"}


# Names


def test_what_may_be_run_stands_at_the_root_and_nothing_else_does() -> None:
    assert {file.name for file in ROOT.glob("*.py")} == {"config.py", "utils.py", *SCRIPTS}


@pytest.mark.parametrize("name", ["requirements.txt", "README.md", "tests", "asr", "demo"])
def test_fixed_names_at_the_root(name: str) -> None:
    assert (ROOT / name).exists()


def test_no_module_of_ours_shadows_another() -> None:
    """Scripts put the root first on the path: a file or folder there hides any package of its name."""
    ours = {
        path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path.is_dir() and path.name.isidentifier())
    }
    installed = set(metadata.packages_distributions())
    assert "torch" in installed
    assert {"config", "utils", "asr"} <= ours
    assert ours & (installed | sys.stdlib_module_names) == set()


# What no file of ours does


@pytest.mark.parametrize("file", CODE, ids=of_ours)
def test_nothing_runs_what_it_reads(file: Path) -> None:
    """No pickle, no code of a downloaded model, no text taken for a program."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Name):
            assert node.id not in ("eval", "exec", "pickle"), f"line {node.lineno}"
        elif isinstance(node, ast.keyword):
            assert node.arg != "trust_remote_code"
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert top_level_imports(file) & forbidden == set()


@pytest.mark.parametrize("file", CODE, ids=of_ours)
def test_no_function_is_too_long(file: Path) -> None:
    functions = [node for node in ast.walk(parsed(file)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions}
    assert {name: count for name, count in lines.items() if count > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("name", [*SCRIPTS, "config.py", "utils.py"])
def test_a_file_at_the_root_does_nothing_when_it_is_imported(name: str) -> None:
    """Definitions, constants and the `__main__` guard: no calls that print, parse or load."""
    body = parsed(ROOT / name).body
    defining = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    rest = [node for node in body[1:] if not isinstance(node, defining)]
    assert ast.get_docstring(parsed(ROOT / name))
    allowed = [] if name in ("config.py", "utils.py") else ["__name__ == '__main__'"]
    assert [ast.unparse(node.test) if isinstance(node, ast.If) else ast.unparse(node) for node in rest] == allowed


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_begins_with_its_command(name: str) -> None:
    docstring = ast.get_docstring(parsed(ROOT / name)) or ""
    assert docstring.startswith(f"python {name}")
    online = name in ("run_online_setup.py", "download_data.py", "download_model.py")
    assert docstring.splitlines()[2].startswith("ONLINE." if online else "OFFLINE.")


@pytest.mark.parametrize("file", sorted((ROOT / "asr").rglob("*.py")), ids=of_ours)
def test_what_is_public_is_documented(file: Path) -> None:
    tree = parsed(file)
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert ast.get_docstring(tree), "the module itself"
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("file", [*CODE, *sorted((ROOT / "tests").rglob("*.py"))], ids=of_ours)
def test_no_path_of_one_machine(file: Path) -> None:
    # The pattern is put together here, so that this file does not hold what it looks for.
    pattern = re.compile("/" + r"(root|work|tmp|Users|home/\w+)/" + "|" + r"[A-Z]:\\\\Users")
    assert pattern.findall(file.read_text(encoding="utf-8")) == []


# Requirements


def pinned(name: str) -> dict[str, str]:
    lines = [line.partition(" #")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    entries = [line for line in lines if line and not line.startswith(("#", "-r "))]
    assert [line for line in entries if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!+-]*", line)] == []
    names = [canonical(line.partition("==")[0]) for line in entries]
    assert len(names) == len(set(names)), "a package stands twice"
    return dict(zip(names, entries, strict=True))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", ["requirements.txt", "tests/requirements.txt"])
def test_every_requirement_is_an_exact_pin(name: str) -> None:
    assert pinned(name)


def test_every_package_that_the_code_imports_is_pinned() -> None:
    """What comes along with another package today may stay away tomorrow."""
    code = [file for file in CODE if "demo" not in file.parts]
    imported = set(itertools.chain.from_iterable(map(top_level_imports, code))) - sys.stdlib_module_names
    third_party = imported - {"asr", "benchmarks", "config", "utils", *(Path(name).stem for name in SCRIPTS)}
    providers = metadata.packages_distributions()
    assert {"torch", "transformers", "datasets", "peft"} <= third_party
    unpinned = {
        package
        for package in third_party
        if not {canonical(name) for name in providers.get(package, [])} & pinned("requirements.txt").keys()
    }
    assert unpinned == set()


def test_what_is_pinned_fits_together() -> None:
    """Every package that a pinned one needs here is pinned too, so that an install is the same everywhere."""
    pins = pinned("requirements.txt")
    missing = set()
    for name in pins:
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        plain = [need for need in needs if ";" not in need]
        missing |= {canonical(re.split(r"[\s\[<>=!~(]", need, maxsplit=1)[0]) for need in plain} - pins.keys()
    assert missing == set()
