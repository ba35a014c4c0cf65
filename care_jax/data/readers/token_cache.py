"""The token cache that `care-jax data prepare` writes and `reader: prepared` reads.

A folder with `tokens.array_record` (one record per question: int32 ids, little endian, of the prompt and then of each
completion), `index.npz` (lengths, ratings and all else that selects and pairs), `prepared.json` (what made the ids) and
the report on the rows. A run reads the index when it starts; when it fills a step, it reads the records of that step by
random access. Completions are not cut: a run cuts them to its own maximum length.
"""

import functools
import hashlib
import json
import pathlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from care_jax.data import chat
from care_jax.data.chat import Tokenizer
from care_jax.data.preferences import content_hash
from care_jax.data.questions import Question, Response, Stored, is_ids, is_messages, normalise
from care_jax.data.rows.files import TOKEN_CACHE
from care_jax.data.rows.report import Report, write_report
from care_jax.data.rows.row import Row, Rows
from care_jax.data.rows.table import Table
from care_jax.errors import UserError
from care_jax.textfiles import JsonObject, write_json

_VERSION = 1
_TOKENS, _INDEX = "tokens.array_record", "index.npz"
_CHUNK = 4096  # questions tokenized together
_CODED = ("culture", "relation", "category", "language", "file")  # stored as an index into the list of names
_FIELDS = ("response", "chosen", "rejected")


class TokenCache:
    """The ids of one cache folder. manifest: its prepared.json. Records open at the first use, so it can be pickled."""

    def __init__(self, folder: pathlib.Path, manifest: JsonObject):
        self.folder, self.manifest = folder, manifest
        # What each thread read last: a step needs the same records for its prompts and then for its completions.
        self._last = threading.local()

    @functools.cached_property
    def _records(self) -> Any:
        import grain  # here, to spare it from commands that read rows

        return grain.sources.ArrayRecordDataSource(str(self.folder / _TOKENS))

    def __reduce__(self) -> Any:
        return TokenCache, (self.folder, self.manifest)

    def gather(self, records: Int64[np.ndarray, " n"]) -> tuple[Int32[np.ndarray, " total"], Int64[np.ndarray, " n"]]:
        """(ids of the distinct records, one record after the other; where each of `records` begins in them)."""
        distinct, inverse = np.unique(records, return_inverse=True)
        key = distinct.tobytes()
        if getattr(self._last, "key", None) != key:
            # One by one: for a single call grain starts a thread per file, and there is one file.
            parts = [self._records[record] for record in distinct.tolist()]
            lengths = np.asarray([len(part) // 4 for part in parts], np.int64)
            self._last.key = key
            self._last.ids = np.frombuffer(b"".join(parts), "<i4").astype(np.int32)
            self._last.starts = np.cumsum(lengths) - lengths
        return self._last.ids, self._last.starts[inverse]

    def check(self, tokenizer: Tokenizer, template: str, date: str | None) -> None:
        """Raises UserError if this tokenizer or chat template would make other ids."""
        made_by = self.manifest["made_by"]
        for name, value in fingerprint(tokenizer, template, date).items():
            if made_by[name] != value:
                raise UserError(
                    f"{self.folder}: these tokens were made by {self.manifest['model']!r} with chat template "
                    f"{self.manifest['chat_template']!r}; the run's {name.replace('_', ' ')} differs. "
                    "Prepare the data again with the run's model.path, data.chat_template and data.template_date"
                )


def fingerprint(tokenizer: Tokenizer, template: str, date: str | None) -> dict[str, str]:
    """Hashes of all that decides the ids: the tokenizer with its special tokens, and the template with its date."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = json.dumps(sorted(tokenizer.get_vocab().items()))
    else:
        backend.no_truncation()
        backend.no_padding()
        rules = backend.to_str()
    rendering = chat.template_and_variables(tokenizer, template, date)
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer("a")["input_ids"], type(tokenizer).__name__]
    return {
        "tokenizer": hashlib.sha256(f"{rules}\0{special}".encode()).hexdigest(),
        "chat_template": hashlib.sha256(repr(rendering).encode()).hexdigest(),
    }


@dataclass(frozen=True)
class Preparation:
    """What the ids of a cache are made with. model: path or id of the tokenizer; source: where the questions are from,
    kept in prepared.json; template, date: as in `chat.encode`.
    """

    model: str
    source: JsonObject
    template: str = "model"
    date: str | None = None


def write(
    folder: pathlib.Path, questions: Sequence[Question], report: Report, tokenizer: Tokenizer, preparation: Preparation
) -> JsonObject:
    """Tokenizes questions into a new cache; returns its prepared.json, which is written last.

    Raises UserError if the folder has a cache already, or if the questions come from one.
    """
    if (folder / TOKEN_CACHE).exists():
        raise UserError(f"{folder} holds a token cache already; choose another folder")
    if any(isinstance(question.prompt, Stored) for question in questions):
        raise UserError("the data are a token cache already")
    folder.mkdir(parents=True, exist_ok=True)
    lengths, tokens_sha256 = _write_tokens(folder, questions, tokenizer, preparation)
    index, names = _index(questions)
    np.savez(folder / _INDEX, **index, **lengths)  # type: ignore[arg-type]
    write_report(folder, [report])
    manifest = {
        "version": _VERSION,
        "model": preparation.model,
        "chat_template": preparation.template,
        "date": preparation.date,
        "made_by": fingerprint(tokenizer, preparation.template, preparation.date),
        "source": preparation.source,
        "questions": len(questions),
        "responses": len(lengths["completion_lengths"]),
        "tokens": int(lengths["prompt_lengths"].sum() + lengths["completion_lengths"].sum()),
        "tokens_sha256": tokens_sha256,
        "index_sha256": hashlib.sha256((folder / _INDEX).read_bytes()).hexdigest(),
        "names": names,
    }
    write_json(folder / TOKEN_CACHE, manifest)
    return manifest


def _write_tokens(
    folder: pathlib.Path, questions: Sequence[Question], tokenizer: Tokenizer, preparation: Preparation
) -> tuple[dict[str, np.ndarray], str]:
    """Writes the records; returns the index arrays that tokenizing gives, and the SHA-256 of all ids."""
    from array_record.python.array_record_module import ArrayRecordWriter

    digest = hashlib.sha256()
    columns: dict[str, list[int]] = {"prompt_lengths": [], "completion_lengths": [], "merges": []}
    writer = ArrayRecordWriter(str(folder / _TOKENS), "group_size:1,uncompressed")
    for start in range(0, len(questions), _CHUNK):
        chunk = questions[start : start + _CHUNK]
        items = [(question.prompt, [response.content for response in question.responses]) for question in chunk]
        for encoded in chat.encode_many(tokenizer, items, preparation.template, preparation.date):
            sequences = [encoded.prompt_ids, *encoded.completions]
            record = np.concatenate([np.asarray(ids, "<i4") for ids in sequences]).tobytes()
            writer.write(record)
            digest.update(record)
            columns["prompt_lengths"].append(len(encoded.prompt_ids))
            columns["completion_lengths"] += map(len, encoded.completions)
            columns["merges"].append(encoded.boundary_merges)
    writer.close()
    return {name: np.asarray(values, np.int32) for name, values in columns.items()}, digest.hexdigest()


def _index(questions: Sequence[Question]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """The arrays of the index that need no tokens, and the names that its codes are indices into."""
    coded = {name: [getattr(question, name) for question in questions] for name in _CODED}
    responses = [response for question in questions for response in question.responses]
    coded["source"] = [response.source for response in responses]
    names = {name: sorted({value for value in values if value is not None}) for name, values in coded.items()}
    index: dict[str, np.ndarray] = {}
    for name, values in coded.items():
        code = {value: number for number, value in enumerate(names[name])}
        index[f"{name}_code"] = np.asarray([-1 if value is None else code[value] for value in values], np.int32)
    # All text is in one array of bytes: [key, last turn, reference, translation] of each question, as JSON.
    texts = [
        json.dumps([q.key, _last_turn(q), q.reference, q.translated], ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )
        for q in questions
    ]
    desirable = {None: -1, False: 0, True: 1}
    index |= {
        "responses": np.asarray([len(question.responses) for question in questions], np.int32),
        "given_as_ids": np.asarray([is_ids(question.prompt) for question in questions], bool),
        "texts": np.frombuffer(b"".join(texts), np.uint8),
        "text_ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
        "ratings": np.asarray([np.nan if r.rating is None else r.rating for r in responses], np.float64),
        "rows": np.asarray([response.row_number for response in responses], np.int64),
        "fields": np.asarray([_FIELDS.index(response.field) for response in responses], np.int8),
        "desirable": np.asarray([desirable[response.desirable] for response in responses], np.int8),
        "identities": np.asarray([content_hash(response.content) for response in responses], np.uint64),
    }
    return index, names


def _last_turn(question: Question) -> str:
    """The last turn of the prompt, normalised like a question key."""
    if is_messages(question.prompt):
        return normalise(question.prompt[-1]["content"])
    return question.key.split("\t", 1)[-1]


def open_cache(path: str) -> Rows:
    """The rows of a cache, one per question. Raises UserError if the folder has no cache."""
    folder = pathlib.Path(path).expanduser()
    if not (folder / TOKEN_CACHE).is_file():
        raise UserError(f"{path}: no token cache in this folder; `care-jax data prepare` writes one")
    return Rows(lambda rows: _rows(folder, rows))


def _rows(folder: pathlib.Path, rows: Rows) -> Iterator[Row]:
    try:
        manifest = json.loads((folder / TOKEN_CACHE).read_text(encoding="utf-8"))
        content = (folder / _INDEX).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: the token cache cannot be read: {error}") from error
    if manifest.get("version") != _VERSION or manifest["index_sha256"] != hashlib.sha256(content).hexdigest():
        raise UserError(f"{folder}: {_INDEX} has changed since it was prepared; prepare the data again")
    hashes = {_TOKENS: manifest["tokens_sha256"], _INDEX: manifest["index_sha256"]}
    rows.hashes += [(str(folder / name), digest) for name, digest in hashes.items()]
    cache = TokenCache(folder, manifest)
    for number, question in enumerate(_questions(cache, dict(np.load(folder / _INDEX)))):
        yield Row(str(folder), number, number, None, {"question": question})


def _questions(cache: TokenCache, index: dict[str, np.ndarray]) -> Iterator[Question]:
    """The questions of an index. Their ids are not read."""
    names = cache.manifest["names"]
    texts, ends = index.pop("texts").tobytes(), index.pop("text_ends").tolist()
    columns = {name: array.tolist() for name, array in index.items()}

    def name(kind: str, code: int) -> Any:
        return None if code < 0 else names[kind][code]

    begin = first = 0
    for number, count in enumerate(columns["responses"]):
        key, last_turn, reference, translated = json.loads(texts[begin : ends[number]].decode("utf-8", "surrogatepass"))
        begin = ends[number]
        start = columns["prompt_lengths"][number]
        given_as_ids = columns["given_as_ids"][number]
        prompt = Stored(cache, number, 0, start, 0, last_turn, given_as_ids, columns["merges"][number])
        responses = []
        for place in range(first, first + count):
            length, rating = columns["completion_lengths"][place], columns["ratings"][place]
            responses.append(
                Response(
                    Stored(cache, number, start, length, columns["identities"][place], "", given_as_ids),
                    None if rating != rating else rating,
                    name("source", columns["source_code"][place]),
                    columns["rows"][place],
                    _FIELDS[columns["fields"][place]],
                    (None, False, True)[columns["desirable"][place] + 1],
                )
            )
            start += length
        first += count
        coded = {kind: name(kind, columns[f"{kind}_code"][number]) for kind in _CODED}
        yield Question(prompt, tuple(responses), key, reference=reference, translated=translated, **coded)


def read_prepared(table: Table, known: object) -> list[Question]:
    """The reader `prepared`. It reports the responses of the cache as rows; the two of a pair were one row."""
    questions = [row.value["question"] for row in table.rows if row.value is not None]
    table.report.rows += sum(response.field != "rejected" for question in questions for response in question.responses)
    return questions
