"""The data of a run: reads, splits and tokenizes the sources of the configuration, and plans the steps."""

import dataclasses
import pathlib
from collections.abc import Sequence

from care_jax.config import Config
from care_jax.config.blocks import DataConfig, SourceConfig, Split
from care_jax.data import pipeline, preferences, readers
from care_jax.data.chat import Tokenizer
from care_jax.data.corpus import Corpus, SequenceId
from care_jax.data.curation import leakage
from care_jax.data.pipeline import BatchShape, StepSource
from care_jax.data.preferences import Unit
from care_jax.data.questions import Question, Stored, is_ids
from care_jax.errors import Leakage, UserError
from care_jax.textfiles import JsonObject
from care_jax.training.evaluation.held_out import HeldOut, hold_out
from care_jax.training.objective import Objective
from care_jax.training.run import data_report

_STORED_CHECKED = 64  # prompts of a token cache


@dataclasses.dataclass(frozen=True)
class RunData:
    """The data of a run.

    source: gives the units and the plan of each step. sequences: all that the steps and the evaluation run, each once.
    files: the SHA-256 of each file that was read. labels: in the unpaired view, what `report_labels` returned.
    """

    source: StepSource
    steps: int
    held_out: HeldOut | None
    held_out_questions: int
    sequences: list[SequenceId]
    files: dict[str, str]
    labels: JsonObject | None = None

    @property
    def corpus(self) -> Corpus:
        return self.source.corpus

    def summary(self) -> str:
        """Returns what a run prints about its data."""
        shape = self.source.shape
        return (
            f"data: {len(self.source.stream)} units per epoch, {self.held_out_questions} questions held out; "
            f"{self.steps} steps of {self.source.examples} units in at most {shape.microbatches} microbatches of "
            f"{shape.rows} x {shape.row_length} tokens; {self.corpus.truncated} completions cut, "
            f"{self.corpus.boundary_merges} boundaries merged{data_report.labels_text(self.labels)}"
        )

    def rendered_questions(self) -> list[int]:
        """Returns the questions that a template rendered, not those that came as ids; of a token cache only the first
        ones, so that its other parts are not read.
        """
        rendered = [index for index, question in enumerate(self.corpus.questions) if not is_ids(question.prompt)]
        stored = [index for index in rendered if isinstance(self.corpus.questions[index].prompt, Stored)]
        return sorted({*rendered} - {*stored[_STORED_CHECKED:]})


def prepare(config: Config, tokenizer: Tokenizer, objective: Objective, folder: pathlib.Path) -> RunData:
    """Reads, selects, splits, tokenizes and plans; writes data_report.json and rejected_rows.jsonl into `folder`.

    Raises UserError if nothing is left to train on, or if something fits no row; Leakage if a configured evaluation
    set holds questions of the training data.
    """
    readings = read_sources(config.data)
    questions = split_questions(config, readings)
    tokens = tokenize_questions(config.data, tokenizer, questions)
    data_report.write_data_report(readings.all, questions, tokens.corpora, folder)
    sources = make_sources(config, objective.view, readings, tokens)
    labels = data_report.report_labels(folder, config.losses, sources) if objective.view == "unpaired" else None
    source, steps = plan_steps(config, objective, sources, tokens.corpus)
    held_out = make_held_out(config, objective, tokens)
    sequences = pipeline.needed_sequences(source, steps)
    if held_out is not None:
        sequences = sorted({*sequences, *held_out.sequences})
    files = {file: digest for reading in readings.all for file, digest in reading.files}
    return RunData(source, steps, held_out, len(tokens.corpora[-1]), sequences, files, labels)


# ---- Reading


@dataclasses.dataclass(frozen=True)
class Readings:
    """The readings of data.train and of data.eval, by source. evaluation: empty if questions are split off."""

    training: list[readers.Reading]
    evaluation: list[readers.Reading]

    @property
    def all(self) -> list[readers.Reading]:
        return [*self.training, *self.evaluation]


def read_sources(data: DataConfig) -> Readings:
    """Reads every source. Raises UserError for one that cannot be read."""
    evaluation = () if isinstance(data.eval, Split) else data.eval
    return Readings(_read(data.train, data.strict), _read(evaluation, data.strict))


def _read(sources: Sequence[SourceConfig], strict: bool) -> list[readers.Reading]:
    """Reads sources: all keys of their blocks except `limit` and `weight` are arguments of `readers.read`."""
    return [readers.read(**source.model_dump(exclude={"limit", "weight"}), strict=strict) for source in sources]


# ---- Splitting off the evaluation, and the fraction


def split_questions(config: Config, readings: Readings) -> list[list[Question]]:
    """Returns the questions of each training source, and last those of the evaluation: splits these off, or checks that
    none of data.eval is trained on; then takes the fraction of each source.

    Raises UserError if there is no question, Leakage if training questions are in data.eval.
    """
    data = config.data
    training = [reading.questions for reading in readings.training]
    everything = [question for questions in training for question in questions]
    if isinstance(data.eval, Split):
        if not everything:
            raise UserError(data_report.explain_no_units(readings.training, data.train))
        _, held_out = preferences.split(everything, config.seed, fraction=data.eval.fraction, count=data.eval.questions)
        keys = {question.key for question in held_out}
        training = [[question for question in questions if question.key not in keys] for questions in training]
    else:
        held_out = [question for reading in readings.evaluation for question in reading.questions]
        if overlaps := leakage.check(everything, held_out):
            text = leakage.check_text(overlaps, examples=3).rstrip()
            raise Leakage(f"data.eval: {text}\nLeave them out of one of the two (care-jax data check lists them all)")
    fractions = [preferences.take_fraction(questions, data.fraction, config.seed) for questions in training]
    return [*fractions, held_out]


# ---- Tokenizing


@dataclasses.dataclass(frozen=True)
class TokenizedQuestions:
    """corpora: the corpus of each training source, and last that of the evaluation. corpus: all of them in one;
    offsets: the number of the first question of each there.
    """

    corpora: list[Corpus]
    corpus: Corpus
    offsets: list[int]

    def to_corpus(self, units: Sequence[Unit], number: int) -> list[Unit]:
        """Returns units of corpora[number] with their questions numbered as in the joint corpus."""
        offset = self.offsets[number]
        return [dataclasses.replace(unit, question=unit.question + offset) for unit in units]


def tokenize_questions(
    data: DataConfig, tokenizer: Tokenizer, questions: Sequence[Sequence[Question]]
) -> TokenizedQuestions:
    """Renders and tokenizes the questions of `split_questions`."""
    corpora = [
        pipeline.tokenize(part, tokenizer, data.chat_template, data.max_length, date=data.template_date)
        for part in questions
    ]
    return TokenizedQuestions(corpora, *pipeline.concatenate(corpora))


# ---- Units

UnitSource = tuple[list[Unit], float]  # a source's units, and its weight: passes per epoch


def make_sources(config: Config, view: str, readings: Readings, tokens: TokenizedQuestions) -> list[UnitSource]:
    """Makes the units of each training source, and applies its limit. Raises UserError if a source has no unit left."""
    sources = []
    for number, source in enumerate(config.data.train):
        units = _make_units(config, view, tokens, number)
        if source.limit is not None:
            limit, reduction = preferences.Limit(**source.limit.model_dump()), config.batch.reduction
            units = preferences.limit_units(tokens.corpus, units, limit, seed=config.seed, reduction=reduction)
        if not units:
            raise UserError(data_report.explain_no_units([readings.training[number]], [source]))
        sources.append((units, source.weight))
    return sources


def _make_units(config: Config, view: str, tokens: TokenizedQuestions, number: int) -> list[Unit]:
    """Makes the units of corpora[number] with the run's policy."""
    data, batch = config.data, config.batch
    labels = {"labels": data.labels} if isinstance(data.labels, str) else data.labels.model_dump()
    units = preferences.make_units(
        tokens.corpora[number].questions,
        view,
        seed=config.seed,
        unit=batch.unit,
        reduction=batch.reduction,
        **data.pairs.model_dump(),
        **labels,
    )
    return tokens.to_corpus(units, number)


# ---- The source of the steps, and what the evaluation needs


def plan_steps(
    config: Config, objective: Objective, sources: Sequence[UnitSource], corpus: Corpus
) -> tuple[StepSource, int]:
    """Mixes the sources into a stream, and chooses the static sizes of the run's batches, and of KTO's mismatched
    completions if the loss names `kl`. Returns the source of the steps, and how many steps there are.

    Raises UserError if a question fits no row or no microbatch.
    """
    data, batch = config.data, config.batch
    stream = pipeline.mixture(sources, seed=config.seed, shuffle=data.shuffle)
    steps = pipeline.number_of_steps(stream, batch.examples, data.epochs, data.max_steps)
    rows = BatchShape(
        batch.microbatch_rows,
        batch.row_length,
        packing=batch.packing,
        share_responses=batch.share_responses,
        share_prompts=batch.share_prompts,
    )
    units = [unit for units, _ in sources for unit in units]
    shape = pipeline.batch_shape(units, corpus, rows, int(corpus.completion_lengths.max()))
    mismatched = pipeline.mismatched_shape(shape, corpus) if objective.needs_kl else None
    return pipeline.set_microbatches(StepSource(stream, corpus, batch.examples, shape, mismatched), steps), steps


def make_held_out(config: Config, objective: Objective, tokens: TokenizedQuestions) -> HeldOut | None:
    """Lays out the evaluation questions, if there are any: units of the run's view and policy, for its loss, and all
    pairs at the least gap, so that runs with different losses compare.
    """
    number = len(tokens.corpora) - 1
    if not len(tokens.corpora[number]):
        return None
    own_units = _make_units(config, objective.view, tokens, number)
    pairs = preferences.make_units(
        tokens.corpora[number].questions, "pairs", policy="all", seed=config.seed, unit="group"
    )
    needs_mismatched = objective.needs_kl and own_units
    mismatched = pipeline.mismatched_sequences(own_units, tokens.corpus) if needs_mismatched else []
    return hold_out(tokens.corpus, own_units, tokens.to_corpus(pairs, number), mismatched)
