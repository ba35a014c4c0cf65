"""Recipes, machine files and `key=value` overrides, merged into one nested mapping. `blocks` defines the keys."""

import contextlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import yaml

from care_jax.config.types import abbreviate
from care_jax.errors import UserError, nearest
from care_jax.textfiles import JsonObject

Kind: TypeAlias = Literal["recipe", "machine", "study"]
_FOLDERS = {"recipe": "", "machine": "machines", "study": "studies"}

# Keys whose mapping offers alternatives: a new one replaces the old one, the two are not merged.
ALTERNATIVES = {"data.eval", "limit"}


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a repeated key is an error and a date stays text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is repeated", key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse(text: str, where: str) -> object:
    """Reads YAML text as plain values. Raises UserError, beginning with `where`, if it is not valid."""
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
    except ValueError as error:  # a scalar that looks like a number but is not one: 0b_, or thousands of digits
        raise UserError(f"{where}: not valid YAML: {error}") from None
    return value


def _check_keys(value: object, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise UserError(f"{where}: {key!r} is used as a key; keys are text (put it in quotes)")
            _check_keys(inner, where)
    elif isinstance(value, list):
        for inner in value:
            _check_keys(inner, where)


def shipped_folder(kind: Kind) -> pathlib.Path:
    """Returns the folder of a kind's shipped files: inside the package in a wheel, beside it in a checkout."""
    package = pathlib.Path(__file__).resolve().parents[1]
    parent = package if (package / "configs").is_dir() else package.parent
    return parent / "configs" / _FOLDERS[kind]


def shipped_names(kind: Kind) -> list[str]:
    """Returns the names of the files of a kind that come with the package."""
    return sorted(path.stem for path in shipped_folder(kind).glob("*.yaml"))


def find_file(name: str | os.PathLike[str], kind: Kind) -> pathlib.Path:
    """Returns the file of a shipped name or a path. Raises UserError if there is none."""
    text = os.fspath(name)
    names = shipped_names(kind)
    if text in names:
        return shipped_folder(kind) / f"{text}.yaml"
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # too long, with a NUL in it, ~ of an unknown user
        path = pathlib.Path(text).expanduser()
        if text and path.is_file():
            return path
    if text in shipped_names("machine"):
        raise UserError(f"{kind} {text!r} is a machine: name it after the recipe, as in care-jax train RECIPE {text}")
    raise UserError(
        f"{kind} {text!r}: no such file, and no {kind} of that name{nearest(text, names)}; there are {', '.join(names)}"
    )


def read(name: str | os.PathLike[str], kind: Kind) -> JsonObject:
    """Reads the mapping in a file. Raises UserError if it cannot be read or is not a mapping."""
    path = find_file(name, kind)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: byte {error.object[error.start]:#x} at {error.start}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    value = parse(text, str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: a {kind} is a mapping of keys, found {abbreviate(value)}")
    return value


def merge(old: Mapping[str, object], new: Mapping[str, object], path: str = "") -> JsonObject:
    """Returns `old` with the values of `new`: mappings are merged by key, all else is replaced.

    A loss that has a name replaces the old loss with all its keys. path: dotted key of the two mappings.
    """
    if _replaces(path, new):
        return dict(new)
    prefix = f"{path}." if path else ""
    return {**old, **{key: _merge_value(old.get(key), value, prefix + key) for key, value in new.items()}}


def _merge_value(old: object, new: object, path: str) -> object:
    return merge(old, new, path) if isinstance(old, Mapping) and isinstance(new, Mapping) else new


def _replaces(path: str, new: Mapping[str, object]) -> bool:
    """Whether a mapping at `path` replaces the one that is there."""
    if path == "loss":
        return "name" in new
    return path in ALTERNATIVES or path.rsplit(".", 1)[-1] in ALTERNATIVES


def parse_overrides(overrides: Iterable[str]) -> list[tuple[str, object]]:
    """Returns `key=value` texts as (key, value), the value read as YAML."""
    pairs = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"override {text!r}: expected key=value, such as loss.beta=0.2")
        pairs.append((key.strip(), parse(value, f"override {key.strip()}")))
    return pairs


def with_overrides(values: Mapping[str, object], overrides: Sequence[tuple[str, object]]) -> object:
    """Returns `values` with dotted keys set; later ones win.

    The name of a loss is set first wherever it comes, so that it resets the recipe's keys but no other override.
    """
    result = _copy(values)
    for key, value in sorted(overrides, key=lambda override: not _names_a_loss(override[0])):
        parts = key.split(".")
        if not all(parts):
            raise UserError(f"override {key}: a part of the key is empty")
        result = _set(result, parts, value, "", key)
    return result


def _names_a_loss(key: str) -> bool:
    parts = key.split(".")
    return parts[0] == "loss" and parts[-1] in ("loss", "name") and len(parts) <= 3


def _set(node: object, parts: Sequence[str], value: object, path: str, key: str) -> object:
    """Returns `node`, the value at `path`, with `value` set under it.

    parts: the dotted key's parts after `path`. key: the whole dotted key, for messages.
    """
    if not parts:
        return _merge_value(node, _copy(value), path)
    name, path_below = parts[0], f"{path}.{parts[0]}" if path else parts[0]
    if path == "loss" and isinstance(node, list) and name == "name":
        node = {}  # one loss replaces a list of them
    if path in ALTERNATIVES and isinstance(node, list) and not name.isdecimal():
        node = {}  # a fraction replaces a list of sources
    if isinstance(node, list):
        if not name.isdecimal() or int(name) >= len(node):
            entries = f"{path}.0 to {path}.{len(node) - 1}" if node else "empty"
            raise UserError(f"override {key}: {path} is a list ({entries}); name an entry, {path}.0.KEY, or set all")
        index = int(name)
        return [*node[:index], _set(node[index], parts[1:], value, path_below, key), *node[index + 1 :]]
    if node is None:
        node = {}
    if not isinstance(node, Mapping):
        raise UserError(f"override {key}: {path} is {abbreviate(node)}, which has no key {name!r}")
    if len(parts) == 1 and name == "name" and (path == "loss" or path.startswith("loss.")):
        return {"name": value} | ({"weight": node["weight"]} if "weight" in node else {})
    if len(parts) == 1 and _replaces(path, {name: value}):
        return {name: value}
    return {**node, name: _set(node.get(name), parts[1:], value, path_below, key)}


def _copy(value: object) -> object:
    """Returns mappings and sequences as new dicts and lists, everything else as it is."""
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(inner) for inner in value]
    return value
