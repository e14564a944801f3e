"""The command line of every script: defaults, then a TOML file, then flags; all of them checked alike."""

from __future__ import annotations

import argparse
import ast
import difflib
import functools
import inspect
import io
import itertools
import re
import sys
import tomllib
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import utils
from config import SCRIPTS, knobs, problems
from utils import UserError

Config = TypeVar("Config")


def run_script(main: Callable[[Any], None], kind: type, doc: str | None) -> None:
    """Parse the command line into a `kind` and give it to `main`, inside the one error boundary.

    Args:
        main: the stage; what it raises becomes a line and an exit code.
        kind: the configuration dataclass of the script.
        doc: the script's docstring; its first line is the command.
    """
    # Redirected on Windows, standard output would not be able to hold Korean.
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")
    with utils.error_boundary(debug="--debug" in sys.argv):
        utils.set_up_logging(debug="--debug" in sys.argv)
        config: Any
        config, print_only = parse(kind, sys.argv[1:], doc or "")
        if print_only:
            print(to_toml(config), end="")
        else:
            main(config)


def parse(kind: type[Config], arguments: list[str], doc: str = "") -> tuple[Config, bool]:
    """Return the configuration that `arguments` describe, and whether it is only to be printed.

    Raises:
        UserError: an unknown flag or key, a value of the wrong type, or values that do not go together.
    """
    parser = _Parser(kind, doc)
    first = parser.read(arguments, complete=False)
    given = {name for name, value in vars(first).items() if value not in (None, [], False)}
    flags = _flags_from_toml(first.config, kind, given) if first.config else []
    values = vars(parser.read([*flags, *arguments]))
    config = _fill(kind, values)
    wrong = problems(config)
    if wrong:
        raise UserError("; ".join(wrong))
    return config, values["print_config"]


def to_toml(config: Any, leave_out: Collection[str] = ()) -> str:
    """Write a configuration as TOML that `--config` reads back; what is unset stands as a comment."""
    import tomlkit

    document = tomlkit.document()
    for name, value in knobs(config):
        if name in leave_out:
            continue
        if value is None:
            document.add(tomlkit.comment(f"{name} is chosen by the script"))
        else:
            document.add(name, plain(value))
    return tomlkit.dumps(document)


def settings_of(config: Any) -> dict[str, Any]:
    """Return every knob as JSON and TOML can hold it."""
    return {name: plain(value) for name, value in knobs(config)}


def plain(value: Any) -> Any:
    """Turn paths into strings and tuples into lists."""
    if isinstance(value, Path):
        return value.as_posix()
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


class _Parser(argparse.ArgumentParser):
    """argparse over the fields of a configuration, with errors in our own words."""

    def __init__(self, kind: type, doc: str) -> None:
        super().__init__(
            prog=Path(sys.argv[0]).name,
            usage=f"python {doc.strip().splitlines()[0].removeprefix('python ')}" if doc else None,
            description="\n".join(doc.strip().splitlines()[1:]).strip(),
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=110),
            allow_abbrev=False,
            argument_default=None,
        )
        for holder, group in _groups(kind):
            target = self.add_argument_group(re.sub(r"\B([A-Z])", r" \1", group.__name__).lower(), holder)
            for entry in fields(group):
                if not is_dataclass(entry.default_factory):
                    _add_flag(target, group, entry)
        own = self.add_argument_group("every script")
        own.add_argument("--config", type=Path, metavar="FILE.toml", help="values from a file; flags win over them")
        own.add_argument("--print-config", action="store_true", help="print the resulting values as TOML and stop")
        own.add_argument("--debug", action="store_true", help="show tracebacks and more messages")

    def read(self, arguments: list[str], complete: bool = True) -> argparse.Namespace:
        # What stands behind a bare "--" is a file, whatever it looks like.
        end = arguments.index("--") if "--" in arguments else len(arguments)
        values, unknown = self.parse_known_intermixed_args([*map(_with_hyphens, arguments[:end])])
        if hasattr(values, "files"):
            values.files = [*values.files, *map(Path, arguments[end + 1 :])]
        else:
            unknown += arguments[end + 1 :]
        if unknown and complete:
            flag = unknown[0].partition("=")[0]
            known = {option for action in self._actions for option in action.option_strings}
            raise UserError(f"unknown argument {flag}{_did_you_mean(flag, known)} (--help lists all flags)")
        return values

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')} (--help lists all flags)")


def _groups(kind: type) -> list[tuple[str, type]]:
    """Return the doc and the class of a configuration and of its groups; the class's own fields come first."""
    own = [entry for entry in fields(kind) if not is_dataclass(entry.default_factory)]
    nested = [entry.default_factory for entry in fields(kind) if is_dataclass(entry.default_factory)]
    inner = [found for group in nested for found in _groups(group)]  # type: ignore[arg-type]
    return [*([(kind.__doc__ or "", kind)] if own else []), *inner]


def _add_flag(target: Any, group: type, entry: Any) -> None:
    hint = get_type_hints(group)[entry.name]
    options: dict[str, Any] = {"help": _field_docs(group).get(entry.name, "").replace("%", "%%")}
    alternatives = [kind for kind in get_args(hint) if kind is not type(None)]
    if entry.name == "files":
        target.add_argument("files", nargs="*", type=Path, metavar="FILE", **options)
        return
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif get_origin(hint) is Literal:
        options["choices"] = alternatives
    elif get_origin(hint) is tuple:
        # May be repeated: each flag adds to the list.
        options |= {"nargs": "*", "action": "extend", "metavar": "NAME"}
        if Path in get_args(hint):
            options |= {"type": Path, "metavar": "PATH"}
    else:
        options["type"] = alternatives[0] if alternatives else hint
        options["metavar"] = options["type"].__name__.upper()
    if entry.default not in (None, ()):
        shown = " ".join(entry.default) if isinstance(entry.default, tuple) else entry.default
        options["help"] += f" (default: {shown})"
    target.add_argument(f"--{entry.name.replace('_', '-')}", dest=entry.name, **options)


@functools.cache
def _field_docs(group: type) -> dict[str, str]:
    """Read the doc strings that stand under the fields of a dataclass."""
    body = ast.parse(inspect.getsource(group)).body[0].body  # type: ignore[attr-defined]
    return {
        ast.unparse(knob.target): " ".join(ast.literal_eval(doc.value).split())
        for knob, doc in itertools.pairwise(body)
        if isinstance(knob, ast.AnnAssign) and isinstance(doc, ast.Expr)
    }


def _fill(kind: type[Config], values: dict[str, Any]) -> Config:
    """Build a configuration from the values that were given; the rest keeps its default."""
    given: dict[str, Any] = {}
    for entry in fields(kind):  # type: ignore[arg-type]
        if is_dataclass(entry.default_factory):
            given[entry.name] = _fill(entry.default_factory, values)
        elif values.get(entry.name) is not None:
            value = values[entry.name]
            given[entry.name] = tuple(_items(value)) if isinstance(value, list) else value
    return kind(**given)


def _items(values: list[Any]) -> Iterator[Any]:
    """Yield the items of a list flag, in which names may also be joined by commas; a path keeps its commas."""
    for value in values:
        if isinstance(value, str) and not set(value) & set("/\\"):
            yield from filter(None, value.split(","))
        else:
            yield value


def _flags_from_toml(path: Path, kind: type, given: Collection[str]) -> list[str]:
    """Turn a TOML file into flags. Keys of other scripts are passed over: one file may serve the whole flow.

    Args:
        path: of the file.
        kind: the script's configuration.
        given: what the command line gives, in whose place nothing of the file stands.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not valid TOML: {error}") from None
    ours = _knob_names(kind)
    known = {name for script in SCRIPTS for name in _knob_names(script)}
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UserError(f"--config {path}: unknown key {unknown[0]}{_did_you_mean(unknown[0], known)}")
    hints = {name: hint for _, group in _groups(kind) for name, hint in get_type_hints(group).items()}
    for key in ours & values.keys():
        _check_shape(path, key, values[key], hints[key])
    return [flag for key, value in values.items() if key in ours - set(given) for flag in _flag(key, value)]


def _flag(key: str, value: Any) -> list[str]:
    """Spell a TOML value as a flag; its content is checked with all the flags."""
    name = "--" + key.replace("_", "-")
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-", 1)]
    if isinstance(value, list):
        return [*map(str, value)] if key == "files" else [name, *map(str, value)]
    return [f"{name}={value}"]


def _check_shape(path: Path, key: str, value: Any, hint: Any) -> None:
    if hint is bool:
        wanted, fits = "true or false", isinstance(value, bool)
    elif get_origin(hint) is tuple:
        wanted, fits = "a list", isinstance(value, list)
    else:
        wanted, fits = _type_names(hint), isinstance(value, str | int | float) and not isinstance(value, bool)
    if not fits:
        told = str(value).lower() if isinstance(value, bool) else value
        raise UserError(f"--config {path}: {key} is {told!r}, but it must be {wanted}")


def _type_names(hint: Any) -> str:
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    return " or ".join(getattr(kind, "__name__", None) or repr(kind) for kind in kinds)


def _knob_names(kind: type) -> set[str]:
    return {name for name, _ in knobs(kind())}


def _with_hyphens(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


def _did_you_mean(word: str, known: set[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
