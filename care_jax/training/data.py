"""From the configuration's data block to a corpus, a stream of units, and the layout of every step to be run."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from care_jax import losses
from care_jax.config import Config
from care_jax.config.blocks import SourceConfig, Split
from care_jax.data import pipeline, preferences
from care_jax.data.corpus import Corpus
from care_jax.data.curation import leakage
from care_jax.data.packing.plans import Batch, BatchShape
from care_jax.data.preferences import Unit
from care_jax.data.questions import Question, Stored, is_ids
from care_jax.data.readers.registry import Reading, read
from care_jax.data.rows.report import write_report
from care_jax.distributed import is_writer
from care_jax.errors import Leakage, UserError
from care_jax.textfiles import write_whole
from care_jax.training.evaluation.held_out import HeldOut, hold_out
from care_jax.training.objective import Objective

_STORED_LOOKED_AT = 64
# A prompt of the corpus with a response of the corpus, not always its own (KTO's mismatched completions).
Sequence_ = tuple[int, int]


@dataclasses.dataclass
class Prepared:
    """Everything of a run's data that the loop needs. `ref_logps` come once the reference pass has run."""

    corpus: Corpus
    stream: "grain.MapDataset[Unit]"
    examples: int
    steps: int
    layout: BatchShape
    mismatched: BatchShape | None
    held_out: HeldOut | None
    held_out_questions: int
    sequences: list[Sequence_]  # that the steps to be run and the evaluation need, each once
    files: dict[str, str]  # sha256 of each file that was read
    labels: dict[str, Any] | None = None  # of the unpaired view: how many of each, and what that means for the loss
    ref_logps: dict[Sequence_, float] | None = None

    def summary(self) -> str:
        layout = self.layout
        shown = ""
        if self.labels is not None:
            shown = f"\nlabels: {self.labels['desirable']} desirable, {self.labels['undesirable']} undesirable an epoch"
            if "kto_weight_ratio" in self.labels:
                ratio, advice = self.labels["kto_weight_ratio"], self.labels["advice"]
                shown += "\n" + (advice or f"KTO: the weights' ratio of {ratio:.3g} is as published, in [1, 1.33]")
        return (
            f"data: {len(self.stream)} units an epoch, {self.held_out_questions} questions held out; "
            f"{self.steps} steps of {self.examples} units in at most {layout.microbatches} microbatches of "
            f"{layout.rows} x {layout.row_length} tokens; {self.corpus.truncated} completions cut, "
            f"{self.corpus.boundary_merges} boundaries merged{shown}"
        )

    def batches(self, first: int, rows: slice) -> Iterator[tuple[int, Batch, dict[str, Any]]]:
        """(step, batch, what the log says of the batch) from the step behind `first`, made ahead by threads."""

        def known(questions: np.ndarray, responses: np.ndarray) -> np.ndarray:
            return self.values(list(zip(questions.tolist(), responses.tolist())))

        made = pipeline.steps(
            self.stream,
            self.corpus,
            self.layout,
            self.examples,
            first,
            self.steps,
            mismatched=self.mismatched,
            rows=rows,
            ref_logps=None if self.ref_logps is None else known,
        )
        for index, batch, plan in made:
            extra = 0 if plan.mismatched is None else plan.mismatched.tokens
            told = {
                "tokens": plan.tokens + extra,
                "pairs": len(plan.pairs),
                "packing_efficiency": round(plan.efficiency, 6),
            }
            if plan.mismatched is not None:
                told["mismatched_tokens"] = extra
            yield index + 1, batch, told

    def values(self, sequences: Sequence[Sequence_]) -> np.ndarray:
        """Reference logps [len(sequences)] float32."""
        assert self.ref_logps is not None
        return np.asarray([self.ref_logps[one] for one in sequences], np.float32)

    def rendered_questions(self) -> list[int]:
        """The questions whose tokens a template made, not those that came as ids; of a token cache's only the first,
        so that a start reads no more of it.
        """
        rendered = [index for index, one in enumerate(self.corpus.questions) if not is_ids(one.prompt)]
        stored = [index for index in rendered if isinstance(self.corpus.questions[index].prompt, Stored)]
        return sorted({*rendered} - {*stored[_STORED_LOOKED_AT:]})


def prepare(config: Config, tokenizer: Any, objective: Objective, folder: pathlib.Path) -> Prepared:
    """Reads, selects, splits, tokenizes and plans; writes data_report.json and rejected_rows.jsonl.

    Raises UserError where nothing is left to train on, or something fits no row; Leakage where a configured evaluation
    set holds questions of the training data.
    """
    data, batch = config.data, config.batch
    readings = [_read(source, data.strict) for source in data.train]
    parts = [reading.questions for reading in readings]
    held: list[Question] = []
    if isinstance(data.eval, Split):
        whole = [question for part in parts for question in part]
        if not whole:
            raise UserError(_nothing(readings, data.train))
        _, held = preferences.split(whole, config.seed, fraction=data.eval.fraction, count=data.eval.questions)
        away = {question.key for question in held}
        parts = [[question for question in part if question.key not in away] for part in parts]
        held_readings: list[Reading] = []
    else:
        held_readings = [_read(source, data.strict) for source in data.eval]
        held = [question for reading in held_readings for question in reading.questions]
        _check_leakage([question for part in parts for question in part], held)
    parts = [preferences.take_fraction(part, data.fraction, config.seed) for part in parts]

    def tokens(questions: Sequence[Question]) -> Corpus:
        return pipeline.tokenize(questions, tokenizer, data.chat_template, data.max_length, date=data.template_date)

    corpora = [tokens(questions) for questions in (*parts, held)]
    _report(readings, held_readings, corpora, (*parts, held), folder)
    corpus, offsets = pipeline.concatenate(corpora)

    def units(part: int, **changes: Any) -> list[Unit]:
        own = preferences.make_units(corpora[part].questions, objective.view, **{**_view(config), **changes})
        return [dataclasses.replace(unit, question=unit.question + offsets[part]) for unit in own]

    sources = []
    for number, source in enumerate(data.train):
        own = units(number)
        if source.limit is not None:
            own = preferences.limit_units(
                corpus.questions,
                own,
                seed=config.seed,
                questions_limit=source.limit.questions,
                pairs=source.limit.pairs,
                tokens=source.limit.tokens,
                lengths=(corpus.prompt_lengths, corpus.first_response, corpus.completion_lengths),
                reduction=batch.reduction,
            )
        if not own:
            raise UserError(_nothing(readings[number : number + 1], data.train[number : number + 1]))
        sources.append((own, source.weight))
    labels = _labels(config, sources, folder) if objective.view == "unpaired" else None
    stream = pipeline.mixture(sources, seed=config.seed, shuffle=data.shuffle)
    steps = pipeline.number_of_steps(stream, batch.examples, data.epochs, data.max_steps)

    every_unit = [unit for own, _ in sources for unit in own]
    layout = pipeline.make_layout(
        every_unit,
        corpus,
        rows=batch.microbatch_rows,
        row_length=batch.row_length,
        packing=batch.packing,
        share_responses=batch.share_responses,
        share_prompts=batch.share_prompts,
        longest_completion=int(corpus.completion_lengths.max()),
    )
    mismatched = pipeline.mismatched_layout(layout, corpus) if objective.needs_kl else None
    layout, mismatched = pipeline.plan_run(stream, corpus, layout, batch.examples, steps, mismatched)
    held_out = None
    if len(corpora[-1]):
        # Units of the run's own view and policy, and all pairs at the least gap, which compare across losses.
        own = units(len(data.train))
        pairs = preferences.make_units(corpora[-1].questions, "pairs", policy="all", seed=config.seed, unit="group")
        everything = [dataclasses.replace(unit, question=unit.question + offsets[-1]) for unit in pairs]
        other = pipeline.mismatched_sequences(own, corpus) if objective.needs_kl and own else []
        held_out = hold_out(corpus, own, everything, other)
    needed = pipeline.needed_sequences(stream, corpus, batch.examples, steps, mismatched is not None)
    if held_out is not None:
        needed = sorted({*needed, *held_out.sequences})
    files = {file: digest for reading in (*readings, *held_readings) for file, digest in reading.files}
    return Prepared(
        corpus, stream, batch.examples, steps, layout, mismatched, held_out, len(corpora[-1]), needed, files, labels
    )


def _check_leakage(train: Sequence[Question], held: Sequence[Question]) -> None:
    overlaps = leakage.check(train, held)
    if overlaps:
        found = leakage.check_text(overlaps, examples=3).rstrip()
        raise Leakage(f"data.eval: {found}\nLeave them out of one of the two (care-jax data check lists all of them)")


def _read(source: SourceConfig, strict: bool) -> Reading:
    return read(
        source.reader,
        source.path,
        split=source.split,
        name=source.name,
        columns=source.columns,
        revision=source.revision,
        cultures=source.cultures,
        relations=source.relations,
        categories=source.categories,
        sources=source.sources,
        query_language=source.query_language,
        translations=source.translations,
        strict=strict,
    )


def _view(config: Config) -> dict[str, Any]:
    """`make_units`' options, from the data and batch blocks."""
    data, batch = config.data, config.batch
    labels: dict[str, Any] = {"labels": data.labels}
    if not isinstance(data.labels, str):
        labels = {"desirable_min": data.labels.desirable_min, "undesirable_max": data.labels.undesirable_max}
    return {
        "policy": data.pairs.policy,
        "min_gap": data.pairs.min_gap,
        "max_per_question": data.pairs.max_per_question,
        "weights": data.pairs.weights,
        "seed": config.seed,
        "unit": batch.unit,
        "reduction": batch.reduction,
        **labels,
    }


def _report(
    readings: Sequence[Reading],
    held_readings: Sequence[Reading],
    corpora: Sequence[Corpus],
    parts: Sequence[Sequence[Question]],
    folder: pathlib.Path,
) -> None:
    """The account of what was read, what the maximum length cut away included."""
    places: dict[int, tuple[Reading, int]] = {}
    for reading in (*readings, *held_readings):
        for index, question in enumerate(reading.questions):
            places[id(question)] = reading, index
    for corpus, part in zip(corpora, parts):
        for lost in corpus.dropped:
            reading, index = places[id(part[lost.question])]
            reading.report.drop_truncated(index, lost.response, lost.found)
    if is_writer():
        write_report(folder, [reading.report for reading in (*readings, *held_readings)])


def _labels(config: Config, sources: Sequence[tuple[list[Unit], float]], folder: pathlib.Path) -> dict[str, Any]:
    """Labels of an epoch, and KTO's published rule for the weights; into data_report.json too."""
    counts = {
        name: round(sum(weight * sum(unit.desirable is wanted for unit in own) for own, weight in sources))
        for name, wanted in (("desirable", True), ("undesirable", False))
    }
    labels: dict[str, Any] = dict(counts)
    for one in config.losses:
        if one.name == "kto":
            weights = {name: one.hyperparameters[f"{name}_weight"] for name in counts}
            ratio, advice = losses.kto_weight_ratio(*counts.values(), *weights.values())
            labels |= {"kto_weight_ratio": ratio if math.isfinite(ratio) else None, "advice": advice}
    if is_writer():
        path = folder / "data_report.json"
        report = json.loads(path.read_text(encoding="utf-8")) | {"labels": labels}
        write_whole(path, json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    return labels


def _nothing(readings: Sequence[Reading], sources: Sequence[SourceConfig]) -> str:
    """Why there is nothing to train on."""
    paths = ", ".join(source.path for source in sources)
    rows = sum(reading.report.rows for reading in readings)
    dropped = {reason: count for reading in readings for reason, count in reading.report.dropped.items() if count}
    kept = sum(len(reading.questions) for reading in readings)
    return (
        f"{paths}: no unit is left to train on: {rows} rows were read, {kept} questions kept "
        f"(dropped: {dropped or 'nothing'}); see data.pairs, data.labels and the selection keys of data.train"
    )
