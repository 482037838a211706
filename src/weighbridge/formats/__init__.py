"""The formats room: any model that a user can name, as a ledger."""

from weighbridge.formats.companions import training_of
from weighbridge.formats.models import of_arch, open_model

__all__ = ["of_arch", "open_model", "training_of"]
