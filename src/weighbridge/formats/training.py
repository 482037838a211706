"""A training checkpoint's state beside its model: optimizer, scheduler, hyperparameters, progress.

Read in the manner of Hugging Face Trainer (`optimizer.pt`, `scheduler.pt`, `trainer_state.json`, `training_args.bin`),
of Accelerate (`optimizer.bin`, `scheduler.bin`) and of DeepSpeed ZeRO (`global_step500/*_optim_states.pt`).

Source: transformers 5.23 `trainer.py`, accelerate 1.15 `checkpointing.py`, DeepSpeed's `zero/stage_1_and_2.py`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from weighbridge.formats.hyperparameters import Value, is_secret
from weighbridge.formats.local import LocalFile
from weighbridge.formats.plain_json import parse_json
from weighbridge.formats.torch_file import read_checkpoint, read_settings
from weighbridge.ledger import Bytes, Count, Row, numel
from weighbridge.ledger.errors import Malformed, Refused, WeighError

_OPTIMIZER = re.compile(r"optimizer(_\d+)?\.(pt|bin)")
_SCHEDULER = re.compile(r"scheduler(_\d+)?\.(pt|bin)")
_PARTITION = re.compile(r".*_optim_states\.pt")
_STEP = re.compile(r"global_step(\d{1,18})")
_LARGEST_JSON = 32 << 20  # a log of 300,000 lines
_MOST_VALUES = 1_200_000

# What an optimizer keeps per parameter tells which one it is; the fullest set that is there names it.
# Source: torch 2.13 `torch.optim`, bitsandbytes 0.50 `optim`, transformers 5.23 `optimization.Adafactor`.
_OPTIMIZERS = (
    ("amsgrad-like", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
    ("nadam-like", ("exp_avg", "exp_avg_sq", "mu_product")),
    ("adafactor-like", ("exp_avg_sq_row", "exp_avg_sq_col")),
    ("adafactor-like", ("row_var", "col_var")),
    ("adam-like", ("exp_avg", "exp_avg_sq")),
    ("adamax-like", ("exp_avg", "exp_inf")),
    ("8-bit adam-like", ("state1", "state2", "absmax1", "absmax2")),
    ("adam-like of bitsandbytes", ("state1", "state2")),
    ("8-bit lion- or momentum-like", ("state1", "absmax1")),
    ("adadelta-like", ("square_avg", "acc_delta")),
    ("rmsprop-like", ("square_avg",)),
    ("momentum, as sgd and muon keep", ("momentum_buffer",)),
    ("lion-like", ("exp_avg",)),
    ("rprop-like", ("prev", "step_size")),
    ("adagrad-like", ("sum",)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateTotal:
    """Tensors, their elements and bytes, together."""

    tensors: int
    elements: Count
    nbytes: Bytes

    def to_dict(self) -> dict[str, int]:
        """As JSON."""
        return {"tensors": self.tensors, "elements": self.elements, "bytes": self.nbytes}


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerState:
    """An optimizer's state as stored. `name` is a guess from what it keeps: "adam-like (exp_avg, exp_avg_sq)".

    A tensor that several parameters share (an 8-bit optimizer's code table) counts once. `by_key` sums to `total`.
    DeepSpeed may pad its partitions, and what it pads counts as stored.
    """

    name: str
    total: StateTotal
    by_key: Mapping[str, StateTotal]

    def to_dict(self) -> dict[str, object]:
        """As JSON."""
        parts = {key: total.to_dict() for key, total in self.by_key.items()}
        return {"name": self.name, **self.total.to_dict(), "by_key": parts}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a training checkpoint holds beside the model. `notes` say which files could not be read, and why."""

    optimizer: OptimizerState | None = None
    hyperparameters: Mapping[str, Value] = field(default_factory=dict)
    scheduler: Mapping[str, Value] = field(default_factory=dict)
    progress: Mapping[str, Value] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """As JSON."""
        return {
            "optimizer": self.optimizer.to_dict() if self.optimizer else None,
            "hyperparameters": dict(self.hyperparameters),
            "scheduler": dict(self.scheduler),
            "progress": dict(self.progress),
            "notes": list(self.notes),
        }


def read_training(folder: Path) -> Training | None:
    """The training state in a folder; None when it has no files of that kind.

    A file that cannot be read, or may not be, becomes a note, so that the model beside it can still be weighed.
    Settings that look like tokens, passwords or keys are left out.

    Raises:
        Refused: the folder itself cannot be read.
    """
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        step, partitions = _partitions(paths)
    except OSError as error:
        raise Refused(f"cannot read {folder.name}: {error.strerror}") from None
    names = [path.name for path in paths if path.is_file()]
    optimizers = [folder / name for name in names if _OPTIMIZER.fullmatch(name)] + partitions
    schedulers = [folder / name for name in names if _SCHEDULER.fullmatch(name)]
    arguments, state = folder / "training_args.bin", folder / "trainer_state.json"
    if not optimizers and not schedulers and not {arguments.name, state.name}.intersection(names):
        return None
    reading = _Reading(folder)
    for index, path in enumerate(optimizers):
        reading.optimizer(path, index)
    hyperparameters = reading.hyperparameters
    if arguments.name in names:
        settings = reading.settings(arguments)
        hyperparameters |= {name: value for name, value in settings.items() if not name.startswith("_")}
    scheduler: dict[str, Value] = {}
    for path in schedulers:
        prefix = f"{path.stem}." if len(schedulers) > 1 else ""
        scheduler |= {prefix + name: value for name, value in reading.settings(path).items()}
    progress: dict[str, Value] = {"global_step": step} if step is not None else {}
    if state.name in names:
        progress |= reading.progress(state)
    return Training(
        optimizer=_optimizer(reading.rows) if reading.rows or reading.empty else None,
        hyperparameters=hyperparameters,
        scheduler=scheduler,
        progress=progress,
        notes=tuple(reading.notes),
    )


class _Reading:
    """The files of one checkpoint, their failures noted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows: list[Row] = []
        self.empty = False
        self.hyperparameters: dict[str, Value] = {}
        self.notes: list[str] = []

    def _file(self, path: Path) -> LocalFile:
        return LocalFile(path, name=path.relative_to(self._folder).as_posix())

    def optimizer(self, path: Path, index: int) -> None:
        try:
            checkpoint = read_checkpoint(self._file(path), index=index)
        except WeighError as error:
            self.notes.append(str(error))
            return
        self.rows += checkpoint.optimizer
        self.empty = self.empty or not checkpoint.optimizer
        # The partitions of one optimizer repeat its settings.
        self.hyperparameters = dict(checkpoint.hyperparameters) | self.hyperparameters

    def settings(self, path: Path) -> dict[str, Value]:
        try:
            return read_settings(self._file(path))
        except WeighError as error:
            self.notes.append(str(error))
            return {}

    def progress(self, path: Path) -> dict[str, Value]:
        try:
            file = self._file(path)
            if file.size > _LARGEST_JSON:
                raise Malformed(f"{file.name} has {file.size:,} bytes, more than any real one")
            state = parse_json(file.read(0, file.size), file.name, most=_MOST_VALUES)
        except WeighError as error:
            self.notes.append(str(error))
            return {}
        return {
            name: value
            for name, value in state.items()
            if isinstance(value, str | int | float) and not is_secret(name, value) and not name.startswith("is_")
        }


def _partitions(paths: Iterable[Path]) -> tuple[int | None, list[Path]]:
    """(step, files) of the DeepSpeed checkpoint that a folder holds, the latest where it holds several."""
    steps = {int(found[1]): path for path in paths if (found := _STEP.fullmatch(path.name)) and path.is_dir()}
    if not steps:
        return None, []
    step = max(steps)
    files = sorted(path for path in steps[step].iterdir() if _PARTITION.fullmatch(path.name) and path.is_file())
    return step, files


def _optimizer(rows: Iterable[Row]) -> OptimizerState:
    by_key: dict[str, list[Row]] = {}
    seen: set[tuple[object, ...]] = set()
    for row in rows:
        place = (row.file, row.offset, row.dtype.name, row.shape) if row.nbytes else (row.file, row.name)
        if place not in seen:
            seen.add(place)
            by_key.setdefault(_key(row.name), []).append(row)
    totals = {key: _total(of_key) for key, of_key in by_key.items()}
    total = _total([row for of_key in by_key.values() for row in of_key])
    assert total.nbytes == sum(part.nbytes for part in totals.values())
    return OptimizerState(name=_named(totals), total=total, by_key=totals)


def _key(name: str) -> str:
    """What a state tensor is: the last word of its path that is no number."""
    return next((word for word in reversed(name.split(".")) if not word.isdigit()), name)


def _total(rows: list[Row]) -> StateTotal:
    return StateTotal(
        tensors=len(rows),
        elements=Count(sum(numel(row.shape) for row in rows)),
        nbytes=Bytes(sum(row.nbytes for row in rows)),
    )


def _named(keys: Iterable[str]) -> str:
    held = set(keys)
    for name, kept in _OPTIMIZERS:
        if held.issuperset(kept):
            return f"{name} ({', '.join(kept)})"
    return f"unknown ({', '.join(sorted(held))})" if held - {"step"} else "stateless, as plain sgd"
