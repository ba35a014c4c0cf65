"""The table of readers: selection, columns, query language."""

import pytest

from care_jax.data import readers
from care_jax.errors import UserError
from tests.data.care_rows import care_row, counts, write


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


def test_unknown_reader():
    with pytest.raises(UserError, match="did you mean 'care'"):
        readers.read("crae", "x")


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


def test_every_reader_takes_damaged_rows(tmp_path):
    rows = [{}, {"question": {"a": [1]}, "prompt": float("nan"), "chosen": {}, "rejected": [], "prompt_ids": "x"}]
    path = write(tmp_path, rows)
    for name in set(readers.READERS) - {"prepared"}:  # it reads a token cache, not rows
        reading = readers.read(name, path)
        assert reading.questions == []
        assert reading.report.rows == sum(reading.report.dropped.values()) == 2
