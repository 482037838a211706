"""Every torchvision model as a live object: our parameters against those that torchvision publishes.

    python benchmarks/torchvision_counts.py [--json FILE]

Needs torchvision, which no test does. Each model is built on the meta device, unchanged but for that, and weighed by
`weighbridge.show(model)`. Published are the `num_params` that every weights entry of torchvision itself states.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import torchvision
from torchvision.models import WeightsEnum

import weighbridge


def main() -> int:
    """Prints what differs; exit 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # A builder that is given weights makes the published model (frozen norms, no auxiliary heads). Values stay out.
    WeightsEnum.get_state_dict = lambda self, *args, **kwargs: {}
    torch.nn.Module.load_state_dict = lambda self, *args, **kwargs: None
    rows, differing = {}, 0
    for name in torchvision.models.list_models():
        if name.startswith("quantized_"):
            continue
        builder = torchvision.models.get_model_builder(name)
        for entry in torchvision.models.get_model_weights(name):
            # RegNet computes its widths with tensors, which hold no values on the meta device.
            with torch.device("cpu" if name.startswith("regnet") else "meta"):
                model = builder(weights=entry)
            total = weighbridge.show(model).data["parameters"]["total"]
            rows[str(entry)] = {"published": entry.meta["num_params"], "weighed": total}
            if total != entry.meta["num_params"]:
                differing += 1
                print(f"{entry}: {total:,} weighed, {entry.meta['num_params']:,} published")
    print(f"{len(rows)} weights entries, {differing} differ; torchvision {torchvision.__version__}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
