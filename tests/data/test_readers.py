"""The readers on each form of file, what they drop and why, and the selection keys."""

import csv
import gzip
import json
import os

import pytest

from care_jax.data import readers
from care_jax.data.rows.report import write_report
from care_jax.errors import UserError
from tests.data.rows import care_row, counts, write

# --- real data --------------------------------------------------------------------------------------------------------


def test_real_care_rows(shared):
    reading = readers.read("care", str(shared / "data/care_rated.jsonl"))
    assert len(reading.questions) == 450
    assert sum(len(q.responses) for q in reading.questions) == 2649
    assert counts(reading) == {"duplicate": 15, "conflicting_duplicate": 36}


def test_real_care_evaluation_items(shared):
    reading = readers.read("care_eval", str(shared / "data/care_eval"))
    cells = {}
    for question in reading.questions:
        cells[question.culture, question.category] = cells.get((question.culture, question.category), 0) + 1
    assert len(reading.questions) == 450
    assert len(cells) == 15
    assert set(cells.values()) == {30}
    assert len(reading.files) == 3


# --- care -------------------------------------------------------------------------------------------------------------


def test_both_care_schemas(tmp_path):
    old = {
        "Question": "q",
        "response": "r",
        "rating": "7",
        "source": "LLM",
        "culture_type": "Literacy",
        "Associated Culture": "Foreign (Arab)",
    }
    reading = readers.read("care", write(tmp_path, [care_row(), old]))
    new_question, old_question = reading.questions
    assert counts(reading) == {}
    assert new_question.prompt == ({"role": "user", "content": "为什么？"},)
    assert new_question.responses[0].content == ({"role": "assistant", "content": "A"},)
    assert (new_question.culture, new_question.relation, new_question.category) == ("chinese", "native", "norms")
    assert (new_question.language, new_question.reference, new_question.translated) == ("zh", "因为。", None)
    assert (old_question.culture, old_question.relation, old_question.category) == ("arab", "foreign", "literacy")
    assert old_question.responses[0].rating == 7.0
    assert old_question.reference is None


def test_every_reason_is_counted_and_listed(tmp_path):
    path = tmp_path / "care.jsonl"
    rows = [
        care_row(),
        care_row(),  # duplicate, whatever the source
        care_row(source="human", human_rating=3),  # conflicting
        care_row(question=...),
        care_row(question=None),
        care_row(question=" \n"),
        care_row(response=""),
        care_row(response=["x"]),
        care_row(human_rating="N/A"),
        care_row(human_rating=11),
        care_row(human_rating=None),
        care_row(cul_type="Weather"),
        care_row(associated_culture=None),
        care_row(associated_culture=...),
    ]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    lines += [b'{"question": ', b"[1, 2]", b"\xff\xfe{}", b"null", b"[" * 100_000]
    path.write_bytes(b"\n".join(lines) + b"\n")
    reading = readers.read("care", str(path))
    assert counts(reading) == {
        "duplicate": 1,
        "conflicting_duplicate": 1,
        "missing_field": 2,
        "empty_question": 2,
        "empty_response": 2,
        "invalid_rating": 3,
        "unknown_category": 1,
        "unknown_culture": 1,
        "unreadable": 5,
    }
    (question,) = reading.questions
    (response,) = question.responses
    assert response.rating == pytest.approx((7 + 7 + 3) / 3)
    assert (response.row, response.source) == (0, "gpt-4o")
    first = reading.report.rejected[0]
    assert (first["file"], first["row"], first["line"], first["reason"]) == (str(path), 1, 2, "duplicate")
    assert {"file", "row", "field", "reason", "found"} <= set(first)


def test_a_column_that_no_row_has_is_not_missed(tmp_path):
    rows = [care_row(associated_culture=..., cul_type=..., source=..., answer=...)]
    reading = readers.read("care", write(tmp_path, rows))
    assert counts(reading) == {}
    assert reading.questions[0].culture is None


def test_the_reader_care_reads_evaluation_items_too(tmp_path):
    items = [care_row(response=..., human_rating=..., source=...), care_row(response=..., human_rating=..., answer="")]
    reading = readers.read("care", write(tmp_path, items))
    (question,) = reading.questions
    assert (question.reference, question.responses[0].rating, question.responses[0].field) == ("因为。", None, "answer")
    assert counts(reading) == {"empty_response": 1}
    assert counts(readers.read("care", write(tmp_path, [*items, care_row()]))) == {"missing_field": 2}


def test_strict_names_the_first_bad_row(tmp_path):
    path = write(tmp_path, [care_row(), care_row(response="B", human_rating="x")])
    with pytest.raises(UserError, match=r"care.jsonl, row 1 \(line 2\), rating: invalid rating: text: x"):
        readers.read("care", path, strict=True)
    assert len(readers.read("care", write(tmp_path, [care_row(), care_row()]), strict=True).questions) == 1


def test_text_reaches_the_question_byte_for_byte(tmp_path):
    odd = " \u200b心\n\n🤪\u2028A\u0301 "
    reading = readers.read("care", write(tmp_path, [care_row(question=odd, response=odd)]))
    assert reading.questions[0].prompt[0]["content"] == odd
    assert reading.questions[0].responses[0].content[0]["content"] == odd


def test_groups_by_normalised_question_and_culture(tmp_path):
    rows = [care_row(question="abc?"), care_row(question="ＡＢＣ？ ", response="B")]
    rows.append(care_row(question="abc?", associated_culture="Native (Arab)"))
    reading = readers.read("care", write(tmp_path, rows))
    assert [len(q.responses) for q in reading.questions] == [2, 1]


def test_rows_of_one_question_read_alike_in_any_order(tmp_path):
    rows = [
        care_row(question="abc? ", source="b", human_rating=3, answer="y", cul_type="Opinion"),
        care_row(question="ABC?", source="a", human_rating=8, answer="x"),
        care_row(question="abc?", source="c", human_rating=9),
    ]
    first, other = (readers.read("care", write(tmp_path, some)).questions[0] for some in (rows, rows[::-1]))
    for one in (first, other):
        assert (one.prompt[0]["content"], one.reference, one.category) == ("ABC?", "x", "norms")
        assert [(r.rating, r.source) for r in one.responses] == [(20 / 3, "a")]


def test_a_scored_response_stands_behind_its_own_rows_words(tmp_path):
    path = write(tmp_path, [care_row(question=q) for q in ("a?", "a? ", "a?")])
    asked = readers.read("care", path, every_response=True).questions
    assert [(q.prompt[0]["content"], [r.row for r in q.responses]) for q in asked] == [("a?", [0, 2]), ("a? ", [1])]
    assert len({q.key for q in asked}) == 1


def test_columns_of_anyones_own_file(tmp_path):
    rows = [{"frage": "q", "antwort": "a", "note": 93, "Kultur": "Basque"}]
    path = write(tmp_path, rows)
    columns = {"question": "frage", "response": "antwort", "human_rating": "note", "culture": "kultur"}
    (question,) = readers.read("rated", path, columns=columns).questions
    assert question.culture == "basque"
    assert question.responses[0].rating == 93.0
    assert counts(readers.read("care", path, columns=columns)) == {"invalid_rating": 1}
    with pytest.raises(UserError, match=r"did you mean 'question'"):
        readers.read("rated", path, columns={"qestion": "frage"})


# --- files ------------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_reads_alike(tmp_path):
    rows = [care_row(response=f'r\n{i}, "x"', human_rating=i + 1) for i in range(5)]
    expected = readers.read("care", write(tmp_path, rows)).questions
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(rows, indent=4), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps({"data": rows}), encoding="utf-8")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "care.jsonl").read_bytes()))
    with open(tmp_path / "d.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "e.parquet")
    for name in ("a.json", "b.json", "c.jsonl.gz", "d.csv", "e.parquet"):
        found = readers.read("care", str(tmp_path / name)).questions
        assert [(q.prompt, q.responses, q.key) for q in found] == [(q.prompt, q.responses, q.key) for q in expected], (
            name
        )


def test_a_folder_is_read_in_order_and_by_split(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", [care_row(response="a")], "train-0.jsonl")
    write(tmp_path / "data", [care_row(response="b")], "train-1.jsonl")
    write(tmp_path / "data", [care_row(response="c")], "test.jsonl")
    reading = readers.read("care", str(tmp_path), split="train")
    assert [(r.content[0]["content"], r.row) for r in reading.questions[0].responses] == [("a", 0), ("b", 1)]
    (tmp_path / ".ipynb_checkpoints").mkdir()  # somebody's copy of a file, not another file
    write(tmp_path / ".ipynb_checkpoints", [care_row(response="d")], "test.jsonl")
    assert len(readers.read("care", str(tmp_path)).questions[0].responses) == 3
    with pytest.raises(UserError, match="no file for split='dev'"):
        readers.read("care", str(tmp_path), split="dev")


def test_a_saved_dataset(tmp_path):
    import datasets

    data = datasets.DatasetDict({"train": datasets.Dataset.from_list([care_row()])})
    data.save_to_disk(str(tmp_path / "saved"))
    assert len(readers.read("care", str(tmp_path / "saved"), split="train").questions) == 1
    with pytest.raises(UserError, match="no split 'tset'"):
        readers.read("care", str(tmp_path / "saved"), split="tset")


def test_a_hub_dataset(tmp_path, monkeypatch):
    import datasets

    def load_dataset(path, name, *, split, revision):
        if path != "geyang627/care":
            raise FileNotFoundError("not on the hub")
        assert (name, split, revision) == ("arabic", None, "abc")
        return datasets.DatasetDict({"train": datasets.Dataset.from_list([care_row()])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    reading = readers.read("care", "geyang627/care", name="arabic", revision="abc")
    assert len(reading.questions) == 1
    assert reading.files[0][0] == "geyang627/care@abc"
    with pytest.raises(UserError, match="not on the hub"):
        readers.read("care", "nobody/nothing")


def test_the_packaged_sample():
    assert len(readers.read("care", "sample").questions) >= 72


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (b"[]", "holds no rows"),
        (b'[{"question": "a"}, {"que', r"row 1 \(line 1\): not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"\x00\x01\x02", "none of 1 rows can be read"),
        (b"hello\nworld", "none of 2 rows can be read; row 0: not JSON"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        readers.read("care", str(tmp_path / "x.json"))


def test_other_broken_files(tmp_path):
    for name, content in (("x.parquet", b"PAR1 no"), ("x.jsonl.gz", b"\x1f\x8b no"), ("x.csv", b'a,b\n"x')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            readers.read("care", str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no data files"):
        readers.read("care", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="no such file"):
        readers.read("care", str(tmp_path / "absent.jsonl"))
    with pytest.raises(UserError, match="only applies to a folder"):
        readers.read("care", write(tmp_path, [care_row()]), split="train")


def test_csv_rows_that_do_not_fit_the_header(tmp_path):
    (tmp_path / "x.csv").write_text("question,response,rating\nq,r,7\nq,r\nq,r,7,8\n")
    assert counts(readers.read("care", str(tmp_path / "x.csv"))) == {"missing_field": 1, "unreadable": 1}


def test_a_row_of_bad_bytes_in_an_array_is_lost_alone(tmp_path):
    rows = json.dumps([care_row(), care_row(response="XX")], ensure_ascii=False).encode().replace(b"XX", b"\xff\xfe")
    (tmp_path / "x.json").write_bytes(rows)
    assert counts(readers.read("care", str(tmp_path / "x.json"))) == {"unreadable": 1}


def test_unknown_reader():
    with pytest.raises(UserError, match="did you mean 'care'"):
        readers.read("crae", "x")


# --- selection --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    rows = [
        care_row(question=f"{culture} {relation} {category}", response=source, source=source, cul_type=category)
        | {"associated_culture": f"{relation} ({culture})"}
        for culture in ("Arab", "Chinese")
        for relation in ("Native", "Foreign")
        for category in ("Opinion", "Literacy")
        for source in ("human", "gpt-4o")
    ]
    return write(tmp_path, rows)


@pytest.mark.parametrize(
    ("keys", "questions", "responses"),
    [
        ({}, 8, 16),
        ({"cultures": ["Arabic"]}, 4, 8),
        ({"cultures": ["ar", "zh"]}, 8, 16),
        ({"relations": ["native"]}, 4, 8),
        ({"relations": ["native", "foreign"]}, 8, 16),
        ({"categories": ["opinion"]}, 4, 8),
        ({"sources": ["Human"]}, 8, 8),
        ({"cultures": ["arab"], "relations": ["foreign"], "sources": ["human"]}, 2, 2),
    ],
)
def test_selection(mixed, keys, questions, responses):
    reading = readers.read("care", mixed, **keys)
    dropped = counts(reading)
    assert len(reading.questions) == questions
    assert sum(len(q.responses) for q in reading.questions) == responses
    assert dropped.get("not_selected", 0) == 16 - responses


@pytest.mark.parametrize(
    "keys", [{"cultures": ["korean"]}, {"categories": ["norms"]}, {"sources": ["gpt4"]}, {"relations": ["near"]}]
)
def test_selecting_what_is_not_there(mixed, keys):
    with pytest.raises(UserError, match=next(iter(keys))):
        readers.read("care", mixed, **keys)


def test_a_new_culture_is_five_lines_of_yaml(tmp_path):
    rows = [care_row(associated_culture="Vulkan"), care_row(associated_culture="Native (Chinese)", response="B")]
    path = write(tmp_path, rows)
    assert counts(readers.read("care", path)) == {"unknown_culture": 1}
    culture = tmp_path / "vulcan.yaml"
    culture.write_text("id: vulcan\nnames: [Vulkan, Vulkanisch]\nlanguage: x-vulcan\nscript: Vulc\n")
    (question,) = readers.read("care", path, cultures=[str(culture)]).questions
    assert (question.culture, question.language) == ("vulcan", "x-vulcan")
    for text in ("- a", "id: x\nnmes: [y]", "id: x\nnames: [Arabic]", "id: x\nnames: y", "{"):
        culture.write_text(text)
        with pytest.raises(UserError, match=r"vulcan\.yaml"):
            readers.read("care", path, cultures=[str(culture)])


def test_query_language(tmp_path):
    rows = [
        care_row(question="一", **{"translated_question (optional)": "one"}),
        care_row(question="二", human_rating=3),
    ]
    path = write(tmp_path, rows)
    with pytest.raises(UserError, match="1 of 2 questions"):
        readers.read("care", path, query_language="english")
    with pytest.raises(UserError, match="expected native or english"):
        readers.read("care", path, query_language="klingon")
    translations = write(
        tmp_path, [{"question": "二", "culture": "chinese", "translated_question": "two"}], "translations.jsonl"
    )
    asked = readers.read("care", path, query_language="english", translations=translations).questions
    native = readers.read("care", path).questions
    assert [q.prompt[0]["content"] for q in asked] == ["one", "two"]
    assert [q.key for q in asked] == [q.key for q in native]


def test_translations_know_the_cultures_that_readers_know(tmp_path):
    row = {"prompt": "一", "chosen": "a", "rejected": "b", "culture": "Sri Lankan"}
    made = [{"question": "一", "culture": "Sri Lankan", "translated_question": "one"}]
    paths = [write(tmp_path, rows, name) for rows, name in (([row], "p.jsonl"), (made, "t.jsonl"))]
    (asked,) = readers.read("preferences", paths[0], query_language="english", translations=paths[1]).questions
    assert asked.prompt[0]["content"] == "one"


def test_a_files_name_that_is_not_utf_8(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff [1].JSONL")
    path.write_text(json.dumps(care_row()) + "\n{")
    reading = readers.read("care", str(path))
    assert len(reading.questions) == 1
    write_report(tmp_path, [reading.report])
    assert "udcff [1].JSONL" in (tmp_path / "rejected_rows.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl.zip", b"PK\x03\x04"), ("a.jsonl", gzip.compress(b"{}"))], ids=["zip", "gzip"]
)
def test_archives_are_told_from_rows(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is .*: unpack it"):
        readers.read("care", str(tmp_path / name))


def test_every_reader_takes_damaged_rows(tmp_path):
    rows = [{}, {"question": {"a": [1]}, "prompt": float("nan"), "chosen": {}, "rejected": [], "prompt_ids": "x"}]
    path = write(tmp_path, rows)
    for name in set(readers.READERS) - {"prepared"}:  # which reads no rows, but what was made of them
        reading = readers.read(name, path)
        assert reading.questions == []
        assert reading.report.rows == sum(reading.report.dropped.values()) == 2
