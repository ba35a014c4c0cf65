"""manifest.json: what a run was made from and on what, enough to run it again (`care-jax train --from-manifest`)."""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import re
import subprocess
from collections.abc import Iterable
from typing import Any

import jax
import yaml

from care_jax import config as configs
from care_jax.config import Config
from care_jax.data.curation.catalogue import DATASETS
from care_jax.distributed import is_writer, say
from care_jax.errors import UserError
from care_jax.textfiles import write_whole
from care_jax.training.run.identity import Identity

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy", "care-jax")


def write_manifest(
    folder: pathlib.Path, config: Config, source: pathlib.Path, identity: Identity, weights: str
) -> None:
    """Writes manifest.json into the run directory. source: the model's folder; weights: the fingerprint of the start,
    drawn or read.
    """
    data = config.data
    sources = [*data.train, *(data.eval if isinstance(data.eval, tuple) else ())]
    manifest = {
        "versions": versions(),
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "commit": _commit(),
        "config_hash": configs.maths_hash(config),
        "seed": config.seed,
        "data": [
            {"path": one.path, "reader": one.reader, "revision": one.revision, "licence": _data_licence(one.path)}
            for one in sources
        ],
        "data_sha256": identity.data,
        "model": {"path": config.model.path, **_model_about(config, source)},
        "weights_fingerprint": weights,
        "identity": dataclasses.asdict(identity),
        "config": config.model_dump(mode="json"),
    }
    if is_writer():
        write_whole(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def read_manifest(
    path: pathlib.Path, machines: Iterable[str] = (), overrides: Iterable[str] = ()
) -> tuple[Config, Identity]:
    """The configuration of the run that wrote the file, machines and overrides laid over it, and what that run read.

    Says where the versions of what computes differ. Raises UserError for a file that is no manifest.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        values, made_with = held["config"], held["versions"]
        identity = Identity(**held["identity"])
    except OSError as error:
        raise UserError(f"--from-manifest {path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--from-manifest {path}: not the manifest.json of a run ({error})") from None
    config = configs.over(values, machines, overrides)
    changed = [
        f"{name} {made_with.get(name)} then, {now} now"
        for name, now in versions().items()
        if made_with.get(name) != now
    ]
    if changed:
        say(f"warning: other versions than in {path}, so perhaps other roundings: {', '.join(changed)}")
    return config, identity


def _data_licence(path: str) -> str | None:
    """As the table of datasets has it; the packaged sample's is the package's own."""
    if path == "sample":
        return "MIT"
    return next((one.licence for one in DATASETS if one.where == path), None)


def _model_about(config: Config, folder: pathlib.Path) -> dict[str, Any]:
    """The commit of a hub id's download, and the licence that a model's card names."""
    if config.model.path == "sample":
        return {"revision": None, "licence": "MIT"}
    revision = folder.name if folder.parent.name == "snapshots" else config.model.revision
    return {"revision": revision, "licence": _card_licence(folder / "README.md")}


def _card_licence(card: pathlib.Path) -> str | None:
    found = (
        re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.S)
        if card.is_file()
        else None
    )
    try:
        about = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return None
    licence = about.get("license") if isinstance(about, dict) else None
    return str(licence) if licence else None


def _commit() -> str | None:
    """The git commit of the source tree, where the package runs from one."""
    root = pathlib.Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
