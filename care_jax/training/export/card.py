"""README.md of an export: what it was trained on and how, what it measured, and what it was made with."""

import json
import pathlib
from typing import Any

import yaml

from care_jax import config as configs
from care_jax.config import Config
from care_jax.hub import is_hub_id
from care_jax.textfiles import markdown_table, read_lines, write_whole
from care_jax.training.evaluation.final_table import final_table

_LANGUAGES = {"arab": "ar", "chinese": "zh", "japanese": "ja"}


def write_card(run: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes README.md into `folder`, the export of the run directory `run`, out of what lies in the run."""
    write_whole(folder / "README.md", card(run))


def card(run: pathlib.Path) -> str:
    """The model card, with Hugging Face's front matter."""
    config = configs.load(run / "config.yaml")
    manifest = _json(run / "manifest.json")
    account = _json(run / "data_report.json")
    lines = read_lines(run / "metrics.jsonl")
    parts = [
        _front(config, manifest, account),
        f"# {config.name}",
        f"{config.model.path} trained on human preferences with care_jax ({' + '.join(_losses(config))}).",
        _data(config, manifest, account),
        _training(config),
        _measured(config, lines, run),
        _made_with(manifest),
        "## Use\n\nThe folder loads in `transformers` (`AutoModelForCausalLM.from_pretrained`), vLLM and care_jax. "
        f"It was trained with the chat template `{config.data.chat_template}`: ask it the same way.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _json(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _losses(config: Config) -> list[str]:
    return [one.name for one in config.losses]


def _front(config: Config, manifest: dict[str, Any], account: dict[str, Any]) -> str:
    cultures = [name for name in account.get("by", {}).get("culture", {}) if name in _LANGUAGES]
    licence = manifest.get("model", {}).get("licence")
    about: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": licence.lower() if licence else "other",
        "tags": ["care_jax", "preference-learning", *_losses(config)],
    }
    if config.model.init == "pretrained" and config.model.path != "sample":
        about["base_model"] = config.model.path
    hub = [one.path for one in config.data.train if is_hub_id(one.path)]
    if hub:
        about["datasets"] = hub
    if cultures:
        about["language"] = [_LANGUAGES[name] for name in cultures]
    return f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---"


def _data(config: Config, manifest: dict[str, Any], account: dict[str, Any]) -> str:
    licences = {one["path"]: one.get("licence") for one in manifest.get("data", [])}
    rows = [
        [one.path, one.reader, one.revision or "-", licences.get(one.path) or "not known", f"{one.weight:g}"]
        for one in config.data.train
    ]
    text = ["## Data", "", *markdown_table(["data", "reader", "revision", "licence", "passes"], rows)]
    if account:
        dropped = ", ".join(f"{count} {reason}" for reason, count in account["dropped"].items() if count) or "nothing"
        text += [f"{account['questions']} questions, {account['responses']} responses read; dropped: {dropped}."]
        for dimension, counts in account["by"].items():
            text.append(f"By {dimension}: " + ", ".join(f"{name} {count}" for name, count in counts.items()) + ".")
    data = config.data
    text += ["", f"Pairs: {data.pairs.policy}, min gap {data.pairs.min_gap:g}; fraction {data.fraction:g}."]
    hashes = manifest.get("data_sha256", {})
    text += [f"- `{path}` sha256 `{digest}`" for path, digest in hashes.items()]
    return "\n".join(text)


def _training(config: Config) -> str:
    rows = [["loss", " + ".join(_loss(one) for one in config.losses)]]
    optimizer = config.optimizer
    rows += [
        ["optimizer", optimizer.name],
        ["learning rate", f"{optimizer.learning_rate:g}, {optimizer.schedule}, warmup {optimizer.warmup:g}"],
        ["weight decay", f"{optimizer.weight_decay:g}"],
        ["gradient norm at most", "-" if optimizer.max_grad_norm is None else f"{optimizer.max_grad_norm:g}"],
        ["batch", f"{config.batch.examples} x {config.batch.unit}"],
        ["epochs, steps", f"{config.data.epochs}, {config.data.max_steps or 'all'}"],
        ["longest sequence", f"{config.data.max_length} tokens"],
        ["dtype", f"{config.model.dtype}, weights {config.model.param_dtype}"],
        [
            "adapters",
            "-" if config.model.lora is None else f"r {config.model.lora.r}, alpha {config.model.lora.alpha:g}",
        ],
        ["seed", str(config.seed)],
    ]
    return "\n".join(["## Training", "", *markdown_table(["", ""], rows)]).rstrip()


def _loss(one: Any) -> str:
    values = ", ".join(f"{key}={value}" for key, value in one.hyperparameters.items())
    weight = "" if one.weight == 1 else f"{one.weight:g} "
    return f"{weight}{one.name}({values})"


def _measured(config: Config, lines: list[dict[str, Any]], run: pathlib.Path) -> str:
    if not any("eval/loss" in line for line in lines):
        return "## Evaluation\n\nNone was run in training."
    text = ["## Evaluation", "", "Preferences on questions held out of training:", "", "```"]
    text += [final_table(lines), "```"]
    last = next(line for line in reversed(lines) if "eval/loss" in line)
    if config.evaluation is not None:
        rows = [
            [one.label, _number(last.get(f"eval/{one.label}/score")), str(last.get(f"eval/{one.label}/missing"))]
            for one in config.evaluation.tasks
        ]
        text += ["", *markdown_table(["task", "score", "missing"], rows)]
    return "\n".join(text).rstrip()


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}"


def _made_with(manifest: dict[str, Any]) -> str:
    if not manifest:
        return ""
    kept = {
        key: manifest[key]
        for key in ("versions", "python", "device", "processes", "commit", "config_hash", "weights_fingerprint")
        if key in manifest
    }
    return f"## Manifest\n\n```json\n{json.dumps(kept, indent=2)}\n```"
