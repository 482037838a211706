"""Models that transformers builds over timm's: their blueprints against what timm builds, tensor by tensor.

    python benchmarks/timm_models.py [--record FILE]

Needs timm and torchvision, which no test does: tests/data/timm.json is what `--record` wrote of every model, and a
test holds the blueprints against that.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm  # noqa: F401  transformers looks for it
import torch
import transformers

from weighbridge.formats.blueprints import build

_RESNETS = [f"resnet{depth}{stem}" for depth in (18, 26, 34, 50, 101, 152) for stem in ("", "d")]
_SWINS = [f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")]
_DETECTORS = {
    "detr": ("DetrForObjectDetection", "DetrForSegmentation"),
    "conditional_detr": ("ConditionalDetrForObjectDetection", "ConditionalDetrForSegmentation"),
    "deformable_detr": ("DeformableDetrForObjectDetection",),
    "table-transformer": ("TableTransformerForObjectDetection",),
    "dab-detr": ("DabDetrForObjectDetection",),
}
_OVER_ANY = {
    "rt_detr": "RTDetrForObjectDetection",
    "d_fine": "DFineForObjectDetection",
    "upernet": "UperNetForSemanticSegmentation",
    "grounding-dino": "GroundingDinoForObjectDetection",
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "maskformer": "MaskFormerForInstanceSegmentation",
}
_TOWER = {
    "model_type": "timm_wrapper",
    "architecture": "vit_pe_lang_large_patch14_448",
    "model_args": {"embed_dim": 1024, "img_size": [448, 448], "depth": 23, "global_pool": "", "init_values": 0.1},
}
_WHOLE = {
    "Gemma3nForConditionalGeneration": {"model_type": "gemma3n"},
    "Gemma3nForCausalLM": {"model_type": "gemma3n_text"},
    "FastVlmForConditionalGeneration": {"model_type": "fast_vlm"},
    "PerceptionLMForConditionalGeneration": {"model_type": "perception_lm", "vision_config": _TOWER},
    "TimmWrapperModel": _TOWER,
}


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """(class, config) of every model to compare."""
    for name in [*_RESNETS, *_SWINS]:
        for indices in ([-1], [0, 1], [2], [1, 2, 3], None):
            yield (
                "TimmBackbone",
                {"model_type": "timm_backbone", "backbone": name, "out_indices": indices, "num_channels": 4},
            )
    for model_type, classes in _DETECTORS.items():
        for class_name in classes:
            for fields in (
                {},
                {"backbone": "resnet101"},
                {"backbone": "resnet18", "use_timm_backbone": True, "dilation": True},
                {"backbone": "resnet50d", "backbone_config": None},
                {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet26", "out_indices": [1, 2, 3]}},
                {"num_feature_levels": 1},
            ):
                yield class_name, {"model_type": model_type, **fields}
    for fields in ({}, {"backbone": _SWINS[1]}, {"image_size": 448}):
        yield "OmDetTurboForObjectDetection", {"model_type": "omdet-turbo", **fields}
    backbone = {"model_type": "timm_backbone", "backbone": "resnet50", "out_indices": [1, 2, 3, 4]}
    for model_type, class_name in _OVER_ANY.items():
        yield class_name, {"model_type": model_type, "backbone_config": backbone}
    yield from _WHOLE.items()


def digest(parameters: Iterable[tuple[str, Iterable[int]]], buffers: Iterable[tuple[str, Iterable[int]]]) -> str:
    """Of all names and shapes."""
    lines = [f"parameter {name} {list(shape)}" for name, shape in parameters]
    lines += [f"buffer {name} {list(shape)}" for name, shape in buffers]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def built(class_name: str, config: dict[str, Any]) -> dict[str, Any]:
    """What transformers builds with timm, on the meta device."""
    settings = transformers.CONFIG_MAPPING[config["model_type"]](**json.loads(json.dumps(config)))
    with torch.device("meta"):
        model = getattr(transformers, class_name)(settings)
    parameters = dict(model.named_parameters())
    stored = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in stored}
    return {
        "parameters": sum(value.numel() for value in parameters.values()),
        "buffers": sum(value.numel() for value in buffers.values()),
        "digest": digest(
            [(name, value.shape) for name, value in parameters.items()],
            [(name, value.shape) for name, value in buffers.items()],
        ),
    }


def main() -> int:
    """Prints what differs; exit 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    rows, differing = [], 0
    for class_name, config in cases():
        truth = built(class_name, config)
        rows.append({"class": class_name, "config": config, **truth})
        mine = build(config, model_type=config["model_type"], class_name=class_name)
        found = digest(mine.tensors.items(), [(name, shape) for name, (shape, _) in mine.buffers.items()])
        if found != truth["digest"]:
            differing += 1
            print(f"{class_name} {config}: differs from {truth['parameters']:,} parameters")
    source = f"transformers {transformers.__version__} over timm {version('timm')}, torch {torch.__version__}"
    print(f"{len(rows)} models, {differing} differ; {source}")
    if options.record:
        options.record.write_text(json.dumps({"source": source, "models": rows}, indent=0) + "\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
