"""Every knob of the suite, one group a stage. Three ways to turn them: edit this file, `--config FILE.toml`, flags.

A flag is the field's name with hyphens (`--learning-rate 1e-4`); a TOML key is the field's name. Flags win over the
TOML file, and the TOML file over what stands here.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

LEARNING_RATES = {"lora": 1e-3, "full": 1e-5}
LORA_STARTS = ("true", "gaussian", "orthogonal", "olora", "pissa")


@dataclass
class Bundle:
    """The folder that crosses the gap."""

    bundle_dir: Path = Path("bundle")
    """Folder with data, model and manifest; the online half writes it, the offline half only reads it."""


@dataclass
class Whisper:
    """The base model and what it is to do."""

    model_name_or_path: str = "openai/whisper-small"
    """Hub id, local folder or run of ours (runs/NAME) of the Whisper to fine-tune (tiny to large-v3, turbo)."""
    model_revision: str = "main"
    """Branch, tag or commit of a Hub id; a commit makes the download repeatable."""
    language: str = "Korean"
    """Language of the speech, in English, as Whisper's tokenizer names it."""
    language_abbr: str = "ko"
    """The same language as Common Voice's folder names it."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Write the speech down in its own language, or translate it into English."""


@dataclass
class Source:
    """Where the speech comes from."""

    source: tuple[str, ...] = ("auto",)
    """One or several of: common-voice zeroth-korean fleurs-ko kss hub table folder sql. auto takes each one whose own
    flag is given, and Common Voice where there is none."""
    limit: int = 0
    """Read at most so many rows of each source; 0 reads all."""
    group_column: str | None = None
    """Column of what must stay on one side of the split, such as a programme or a call; by default the speaker."""
    split_column: str | None = None
    """Column with train, validation (dev) or test."""


@dataclass
class TableColumns:
    """Which column of a table is which. Columns are found by their usual names, unless named."""

    audio_column: str | None = None
    """Column with the audio: paths, or the bytes of audio files."""
    text_column: str | None = None
    """Column with what is said."""
    speaker_column: str | None = None
    """Column that tells speakers apart."""
    audio_root: Path | None = None
    """Folder that relative audio paths start from; by default the folder of the table."""
    path_map: tuple[str, ...] = ()
    """FROM=TO rewrites the beginning of audio paths, as /cul_m01=/mnt/cul; repeatable, the longest FROM wins."""


@dataclass
class CommonVoice:
    """Mozilla Common Voice."""

    common_voice: Path | None = None
    """A release on disk: its .tar.gz, or the folder unpacked from it; without it the newest one of the language is
    downloaded from Mozilla Data Collective (needs MDC_API_KEY)."""
    common_voice_splits: tuple[str, ...] = ()
    """More training clips from: other, validated, invalidated; never of a speaker in dev or test."""


@dataclass
class HubDataset:
    """A dataset on the Hugging Face Hub, as parquet or an audio folder; HF_TOKEN opens private ones."""

    hub_dataset: str | None = None
    """Its id, such as kresnik/zeroth_korean."""
    hub_config: str | None = None
    """Its configuration (subset), where it has several."""
    hub_revision: str = "main"
    """Branch, tag or commit; a commit makes the download repeatable."""
    hub_splits: tuple[str, ...] = ()
    """OURS=THEIRS pairs, as validation=dev; by default what they are called says what they are."""


@dataclass
class Files:
    """Recordings of your own, in files."""

    table: tuple[Path, ...] = ()
    """Tables that name audio files and texts: csv, tsv, jsonl, parquet or xlsx; UTF-8, UTF-16 or CP949."""
    folder: tuple[Path, ...] = ()
    """Folders with clip.wav beside clip.txt, in any depth."""


@dataclass
class Database:
    """Recordings of your own, in a SQL database. It is only read. The password stands in DB_PASSWORD."""

    db_url: str | None = None
    """SQLAlchemy URL without a password, as mysql+pymysql://user@host/name or postgresql+psycopg://user@host/name."""
    db_query: str | None = None
    """A single SELECT that gives audio and text, and speaker, group and split where there are any."""
    db_table: str | None = None
    """A table (or schema.table) to read instead of a query."""


@dataclass
class Cleaning:
    """What of it is kept."""

    strip_caption_marks: bool = False
    """Take (웃음), [음악], ♪, leading dashes and >> of subtitles out of the text."""
    min_seconds: float = 0.3
    """Shorter clips are dropped and reported."""
    max_seconds: float = 30.0
    """Longer clips are dropped and reported; Whisper's window holds 30 s."""
    min_syllables_per_second: float = 0.2
    """Slower clips are dropped and reported: their text says less than is heard; 0 keeps them."""
    max_syllables_per_second: float = 15.0
    """Faster clips are dropped and reported: their text says more than is heard."""
    max_clipped: float = 0.02
    """Share of samples at full scale above which a clip is dropped as clipped; 1 keeps them."""
    keep_repeats: bool = False
    """Keep a sentence that its speaker has said before; recordings that are the same go anyway."""
    split: str = "0.8,0.1,0.1"
    """Shares of train, validation and test where a source gives none."""
    split_seed: int = 42
    """Fixes who goes where."""
    strict: bool = False
    """Fail when any row is dropped."""


@dataclass
class Storage:
    """How it is stored."""

    store: Literal["audio", "features"] = "audio"
    """audio keeps 16 kHz FLAC; features keeps float16 log-mel of the real length, so that training has none to make."""
    num_proc: int = 0
    """Processes that prepare clips; 0 takes every core."""


@dataclass
class Data:
    """The speech."""

    source: Source = field(default_factory=Source)
    columns: TableColumns = field(default_factory=TableColumns)
    common_voice: CommonVoice = field(default_factory=CommonVoice)
    hub: HubDataset = field(default_factory=HubDataset)
    files: Files = field(default_factory=Files)
    database: Database = field(default_factory=Database)
    cleaning: Cleaning = field(default_factory=Cleaning)
    storage: Storage = field(default_factory=Storage)


@dataclass
class Run:
    """The folder that a training leaves behind."""

    output_dir: Path = Path("runs")
    """Folder of all runs."""
    run_name: str | None = None
    """Name of this run's folder; by default the time when it started."""
    seed: int = 42
    """Fixes the order of clips, the initial LoRA weights and dropout."""


@dataclass
class Device:
    """The hardware and the number formats."""

    cuda_visible_devices: str = "0"
    """The GPU to use, as CUDA numbers them; "" for none."""
    quantization: Literal["auto", "8bit", "4bit", "none"] = "auto"
    """Format of the frozen base weights; auto is 8bit on CUDA and none on a CPU."""


@dataclass
class Lora:
    """What is trained: low-rank adapters (Hu et al., 2021) or every weight."""

    method: Literal["lora", "full"] = "lora"
    """lora trains small adapters beside frozen weights; full trains all weights and needs several times the memory."""
    lora_r: int = 32
    """Rank of the adapters; more rank, more capacity and memory."""
    lora_alpha: int = 64
    """Scale of the adapters: their output is multiplied by alpha / r."""
    lora_dropout: float = 0.05
    """Share of adapter inputs that is dropped in training."""
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    """Linear layers that get an adapter: any of q_proj k_proj v_proj out_proj fc1 fc2, or all-linear."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r (rsLoRA, Kalajdzievski, 2023); for high ranks."""
    use_dora: bool = False
    """Train the weights' magnitude beside their direction (DoRA, Liu et al., 2024): slower, better at low ranks."""
    init_lora_weights: str = "true"
    """How PEFT begins: true, gaussian, orthogonal, or from the base weights: olora, pissa, pissa_niter_16 (the quick
    one); those need --quantization none, and are saved with twice the rank."""


@dataclass
class Training:
    """How it is trained."""

    per_device_train_batch_size: int = 8
    """Utterances a step; they share as few 30 s windows as they fit."""
    gradient_accumulation_steps: int = 1
    """Batches that are added up before the weights move; packed windows in fewer of them, of the same clips."""
    learning_rate: float | None = None
    """Peak learning rate; by default 1e-3 for lora and 1e-5 for full."""
    num_train_epochs: float = 3.0
    """Passes over the training clips."""
    max_steps: int = -1
    """Stop after so many optimiser steps; -1 leaves it to num_train_epochs."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises from 0 to its peak; it then falls linearly to 0."""
    audio_layout: Literal["auto", "packed", "trimmed", "padded"] = "auto"
    """packed lays a step's clips end to end in 30 s windows; trimmed cuts the window to the step's longest clip, in
    training and decoding; padded gives each clip 30 s, most of it silence (the usual recipe). auto is packed, or
    what the bundle's model was made for."""
    timestamp_probability: float = 0.2
    """Share of windows whose labels carry timestamps, so that the tuned model still tells times; 0 for none."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Compute activations twice instead of keeping them: less memory, about a third more time. auto is on where the
    estimated memory is more than the device has."""
    eval_steps: int = 0
    """Measure CER on the validation split every so many steps; 0 is once an epoch."""
    early_stopping_patience: int = 0
    """Stop after so many evaluations in a row that did not better the CER; 0 never does."""
    save_steps: int = 0
    """Write a checkpoint every so many steps; 0 is once an epoch."""
    save_total_limit: int = 2
    """Checkpoints that are kept; at least 2, so that one is whole while the next is written."""
    logging_steps: int = 10
    """Steps between two lines of loss in metrics.jsonl and TensorBoard."""
    dataloader_num_workers: int = 2
    """Processes that decode audio and compute log-mel while the model trains."""
    resume: bool = False
    """Go on from the newest complete checkpoint of the run (--run-name, or the newest unfinished one)."""


@dataclass
class Augmentation:
    """What is done to the training clips, drawn afresh in each epoch. Off by default."""

    speed_perturb: float = 0.0
    """Play each clip faster or slower by up to this share, as 0.1 (Ko et al., 2015)."""
    gain_db: float = 0.0
    """Make each clip louder or softer by up to so many dB."""
    noise_snr_db: float | None = None
    """Add noise to each clip, at a signal-to-noise ratio between this and 20 dB more."""
    noise_dir: Path | None = None
    """Folder of recordings to take the noise from, two minutes of each (16 kHz files are fastest); by default it is
    white."""
    telephone_probability: float = 0.0
    """Share of clips that are heard through a telephone (300 to 3,400 Hz, 8-bit mu-law)."""
    apply_spec_augment: bool = False
    """Hide stretches of the spectrogram (SpecAugment, Park et al., 2019)."""
    mask_time_prob: float = 0.05
    """With SpecAugment: about this share of the frames is hidden, in stretches of 0.1 s, which may overlap."""
    mask_feature_prob: float = 0.0
    """With SpecAugment: about this share of the mel bins is hidden, in stretches of 10."""


@dataclass
class Decoding:
    """How text is made from audio."""

    per_device_eval_batch_size: int = 8
    """Windows of 30 s that are decoded together; of windows that are cut shorter as many as take the same room, up to
    four times the number."""
    generation_max_length: int = 225
    """Most tokens of one utterance, Whisper's 4 prompt tokens included; the model ends at 448."""


@dataclass
class UseRun:
    """Which trained run is used."""

    output_dir: Path = Path("runs")
    """Folder of all runs."""
    run: Path | None = None
    """Folder of one run, or its name under output_dir; by default the newest finished run."""


@dataclass
class UseRuns:
    """Which systems are compared."""

    output_dir: Path = Path("runs")
    """Folder of all runs."""
    run: tuple[Path, ...] = ()
    """Folders of trained runs, or their names under output_dir; by default the newest finished run. Their base goes
    with them."""
    model: tuple[Path, ...] = ()
    """Other systems, each a local folder with a Whisper as transformers has it, a PEFT adapter for the bundle's base,
    or a model of CTranslate2. Alone they need no bundle, and the first is what the others are compared with."""


@dataclass
class Measuring:
    """What they are compared on, and how it is told."""

    data: Path | None = None
    """Test set: another bundle, a split of one (bundle/data/validation), another folder that datasets opens, or a table
    with audio (csv, tsv, jsonl, parquet, xlsx); by default the test split of --bundle-dir."""
    also: tuple[Path, ...] = ()
    """More test sets of these kinds, as speech that the model could do before: forgetting stands beside learning."""
    windows: Literal["auto", "own", "both"] = "auto"
    """Audio windows to decode with: own is that of each system's training; auto adds the 30 s of other tools where a
    system was trained with shorter ones; both decodes everything with both."""
    language: str | None = None
    """Language of the speech, in English; by default the bundle's, and Korean without a bundle."""
    evaluation_dir: Path | None = None
    """Folder for the report; by default evaluation in the folder of the run, and evaluations/NAMES where several
    systems are compared."""
    overwrite_cache: bool = False
    """Decode again what was decoded before (output_dir/.decoded keeps the texts)."""


@dataclass
class Transcribing:
    """What is written of audio files."""

    model: Path | None = None
    """Instead of a run: a local folder with a Whisper, an adapter for the bundle's base, or a model of CTranslate2."""
    format: Literal["txt", "srt", "vtt", "tsv", "json"] = "txt"
    """Plain text, subtitles, a table, or everything."""
    transcript_dir: Path | None = None
    """Folder for a file of each recording; one that is newer than its recording is left as it is. By default all goes
    to standard output."""
    overwrite: bool = False
    """Transcribe again what has its file in transcript_dir."""
    timestamps: Literal["auto", "none", "segment", "word"] = "auto"
    """Times of segments or of words; auto is none for txt, and segment for the other formats."""
    max_line_width: int = 16
    """Characters of a line of subtitles; 0 for any number. Netflix allows 16 in Korean, and 42 in English."""
    max_line_count: int = 2
    """Lines of a subtitle."""
    max_segment_s: float = 7.0
    """Seconds that a subtitle is shown at most."""
    engine: Literal["auto", "transformers", "ctranslate2"] = "auto"
    """What runs a run: auto takes its export for CTranslate2 where it is there and was found to write the same, and
    transformers otherwise, and where the base is compared or --quantization is given."""
    compare: Literal["none", "base"] = "none"
    """Also write what the base model makes of it (txt and json)."""


@dataclass
class Export:
    """A trained run as a model that other tools open, in the run's folder export/."""

    export: Literal["none", "merged", "ctranslate2", "both"] = "none"
    """merged is a plain Whisper, with the adapter merged in; ctranslate2 is what faster-whisper opens; none writes no
    model."""
    export_quantization: Literal["float16", "int8", "int8_float16", "float32"] = "float16"
    """Format of the weights of ctranslate2; it opens float16 as int8 or float32, too. int8 takes half the room."""
    parity_clips: int = 32
    """Test clips, the first of the split, that run and export both write down, to see that they write the same; 0 for
    none."""
    parity_limit: float = 0.005
    """Difference of their CER, in either direction, above which an export counts as failed."""


@dataclass
class Page:
    """The demo page, served when no files are named."""

    host: str = "127.0.0.1"
    """Address of this machine that the page listens on; 0.0.0.0 lets other machines in."""
    port: int = 7860
    """Its port; 0 takes any free one."""
    auth_file: Path | None = None
    """File with a line name:password for each person who may use the page; nobody else may be able to read it."""
    ssl_certfile: Path | None = None
    """Certificate for https, without which browsers give no microphone to pages of other machines."""
    ssl_keyfile: Path | None = None
    """Its private key."""
    max_upload_mb: int = 500
    """Largest file that may be uploaded, in MB."""
    max_upload_minutes: float = 120.0
    """Longest recording that is transcribed."""
    max_queue: int = 64
    """Recordings that may wait; more are turned away with a message."""
    samples: int = 4
    """Clips of the bundle's test split that the page offers to hear; 0 for none, where not everybody may hear them."""


@dataclass
class Wheels:
    """Python packages for a box that can fetch none."""

    wheels: bool = False
    """Bring every package of requirements.txt into bundle/wheels, for the box that the target flags describe."""
    target_python: str | None = None
    """Python version of the box, as 3.11 or 3.12; by default this machine's."""
    target_platform: str | None = None
    """System of the box: linux_x86_64, linux_aarch64, win_amd64 or macosx_arm64; by default this machine's."""
    target_cuda: str = "default"
    """default takes the torch that the index has; another name, as cpu, 126 (also 12.6) or 130, takes the build of
    torch with that local version; --wheel-index names the index that has it."""
    wheel_index: str | None = None
    """One more package index, for a torch that is built for another CUDA version."""
    install_wheels: bool = False
    """On the box: look whether Python, system and driver suit bundle/wheels, then install them from there alone."""


@dataclass
class Crossing:
    """Carrying the bundle across; none of it needs more than Python."""

    verify: bool = False
    """Compare bundle and project with the manifest, list every file that is missing, extra, cut short or altered."""
    quick: bool = False
    """With --verify: compare names and sizes only."""
    pack: Path | None = None
    """Write the bundle into numbered volumes in this folder, and the project beside them as project.zip."""
    volume_size: str = "4GB"
    """Size of a volume at most, as 700MB, 4GB (just under what FAT32 holds) or 25GB."""
    unpack: Path | None = None
    """Put the bundle together again from the volumes in this folder; repeat it when a volume was bad or missing."""


@dataclass
class DownloadData:
    """Speech in: read a source, keep what is good, store it in bundle/data."""

    bundle: Bundle = field(default_factory=Bundle)
    whisper: Whisper = field(default_factory=Whisper)
    data: Data = field(default_factory=Data)


@dataclass
class DownloadModel:
    """Whisper in: bring the base model into bundle/model."""

    bundle: Bundle = field(default_factory=Bundle)
    whisper: Whisper = field(default_factory=Whisper)


@dataclass
class OnlineSetup:
    """The whole online half: model, data, manifest."""

    demo: bool = False
    """Use the embedded corpus and the embedded tiny Whisper; needs no network."""
    bundle: Bundle = field(default_factory=Bundle)
    whisper: Whisper = field(default_factory=Whisper)
    data: Data = field(default_factory=Data)
    wheels: Wheels = field(default_factory=Wheels)
    crossing: Crossing = field(default_factory=Crossing)


@dataclass
class TrainOffline:
    """Fine-tune the bundle's Whisper on the bundle's speech, with no network."""

    check: bool = False
    """Only look whether this box can do it: packages, bundle, GPU, 8 bit, disk, memory and time; nothing is written."""
    json: bool = False
    """With --check: print the answer as JSON."""
    bundle: Bundle = field(default_factory=Bundle)
    run: Run = field(default_factory=Run)
    device: Device = field(default_factory=Device)
    lora: Lora = field(default_factory=Lora)
    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    decoding: Decoding = field(default_factory=Decoding)


@dataclass
class EvaluateModel:
    """Measure CER and WER of the base model and of tuned ones, or of any others, on the same test sets."""

    bundle: Bundle = field(default_factory=Bundle)
    use: UseRuns = field(default_factory=UseRuns)
    measuring: Measuring = field(default_factory=Measuring)
    columns: TableColumns = field(default_factory=TableColumns)
    device: Device = field(default_factory=Device)
    decoding: Decoding = field(default_factory=Decoding)


@dataclass
class Inference:
    """Transcribe audio files, or serve the demo page when none are named."""

    files: tuple[Path, ...] = ()
    """Audio and video files of any length, folders of them, patterns such as calls/*.m4a, and - for standard input."""
    transcribing: Transcribing = field(default_factory=Transcribing)
    export: Export = field(default_factory=Export)
    bundle: Bundle = field(default_factory=Bundle)
    use: UseRun = field(default_factory=UseRun)
    device: Device = field(default_factory=Device)
    decoding: Decoding = field(default_factory=Decoding)
    page: Page = field(default_factory=Page)


SCRIPTS = (DownloadData, DownloadModel, OnlineSetup, TrainOffline, EvaluateModel, Inference)


def knobs(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of every knob of a configuration, its groups laid flat."""
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            yield from knobs(value)
        else:
            yield entry.name, value


def problems(config: Any) -> list[str]:
    """Return what is wrong with the values, each in one sentence that names the flag; all of it at once."""
    values = dict(knobs(config))
    found = [
        f"{_flag(name)} is {_spelled(values[name])}, but {rule}"
        for name, (ok, rule) in RULES.items()
        if name in values and values[name] is not None and not ok(values[name])
    ]
    if "method" in values and values["method"] == "full" and values["quantization"] in ("8bit", "4bit"):
        found.append(f"--method full cannot train {values['quantization']} weights: use --quantization none")
    for low, high in (("min_seconds", "max_seconds"), ("min_syllables_per_second", "max_syllables_per_second")):
        if low in values and values[low] >= values[high]:
            found.append(f"{_flag(low)} must be below {_flag(high)}")
    found += _idle_transcribing(values) + _idle_export(values)
    if (values.get("ssl_certfile") is None) != (values.get("ssl_keyfile") is None):
        found.append("--ssl-certfile and --ssl-keyfile go together")
    if values.get("json") and not values.get("check"):
        found.append("--json goes with --check")
    if values.get("db_query") and values.get("db_table"):
        found.append("--db-query and --db-table cannot both be given")
    return found + _idle_adapters(values) + _idle_augmentation(values)


def _idle_adapters(values: dict[str, Any]) -> list[str]:
    """Return what is given of adapters where none are trained."""
    if values.get("method") != "full":
        return []
    given = [name for name, value in knobs(Lora()) if name != "method" and values[name] != value]
    return [f"{_flag(given[0])} is for adapters, and --method full trains every weight"] if given else []


def _idle_transcribing(values: dict[str, Any]) -> list[str]:
    """Return what is given of transcripts and does not go together."""
    if "transcript_dir" not in values:
        return []
    found, wanted = [], values["format"]
    if values["timestamps"] == "none" and wanted in ("srt", "vtt", "tsv"):
        found.append(f"--timestamps none leaves nothing of --format {wanted}: use --format txt or json")
    if values["compare"] != "none" and wanted not in ("txt", "json"):
        found.append(f"--compare {values['compare']} needs --format txt or json: {wanted} holds one text")
    if values["compare"] != "none" and values["model"] is not None:
        found.append("--compare base goes with a run, not with --model")
    if values["engine"] == "ctranslate2":
        if values["compare"] != "none":
            found.append(f"--compare {values['compare']} runs both in one engine: leave out --engine ctranslate2")
        if values["model"] is not None:
            found.append("--engine ctranslate2 takes the export of a run: --model FOLDER says by itself what runs it")
        if values["quantization"] == "4bit":
            found.append("--engine ctranslate2 has no 4bit weights: use --quantization 8bit, none or auto")
    return found


def _idle_export(values: dict[str, Any]) -> list[str]:
    """Return what does not go with writing a model."""
    wanted = values.get("export", "none")
    if wanted == "none":
        return []
    found = []
    if values["files"]:
        found.append(f"--export {wanted} writes a model, no texts: leave out {values['files'][0]}")
    if values["model"] is not None:
        found.append(f"--export {wanted} takes a trained run: give --run, not --model")
    if wanted == "merged" and values["export_quantization"] != Export().export_quantization:
        found.append("--export-quantization is for --export ctranslate2 or both; what is merged is float32")
    return found


def _idle_augmentation(values: dict[str, Any]) -> list[str]:
    """Return what is given of augmentation and would do nothing."""
    if "noise_dir" not in values:
        return []
    found, plain = [], Augmentation()
    if values["noise_dir"] is not None and values["noise_snr_db"] is None:
        found.append("--noise-dir needs --noise-snr-db, which says how loud the noise is, as --noise-snr-db 5")
    masks = [name for name in ("mask_time_prob", "mask_feature_prob") if values[name] != getattr(plain, name)]
    if masks and not values["apply_spec_augment"]:
        found.append(f"{_flag(masks[0])} hides nothing without --apply-spec-augment")
    if values["apply_spec_augment"] and not values["mask_time_prob"] and not values["mask_feature_prob"]:
        found.append("--apply-spec-augment hides nothing while --mask-time-prob and --mask-feature-prob are both 0")
    return found


def split_shares(text: str) -> tuple[float, ...]:
    """Return the shares of train, validation and test that `text` gives, in the sum 1.

    Raises:
        ValueError: these are no such shares.
    """
    shares = tuple(float(part) for part in text.split(","))
    if len(shares) != 3 or not all(0 <= share <= 1 for share in shares) or shares[0] == 0:
        raise ValueError(text)
    if abs(sum(shares) - 1) > 1e-6:
        raise ValueError(text)
    return shares


def _are_shares(text: str) -> bool:
    try:
        return bool(split_shares(text))
    except ValueError:
        return False


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _spelled(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _pairs(names: tuple[str, ...] = ()) -> Any:
    def hold(values: tuple[str, ...]) -> bool:
        pairs = [value.partition("=")[::2] for value in values]
        return all((left in names if names else left) and right for left, right in pairs)

    return hold


def _at_least(least: float) -> tuple[Any, str]:
    return (lambda value: value >= least), f"it must be at least {least:g}"


def _within(low: float, high: float) -> tuple[Any, str]:
    return (lambda value: low <= value <= high), f"it must lie between {low:g} and {high:g}"


SOURCES = ("auto", "common-voice", "zeroth-korean", "fleurs-ko", "kss", "hub", "table", "folder", "sql")
MORE_SPLITS = ("other", "validated", "invalidated")

RULES = {
    "source": (
        (lambda values: values and set(values) <= set(SOURCES) and (len(values) == 1 or "auto" not in values)),
        f"it must be auto, or some of {' '.join(SOURCES[1:])}",
    ),
    "limit": _at_least(0),
    "path_map": (_pairs(), "it must be FROM=TO"),
    "hub_splits": (_pairs(("train", "validation", "test")), "it must be train=…, validation=… or test=…"),
    "common_voice_splits": (
        (lambda values: set(values) <= set(MORE_SPLITS)),
        f"it must name some of {' '.join(MORE_SPLITS)}",
    ),
    "min_syllables_per_second": _at_least(0),
    "max_clipped": _within(0, 1),
    "split": (_are_shares, "it must be three shares that add up to 1, as 0.8,0.1,0.1, and the first above 0"),
    "min_seconds": _at_least(0),
    "max_seconds": _within(0.1, 30),
    "num_proc": _at_least(0),
    "lora_r": _at_least(1),
    "lora_alpha": _at_least(1),
    "lora_dropout": _within(0, 0.99),
    "init_lora_weights": (
        (lambda value: value in LORA_STARTS or (value.startswith("pissa_niter_") and value[12:].isdecimal())),
        "it must be true, gaussian, orthogonal, olora, pissa or pissa_niter_N",
    ),
    "target_modules": (bool, "it must name at least one layer"),
    "per_device_train_batch_size": _at_least(1),
    "per_device_eval_batch_size": _at_least(1),
    "gradient_accumulation_steps": _at_least(1),
    "timestamp_probability": _within(0, 1),
    "early_stopping_patience": _at_least(0),
    "speed_perturb": _within(0, 0.5),
    "gain_db": _within(0, 40),
    "noise_snr_db": _within(-20, 60),
    "telephone_probability": _within(0, 1),
    "mask_time_prob": _within(0, 0.9),
    "mask_feature_prob": _within(0, 0.9),
    "learning_rate": ((lambda value: 0 < value < math.inf), "it must be a number above 0"),
    "num_train_epochs": ((lambda value: 0 < value < math.inf), "it must be a number above 0"),
    "max_steps": ((lambda value: value == -1 or value > 0), "it must be above 0, or -1 for no limit"),
    "warmup_steps": _at_least(0),
    "eval_steps": _at_least(0),
    "save_steps": _at_least(0),
    "save_total_limit": _at_least(2),
    "logging_steps": _at_least(1),
    "dataloader_num_workers": _at_least(0),
    "generation_max_length": _within(8, 448),
    "max_line_width": _at_least(0),
    "max_line_count": _at_least(1),
    "max_segment_s": _within(1, 30),
    "parity_clips": _at_least(0),
    "parity_limit": _within(0, 1),
    "host": (
        _is_address,
        "it must be an address of this machine in numbers, as 127.0.0.1 or 0.0.0.0: names are not looked up",
    ),
    "port": _within(0, 65535),
    "max_upload_mb": _at_least(1),
    "max_upload_minutes": ((lambda value: 0 < value < math.inf), "it must be a number above 0"),
    "max_queue": _at_least(1),
    "samples": _at_least(0),
    "run_name": (
        (lambda value: value not in ("", ".", "..") and not set(value) & set('/\\:*?"<>|')),
        "it must be a plain folder name",
    ),
}
