"""What became of a run's data: data_report.json, the labels of an unpaired loss, and why nothing is left."""

import json
import math
import pathlib
from collections.abc import Sequence

from care_jax import losses
from care_jax.config.blocks import LossConfig, SourceConfig
from care_jax.data import readers
from care_jax.data.corpus import Corpus
from care_jax.data.preferences import Unit
from care_jax.data.questions import Question
from care_jax.data.rows.report import write_report
from care_jax.distributed import is_writer
from care_jax.textfiles import JsonObject, write_json


def write_data_report(
    readings: Sequence[readers.Reading],
    questions: Sequence[Sequence[Question]],
    corpora: Sequence[Corpus],
    folder: pathlib.Path,
) -> None:
    """Writes the report of what was read, including what the maximum length cut away.

    questions: the questions of the readings, as they were tokenized; corpora: their tokens.
    """
    origins: dict[int, tuple[readers.Reading, int]] = {}
    for reading in readings:
        for index, question in enumerate(reading.questions):
            origins[id(question)] = reading, index
    for corpus, part in zip(corpora, questions):
        for lost in corpus.dropped:
            reading, index = origins[id(part[lost.question])]
            reading.report.drop_truncated(index, lost.response, lost.reason)
    if is_writer():
        write_report(folder, [reading.report for reading in readings])


def report_labels(
    folder: pathlib.Path, configured: Sequence[LossConfig], sources: Sequence[tuple[list[Unit], float]]
) -> JsonObject:
    """Counts the labels of an epoch, and applies KTO's published rule for its weights; adds this to the report that
    `write_data_report` wrote, and returns it.
    """
    counts = {
        name: round(sum(weight * sum(unit.desirable is value for unit in units) for units, weight in sources))
        for name, value in (("desirable", True), ("undesirable", False))
    }
    labels: JsonObject = dict(counts)
    for loss in configured:
        if loss.name == "kto":
            weights = [loss.hyperparameters[f"{name}_weight"] for name in counts]
            ratio, advice = losses.kto_weight_ratio(*counts.values(), *weights)
            labels |= {"kto_weight_ratio": ratio if math.isfinite(ratio) else None, "advice": advice}
    if is_writer():
        path = folder / "data_report.json"
        write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"labels": labels}, indent=2)
    return labels


def labels_text(labels: JsonObject | None) -> str:
    """Returns the lines of a run's summary about its labels."""
    if labels is None:
        return ""
    text = f"\nlabels: {labels['desirable']} desirable, {labels['undesirable']} undesirable per epoch"
    if "kto_weight_ratio" in labels:
        ratio = labels["kto_weight_ratio"]
        text += "\n" + (labels["advice"] or f"KTO: the weights' ratio of {ratio:.3g} is as published, in [1, 1.33]")
    return text


def explain_no_units(readings: Sequence[readers.Reading], sources: Sequence[SourceConfig]) -> str:
    """Returns why there is nothing to train on."""
    paths = ", ".join(source.path for source in sources)
    rows = sum(reading.report.rows for reading in readings)
    dropped = {reason: count for reading in readings for reason, count in reading.report.dropped.items() if count}
    kept = sum(len(reading.questions) for reading in readings)
    return (
        f"{paths}: no unit is left to train on: {rows} rows were read, {kept} questions kept "
        f"(dropped: {dropped or 'nothing'}); see data.pairs, data.labels and the selection keys of data.train"
    )
