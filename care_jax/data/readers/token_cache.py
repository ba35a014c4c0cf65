"""The token cache that `care-jax data prepare` writes and `reader: prepared` reads.

A folder of `tokens.array_record` (one record a question: int32 ids, little endian, the prompt's and then every
completion's), `index.npz` (lengths, ratings and what else selects and pairs), `prepared.json` (what made the ids), and
the account of the rows they came from. A run that starts from it reads the index; ids are read, a step's own records by
random access, when the step is filled. Completions are whole: a run cuts them to its own maximum length.
"""

import functools
import hashlib
import json
import pathlib
import threading
from collections.abc import Iterator, Sequence
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
from care_jax.textfiles import write_whole

_VERSION = 1
_TOKENS, _INDEX = "tokens.array_record", "index.npz"
_CHUNK = 4096  # questions tokenized at once
_CODED = ("culture", "relation", "category", "language", "file")
_FIELDS = ("response", "chosen", "rejected")


class TokenCache:
    """One folder of them. Its records open when ids are first asked for (so that it may be sent to a worker)."""

    def __init__(self, folder: pathlib.Path, about: dict[str, Any]):
        self.folder, self.about = folder, about
        self._last = threading.local()  # what this thread read last: a step asks for its prompts, then for its answers

    @functools.cached_property
    def _records(self) -> Any:
        import grain

        return grain.sources.ArrayRecordDataSource(str(self.folder / _TOKENS))

    def __reduce__(self) -> Any:
        return TokenCache, (self.folder, self.about)

    def gather(self, records: Int64[np.ndarray, " n"]) -> tuple[Int32[np.ndarray, " total"], Int64[np.ndarray, " n"]]:
        """(ids of these records, one after the other, each record once; where each asked for begins)."""
        distinct, inverse = np.unique(records, return_inverse=True)
        asked = distinct.tobytes()
        if getattr(self._last, "asked", None) != asked:
            # One by one: in a single call grain starts threads, one a file, and there is one file.
            parts = [self._records[record] for record in distinct.tolist()]
            lengths = np.asarray([len(part) // 4 for part in parts], np.int64)
            self._last.asked = asked
            self._last.found = np.frombuffer(b"".join(parts), "<i4").astype(np.int32), np.cumsum(lengths) - lengths
        ids, starts = self._last.found
        return ids, starts[inverse]

    def check(self, tokenizer: Tokenizer, template: str, date: str | None) -> None:
        """Raises UserError where another tokenizer or chat template would make other ids."""
        made_by = self.about["made_by"]
        for name, value in fingerprint(tokenizer, template, date).items():
            if made_by[name] != value:
                raise UserError(
                    f"{self.folder}: these tokens were made by {self.about['model']!r} with chat template "
                    f"{self.about['chat_template']!r}; the run's {name.replace('_', ' ')} differs. "
                    "Prepare the data again with the run's model.path, data.chat_template and data.template_date"
                )


def fingerprint(tokenizer: Tokenizer, template: str, date: str | None) -> dict[str, str]:
    """Hashes of what decides the ids: the tokenizer with its special tokens, and the template as it is rendered."""
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


def write(
    folder: pathlib.Path,
    questions: Sequence[Question],
    report: Report,
    tokenizer: Tokenizer,
    *,
    model: str,
    template: str = "model",
    date: str | None = None,
    source: dict[str, Any],
) -> dict[str, Any]:
    """Tokenizes questions into a new cache; returns its prepared.json, which is written last.

    source: what the questions came from, kept as it is. Raises UserError where the folder holds a cache already.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    if (folder / TOKEN_CACHE).exists():
        raise UserError(f"{folder} holds a token cache already; choose another folder")
    if any(isinstance(question.prompt, Stored) for question in questions):
        raise UserError("the data are a token cache already")
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    prompt_lengths: list[int] = []
    completion_lengths: list[int] = []
    merges: list[int] = []
    writer = ArrayRecordWriter(str(folder / _TOKENS), "group_size:1,uncompressed")
    for start in range(0, len(questions), _CHUNK):
        part = questions[start : start + _CHUNK]
        items = [(question.prompt, [response.content for response in question.responses]) for question in part]
        for encoding in chat.encode_many(tokenizer, items, template, date):
            ids = np.concatenate([np.asarray(one, "<i4") for one in (encoding.prompt_ids, *encoding.completions)])
            writer.write(ids.tobytes())
            digest.update(ids.tobytes())
            prompt_lengths.append(len(encoding.prompt_ids))
            completion_lengths += map(len, encoding.completions)
            merges.append(encoding.boundary_merges)
    writer.close()
    index, names = _index(questions)
    index |= {
        "prompt_lengths": np.asarray(prompt_lengths, np.int32),
        "completion_lengths": np.asarray(completion_lengths, np.int32),
        "merges": np.asarray(merges, np.int32),
    }
    np.savez(folder / _INDEX, **index)  # type: ignore[arg-type]
    write_report(folder, [report])
    about = {
        "version": _VERSION,
        "model": model,
        "chat_template": template,
        "date": date,
        "made_by": fingerprint(tokenizer, template, date),
        "source": source,
        "questions": len(questions),
        "responses": len(completion_lengths),
        "tokens": sum(prompt_lengths) + sum(completion_lengths),
        "tokens_sha256": digest.hexdigest(),
        "index_sha256": hashlib.sha256((folder / _INDEX).read_bytes()).hexdigest(),
        "names": names,
    }
    write_whole(folder / TOKEN_CACHE, json.dumps(about, ensure_ascii=False, indent=1) + "\n")
    return about


def _index(questions: Sequence[Question]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """The arrays of the index but the lengths, and the names that its codes stand for."""
    coded = {name: [getattr(question, name) for question in questions] for name in _CODED}
    responses = [response for question in questions for response in question.responses]
    coded["source"] = [response.source for response in responses]
    names = {name: sorted({value for value in values if value is not None}) for name, values in coded.items()}
    index: dict[str, np.ndarray] = {}
    for name, values in coded.items():
        code = {value: number for number, value in enumerate(names[name])}
        index[f"{name}_code"] = np.asarray([-1 if value is None else code[value] for value in values], np.int32)
    # What is text lies in one array of bytes: [key, last turn, reference, translation] of each question, as JSON.
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
        "rows": np.asarray([response.row for response in responses], np.int64),
        "fields": np.asarray([_FIELDS.index(response.field) for response in responses], np.int8),
        "desirable": np.asarray([desirable[response.desirable] for response in responses], np.int8),
        "identities": np.asarray([content_hash(response.content) for response in responses], np.uint64),
    }
    return index, names


def _last_turn(question: Question) -> str:
    """The last thing that was asked, normalised as a key is."""
    if is_messages(question.prompt):
        return normalise(question.prompt[-1]["content"])
    return question.key.split("\t", 1)[-1]


def open_cache(path: str) -> Rows:
    """The rows of a cache, one a question."""
    folder = pathlib.Path(path).expanduser()
    if not (folder / TOKEN_CACHE).is_file():
        raise UserError(f"{path}: no token cache in this folder; `care-jax data prepare` writes one")
    return Rows(lambda rows: _rows(folder, rows))


def _rows(folder: pathlib.Path, rows: Rows) -> Iterator[Row]:
    try:
        about = json.loads((folder / TOKEN_CACHE).read_text(encoding="utf-8"))
        content = (folder / _INDEX).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: the token cache cannot be read: {error}") from error
    if about.get("version") != _VERSION or about["index_sha256"] != hashlib.sha256(content).hexdigest():
        raise UserError(f"{folder}: {_INDEX} is not the one that was prepared; prepare the data again")
    rows.hashes += [(str(folder / _TOKENS), about["tokens_sha256"]), (str(folder / _INDEX), about["index_sha256"])]
    cache = TokenCache(folder, about)
    for number, question in enumerate(_questions(cache, dict(np.load(folder / _INDEX)))):
        yield Row(str(folder), number, number, None, {"question": question})


def _questions(cache: TokenCache, index: dict[str, np.ndarray]) -> Iterator[Question]:
    """The questions of an index; what is read for one is a few numbers, never its ids."""
    names = cache.about["names"]
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
        about = {kind: name(kind, columns[f"{kind}_code"][number]) for kind in _CODED}
        yield Question(prompt, tuple(responses), key, reference=reference, translated=translated, **about)


def read_prepared(table: Table, known: object) -> list[Question]:
    """The reader `prepared`. Rows are the responses that the cache holds (a pair of one row counts as that row)."""
    questions = [row.value["question"] for row in table.rows if row.value is not None]
    table.report.rows += sum(response.field != "rejected" for question in questions for response in question.responses)
    return questions
