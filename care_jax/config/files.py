"""From recipes, machine files and `key=value` to one nested mapping; the keys' meaning is the blocks' affair."""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from care_jax.config.types import shown
from care_jax.errors import UserError, nearest

# Where a mapping offers alternatives, or belongs to a name, a new one takes the place of the old.
ALTERNATIVES = {"data.eval", "limit"}


class _Loader(yaml.SafeLoader):
    """YAML's safe loader; a key written twice is a mistake, a date stays the text that it is."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse(text: str, where: str) -> Any:
    """YAML text as plain values; UserError that begins with `where`."""
    try:
        value = yaml.load(text, _Loader)
        _check_keys(value, where)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{where}{line}: not valid YAML: {reason}") from None
    except RecursionError:
        raise UserError(f"{where}: not valid YAML: nested too deep") from None
    except UserError:
        raise
    except ValueError as error:  # a scalar that looks like a number and is none: 0b_, or thousands of digits
        raise UserError(f"{where}: not valid YAML: {error}") from None
    return value


def _check_keys(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise UserError(f"{where}: {key!r} is used as a key; keys are text (put it in quotes)")
            _check_keys(inner, where)
    elif isinstance(value, list):
        for inner in value:
            _check_keys(inner, where)


def shipped_folder() -> pathlib.Path:
    """The folder of recipes and machines: inside the package in a wheel, beside it in a checkout."""
    package = pathlib.Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def shipped(kind: str) -> list[str]:
    """Names that come with the package; kind: recipe or machine."""
    folder = shipped_folder() / ("machines" if kind == "machine" else "")
    return sorted(path.stem if path.suffix == ".yaml" else path.name for path in folder.glob("*.yaml"))


def find(name: str | os.PathLike[str], kind: str) -> pathlib.Path:
    """The file that a path or a shipped name means."""
    text = os.fspath(name)
    if text in shipped(kind):
        return shipped_folder() / ("machines" if kind == "machine" else "") / f"{text}.yaml"
    path = pathlib.Path(text)
    try:
        there = bool(text) and path.is_file()
    except (OSError, ValueError):  # longer than a file name may be, or with a NUL in it
        there = False
    if there:
        return path
    names = shipped(kind)
    if text in shipped("machine"):
        raise UserError(f"{kind} {text!r} is a machine: it stands behind the recipe, care-jax train RECIPE {text}")
    raise UserError(
        f"{kind} {text!r}: no such file, and no {kind} of that name{nearest(text, names)}; there are {', '.join(names)}"
    )


def read(name: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The mapping in a recipe or machine file."""
    path = find(name, kind)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: byte {error.object[error.start]:#x} at {error.start}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    value = parse(text, str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: a {kind} is a mapping of keys, found {shown(value)}")
    return value


def merged(below: Any, above: Any, path: str = "") -> Any:
    """`above` laid over `below`: mappings by key, all else replaced; a loss that names itself starts afresh."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    if _replaces(path, below, above):
        return dict(above)
    result = dict(below)
    for key, value in above.items():
        result[key] = merged(below[key], value, f"{path}.{key}" if path else key) if key in below else value
    return result


def _replaces(path: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    if path == "loss":
        return "name" in above
    return path in ALTERNATIVES or path.rsplit(".", 1)[-1] in ALTERNATIVES


def split_overrides(overrides: Iterable[str]) -> list[tuple[str, Any]]:
    """`key=value` texts as (key, value), the value read as YAML."""
    pairs = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"override {text!r}: expected key=value, such as loss.beta=0.2")
        pairs.append((key.strip(), parse(value, f"override {key.strip()}")))
    return pairs


def with_overrides(values: Mapping[str, Any], overrides: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """`values` with dotted keys set, later over earlier.

    A loss's name goes first wherever it stands, so that it resets the recipe's keys and none given beside it.
    """
    result = _copy(values)
    first = [one for one in overrides if _names_a_loss(one[0])]
    for key, value in [*first, *(one for one in overrides if not _names_a_loss(one[0]))]:
        parts = key.split(".")
        if not all(parts):
            raise UserError(f"override {key}: a part of the key is empty")
        result = _set(result, parts, value, "", key)
    return result


def _names_a_loss(key: str) -> bool:
    parts = key.split(".")
    return parts[0] == "loss" and parts[-1] in ("loss", "name") and len(parts) <= 3


def _set(node: Any, parts: Sequence[str], value: Any, path: str, key: str) -> Any:
    """`node` (the value at `path`) with the value under it set."""
    if not parts:
        return merged(node, _copy(value), path)
    name, here = parts[0], f"{path}.{parts[0]}" if path else parts[0]
    if path == "loss" and isinstance(node, list) and name == "name":
        node = {}  # one loss in place of a list of them
    if path in ALTERNATIVES and isinstance(node, list) and not name.isdecimal():
        node = {}  # a share in place of a list of sources
    if isinstance(node, list):
        if not name.isdecimal() or int(name) >= len(node):
            last = f"{path}.0 to {path}.{len(node) - 1}" if node else "nothing in it"
            raise UserError(f"override {key}: {path} is a list ({last}); say which, as {path}.0.KEY, or set all of it")
        return [_set(one, parts[1:], value, here, key) if i == int(name) else one for i, one in enumerate(node)]
    if node is None:
        node = {}
    if not isinstance(node, Mapping):
        raise UserError(f"override {key}: {path} is {shown(node)}, which has no {name!r} in it")
    if len(parts) == 1 and name == "name" and (path == "loss" or path.startswith("loss.")):
        return {"name": value} | ({"weight": node["weight"]} if "weight" in node else {})
    if len(parts) == 1 and _replaces(path, node, {name: value}):
        return {name: value}
    return {**node, name: _set(node.get(name), parts[1:], value, here, key)}


def _copy(value: Any) -> Any:
    """Mappings and sequences as new dicts and lists; the rest as it is."""
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(inner) for inner in value]
    return value
