"""The pages for readers: their links lead somewhere, and what they name of the package exists."""

import importlib
import pathlib
import re

import pytest

from care_jax import losses

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")] + sorted(ROOT.glob("docs/*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_names_of_the_package_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:care_jax|tests|benchmarks|configs|launch|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{page}: {path}"
    for name in re.findall(r"`(care_jax(?:\.\w+)+)", text):
        path, *rest = name.split(".")
        value = importlib.import_module(path)
        for part in rest:
            path = f"{path}.{part}"
            value = getattr(value, part) if hasattr(value, part) else importlib.import_module(path)


def test_the_readme_lists_every_loss():
    """And no other: the rows of features that begin with "losses"."""
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| losses of")]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == losses.names()
