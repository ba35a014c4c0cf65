"""What is read cannot run code here: no pickles, no remote code, no unsafe YAML, no eval; archives are not unpacked."""

import ast
import pathlib

import pytest
import yaml

import care_jax
from care_jax.config import files

PACKAGE = pathlib.Path(care_jax.__file__).parent
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch", "tarfile", "zipfile"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {"extractall", "unpack_archive", "unsafe_load", "full_load", "load_all"}
SWITCHES = {"allow_pickle", "trust_remote_code"}


def dangers(tree: ast.AST) -> list[str]:
    """What in a module could run what it reads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if node.module.split(".")[0] in MODULES else []
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else None
            method = node.func.attr if isinstance(node.func, ast.Attribute) else None
            found += [name] if name in CALLS else []
            found += [method] if method in METHODS else []
            for word in node.keywords:
                if word.arg in SWITCHES and not (isinstance(word.value, ast.Constant) and word.value.value is False):
                    found.append(word.arg)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_that_is_read_can_run(path):
    assert dangers(ast.parse(path.read_text())) == []


def test_the_walk_sees_what_is_dangerous():
    text = "import pickle\nfrom torch import load\nnp.load(f, allow_pickle=True)\neval(x)\na.extractall()\n"
    assert dangers(ast.parse(text)) == ["pickle", "torch", "allow_pickle", "eval", "extractall"]
    assert dangers(ast.parse("np.load(f, allow_pickle=False)\nx.eval()\nast.literal_eval(x)")) == []


def test_yaml_makes_plain_values_only():
    assert issubclass(files._Loader, yaml.SafeLoader)
