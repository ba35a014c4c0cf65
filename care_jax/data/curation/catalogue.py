"""The catalogue of datasets (catalogue.yaml): status, reader, licence and fields of each."""

import functools
import pathlib
from dataclasses import dataclass

import yaml

from care_jax.data import readers


@dataclass(frozen=True, slots=True)
class Dataset:
    """One dataset of the catalogue; catalogue.yaml explains the fields."""

    name: str
    status: str
    reader: str
    licence: str
    fields: str
    where: str = ""
    note: str = ""
    verified: bool = True


@functools.cache
def datasets() -> tuple[Dataset, ...]:
    """Returns the datasets of the catalogue."""
    entries = yaml.safe_load(pathlib.Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return tuple(Dataset(**entry) for entry in entries)


def list_text() -> str:
    """Returns the readers, then the catalogue, as `care-jax data list` prints them."""
    lines = ["readers (reader: NAME)"]
    width = max(map(len, readers.READERS))
    lines += [f"  {spec.name:<{width}}  {spec.summary}" for spec in readers.READERS.values()]
    lines += ["", "datasets"]
    for data in datasets():
        kind = "task" if data.status == "evaluation" else "reader"
        status = data.status if data.verified else f"{data.status}; fields unverified"
        lines.append(f"  {data.name} [{status}]" + (f" {kind} {data.reader}" if data.reader else ""))
        lines.append(f"      fields: {data.fields}")
        about = [f"licence: {data.licence}", data.where, data.note]
        lines.append("      " + "; ".join(part for part in about if part))
    return "\n".join(lines) + "\n"
