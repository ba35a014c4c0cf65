"""The model card of an export: what it was trained on and how, what was measured, and with which versions."""

import json
import pathlib

import yaml

from care_jax import config as configs
from care_jax.config import Config
from care_jax.config.blocks import LossConfig
from care_jax.hub import is_hub_id
from care_jax.textfiles import JsonObject, markdown_table, read_lines
from care_jax.training.evaluation.final_table import final_table

_LANGUAGES = {"arab": "ar", "chinese": "zh", "japanese": "ja"}
_MANIFEST_KEYS = ("versions", "python", "device", "processes", "commit", "config_hash", "weights_fingerprint")


def card(run: pathlib.Path) -> str:
    """Returns the model card of a run from the files of its directory, with Hugging Face's front matter.

    card.md is its template.
    """
    config = configs.load(run / "config.yaml")
    manifest = _read_json(run / "manifest.json")
    report = _read_json(run / "data_report.json")
    template = pathlib.Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return template.format(
        front_matter=_front_matter(config, manifest, report),
        name=config.name,
        model=config.model.path,
        losses=" + ".join(_loss_names(config)),
        sources=_sources(config, manifest),
        counts=_counts(report),
        pairs=config.data.pairs.policy,
        min_gap=config.data.pairs.min_gap,
        fraction=config.data.fraction,
        files="\n".join(f"- `{path}` sha256 `{sha256}`" for path, sha256 in manifest.get("data_sha256", {}).items()),
        training=_training(config),
        evaluation=_evaluation(config, read_lines(run / "metrics.jsonl")),
        manifest=json.dumps({key: manifest[key] for key in _MANIFEST_KEYS if key in manifest}, indent=2),
        chat_template=config.data.chat_template,
    )


def _read_json(path: pathlib.Path) -> JsonObject:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _loss_names(config: Config) -> list[str]:
    return [loss.name for loss in config.losses]


def _front_matter(config: Config, manifest: JsonObject, report: JsonObject) -> str:
    licence = manifest.get("model", {}).get("licence")
    fields: JsonObject = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": licence.lower() if licence else "other",
        "tags": ["care_jax", "preference-learning", *_loss_names(config)],
    }
    if config.model.init == "pretrained" and config.model.path != "sample":
        fields["base_model"] = config.model.path
    hub_ids = [source.path for source in config.data.train if is_hub_id(source.path)]
    if hub_ids:
        fields["datasets"] = hub_ids
    languages = [_LANGUAGES[culture] for culture in report.get("by", {}).get("culture", {}) if culture in _LANGUAGES]
    if languages:
        fields["language"] = languages
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).rstrip()


def _sources(config: Config, manifest: JsonObject) -> str:
    licences = {source["path"]: source.get("licence") for source in manifest.get("data", [])}
    rows = []
    for source in config.data.train:
        licence = licences.get(source.path) or "not known"
        rows.append([source.path, source.reader, source.revision or "-", licence, f"{source.weight:g}"])
    return _table(["data", "reader", "revision", "licence", "passes"], rows)


def _counts(report: JsonObject) -> str:
    """Returns what was read and dropped, and the questions by culture and category."""
    if not report:
        return "What was read is not known: the run has no data_report.json."
    dropped = ", ".join(f"{count} {reason}" for reason, count in report["dropped"].items() if count) or "nothing"
    lines = [f"{report['questions']} questions, {report['responses']} responses read; dropped: {dropped}."]
    for dimension, counts in report["by"].items():
        lines.append(f"By {dimension}: " + ", ".join(f"{name} {count}" for name, count in counts.items()) + ".")
    return "\n".join(lines)


def _training(config: Config) -> str:
    optimizer, model, lora = config.optimizer, config.model, config.model.lora
    max_norm = optimizer.max_grad_norm
    rows = [
        ["loss", " + ".join(_loss(loss) for loss in config.losses)],
        ["optimizer", optimizer.name],
        ["learning rate", f"{optimizer.learning_rate:g}, {optimizer.schedule}, warmup {optimizer.warmup:g}"],
        ["weight decay", f"{optimizer.weight_decay:g}"],
        ["maximum gradient norm", "-" if max_norm is None else f"{max_norm:g}"],
        ["batch", f"{config.batch.examples} x {config.batch.unit}"],
        ["epochs, steps", f"{config.data.epochs}, {config.data.max_steps or 'all'}"],
        ["maximum sequence length", f"{config.data.max_length} tokens"],
        ["dtype", f"{model.dtype}, weights {model.param_dtype}"],
        ["adapters", "-" if lora is None else f"r {lora.r}, alpha {lora.alpha:g}"],
        ["seed", str(config.seed)],
    ]
    return _table(["", ""], rows)


def _loss(loss: LossConfig) -> str:
    hyperparameters = ", ".join(f"{key}={value}" for key, value in loss.hyperparameters.items())
    weight = "" if loss.weight == 1 else f"{loss.weight:g} "
    return f"{weight}{loss.name}({hyperparameters})"


def _evaluation(config: Config, lines: list[JsonObject]) -> str:
    """Returns the last results of the run. lines: lines of metrics.jsonl."""
    last = next((line for line in reversed(lines) if "eval/loss" in line), None)
    if last is None:
        return "None was run during training."
    text = f"Preferences on questions held out of training:\n\n```\n{final_table(lines)}\n```"
    if config.evaluation is None:
        return text
    rows = []
    for task in config.evaluation.tasks:
        score, missing = (last.get(f"eval/{task.label}/{name}") for name in ("score", "missing"))
        rows.append([task.label, "-" if score is None else f"{score:.4f}", str(missing)])
    return f"{text}\n\n{_table(['task', 'score', 'missing'], rows)}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(markdown_table(head, rows)).rstrip()
