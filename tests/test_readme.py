"""The README's first screen is what the command prints."""

import json
from pathlib import Path

import layouts

import weighbridge

ROOT = Path(__file__).parents[1]


def test_the_first_screen_is_real_output(tmp_path: Path) -> None:
    models = json.loads((ROOT / "tests/data/real_models.json").read_text())["models"]
    config = next(model["config"] for model in models if model["name"] == "deepseek-ai/DeepSeek-V3")
    folder = layouts.write_folder(tmp_path / "DeepSeek-V3", layouts.deepseek(config), config=config, shards=163)
    shown = str(weighbridge.show(folder)).replace(str(folder), "DeepSeek-V3")
    *report, sum_ = shown.splitlines()
    readme = (ROOT / "README.md").read_text()
    assert "\n".join(report) in readme
    assert " ".join(sum_.split()) in " ".join(readme.split())


def test_every_document_that_is_pointed_to_exists() -> None:
    import re

    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_the_coverage_page_lists_the_types_that_blueprints_know() -> None:
    from weighbridge.formats.blueprints import types

    page = (ROOT / "docs/coverage.md").read_text()
    exact = page.partition("## Exact without PyTorch")[2].partition("\n## ")[0]
    listed = [word.strip().strip("`") for word in exact.replace("\n", " ").split(",")]
    assert listed == sorted(types())
    assert f"| {len(listed)} |" in page
