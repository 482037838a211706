"""What lies beside a model and is no parameter: optimizer state, hyperparameters, how far training went."""

import os
from collections.abc import Sequence
from pathlib import Path

from weighbridge.formats import peft
from weighbridge.formats.config import LARGEST
from weighbridge.formats.local import LocalFile
from weighbridge.formats.plain_json import parse_json
from weighbridge.ledger import Bytes, Count, Row, numel

Tables = dict[str, dict[str, object]]
_TORCH = (".pt", ".pth", ".bin", ".ckpt")


def training_of(spec: str | os.PathLike[str], *, file: str | None = None) -> Tables | None:
    """{"optimizer_state", "hyperparameters", "scheduler", "progress"} of a local checkpoint or adapter, those that are
    there; None when nothing is, or the model is not local.

    Raises:
        WeighError: settings that cannot be read, or only unsafely.
    """
    path = Path(os.fspath(spec).partition("::")[0]).expanduser()
    if path.is_dir() and file is not None:
        path /= file
    try:
        if path.is_dir():
            return _of_folder(path)
        if path.is_file() and path.suffix in _TORCH:
            return _of_file(LocalFile(path))
    except OSError:
        return None
    return None


def _of_folder(folder: Path) -> Tables | None:
    names = {entry.name for entry in folder.iterdir()}
    tables: Tables = {}
    if peft.CONFIG in names:
        file = LocalFile(folder / peft.CONFIG)
        config = parse_json(file.read(0, min(file.size, LARGEST)), peft.CONFIG)
        tables["hyperparameters"] = peft.hyperparameters(config)
    # The reader of pickles is loaded for checkpoints alone.
    if any(
        name.startswith(("optimizer", "scheduler", "training_args", "trainer_state", "global_step")) for name in names
    ):
        from weighbridge.formats.training import read_training

        found = read_training(folder)
        if found is not None:
            if found.optimizer is not None:
                tables["optimizer_state"] = found.optimizer.to_dict()
            for name, values in (
                ("hyperparameters", found.hyperparameters),
                ("scheduler", found.scheduler),
                ("progress", found.progress),
            ):
                if values:
                    tables[name] = {**tables.get(name, {}), **values}
            if found.notes:
                tables["not_read"] = {str(at): note for at, note in enumerate(found.notes, start=1)}
    return tables or None


def _of_file(file: LocalFile) -> Tables | None:
    """A checkpoint in one file: a model with its optimizer and settings in one dict."""
    if file.read(8, 1) == b"{":
        return None  # safetensors under another name
    from weighbridge.formats.torch_file import read_checkpoint

    found = read_checkpoint(file)
    tables: Tables = {}
    if found.optimizer:
        tables["optimizer_state"] = _total(found.optimizer)
    if found.hyperparameters:
        tables["hyperparameters"] = dict(found.hyperparameters)
    for name, rows in found.other.items():
        tables.setdefault("other_tensors", {})[name] = _total(rows)
    return tables or None


def _total(rows: Sequence[Row]) -> dict[str, object]:
    return {
        "tensors": len(rows),
        "elements": Count(sum(numel(row.shape) for row in rows)),
        "bytes": Bytes(sum(row.nbytes for row in rows)),
    }
