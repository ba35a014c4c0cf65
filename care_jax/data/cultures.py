"""Cultures, relations and categories: open sets with known spellings."""

import functools
import pathlib
import re
from dataclasses import dataclass

from care_jax.data.questions import normalise
from care_jax.errors import UserError


@dataclass(frozen=True, slots=True)
class Culture:
    """A culture: its id, other names for it, and the language (BCP 47) and script (ISO 15924) of its questions."""

    id: str
    names: tuple[str, ...] = ()
    language: str | None = None
    script: str | None = None


CULTURES: dict[str, Culture] = {
    "arab": Culture("arab", ("arabic", "ar", "ara", "arabs", "عربي", "عربية", "العربية"), "ar", "Arab"),
    "chinese": Culture("chinese", ("china", "zh", "zho", "zh-cn", "zh-hans", "cmn", "中文", "中国"), "zh", "Hans"),
    "japanese": Culture("japanese", ("japan", "ja", "jp", "jpn", "日本", "日本語", "日本人"), "ja", "Jpan"),
}
# Names that need no registration. A name that is neither here nor registered is reported as a possible mistake.
_MORE_CULTURES = frozenset(pathlib.Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").split())
CATEGORIES: dict[str, tuple[str, ...]] = {
    "entities": ("entity", "cultural entities", "cultural entity"),
    "commonsense": ("common sense", "cultural commonsense", "cultural common sense"),
    "norms": ("norm", "social norms", "social norm", "cultural norms"),
    "opinion": ("opinions", "cultural opinion", "cultural opinions"),
    "literacy": ("cultural literacy", "literary"),
}
RELATIONS = ("native", "foreign")

_CULTURE_IDS = {normalise(name): c.id for c in CULTURES.values() for name in (c.id, *c.names)}
_CATEGORY_IDS = {normalise(name): key for key, names in CATEGORIES.items() for name in (key, *names)}
_RELATED = re.compile(r"(native|foreign)\s*\((.+)\)")


@functools.lru_cache(maxsize=4096)
def culture_id(name: str) -> str:
    """Returns the id of a culture's name or alias; any other name becomes an id ('Sri Lankan' -> 'sri_lankan')."""
    name = normalise(name)
    return _CULTURE_IDS.get(name, re.sub(r"[^\w]+", "_", name).strip("_"))


@functools.lru_cache(maxsize=4096)
def category_id(name: str) -> str:
    """Returns the id of a category's name or alias; any other name becomes an id."""
    name = normalise(re.sub(r"[_-]+", " ", name))
    return _CATEGORY_IDS.get(name, re.sub(r"[^\w]+", "_", name).strip("_"))


def parse_culture(value: object, extra: frozenset[str] = frozenset()) -> tuple[str | None, str | None]:
    """Returns (relation, culture) of 'Native (Arab)', 'foreign(Chinese)' or 'Japanese'; an unknown culture is None.

    'Native (X)' and 'Foreign (X)' accept any X. A name alone must be a known culture or in `extra` (what the user
    selects), so that a misspelling like 'Chinnese' is reported and does not become a culture.
    """
    if not isinstance(value, str) or not value.strip():
        return None, None
    if match := _RELATED.fullmatch(normalise(value)):
        return match[1], culture_id(match[2]) or None
    name = culture_id(value)
    known = name in CULTURES or name in _MORE_CULTURES or name in extra
    return None, name if known else None


def parse_category(value: object, extra: frozenset[str] = frozenset()) -> str | None:
    """Returns the category's id ('Cultural entities' -> 'entities'), or None if it is neither known nor in `extra`."""
    if not isinstance(value, str) or not value.strip():
        return None
    name = category_id(value)
    return name if name in CATEGORIES or name in extra else None


def register_culture(path: str) -> Culture:
    """Registers a culture from a YAML file of `id` and, optionally, `names`, `language`, `script`."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            entry = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a culture's YAML file: {error}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or not entry["id"].strip():
        raise UserError(f"{path}: expected an object of id, names, language, script; found {entry!r}"[:300])
    for name in entry:
        if name not in ("id", "names", "language", "script"):
            raise UserError(f"{path}: unknown key {name!r}; a culture has id, names, language, script")
    names = entry.get("names") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: names: expected a list of names, found {names!r}"[:300])
    identity = re.sub(r"[^\w]+", "_", normalise(entry["id"])).strip("_")
    culture = Culture(identity, tuple(names), entry.get("language"), entry.get("script"))
    for name in (culture.id, *culture.names):
        other = _CULTURE_IDS.get(normalise(name), culture.id)
        if other != culture.id:
            raise UserError(f"{path}: the name {name!r} already belongs to the culture {other!r}")
    CULTURES[culture.id] = culture
    _CULTURE_IDS.update((normalise(name), culture.id) for name in (culture.id, *culture.names))
    culture_id.cache_clear()
    return culture


def culture_language(culture: str | None) -> str | None:
    """Returns the language (BCP 47) of a registered culture's questions, else None."""
    return CULTURES[culture].language if culture in CULTURES else None
