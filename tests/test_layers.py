"""Imports point one way without circles, folders and files are small, and `import care_jax` costs no jax."""

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
    {"textfiles", "hub", "hardware", "distributed"},
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


# Within a part: the folders from the bottom; a folder imports those before it, never those after it or beside it.
ROOMS = {
    "models": [{"families"}, {"hf"}],
    "data": [{"rows", "packing"}, {"readers"}, {"curation", "care_tfds"}],
    "evaluation": [{"endpoint"}, {"answers"}, {"tasks", "report"}],
    "training": [{"run", "forward"}, {"evaluation"}, {"checks", "export"}],
}
MODULES, LINES = 12, 400  # at most, per folder and per file
LONGER = {"logps.py"}


def files() -> list[pathlib.Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: pathlib.Path) -> str:
    """The dotted name of a file of the package; of `__init__.py` the package's."""
    return ".".join(("care_jax", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def part_of(path: pathlib.Path) -> str:
    """The part of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(path: pathlib.Path) -> set[str]:
    """What a file imports of care_jax, with dots, at any depth, wherever the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("care_jax.")}


def imported(path: pathlib.Path) -> set[str]:
    """The parts of care_jax that a file imports."""
    return {name.split(".")[1] for name in imported_names(path)}


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


@pytest.mark.parametrize("part", ROOMS)
def test_folders_of_a_part_import_those_below(part):
    rank = {name: number for number, names in enumerate(ROOMS[part]) for name in names}
    folders = {path.parent.name for path in (PACKAGE / part).glob("*/*.py")}
    assert folders == set(rank), f"the folders of {part} are those in ROOMS"
    for room in rank:
        for path in (PACKAGE / part / room).glob("*.py"):
            for name in imported_names(path):
                _, other_part, *rest = name.split(".")
                other = rest[0] if other_part == part and rest else None
                if other in rank and other != room:
                    assert rank[other] < rank[room], f"{path} imports {name}, which is not below it"


def test_there_is_no_circle_of_imports():
    """Imports within functions count too."""
    modules = {module_of(path): path for path in files()}
    edges = {}
    for name, path in modules.items():
        targets = {target if target in modules else target.rpartition(".")[0] for target in imported_names(path)}
        edges[name] = targets & modules.keys() - {name}
    while leaves := {name for name, targets in edges.items() if not targets & edges.keys()}:
        edges = {name: targets for name, targets in edges.items() if name not in leaves}
    # `care_jax` names its parts lazily, as strings; what is left imports itself, or something that does.
    assert not edges, f"a circle among {sorted(edges)}"


def test_folders_and_files_are_small():
    for folder in {path.parent for path in files()} - {PACKAGE / "losses"}:
        modules = [path for path in folder.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
        assert len(modules) <= MODULES, f"{folder} has {len(modules)} modules: a folder of its own for some of them?"
    for path in files():
        if path.name not in LONGER:
            lines = len(path.read_text().splitlines())
            assert lines <= LINES, f"{path} has {lines} lines: two files?"


def test_every_module_is_tested_by_name():
    """A module has the test file that mirrors it, or a test imports it or names its path in a docstring."""
    tests = {path: path.read_text() for path in pathlib.Path(__file__).parent.rglob("*.py")}
    names = {name for path in tests for name in imported_names(path)}
    names |= {name.rpartition(".")[0] for name in names}
    for path in files():
        inside = path.relative_to(PACKAGE)
        mirror = pathlib.Path(__file__).parent / inside.parent / f"test_{path.name}"
        named = module_of(path) in names or any(f"`{inside}`" in text for text in tests.values())
        assert path.name.startswith("__") or mirror.exists() or named, f"no test names {inside}"


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
