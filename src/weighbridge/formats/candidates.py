"""Weights by their file names: what belongs together, which quantization it is, and what is no weights at all."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

TORCH = ("bin", "pt", "pth", "ckpt")
MOST_MISSING = 5  # of the shards that are not there, so many are named
# Formats of which one file is one model; taken where a folder holds none of the others.
SINGLE = ("onnx", "tflite", "mlmodel", "keras", "h5", "msgpack", "npz", "npy", "skops", "ubj")
_FILE = re.compile(rf"(?P<stem>.+)\.(?P<suffix>safetensors|gguf|{'|'.join((*TORCH, *SINGLE))})", re.IGNORECASE)
_SHARD = re.compile(r"(?P<stem>.+?)-(?P<at>\d{1,6})-of-(?P<of>\d{1,6})(?P<variant>\.[a-z]\w*)?")
# Trainers' state, tokenizers and other engines' files share their endings with weights.
# Compiled when first used: a config alone needs none of the next three, and they take milliseconds.
_NO_WEIGHTS = (
    r"(training_args|trainer_state|training_state|optimizers?|optim|schedulers?|lr_scheduler|(grad_)?scaler|rng_state"
    r"|random_states?|tokenizer|vocab|merges|spiece|sentencepiece|imatrix)(?![a-z]).*"
    r"|.*_optim_states\.pt|(ggml|openvino).*\.bin|ggml-vocab.*|.*[._-]imatrix\.gguf"
)
_PROJECTOR = r"(.*[._-])?mmproj(?![a-z]).*"
_VARIANT = re.compile(r"(?P<stem>.+)\.(?P<variant>fp16|fp32|fp8|bf16|f16|f32|int8|int4|8bit|4bit|ema|non_ema)")
_LABEL = (
    r"(?<![a-z0-9])(?:ud-)?"
    r"(?:iq\d_(?:xxs|xs|nl|xl|s|m)|q\d+_k(?:_(?:xxs|xs|s|m|l|xxl|xl|p))?|q\d_\d(?:_\d_\d)?|tq\d_\d"
    r"|(?:mx|nv)fp4(?:_moe)?|bf16|fp?16|fp?32|q\d)(?![a-z0-9])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Files that belong together: one model, or one quantization of it."""

    kind: str
    folder: str  # "" or "sub/"
    stem: str
    files: tuple[str, ...]
    nbytes: int
    index: str | None = None
    label: str | None = None
    of: int = 0  # how many shards the names announce; 0 when they are not numbered
    missing: tuple[str, ...] = ()  # the first of the shards that are not there
    apart: bool = False  # an image projector: part of a model, never the model

    @property
    def title(self) -> str:
        """What to call it where several stand in a list."""
        if self.label is not None:
            return self.label
        return self.files[0] if len(self.files) == 1 else f"{self.files[0]} and {len(self.files) - 1} more"


def candidates(files: Mapping[str, int]) -> list[Candidate]:
    """Every set of weights among `files`, {relative name: bytes}: shards and splits joined, the rest left out."""
    groups: dict[tuple[str, str, str, str], dict[int, str]] = defaultdict(dict)
    for name in sorted(files):
        folder, _, base = name.rpartition("/")
        match = _FILE.fullmatch(base)
        if match is None or re.fullmatch(_NO_WEIGHTS, base, re.IGNORECASE):
            continue
        stem, suffix = match["stem"], match["suffix"].lower()
        shard = _SHARD.fullmatch(stem)
        if shard and int(shard["at"]) <= int(shard["of"]) > 0:
            # Some write model.safetensors-00001-of-00014.safetensors.
            stem = shard["stem"].removesuffix(f".{suffix}") + (shard["variant"] or "")
            groups[folder, stem, suffix, shard["of"]][int(shard["at"])] = name
        else:
            groups[folder, stem, suffix, ""][0] = name
    return [_candidate(*key, shards=shards, files=files) for key, shards in groups.items()]


def variant_of(stem: str) -> tuple[str, str] | None:
    """(`model`, `fp16`) of `model.fp16`: one model's weights in another precision, as transformers names them."""
    match = _VARIANT.fullmatch(stem)
    return (match["stem"], match["variant"]) if match else None


def _candidate(
    folder: str, stem: str, suffix: str, of: str, *, shards: Mapping[int, str], files: Mapping[str, int]
) -> Candidate:
    folder = f"{folder}/" if folder else ""
    kind = "torch" if suffix in TORCH else suffix
    if stem == "adapter_model" and suffix in ("safetensors", "bin") and f"{folder}adapter_config.json" in files:
        kind = "adapter"
    return Candidate(
        kind=kind,
        folder=folder,
        stem=stem,
        files=tuple(shards[n] for n in sorted(shards)),
        nbytes=sum(max(files[name], 0) for name in shards.values()),
        index=_index(folder, stem, suffix, files) if of and suffix != "gguf" else None,
        label=_label(folder, stem) if suffix == "gguf" else None,
        of=int(of or 0),
        missing=_missing(shards, int(of)) if of else (),
        apart=suffix == "gguf" and re.fullmatch(_PROJECTOR, stem, re.IGNORECASE) is not None,
    )


def _index(folder: str, stem: str, suffix: str, files: Mapping[str, int]) -> str | None:
    names = [f"{folder}{stem}.{suffix}.index.json"]
    variant = variant_of(stem)
    if variant:
        names.append(f"{folder}{variant[0]}.{suffix}.index.{variant[1]}.json")
    return next((name for name in names if name in files), None)


def _label(folder: str, stem: str) -> str | None:
    """The last quantization that the name holds, or else that its subfolder's name holds."""
    for text in (stem, folder.rstrip("/")):
        found = re.findall(_LABEL, text, re.IGNORECASE)
        if found:
            return found[-1].upper()
    return None


def _missing(shards: Mapping[int, str], of: int) -> tuple[str, ...]:
    first = 0 if 0 in shards and of not in shards else 1  # some number from zero
    before, _, after = next(iter(shards.values())).rpartition("/")[2].rpartition("-of-")
    stem = before.rstrip("0123456789")
    absent = (n for n in range(first, of + first) if n not in shards)
    return tuple(f"{stem}{n:0{len(before) - len(stem)}d}-of-{after}" for n in islice(absent, MOST_MISSING))
