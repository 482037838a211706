"""Blueprints against transformers: every class that a blueprint knows, on mutated configs, tensor by tensor.

    python benchmarks/blueprints.py [TYPE ...] [--cases N] [--seed N] [--cache] [--json FILE]

For each model type and class, `--cases` configs are drawn: fields of the config and of its parts are changed to other
numbers, flipped, set to null, or set to words that the model's source compares with. transformers builds each on the
meta device; names and shapes of parameters and of kept buffers and the tied names must be equal. Where the blueprint
refuses and transformers builds, the case counts as refused; where transformers refuses, it does not count. `--cache`
also runs decoders of few layers on the meta device and compares the shapes in their caches with what the blueprint says
of each layer. Exit code 1 when anything differs.
"""

import argparse
import copy
import dataclasses
import importlib
import inspect
import json
import logging
import random
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from weighbridge.formats.blueprints import library
from weighbridge.formats.blueprints.build import Built, NotCovered, build
from weighbridge.ledger.errors import WeighError

_LAYERS = re.compile(r"(.*_)?(num_)?(hidden_|decoder_|encoder_)?(n_)?(layers?|blocks?|depth)(_.*)?")
_DULL = re.compile(
    r".*(dropout|_drop|pdrop|token_id|token_index|_eps|epsilon|init_std|initializer.*|layerdrop|mask_.*prob|loss.*"
    r"|temperature|momentum)$|id2label|label2id|architectures|return_dict|use_cache|transformers_version|dtype|rope.*"
    r"|output_.*|problem_type|chunk_size_feed_forward|_.*|label_.*|prediction_.*|.*_implementation"
)

# How long the convolutions of PP-OCR's large detectors are: kernel, stride, padding.
_LINES = {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]} | {
    f"{kind}_{ratio}": [kernel, 1, 0]
    for kind, across in (
        ("vertical_long_to_small_conv", [1, 0]),
        ("horizontal_small_to_long_conv", [0, 1]),
        ("symmetric_conv_long", [1, 1]),
    )
    for ratio, length in (("longratio", 7), ("midratio", 5), ("shortratio", 3))
    for kernel in [[length if way else 1 for way in across]]
}

# Fields without which the type's own default cannot be built or run.
_NEEDED: dict[str, dict[str, Any]] = {
    "aya_vision": {
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_attention_heads": 16},
    },
    "vitmatte": {
        "backbone_config": {
            "model_type": "vitdet",
            "hidden_size": 384,
            "num_attention_heads": 6,
            "num_hidden_layers": 4,
            "num_channels": 4,
            "out_features": ["stage4"],
        },
        "convstream_hidden_sizes": [48, 96, 192],
        "fusion_hidden_sizes": [256, 128, 64, 32],
    },
    "dots1": {"n_routed_experts": 16, "n_shared_experts": 2, "num_experts_per_tok": 2},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"num_hidden_layers": 5, "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"]},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 4}, "ffn_config": {"moe_num_experts": 8}},
    "minimax": {"num_hidden_layers": 5},
    "zamba": {"num_hidden_layers": 10, "attn_layer_period": 6},
    "zamba2": {
        "num_hidden_layers": 9,
        "hybrid_layer_ids": [1, 3, 4, 7],
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "hybrid", "mamba", "mamba", "hybrid", "mamba"],
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 2048,
        "indexer_compress_ratio": 64,
        "ple_layer_ids": [1, 3],
        "ngram_vocab_size_base": 20000,
        "eos_token_id": 2,
    },
    "esm": {"vocab_size": 33},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    "hunyuan_v1_dense": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 48},
    "time_series_transformer": {"prediction_length": 24},
    "informer": {"prediction_length": 24},
    "pp_ocrv5_server_det": {"intraclass_block_config": _LINES, "kernel_list": [3, 2, 2]},
    "pp_ocrv6_medium_det": {
        "intraclass_block_config": _LINES,
        "kernel_list": [3, 2, 2],
        "backbone_config": {"model_type": "pp_lcnet_v4", "out_features": ["stage1", "stage2", "stage3", "stage4"]},
    },
    "pp_ocrv6_small_rec": {"backbone_config": {"model_type": "pp_lcnet_v4"}},
    "pp_ocrv6_tiny_rec": {"backbone_config": {"model_type": "pp_lcnet_v4"}},
    "autoformer": {"prediction_length": 24},
    "lw_detr": {
        "projector_scale_factors": [1.0],
        "backbone_config": {
            "model_type": "lw_detr_vit",
            "hidden_size": 192,
            "num_hidden_layers": 10,
            "out_indices": [2, 9],
        },
    },
    "chameleon": {"vocabulary_map": {"<image>": 8711}},
    "emu3": {"vocabulary_map": {"<image>": 151851}},
    "granite4_vision": {"deepstack_layer_map": [[-19, 9], [-13, 6]], "downsample_rate": "4/8"},
    "deepseek_ocr2": {"text_config": {"num_hidden_layers": 8, "mlp_layer_types": ["dense"] + ["sparse"] * 7}},
    "deepseek_ocr2_text": {"num_hidden_layers": 8, "mlp_layer_types": ["dense"] + ["sparse"] * 7},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "hunyuan_vl_text": {"head_dim": 128},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -2]}},
    "qwen3_omni_moe": {
        "talker_config": {"spatial_merge_size": 2, "text_config": {"shared_expert_intermediate_size": 768}},
    },
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 768},
    "wav2vec2-conformer": {"vocab_size": 32},
    "wav2vec2-bert": {"vocab_size": 32},
    "moonshine_streaming": {"num_key_value_heads": 8},
    "cohere_compass": {
        "text_config": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
}


def fields_of(config_class: Any) -> dict[str, Any]:
    """{field: default} of those that may matter."""
    found = {}
    for field in dataclasses.fields(config_class):
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if not _DULL.fullmatch(field.name) and value is not dataclasses.MISSING:
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def words_of(model_type: str, config_class: Any) -> list[str]:
    """Short words that the family's source mentions: candidates for its choices."""
    words: set[str] = set()
    folder = Path(inspect.getfile(config_class)).parent
    for path in folder.glob("*.py"):
        if path.name.startswith(("modeling", "configuration")):
            words |= set(re.findall(r"[\"']([A-Za-z][\w\-]{1,24})[\"']", path.read_text()))
    return sorted(words)


def literal_choices(config_class: Any, name: str) -> list[Any]:
    """The values that a Literal annotation allows."""
    text = str(config_class.__annotations__.get(name, ""))
    match = re.search(r"Literal\[([^\]]*)\]", text)
    return re.findall(r"'([^']*)'", match[1]) if match else []


class Drawer:
    """Draws configs of one model type."""

    def __init__(self, model_type: str, seed: int) -> None:
        self.random = random.Random(f"{model_type}-{seed}")
        self.model_type = model_type
        self.config_class = CONFIG_MAPPING[model_type]
        self.words = words_of(model_type, self.config_class)

    def config(self, changes: int) -> dict[str, Any]:
        found = self.small(self.config_class) | {"model_type": self.model_type}
        found |= copy.deepcopy(_NEEDED.get(self.model_type, {}))
        for _ in range(changes):
            self.change(self.config_class, found)
        if self.random.random() < 0.2:
            found["num_labels"] = self.random.choice([1, 3, 7])
        return found

    def small(self, config_class: Any, depth: int = 0) -> dict[str, Any]:
        """Few layers, so that building is quick; all else by default."""
        found: dict[str, Any] = {}
        for name, value in fields_of(config_class).items():
            if _LAYERS.fullmatch(name) and isinstance(value, int) and not isinstance(value, bool) and value > 4:
                found[name] = self.random.choice([2, 3, 4, 6])
        for name, spec in (config_class.sub_configs_defaults or {}).items():
            if spec.config_class is transformers.AutoConfig and spec.model_type not in CONFIG_MAPPING:
                continue  # transformers names a type that it does not have
            if depth < 3 and not (spec.optional and self.random.random() < 0.5):
                inner = self.part_class(spec)
                found[name] = dict(spec.init_kwargs) | self.small(inner, depth + 1) | {"model_type": inner.model_type}
        return found

    @staticmethod
    def part_class(spec: Any) -> Any:
        return CONFIG_MAPPING[spec.model_type] if spec.config_class is transformers.AutoConfig else spec.config_class

    def change(self, config_class: Any, config: dict[str, Any]) -> None:
        parts = [name for name in (config_class.sub_configs_defaults or {}) if isinstance(config.get(name), dict)]
        if parts and self.random.random() < 0.75:
            name = self.random.choice(parts)
            self.change(self.part_class(config_class.sub_configs_defaults[name]), config[name])
            return
        fields = fields_of(config_class)
        names = [name for name in fields if name not in parts]
        if names:
            name = self.random.choice(names)
            config[name] = self.other(config_class, name, config.get(name, fields[name]))

    def other(self, config_class: Any, name: str, value: Any) -> Any:
        draw = self.random
        annotation = str(config_class.__annotations__.get(name, ""))
        if draw.random() < 0.1 and "None" in annotation:
            return None
        if isinstance(value, bool) or (value is None and "bool" in annotation and draw.random() < 0.8):
            return draw.random() < 0.5 if value is None else not value
        if isinstance(value, int) or (value is None and "int" in annotation and draw.random() < 0.8):
            if value is None or value <= 0:
                return draw.choice([0, 1, 2, 3, 4, 8, 16, 32])
            if _LAYERS.fullmatch(name) and value < 16:
                return draw.choice([1, 2, 3, 4, 5, 6, 7, 8])
            return draw.choice([value * 2, max(value // 2, 1), max(value // 4, 1), value * 3, value + 8, 1, 2, 4, 8])
        if isinstance(value, float):
            return draw.choice([value * 2, value / 2, 1.0, 2.0, 0.25])
        if isinstance(value, str) or (value is None and "str" in annotation):
            return draw.choice(literal_choices(config_class, name) or self.words or [value])
        if isinstance(value, list) and value:
            changed = copy.deepcopy(value)
            at = draw.randrange(len(changed))
            kind = draw.random()
            if kind < 0.3:
                changed.append(draw.choice(changed))
            elif kind < 0.5:
                changed.pop(at)
            elif isinstance(changed[at], bool):
                changed[at] = not changed[at]
            elif isinstance(changed[at], int):
                changed[at] = draw.choice([1, 2, 3, changed[at] * 2, changed[at] + 1])
            elif isinstance(changed[at], str):
                changed[at] = draw.choice(changed + self.words)
            return changed
        return value


def reference(config: dict[str, Any], model_type: str, class_name: str) -> tuple[Any, dict[str, Any]]:
    """(parameters, kept buffers, all names, those not trained) of the model that transformers builds."""
    made = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(config))
    with torch.device("meta"):
        model = class_called(class_name, model_type)._from_config(made)
    kept = model.state_dict(keep_vars=True)
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters()}
    buffers = {name: tuple(b.shape) for name, b in model.named_buffers() if name in kept}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    names = set(kept) | set(parameters)
    return model, {"parameters": parameters, "buffers": buffers, "names": names, "frozen": frozen}


def difference(built: Built, truth: dict[str, Any]) -> str:
    """What differs, in one line; empty when nothing does."""
    mine = built.tensors
    theirs = truth["parameters"]
    said = []
    for name in sorted(theirs.keys() - mine.keys())[:4]:
        said.append(f"lacks {name} {theirs[name]}")
    for name in sorted(mine.keys() - theirs.keys())[:4]:
        said.append(f"should not have {name} {mine[name]}")
    for name in [name for name in mine if name in theirs and mine[name] != theirs[name]][:4]:
        said.append(f"{name} is {theirs[name]}, not {mine[name]}")
    buffers = {name: shape for name, (shape, _) in built.buffers.items()}
    if buffers != truth["buffers"] and not said:
        odd = sorted(set(buffers.items()) ^ set(truth["buffers"].items()))[:4]
        said.append(f"buffers differ: {odd}")
    names = set(mine) | set(buffers) | set(built.ties)
    if names != truth["names"] and not said:
        said.append(f"names differ: {sorted(names ^ truth['names'])[:4]}")
    below = tuple(f"{name}." for name in built.frozen)
    frozen = {name for name in mine if name in built.frozen or name.startswith(below)}
    if frozen != truth["frozen"] and not said:
        said.append(f"frozen differ: {sorted(frozen ^ truth['frozen'])[:4]}")
    return "; ".join(said)


def config_class_of(model_type: str) -> Any:
    """The config class of a type's models: its own, but for the few that are built by another type's classes."""
    own = CONFIG_MAPPING[model_type]
    if list(Path(inspect.getfile(own)).parent.glob("modeling_*.py")):
        return own
    other = MODEL_MAPPING_NAMES.get(model_type)
    return getattr(transformers, other).config_class if other is not None else own


def modeling(model_type: str) -> Any:
    """The module that a type's classes are defined in."""
    name = inspect.getmodule(config_class_of(model_type)).__name__
    return importlib.import_module(name.replace("configuration_", "modeling_"))


def class_called(name: str, model_type: str) -> Any:
    """A model class by its name: some parts of larger models are not exported."""
    return getattr(transformers, name, None) or getattr(modeling(model_type), name)


def classes_in_transformers(model_type: str) -> list[str]:
    """The model classes of transformers that are built from this type's config."""
    config_class = config_class_of(model_type)
    try:
        module = modeling(model_type)
    except ModuleNotFoundError:  # a config inside another, of which no class is built alone
        return []
    found = []
    for name in dict.fromkeys([*getattr(module, "__all__", ()), *dir(module)]):
        thing = getattr(module, name, None)
        if (
            inspect.isclass(thing)
            and issubclass(thing, transformers.PreTrainedModel)
            and not name.endswith("PreTrainedModel")
        ):
            own = thing.__module__ == module.__name__
            if own and getattr(thing, "config_class", None) is config_class:
                found.append(name)
    return found


def weigh_type(model_type: str, cases: int, seed: int, *, cache: bool) -> dict[str, Any]:
    family = library.family_of(model_type)
    assert family is not None
    row: dict[str, Any] = {"equal": 0, "refused": 0, "not_built": 0, "differ": [], "refusals": {}, "classes": []}
    there = classes_in_transformers(model_type)
    wanted = [name for name in there if family.class_part(model_type, name)[1] is not None]
    row["classes"], row["without"] = wanted, sorted(set(there) - set(wanted))
    for class_name in wanted:
        drawer = Drawer(model_type, seed)
        if class_name == wanted[0]:  # the default itself, with all its layers
            row["differ"] += [d for d in [one_case(default_of(model_type), model_type, class_name, row)] if d]
        for at in range(cases):
            config = drawer.config(at % 5)
            found = one_case(config, model_type, class_name, row)
            if found:
                row["differ"].append(found)
            if len(row["differ"]) > 5:
                break
    if cache:
        row["differ"] += cache_case(model_type, row)
    return row


def default_of(model_type: str) -> dict[str, Any]:
    return {"model_type": model_type} | copy.deepcopy(_NEEDED.get(model_type, {}))


def one_case(config: dict[str, Any], model_type: str, class_name: str, row: dict[str, Any]) -> str:
    try:
        _, truth = reference(config, model_type, class_name)
    except Exception:
        row["not_built"] += 1
        return ""
    try:
        built = build(config, model_type=model_type, class_name=class_name)
    except NotCovered as error:
        row["refused"] += 1
        row["refusals"][error.what[:160]] = row["refusals"].get(error.what[:160], 0) + 1
        return ""
    except WeighError as error:
        return f"{class_name} {json.dumps(config)}: refused as broken: {error}"
    said = difference(built, truth)
    if not said:
        row["equal"] += 1
        return ""
    return f"{class_name} {json.dumps(config)}: {said}"


def cache_case(model_type: str, row: dict[str, Any]) -> list[str]:
    """Runs the usual causal class on the meta device and compares what its cache holds with the blueprint's facts."""
    family = library.family_of(model_type)
    assert family is not None
    name = family.class_part(model_type, None)[0]
    config_class = CONFIG_MAPPING[model_type]
    config = default_of(model_type)
    try:
        full = config_class.from_dict({"model_type": model_type})
        text = full.get_text_config(decoder=True)
        if text is not full:
            return []
        config.setdefault(config_class.attribute_map.get("num_hidden_layers", "num_hidden_layers"), 6)
        made = config_class.from_dict(copy.deepcopy(config))
        with torch.no_grad(), torch.device("meta"):
            model = class_called(name, model_type)._from_config(made, dtype=torch.bfloat16).eval()
            out = model(input_ids=torch.zeros(1, 5, dtype=torch.long), use_cache=True)
        layers = (getattr(out, "past_key_values", None) or out.cache_params).layers
    except Exception as error:
        row["cache_not_run"] = f"{name}: {type(error).__name__} {' '.join(str(error).split())[:120]}"
        return []
    built = build(config, model_type=model_type, class_name=name)
    if not built.mixers:
        row["cache_not_run"] = f"{name}: the blueprint says nothing of what its layers keep"
        return []
    said = []
    # transformers may keep an empty place in the cache for layers that need none.
    cached = [mixer for mixer in built.mixers if mixer[1] not in ("cross", "bidirectional")]
    # Layers that only attend to an image have a place in the cache, too.
    if len(cached) != len(layers) and sum(mixer[1] != "bidirectional" for mixer in built.mixers) == len(layers):
        cached = [mixer for mixer in built.mixers if mixer[1] != "bidirectional"]
    if len(cached) != len(layers):
        cached = [mixer for mixer in cached if mixer[1] != "none" and mixer[2].get("kv_from") is None]
    if len(cached) != len(layers) and len({module for module, _, _ in cached}) == len(layers):
        # Attention and a state space side by side in one layer share its place.
        merged: dict[str, tuple[str, str, dict[str, Any]]] = {}
        for module, kind, facts in cached:
            _, before, known = merged.get(module, (module, kind, {}))
            merged[module] = (module, kind if "kv_heads" in facts else before, known | dict(facts))
        cached = list(merged.values())
    if len(cached) != len(layers):  # a model with a second decoder, which keeps a cache of its own
        stacks: dict[str, list[Any]] = {}
        for mixer in cached:
            stacks.setdefault(re.split(r"\.\d+", mixer[0])[0], []).append(mixer)
        cached = next((stack for stack in stacks.values() if len(stack) == len(layers)), cached)
    if len(cached) != len(layers):
        return [f"{name}: {len(layers)} cache layers, {len(cached)} in the blueprint"]
    for at, (layer, (_, kind, facts)) in enumerate(zip(layers, cached, strict=True)):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is not None and kind in ("full", "sliding", "chunked"):
            mine = (facts["kv_heads"], facts["head_dim"], facts.get("value_dim", facts["head_dim"]))
            theirs = (keys.shape[1], keys.shape[-1], values.shape[-1])
            if mine != theirs:
                said.append(f"{name} layer {at}: cache {theirs}, blueprint {mine}")
        is_sliding = bool(getattr(layer, "is_sliding", False))
        if kind == "compressed":
            mine = (facts["kv_heads"], facts["head_dim"], facts["window"], facts["rate"])
            theirs = (keys.shape[1], keys.shape[-1], layer.sliding_window, layer.compress_rate)
            if mine != theirs:
                said.append(f"{name} layer {at}: cache {theirs}, blueprint {mine}")
        windowed = kind in ("sliding", "chunked", "compressed")
        if kind != "none" and facts.get("kv_from") is None and is_sliding != windowed:
            said.append(f"{name} layer {at}: {type(layer).__name__} but {kind}")
        if is_sliding and kind in ("sliding", "chunked") and layer.sliding_window != facts["window"]:
            said.append(f"{name} layer {at}: window {layer.sliding_window}, blueprint {facts['window']}")
        for field, fact in (("conv_states", "conv"), ("recurrent_states", "state")):
            state = getattr(layer, field, None)
            states = [one for one in (state.values() if isinstance(state, dict) else [state]) if torch.is_tensor(one)]
            if states:
                # Several convolutions of one width keep as much as one of all their channels.
                kept = [sum(one.shape[1] for one in states), *states[0].shape[2:]]
                if kept != list(facts.get(fact) or []) or len({one.shape[2:] for one in states}) > 1:
                    said.append(f"{name} layer {at}: {field} {kept}, blueprint {facts.get(fact)}")
    return said[:6]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("types", nargs="*", metavar="TYPE")
    arguments.add_argument("--cases", type=int, default=25)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--cache", action="store_true")
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    rows = {}
    for model_type in options.types or library.types():
        if model_type not in CONFIG_MAPPING:
            print(f"{model_type}: not in transformers {transformers.__version__}")
            continue
        try:
            row = rows[model_type] = weigh_type(model_type, options.cases, options.seed, cache=options.cache)
        except ImportError as error:  # a model that needs a package that is not here
            print(f"{model_type}: not run: {error}")
            continue
        print(
            f"{model_type}: {row['equal']} equal, {row['refused']} refused, {row['not_built']} not built by"
            f" transformers, {len(row['differ'])} differ; classes {', '.join(row['classes'])}"
            + (f"; without blueprint: {', '.join(row['without'])}" if row["without"] else ""),
            flush=True,
        )
        for text in row["differ"]:
            print(f"    {text}", flush=True)
        if "cache_not_run" in row:
            print(f"    cache not run: {row['cache_not_run']}")
        for text, count in sorted(row["refusals"].items(), key=lambda pair: -pair[1])[:5]:
            print(f"    refused {count} times: {text}", flush=True)
    differ = sum(bool(row["differ"]) for row in rows.values())
    print(f"{len(rows)} types, {sum(len(r['classes']) for r in rows.values())} classes, {differ} types differ")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
