"""Imports point one way, and `import care_jax` costs no jax."""

import ast
import pathlib
import subprocess
import sys

import pytest

import care_jax

PACKAGE = pathlib.Path(care_jax.__file__).parent

# From the bottom; those of one line do not see each other, except where EXTRA says so.
LAYERS = [
    {"errors"},
    {"textfiles", "hardware", "distributed"},
    {"sharding", "stopping"},
    {"losses", "logps", "config"},
    {"models", "data"},
    {"evaluation"},
    {"training"},
    {"plan", "testing", "study"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# The configuration asks the losses' signatures what may be set.
EXTRA = {("config", "losses")}
# The attributes of `care_jax` are lazy: it names all parts and imports none.
ROOT = "__init__"


def part_of(path: pathlib.Path) -> str:
    """The part of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: pathlib.Path) -> set[str]:
    """The parts of care_jax that a file imports, at any depth, wherever the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("care_jax.")}


def files() -> list[pathlib.Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_part_has_a_layer():
    assert {part_of(path) for path in files()} - {ROOT} <= set(RANK)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    part = part_of(path)
    for other in imported(path):
        if part == ROOT or other == part or other not in RANK or (part, other) in EXTRA:
            continue
        assert RANK[other] < RANK[part], f"{path} of {part} imports {other}, which is not below it"
        assert other != "config" or RANK[part] >= RANK["training"], f"{path}: only training and above read config"


def test_the_walk_sees_every_way_to_import(tmp_path):
    file = tmp_path / "one.py"
    file.write_text(
        "import care_jax.data.chat\nfrom care_jax import cli\ndef f():\n    from care_jax.models.hf import x\n"
    )
    assert imported(file) == {"data", "cli", "models"}


def test_losses_need_jax_alone():
    """At import; the catalog draws with matplotlib when it is asked to."""
    for path in (PACKAGE / "losses").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top in {"jax", "care_jax", "jaxtyping", "numpy"} or top in sys.stdlib_module_names, (path, name)


def test_no_jax_before_it_is_needed():
    """The import, its attributes' names, and `--help` load no jax; neither does reading data."""
    code = (
        "import sys, care_jax, care_jax.cli; dir(care_jax); care_jax.cli.main(['--help']); "
        "care_jax.cli.main(['train', '--help']); assert 'jax' not in sys.modules; "
        "import care_jax.config; assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
