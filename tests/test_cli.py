"""The command line: defaults, a TOML file and flags, all checked alike, told in one line, and fast."""

from __future__ import annotations

import ast
import functools
import itertools
import json
import os
import subprocess
import sys
import time
import tomllib
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import config
from asr.shared.bundle import seal
from asr.shared.cli import parse, to_toml
from config import (
    DownloadData,
    DownloadModel,
    EvaluateModel,
    Inference,
    OnlineSetup,
    TrainOffline,
    knobs,
)
from tests.conftest import DEMO_MODEL, ROOT, script
from utils import UserError

SCRIPTS: dict[str, type] = {
    "download_data.py": DownloadData,
    "download_model.py": DownloadModel,
    "run_online_setup.py": OnlineSetup,
    "train_offline.py": TrainOffline,
    "evaluate_model.py": EvaluateModel,
    "inference.py": Inference,
}
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))
HEAVY = ["torch", "transformers", "datasets", "gradio", "numpy", "peft", "evaluate", "librosa", "huggingface_hub"]
HEAVY += ["av", "pandas", "pyarrow", "scipy", "soundfile", "sqlalchemy"]
REPEATABLE = settings(derandomize=True, deadline=None, database=None, max_examples=12)


def values(kind: type, *arguments: object) -> dict[str, Any]:
    """All knobs that a command line leads to."""
    return dict(knobs(parse(kind, list(map(str, arguments)))[0]))


@functools.cache
def defaults(kind: type) -> dict[str, Any]:
    """All knobs when nothing is said."""
    return values(kind)


def told(kind: type, *arguments: object) -> str:
    """The one line that a wrong command line is answered with."""
    with pytest.raises(UserError) as raised:
        parse(kind, list(map(str, arguments)))
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)
    return str(raised.value)


def toml(folder: Path, text: str) -> Path:
    file = folder / "run.toml"
    file.write_text(text, encoding="utf-8")
    return file


# Defaults

DEFAULTS = {
    "model_name_or_path": "openai/whisper-small",
    "language": "Korean",
    "language_abbr": "ko",
    "task": "transcribe",
    "lora_r": 32,
    "lora_alpha": 64,
    "lora_dropout": 0.05,
    "target_modules": ("q_proj", "v_proj"),
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3,
    "warmup_steps": 50,
    "cuda_visible_devices": "0",
    "bundle_dir": Path("bundle"),
    "output_dir": Path("runs"),
    "run_name": None,
    "quantization": "auto",
    "method": "lora",
    "max_steps": -1,
    "audio_layout": "auto",
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name: str) -> None:
    """Every script that has the knob gives it this value when nothing is said, or takes it from the bundle (None)."""
    given = {kind: defaults(kind)[name] for kind in SCRIPTS.values() if name in defaults(kind)}
    found = {kind: value for kind, value in given.items() if value is not None or DEFAULTS[name] is None}
    assert found
    assert found == dict.fromkeys(found, DEFAULTS[name])


def test_default_learning_rate_depends_on_the_method() -> None:
    assert defaults(TrainOffline)["learning_rate"] is None
    assert config.LEARNING_RATES == {"lora": 1e-3, "full": 1e-5}
    assert values(TrainOffline, "--learning-rate", "2e-4")["learning_rate"] == 2e-4


def test_seed_is_set() -> None:
    """Two runs of one command give one result unless another seed is asked for."""
    assert isinstance(defaults(TrainOffline)["seed"], int)


def test_defaults_are_allowed() -> None:
    for kind in config.SCRIPTS:
        assert config.problems(kind()) == []


def test_every_script_has_its_configuration() -> None:
    assert set(SCRIPTS.values()) == set(config.SCRIPTS)


# Three ways to turn a knob


def test_flags_win_over_toml_and_toml_over_defaults(tmp_path: Path) -> None:
    file = toml(tmp_path, "lora_r = 16\nlora_alpha = 17\n")
    found = values(TrainOffline, "--config", file, "--lora-r", 8)
    assert (found["lora_r"], found["lora_alpha"], found["warmup_steps"]) == (8, 17, 50)
    assert values(TrainOffline, "--lora-r", 8, "--config", file)["lora_r"] == 8


@pytest.mark.parametrize("arguments", [["--lora-r", 16], ["--lora_r", 16], ["--lora-r=16"], ["--lora_r=16"]])
def test_hyphens_and_underscores_in_flags(arguments: list[object]) -> None:
    assert values(TrainOffline, *arguments)["lora_r"] == 16


def test_underscores_in_values_are_left_alone() -> None:
    found = values(TrainOffline, "--run_name=my_run-1", "--target_modules", "q_proj", "out_proj")
    assert found["run_name"] == "my_run-1"
    assert found["target_modules"] == ("q_proj", "out_proj")


def test_types_of_toml(tmp_path: Path) -> None:
    text = """
    target_modules = ["fc1", "fc2"]
    resume = true
    use_dora = false
    gradient_checkpointing = "off"
    bundle_dir = "/mnt/usb stick/번들"
    num_train_epochs = 2
    learning_rate = 5e-5
    max_steps = -1
    cuda_visible_devices = ""
    """
    found = values(TrainOffline, "--config", toml(tmp_path, text))
    assert found["target_modules"] == ("fc1", "fc2")
    assert (found["resume"], found["use_dora"], found["gradient_checkpointing"]) == (True, False, "off")
    assert found["bundle_dir"] == Path("/mnt/usb stick/번들")
    assert (found["num_train_epochs"], found["learning_rate"], found["max_steps"]) == (2.0, 5e-5, -1)
    assert found["cuda_visible_devices"] == ""


def test_a_switch_of_the_toml_file_can_be_turned_off(tmp_path: Path) -> None:
    file = toml(tmp_path, "resume = true")
    assert values(TrainOffline, "--config", file)["resume"] is True
    assert values(TrainOffline, "--config", file, "--no-resume")["resume"] is False


def test_a_list_of_flags_replaces_the_list_of_the_toml_file(tmp_path: Path) -> None:
    file = toml(tmp_path, 'target_modules = ["fc1", "fc2"]')
    assert values(TrainOffline, "--config", file, "--target-modules", "k_proj")["target_modules"] == ("k_proj",)


# Lists


@pytest.mark.parametrize(
    "arguments",
    [
        ["--source", "table", "sql"],
        ["--source", "table", "--source", "sql"],
        ["--source", "table,sql"],
        ["--source=table,sql"],
        ["--source", "table,", "--source", ",sql"],
        ["--source=table", "--source", "sql"],
    ],
)
def test_a_list_may_be_given_in_any_way(arguments: list[object]) -> None:
    assert values(DownloadData, *arguments)["source"] == ("table", "sql")


def test_a_flag_behind_a_list_ends_it() -> None:
    found = values(DownloadData, "--table", "a.csv", "b.csv", "--limit", 5, "--table", "c.csv")
    assert (found["table"], found["limit"]) == ((Path("a.csv"), Path("b.csv"), Path("c.csv")), 5)


def test_a_file_name_keeps_its_commas() -> None:
    assert values(DownloadData, "--table", "1,2.csv", "/a,b/c.csv")["table"] == (Path("1,2.csv"), Path("/a,b/c.csv"))
    assert values(DownloadData, "--folder=a,b")["folder"] == (Path("a,b"),)


def test_a_path_rule_keeps_its_commas_and_its_equals_signs() -> None:
    rules = ("/cul_m01=/mnt/a,b", r"\\nas\x=Z:\y=z")
    assert values(DownloadData, "--path-map", rules[0], "--path-map", rules[1])["path_map"] == rules
    assert values(DownloadData, "--path-map", *rules)["path_map"] == rules


def test_a_list_of_pairs_may_be_joined() -> None:
    found = values(DownloadData, "--hub-splits", "train=train.clean,validation=dev", "test=test")
    assert found["hub_splits"] == ("train=train.clean", "validation=dev", "test=test")


def test_flags_do_not_add_to_the_list_of_the_toml_file(tmp_path: Path) -> None:
    """However often they are repeated: what was given on the command line is what is meant."""
    file = toml(tmp_path, 'table = ["old.csv"]\npath_map = ["/old=/new"]\nsource = ["table", "sql"]')
    assert values(DownloadData, "--config", file)["source"] == ("table", "sql")
    found = values(DownloadData, "--table", "a.csv", "--config", file, "--table", "b.csv", "--source", "table")
    assert found["table"] == (Path("a.csv"), Path("b.csv"))
    assert found["source"] == ("table",)
    assert found["path_map"] == ("/old=/new",)


def test_an_empty_list_of_the_toml_file_is_empty(tmp_path: Path) -> None:
    assert values(DownloadData, "--config", toml(tmp_path, "table = []"))["table"] == ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--source", "tables"], ["--source is tables", "common-voice", "fleurs-ko"]),
        (["--source", "auto", "table"], ["--source is auto table"]),
        (["--source"], ["--source"]),
        (["--path-map", "/cul_m01"], ["--path-map is /cul_m01", "FROM=TO"]),
        (["--hub-splits", "dev=validation"], ["--hub-splits is dev=validation", "train="]),
        (["--common-voice-splits", "train"], ["--common-voice-splits is train", "validated"]),
        (["--split", "0.8,0.1"], ["--split is 0.8,0.1", "three shares"]),
        (["--split", "0.8,0.1,0.2"], ["--split"]),
        (["--split", "0,0.5,0.5"], ["--split"]),
        (["--split", "nan,nan,nan"], ["--split"]),
        (["--split", "a,b,c"], ["--split"]),
        (["--split", "1.5,-0.25,-0.25"], ["--split"]),
        (["--max-clipped", "2"], ["--max-clipped", "between 0 and 1"]),
        (["--min-syllables-per-second", "20"], ["--min-syllables-per-second must be below --max-syllables-per-second"]),
        (["--db-query", "SELECT 1", "--db-table", "t"], ["--db-query", "--db-table"]),
        (["--limit", "-1"], ["--limit is -1"]),
        (["--store", "mp3"], ["--store", "features"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_data_is_told(arguments: list[object], words: list[str]) -> None:
    message = told(DownloadData, *arguments)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("split", ["0.8,0.1,0.1", "1,0,0", "0.9,0,0.1", " 0.8, 0.1, 0.1"])
def test_shares_that_add_up_are_taken(split: str) -> None:
    assert sum(config.split_shares(values(DownloadData, "--split", split)["split"])) == pytest.approx(1)


def test_keys_of_other_scripts_are_passed_over(tmp_path: Path) -> None:
    """One file serves the whole flow."""
    file = toml(tmp_path, 'common_voice = "cv.tar.gz"\nlora_r = 4\nport = 0\nrun = "r"\nlanguage = "Welsh"\n')
    assert values(TrainOffline, "--config", file)["lora_r"] == 4
    assert values(Inference, "--config", file)["port"] == 0
    assert values(OnlineSetup, "--config", file)["language"] == "Welsh"


def test_files_of_inference_stand_anywhere() -> None:
    for arguments in (
        ["a.mp3", "b c.wav", "--run", "x"],
        ["--run", "x", "a.mp3", "b c.wav"],
        ["a.mp3", "--run=x", "b c.wav"],
    ):
        found = values(Inference, *arguments)
        assert (found["files"], found["run"]) == ((Path("a.mp3"), Path("b c.wav")), Path("x"))


def test_names_of_files_are_left_alone() -> None:
    named = (Path("--my_voice.wav"), Path("a_b.wav"))
    assert values(Inference, "./--my_voice.wav", "a_b.wav")["files"] == named
    assert values(Inference, "--run=x", "--", "--my_voice.wav", "a_b.wav")["files"] == named


def test_a_bare_double_hyphen_does_not_hide_stray_words() -> None:
    assert "stray" in told(TrainOffline, "--", "stray")


def test_files_that_are_given_win_over_those_of_the_toml_file(tmp_path: Path) -> None:
    file = toml(tmp_path, 'files = ["old.wav"]')
    assert values(Inference, "--config", file)["files"] == (Path("old.wav"),)
    assert values(Inference, "--config", file, "new.wav")["files"] == (Path("new.wav"),)
    assert values(Inference, "new.wav", "--config", file)["files"] == (Path("new.wav"),)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_serve_every_script(example: Path, name: str) -> None:
    found = values(SCRIPTS[name], "--config", example)
    given = tomllib.loads(example.read_text(encoding="utf-8"))
    for key in given.keys() & found.keys():
        expected = tuple(given[key]) if isinstance(given[key], list) else given[key]
        assert (str(found[key]) if isinstance(found[key], Path) else found[key]) == expected


# What is wrong is told


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("--lerning-rate", "--learning-rate"), ("--lora_rr", "--lora-r"), ("--num-epochs", "--num-train-epochs")],
)
def test_unknown_flag_names_the_nearest(wrong: str, right: str) -> None:
    message = told(TrainOffline, wrong, 1)
    assert wrong.replace("_", "-") in message
    assert f"did you mean {right}?" in message


def test_unknown_flag_with_equals_sign_and_one_like_no_other() -> None:
    assert "did you mean --learning-rate?" in told(TrainOffline, "--lerning_rate=1")
    assert "--xyzzy" in told(TrainOffline, "--xyzzy")
    assert "did you mean" not in told(TrainOffline, "--xyzzy")


def test_abbreviated_flags_are_unknown() -> None:
    """What is short for one flag today may be short for two tomorrow."""
    assert "--learning-rate" in told(TrainOffline, "--learning", "1e-4")


def test_a_word_that_belongs_to_no_flag_is_told() -> None:
    assert "stray" in told(TrainOffline, "stray")


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    message = told(TrainOffline, "--config", toml(tmp_path, "lerning_rate = 1"))
    assert "run.toml" in message
    assert "lerning_rate" in message
    assert "did you mean learning_rate?" in message


@pytest.mark.parametrize("text", ["lora_r =", "[training]\nlora_r = 4", "lora_r = 4\nlora_r = 5"])
def test_a_file_that_is_not_flat_toml_is_told(tmp_path: Path, text: str) -> None:
    assert "run.toml" in told(TrainOffline, "--config", toml(tmp_path, text))


def test_a_toml_file_that_is_missing_or_not_text_is_told(tmp_path: Path) -> None:
    assert "none.toml" in told(TrainOffline, "--config", tmp_path / "none.toml")
    assert str(tmp_path) in told(TrainOffline, "--config", tmp_path)
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    assert "run.toml" in told(TrainOffline, "--config", tmp_path / "run.toml")


WRONG = [
    ("lora_r", "many", "int"),
    ("lora_r", "1.5", "int"),
    ("learning_rate", "fast", "float"),
    ("quantization", "9bit", "8bit"),
    ("quantization", "9bit", "none"),
    ("method", "qlora", "full"),
    ("audio_layout", "loose", "padded"),
    ("lora_dropout", "1.5", "between 0 and 0.99"),
    ("lora_r", "0", "at least 1"),
    ("learning_rate", "0.0", "above 0"),
    ("learning_rate", "nan", "above 0"),
    ("max_steps", "0", "above 0, or -1"),
    ("warmup_steps", "-1", "at least 0"),
    ("generation_max_length", "449", "between 8 and 448"),
    ("run_name", "../elsewhere", "plain folder name"),
    ("run_name", "a\\b", "plain folder name"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG)
def test_a_wrong_flag_is_told_with_its_value_and_what_is_allowed(name: str, value: str, allowed: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    message = told(TrainOffline, f"{flag}={value}")
    assert [word for word in (flag, value, allowed) if word not in message] == []


@pytest.mark.parametrize(
    ("name", "value", "shown", "allowed"),
    [
        ("lora_r", "'many'", "many", "int"),
        ("lora_r", "1.5", "1.5", "int"),
        ("lora_r", "true", "true", "int"),
        ("lora_r", "[1, 2]", "1", "int"),
        ("lora_r", "{ a = 1 }", "a", "int"),
        ("resume", "'yes'", "yes", "true"),
        ("resume", "1", "1", "true"),
        ("method", "'qlora'", "qlora", "full"),
        ("method", "['lora', 'full']", "lora", "full"),
        ("lora_dropout", "1.5", "1.5", "between 0 and 0.99"),
        ("target_modules", "[]", "", "at least one"),
    ],
)
def test_a_wrong_toml_value_is_told_with_its_key_and_what_is_allowed(
    tmp_path: Path, name: str, value: str, shown: str, allowed: str
) -> None:
    message = told(TrainOffline, "--config", toml(tmp_path, f"{name} = {value}")).lower()
    assert [word for word in (name, shown, allowed) if word not in message.replace("-", "_")] == []


@pytest.mark.parametrize("value", ["[0, 9]", "true"])
def test_a_wrong_toml_value_is_not_taken_for_a_file_to_transcribe(tmp_path: Path, value: str) -> None:
    assert "port" in told(Inference, "--config", toml(tmp_path, f"port = {value}"), "7")


def test_all_problems_are_told_at_once() -> None:
    message = told(
        TrainOffline, "--lora-r=0", "--max-steps=0", "--warmup-steps=-1", "--method=full", "--quantization=8bit"
    )
    for flag in ("--lora-r", "--max-steps", "--warmup-steps", "--method full", "--quantization none"):
        assert flag in message


def test_limits_that_contradict_each_other() -> None:
    message = told(DownloadData, "--min-seconds", 5, "--max-seconds", 4)
    assert "--min-seconds" in message
    assert "--max-seconds" in message


def test_as_the_user_sees_it(tmp_path: Path) -> None:
    """Exit code 2, nothing on standard output, one line on standard error."""
    wrong: dict[str, list[object]] = {
        "train_offline.py": ["--lerning-rate", "1"],
        "run_online_setup.py": ["--max-seconds", "31", "--num-proc", "-1"],
        "inference.py": ["--config", toml(tmp_path, "lora_rr = 1")],
    }
    for name, arguments in wrong.items():
        done = script(name, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


# --print-config


def fed_back(found: Any, folder: Path) -> Any:
    return parse(type(found), ["--config", str(toml(folder, to_toml(found)))])[0]


@pytest.mark.parametrize("name", SCRIPTS)
def test_print_config_can_be_fed_back(name: str, tmp_path: Path) -> None:
    done = script(name, "--print-config", check=True)
    printed = tomllib.loads(done.stdout)
    expected = defaults(SCRIPTS[name])
    assert printed.keys() == {key for key, value in expected.items() if value is not None}
    assert values(SCRIPTS[name], "--config", toml(tmp_path, done.stdout)) == expected


def test_print_config_shows_what_file_and_flags_lead_to(tmp_path: Path) -> None:
    file = toml(tmp_path, "lora_r = 16\nlora_alpha = 17\n")
    done = script("train_offline.py", "--config", file, "--lora-alpha", 18, "--print-config", check=True)
    printed = tomllib.loads(done.stdout)
    assert (printed["lora_r"], printed["lora_alpha"], printed["lora_dropout"]) == (16, 18, 0.05)


ANY_CHARACTER = st.one_of(st.integers(0x20, 0xD7FF), st.integers(0xE000, 0x10FFFF), st.sampled_from(b"\n\t\"'\\#=-_. "))
ANY_TEXT = st.lists(ANY_CHARACTER.map(chr), min_size=1, max_size=12).map("".join)
# One that looks like a flag has to be written with its folder.
FILE_NAME = ANY_TEXT.filter(lambda text: not text.startswith("-"))
FOLDER_NAME = ANY_TEXT.filter(lambda text: text not in (".", "..") and not set(text) & set('/\\:*?"<>|'))


@given(
    bundle_dir=ANY_TEXT.map(Path),
    run_name=st.none() | FOLDER_NAME,
    seed=st.integers(-(2**40), 2**40),
    cuda_visible_devices=st.sampled_from(["", "0", "0,1", "-1"]),
    quantization=st.sampled_from(["auto", "8bit", "4bit", "none"]),
    lora_r=st.integers(1, 4096),
    lora_dropout=st.floats(0, 0.99),
    target_modules=st.lists(st.sampled_from(["q_proj", "k_proj", "fc1", "all-linear"]), min_size=1).map(tuple),
    learning_rate=st.none() | st.floats(0, 10, exclude_min=True),
    num_train_epochs=st.floats(0, 1e6, exclude_min=True),
    max_steps=st.just(-1) | st.integers(1, 10**9),
    resume=st.booleans(),
)
@REPEATABLE
def test_any_training_configuration_survives_toml(
    tmp_path_factory: pytest.TempPathFactory, **given_values: Any
) -> None:
    found = TrainOffline()
    for group in filter(is_dataclass, vars(found).values()):
        for name in vars(group).keys() & given_values.keys():
            setattr(group, name, given_values[name])
    assert dict(knobs(found)).items() >= given_values.items()
    assert fed_back(found, tmp_path_factory.mktemp("toml")) == found


@given(
    name=ANY_TEXT,
    release=st.none() | ANY_TEXT.map(Path),
    tables=st.lists(FILE_NAME.map(Path), max_size=3).map(tuple),
    sources=st.lists(st.sampled_from(config.SOURCES[1:]), min_size=1, max_size=3).map(tuple),
    rules=st.lists(st.sampled_from(["/a=/b", r"\\nas\a=/b", "/음성, 둘=/mnt/a,b"]), max_size=2).map(tuple),
    seconds=st.floats(0, 10),
    demo=st.booleans(),
)
@REPEATABLE
def test_any_online_configuration_survives_toml(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    release: Path | None,
    tables: tuple[Path, ...],
    sources: tuple[str, ...],
    rules: tuple[str, ...],
    seconds: float,
    demo: bool,
) -> None:
    found = OnlineSetup(demo=demo)
    found.whisper.model_name_or_path, found.data.common_voice.common_voice = name, release
    found.data.files.table, found.data.source.source, found.data.source.path_map = tables, sources, rules
    found.data.cleaning.min_seconds = seconds
    assert fed_back(found, tmp_path_factory.mktemp("toml")) == found


def test_files_survive_toml(tmp_path: Path) -> None:
    found = Inference(files=(Path("a.mp3"), Path("소리 2.wav")))
    assert fed_back(found, tmp_path) == found


# --help

SHOW_HELP = """
import json, runpy, sys
sys.path.insert(0, sys.argv[1])
sys.argv = [sys.argv[2], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print("\\n" + json.dumps([end.code, sorted(sys.modules)]))
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_tells_every_flag_with_its_meaning_and_imports_nothing_heavy(name: str) -> None:
    command = [sys.executable, "-c", SHOW_HELP, str(ROOT), str(ROOT / name)]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    shown, _, last = done.stdout.decode().rstrip().rpartition("\n")
    code, modules = json.loads(last)
    assert code == 0
    assert [module for module in HEAVY if module in modules] == []
    assert f"python {name}" in shown
    docs = knob_docs()
    for knob in defaults(SCRIPTS[name]):
        assert knob == "files" or f"--{knob.replace('_', '-')}" in shown
        assert any(without_space(doc) in without_space(shown) for doc in docs[knob])


def knob_docs() -> dict[str, list[str]]:
    """The doc strings that stand under the fields of config.py; a name may be in the groups of several scripts."""
    groups = ast.parse((ROOT / "config.py").read_text(encoding="utf-8")).body
    pairs = [pair for group in groups if isinstance(group, ast.ClassDef) for pair in itertools.pairwise(group.body)]
    docs: dict[str, list[str]] = {}
    for knob, doc in pairs:
        if isinstance(knob, ast.AnnAssign) and isinstance(doc, ast.Expr):
            docs.setdefault(ast.unparse(knob.target), []).append(ast.literal_eval(doc.value))
    return docs


def without_space(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_there_in_half_a_second(name: str) -> None:
    """The best of three: a busy machine must not fail it, and slow code cannot pass."""

    def seconds() -> float:
        began = time.perf_counter()
        assert "--config" in script(name, "--help", check=True).stdout
        return time.perf_counter() - began

    assert any(seconds() < 0.5 for _ in range(3))


# Without the requirements


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "download_data.py"])
def test_missing_requirements_are_told(name: str, tmp_path: Path) -> None:
    """A Python with its standard library alone says what to install."""
    bundle = tmp_path / "bundle"
    (bundle / "model").mkdir(parents=True)
    seal(bundle, "a-base", {"language": "Korean", "task": "transcribe"}, {"splits": {}})
    common = ["--bundle-dir", bundle]
    arguments = {
        "download_model.py": ["--model-name-or-path", DEMO_MODEL, *common],
        "run_online_setup.py": ["--demo", "--bundle-dir", tmp_path / "new"],
        "train_offline.py": [*common, "--output-dir", tmp_path / "runs"],
        "evaluate_model.py": common,
        "inference.py": [ROOT / name, *common],
    }[name]
    command = [sys.executable, "-S", ROOT / name, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, encoding="utf-8", check=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2
    assert last.startswith("error: the Python package ")
    assert last.endswith("pip install -r requirements.txt")
    assert "Traceback" not in done.stderr
