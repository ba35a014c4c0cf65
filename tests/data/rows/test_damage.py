"""A thousand damaged inputs: each raises a `UserError` that names the file, or its rows are counted and listed."""

import json
import random

import pytest

from care_jax.data import readers
from care_jax.errors import UserError
from tests.data.care_rows import care_row

VALUES = [
    None,
    "",
    " ",
    "x",
    0,
    -1,
    7,
    1e400,
    float("nan"),
    True,
    [],
    [1],
    {},
    {"a": {"b": []}},
    "\u200b",
    "N/A",
    [[[]]],
]
PREFERENCES = {"prompt": "p", "chosen": "c", "rejected": "r"}
SETS = [
    ("hh_rlhf", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}),
    ("ultrafeedback", {"instruction": "q", "completions": [{"response": "a", "overall_score": 3, "model": "m"}, {}]}),
    ("oasst", {"message_id": "a", "parent_id": "a", "text": "t", "role": "assistant", "rank": 0, "lang": "en"}),
    ("prism", {"conversation_history": [{"turn": 0, "role": "user", "content": "q"}, {"turn": 0, "score": 1}]}),
    ("blend", {"question": "q", "annotations": [{"answers": ["a"], "count": 1}], "idks": {"idk": 1}, "country": "UK"}),
    ("sft", {"inputs": "q", "targets": "a", "messages": [{"role": "user", "content": "q"}]}),
]
TOKENIZED = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}


def damaged(rng, row):
    """Returns a row with some fields missing, replaced or of the wrong type."""
    row = dict(row)
    for key in rng.sample(list(row), rng.randint(1, len(row))):
        if rng.random() < 0.3:
            del row[key]
        else:
            row[key] = rng.choice(VALUES)
    return row


def mangle(rng, data):
    """Returns the bytes of a file with some missing, changed, doubled or cut off."""
    data = bytearray(data)
    for _ in range(rng.randint(0, 4)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(5)
        if kind == 0:
            del data[at:]
        elif kind == 1 and data:
            data[at] = rng.randrange(256)
        elif kind == 2:
            data[at:at] = rng.choice([b"\xff\xfe", b"\x00", b'"', b"{", b"]", b"\n", b"\\ud800", b"NaN"])
        elif kind == 3:
            data[at : at + rng.randint(1, 30)] = b""
        else:
            data[at:at] = data[at : at + rng.randint(1, 200)]
    return bytes(data)


@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_damaged_inputs(tmp_path, seed):
    rng = random.Random(seed)
    errors, lost = [], 0
    for index in range(200):
        reader, good = rng.choice([("care", care_row()), ("preferences", PREFERENCES), ("tokenized", TOKENIZED), *SETS])
        rows = [damaged(rng, good) if rng.random() < 0.5 else good for _ in range(rng.randint(1, 6))]
        name = rng.choice(["a.jsonl", "a.json", "a.csv"])
        if name == "a.json":
            text = json.dumps(rows)
        elif name == "a.csv":
            text = ",".join(good) + "\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows)
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows)
        path = tmp_path / name
        path.write_bytes(mangle(rng, text.encode("utf-8", "surrogatepass")))
        try:
            report = readers.read(reader, str(path)).report
        except UserError as error:
            errors.append((str(path) in str(error), index, str(error)))
            continue
        kept = sum(r.field != "rejected" for q in report.questions for r in q.responses)
        assert report.rows == kept + sum(report.dropped.values()), (index, reader)
        assert len(report.rejected) == sum(report.dropped.values())
        json.dumps(report.rejected).encode()
        if index % 10 == 0:
            json.dumps(report.to_json())
        lost += len(report.rejected)
    assert len(errors) > 5
    assert all(named for named, *_ in errors), errors
    assert lost > 50


def test_huge_strings_and_repeated_keys(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [json.dumps(care_row(response="x" * 10_000_000)), json.dumps(care_row(question="y" * 10_000_000))]
    rows.append('{"question": "a", "question": "b", "response": "r", "human_rating": 7}')
    rows.append(json.dumps(care_row(source="z" * 10_000_000, cul_type="z" * 10_000_000)))
    path.write_text("\n".join(rows))
    reading = readers.read("care", str(path))
    assert len(reading.questions) == 2
    assert reading.report.dropped["unknown_category"] == 1
    assert reading.report.dropped["missing_field"] == 1
    assert all(len(json.dumps(entry)) < 1000 for entry in reading.report.rejected)
