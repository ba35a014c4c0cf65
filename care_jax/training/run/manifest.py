"""manifest.json: what a run was made from and where it ran, enough to repeat it (`care-jax train --from-manifest`)."""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import re
import subprocess
from collections.abc import Iterable

import jax
import yaml

from care_jax import config as configs
from care_jax.config import Config
from care_jax.data.curation import catalogue
from care_jax.distributed import is_writer, say
from care_jax.errors import UserError
from care_jax.textfiles import write_json
from care_jax.training.run.identity import Identity

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy", "care-jax")


def write_manifest(
    folder: pathlib.Path, config: Config, model_folder: pathlib.Path, identity: Identity, weights: str
) -> None:
    """Writes manifest.json into the run directory. weights: the fingerprint of the initial weights, pretrained or
    random.
    """
    sources = [*config.data.train, *(config.data.eval if isinstance(config.data.eval, tuple) else ())]
    manifest = {
        "versions": _versions(),
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "commit": _commit(),
        "config_hash": configs.numeric_hash(config),
        "seed": config.seed,
        "data": [
            {"path": data.path, "reader": data.reader, "revision": data.revision, "licence": _data_licence(data.path)}
            for data in sources
        ],
        "data_sha256": identity.data,
        "model": {"path": config.model.path, **_model_origin(config, model_folder)},
        "weights_fingerprint": weights,
        "identity": dataclasses.asdict(identity),
        "config": config.model_dump(mode="json"),
    }
    if is_writer():
        write_json(folder / "manifest.json", manifest, indent=2)


def read_manifest(
    path: pathlib.Path, machines: Iterable[str] = (), overrides: Iterable[str] = ()
) -> tuple[Config, Identity]:
    """Returns the configuration of the run that wrote the file, changed by machines and overrides, and its identity.

    Warns if versions of the libraries that compute differ. Raises UserError if the file is no manifest.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        values, versions_then = manifest["config"], manifest["versions"]
        identity = Identity(**manifest["identity"])
    except OSError as error:
        raise UserError(f"--from-manifest {path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--from-manifest {path}: not the manifest.json of a run ({error})") from None
    config = configs.resolve(values, machines, overrides)
    pairs = ((name, versions_then.get(name), now) for name, now in _versions().items())
    changed = ", ".join(f"{name} {then} then, {now} now" for name, then, now in pairs if then != now)
    if changed:
        say(f"warning: other versions than in {path}, so numbers may differ by rounding: {changed}")
    return config, identity


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _data_licence(path: str) -> str | None:
    """Returns the licence that the catalogue of datasets names; the packaged sample has the package's own."""
    if path == "sample":
        return "MIT"
    return next((dataset.licence for dataset in catalogue.datasets() if dataset.where == path), None)


def _model_origin(config: Config, folder: pathlib.Path) -> dict[str, str | None]:
    """Returns the commit of a model from the hub, and the licence that the model's card names."""
    if config.model.path == "sample":
        return {"revision": None, "licence": "MIT"}
    revision = folder.name if folder.parent.name == "snapshots" else config.model.revision
    return {"revision": revision, "licence": _card_licence(folder / "README.md")}


def _card_licence(card: pathlib.Path) -> str | None:
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front_matter = re.match(r"---\n(.*?)\n---", text, re.S)
    try:
        fields = yaml.safe_load(front_matter[1]) if front_matter else None
    except yaml.YAMLError:
        return None
    licence = fields.get("license") if isinstance(fields, dict) else None
    return str(licence) if licence else None


def _commit() -> str | None:
    """Returns the git commit of the source tree, if the package runs from one."""
    root = pathlib.Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
