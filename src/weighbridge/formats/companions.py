"""What lies beside a model and is no parameter: optimizer state, hyperparameters, how far training went."""

from pathlib import Path

from weighbridge.formats import peft
from weighbridge.formats.config import parse_json
from weighbridge.formats.local import LocalFile

_LARGEST = 16_000_000


def training_of(spec: str) -> dict[str, dict[str, object]] | None:
    """{"optimizer_state", "hyperparameters", "progress"} of a local training checkpoint or adapter folder; else None.

    Raises:
        WeighError: training files that cannot be read, or only unsafely.
    """
    folder = Path(spec.partition("::")[0]).expanduser()
    if not folder.is_dir():
        return None
    found: dict[str, dict[str, object]] = {}
    if (folder / peft.CONFIG).is_file():
        file = LocalFile(folder / peft.CONFIG)
        config = parse_json(file.read(0, min(file.size, _LARGEST)), peft.CONFIG)
        found["hyperparameters"] = peft.hyperparameters(config)
    return found or None
