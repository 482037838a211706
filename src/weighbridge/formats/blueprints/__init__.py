"""What a config.json builds, by blueprints: without PyTorch, and without the model's code."""

from weighbridge.formats.blueprints.build import Built, NotCovered, build
from weighbridge.formats.blueprints.library import family_of, type_of_class, types
from weighbridge.formats.blueprints.settings import Settings, class_of, known_types

__all__ = ["Built", "NotCovered", "Settings", "build", "class_of", "family_of", "known_types", "type_of_class", "types"]
