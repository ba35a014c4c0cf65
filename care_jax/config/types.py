"""The types of the configuration's values, and the messages for values that do not fit them.

YAML 1.1 reads `1e-6` as text, so text of a number counts as one. A boolean is not a number, a number is not text.
"""

import math
import numbers
import os
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Strict, ValidationError
from pydantic_core import ErrorDetails

from care_jax.errors import UserError, nearest

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\Z", re.ASCII)


class Block(BaseModel):
    """A mapping in the configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InvalidValue(ValueError):
    """A wrong value of `key`, a key of the block whose validator raises it."""

    def __init__(self, key: str, text: str):
        super().__init__(text)
        self.key = key


def tag_lists(list_tag: str, other_tag: str) -> Discriminator:
    """Tells apart the two types of a union of which one is a list."""
    return Discriminator(lambda value: list_tag if isinstance(value, list | tuple) else other_tag)


def tag_texts(text_tag: str, other_tag: str) -> Discriminator:
    """Tells apart the two types of a union of which one is text."""
    return Discriminator(lambda value: text_tag if isinstance(value, str) else other_tag)


def abbreviate(value: object) -> str:
    """Returns a value as messages show it, at most 80 characters long."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_finite(value: object) -> bool:
    """Returns False for a number, or text of one, that is infinite, NaN or too large for a float; otherwise True."""
    try:
        return not isinstance(value, numbers.Real | str) or math.isfinite(float(value))
    except OverflowError:
        return False
    except ValueError:  # text, but not of a number
        return True


def _number(value: object) -> float:
    if isinstance(value, str) and _NUMBER.match(value.strip()):
        value = float(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and is_finite(value):
        return float(value)
    raise ValueError("a number")


def _integer(value: object) -> int:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and abs(int(value)) < 2**63:
        return int(value)
    try:
        number = _number(value)
    except ValueError:
        number = math.nan
    if number.is_integer() and abs(number) < 2**53:
        return int(number)
    raise ValueError("a whole number")


def _text(value: object) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        if not value.strip() or "\0" in value or any(0xD800 <= ord(letter) < 0xE000 for letter in value):
            raise ValueError("some text")
        return value
    raise ValueError("text (in quotes)" if isinstance(value, numbers.Real) else "text")


def _interval(value: object) -> float:
    try:
        number = _number(value)
    except ValueError:
        number = -1.0
    if number < 0 or (number >= 1 and not number.is_integer()):
        raise ValueError("a fraction of the run below 1, or a whole number of steps")
    return number


Integer = Annotated[int, BeforeValidator(_integer)]
Count = Annotated[Integer, Field(ge=1)]
Number = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]  # from 0, below 1
Share = Annotated[Number, Field(gt=0, le=1)]  # above 0, up to 1
Warmup = Annotated[float, BeforeValidator(_interval)]  # below 1 a fraction of the run, else steps
Interval = Annotated[Warmup, Field(gt=0)]
Text = Annotated[str, BeforeValidator(_text)]
Boolean = Annotated[bool, Strict()]


# The expected value in messages, for keys whose type is not enough.
_EXPECTED = {
    "loss": "a mapping such as {name: dpo, beta: 0.1}, or a list of them",
    "data.train": "a list of sources, such as [{reader: care, path: sample}]",
    "data.eval": "{fraction: 0.05}, {questions: 64}, a list of sources, or [] for none",
    "data.labels": "{desirable_min: 7, undesirable_max: 4}, relative, or best",
    "model.lora.target_modules": "all, or a list of names",
}
_LIST = "a list, such as [a, b]"
# pydantic's kind of error -> the expected value.
_KINDS = {"bool_type": "true or false", "too_short": "at least one entry", "tuple_type": _LIST, "list_type": _LIST}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def error_message(error: ValidationError, root: type[BaseModel]) -> str:
    """Returns one line per mistake: the key, the value that was found, the expected values, the nearest valid name.

    root: the model that was validated.
    """
    # pydantic reports a list whose only entry is wrong as too short as well.
    details = [each for each in error.errors(include_url=False) if each["type"] != "too_short" or not each["input"]]
    return "\n".join(dict.fromkeys(_line(each, root) for each in details))


def _line(error: ErrorDetails, root: type[BaseModel]) -> str:
    # Parts of a location that begin with "<" are the tags of a union, not keys of the user.
    key = ".".join(str(part) for part in error["loc"] if not str(part).startswith("<"))
    kind, context, value = error["type"], error.get("ctx", {}), abbreviate(error["input"])
    cause = context.get("error")
    if isinstance(cause, UserError):
        text = str(cause)
        return f"{key}.{text[5:]}" if text.startswith("loss.") else f"{key}: {text}"
    if isinstance(cause, InvalidValue):
        return f"{key}.{cause.key}: {cause}" if key else f"{cause.key}: {cause}"
    if kind == "extra_forbidden":
        return _unknown_key(key, error["loc"], root)
    if kind == "missing":
        return f"{key}: found nothing, expected {_EXPECTED.get(key, 'a value: it has no default')}"
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", context["expected"])
        close = nearest(error["input"], words) if isinstance(error["input"], str) else ""
        return f"{key}: found {value}{close}, expected {_EXPECTED.get(key) or ' or '.join(words)}"
    if kind in _BOUNDS:
        bound, word = _BOUNDS[kind]
        expected = f"a number {word} {context[bound]:g}"
    elif kind == "value_error":
        expected = str(cause)
    elif kind in _KINDS:
        expected = _KINDS[kind]
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        fields = list((_block_at(error["loc"], root) or Block).model_fields)
        expected = f"a mapping of {', '.join(fields)}" if fields else "a mapping"
    else:
        return f"{key}: found {value}: {error['msg']}"
    return f"{key}: found {value}, expected {_EXPECTED.get(key, expected)}"


def _unknown_key(key: str, loc: Sequence[int | str], root: type[BaseModel]) -> str:
    name, parent = str(loc[-1]), ".".join(key.split(".")[:-1])
    fields = list((_block_at(loc[:-1], root) or root).model_fields)
    close = nearest(name, fields)
    same_name = [known for known in _all_keys(root, "") if known.rsplit(".", 1)[-1] == name]
    if not close and same_name:
        close = f" (did you mean {same_name[0]!r}?)"
    return f"{key}: unknown key{close}; {parent or 'the configuration'} takes {', '.join(fields)}"


def _blocks(annotation: object) -> Iterator[type[BaseModel]]:
    """The blocks in a field's annotation, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _blocks(inner)


def _block_at(loc: Sequence[int | str], root: type[BaseModel]) -> type[BaseModel] | None:
    """Returns the block at a location in the configuration; None if it is inside no block."""
    block: type[BaseModel] | None = root
    for index, part in enumerate(loc):
        if block is None:
            return None
        if part not in block.model_fields:
            continue  # an index, or the tag of a union
        alternatives = list(_blocks(block.model_fields[part].annotation))
        is_list = loc[index + 1 : index + 2] == ("<sources>",)
        block = (alternatives[-1] if is_list else alternatives[0]) if alternatives else None
    return block


def _all_keys(block: type[BaseModel], path: str) -> Iterator[str]:
    """Every dotted key below a block."""
    for name, field in block.model_fields.items():
        yield path + name
        if name != "loss":
            for inner in _blocks(field.annotation):
                yield from _all_keys(inner, f"{path}{name}.")
