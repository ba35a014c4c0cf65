"""The packaged sample: its schema, what it covers, and a tokenizer that loses nothing."""

import collections
import json
import pathlib
import re
import unicodedata

import pytest
import sentencepiece
from transformers import AutoTokenizer

import care_jax

SAMPLE = pathlib.Path(care_jax.__file__).parent / "data" / "sample"
COLUMNS = [
    "question",
    "answer",
    "response",
    "human_rating",
    "source",
    "cul_type",
    "associated_culture",
    "translated_question (optional)",
]
CATEGORIES = {"Cultural entities", "Cultural commonsense", "Social norms", "Opinion", "Literacy"}
CULTURES = {"Arab", "Chinese", "Japanese"}


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in (SAMPLE / "care_sample.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def questions(rows):
    """Returns the rows by question and culture, in the order of the file."""
    grouped = collections.defaultdict(list)
    for row in rows:
        grouped[row["question"], row["associated_culture"]].append(row)
    return grouped


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SAMPLE / "model")


@pytest.fixture(scope="module")
def conversations(rows, tokenizer):
    """Returns the rendered text of every row: question and response."""
    messages = [
        [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["response"]}]
        for row in rows
    ]
    return tokenizer.apply_chat_template(messages, tokenize=False)


def script(text: str) -> str:
    """Returns the language that most letters of the text belong to; kana distinguish Japanese from Chinese."""
    counts = collections.Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())
    if counts["HIRAGANA"] + counts["KATAKANA"] > 0:
        return "Japanese"
    return {"ARABIC": "Arabic", "CJK": "Chinese", "LATIN": "English"}[counts.most_common(1)[0][0]]


def test_columns_are_those_of_the_public_file(rows):
    for row in rows:
        assert list(row) == COLUMNS
        assert type(row["human_rating"]) is int
        assert all(isinstance(row[name], str) for name in COLUMNS if name != "human_rating")
        assert all(row[name].strip() for name in COLUMNS[:3])


def test_text_is_unescaped_utf8():
    text = (SAMPLE / "care_sample.jsonl").read_bytes().decode("utf-8")
    assert "\\u" not in text
    assert text.endswith("\n")


def test_there_are_enough_questions_each_with_4_to_6_responses(questions):
    assert len(questions) >= 76
    assert len({question for question, _ in questions}) == len(questions)
    assert {len(group) for group in questions.values()} <= {4, 5, 6}


def test_every_culture_has_every_category_native_and_foreign(questions):
    seen = collections.Counter()
    for (_, culture), group in questions.items():
        relation, name = re.fullmatch(r"(Native|Foreign) \((\w+)\)", culture).groups()
        assert len({row["cul_type"] for row in group}) == len({row["answer"] for row in group}) == 1
        seen[relation, name, group[0]["cul_type"]] += 1
    assert {name for _, name, _ in seen} == CULTURES
    for name in CULTURES:
        assert {category for relation, of, category in seen if (relation, of) == ("Native", name)} == CATEGORIES
        assert sum(count for (_, of, _), count in seen.items() if of == name) >= 24
        assert any((relation, of) == ("Foreign", name) for relation, of, _ in seen)


def test_questions_stand_in_four_languages(questions):
    counts = collections.Counter(script(question) for question, _ in questions)
    assert set(counts) == {"Arabic", "Chinese", "Japanese", "English"}
    assert min(counts[language] for language in ("Arabic", "Chinese", "Japanese")) >= 24


def test_most_questions_are_translated_into_english(questions):
    translations = [group[0]["translated_question (optional)"] for group in questions.values()]
    assert sum(bool(text) for text in translations) > 0.8 * len(translations)
    assert all(script(text) == "English" for text in translations if text)


def test_ratings_are_in_range_and_differ_widely_in_every_question(rows, questions):
    assert {row["human_rating"] for row in rows} == set(range(1, 11))
    for group in questions.values():
        ratings = [row["human_rating"] for row in group]
        assert max(ratings) >= 8
        assert min(ratings) <= 2
        assert len(set(ratings)) >= 3


def test_responses_in_the_wrong_language_are_rated_low(rows):
    foreign = [row for row in rows if script(row["response"]) != script(row["question"])]
    assert len(foreign) >= 15
    assert max(row["human_rating"] for row in foreign) <= 3


def test_no_response_is_repeated(rows):
    assert len({row["response"] for row in rows}) == len(rows)


def test_length_alone_does_not_order_the_responses(questions):
    pairs = [
        (a, b)
        for group in questions.values()
        for a in group
        for b in group
        if a["human_rating"] - b["human_rating"] >= 1
    ]
    longer = sum(len(a["response"]) > len(b["response"]) for a, b in pairs)
    assert longer < 0.65 * len(pairs)


def test_tokenizer_keeps_every_text_byte_for_byte(rows, tokenizer):
    texts = [row[name] for row in rows for name in COLUMNS if name != "human_rating"]
    texts += ["  two  spaces ", "line\nbreak\ttab\r\n", "zero\u200bwidth 🤪", "ｆｕｌｌ－ｗｉｄｔｈ！？", "e\u0301 é"]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids).encode() == text.encode()


def test_tokenizer_equals_its_sentencepiece_model(rows, tokenizer):
    trained = sentencepiece.SentencePieceProcessor(model_file=str(SAMPLE / "model" / "tokenizer.model"))
    assert trained.get_piece_size() == len(tokenizer)
    for row in rows:
        assert tokenizer.encode(row["response"], add_special_tokens=False) == trained.encode(row["response"])


def test_a_conversation_holds_one_bos_and_ends_its_turn(rows, conversations, tokenizer):
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for row, rendered in zip(rows, conversations):
        ids = tokenizer.encode(rendered, add_special_tokens=False)
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids.count(turn_end) == 2
        assert len(ids) < 256
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], tokenize=False, add_generation_prompt=True
        )
        assert rendered == f"{prompt}{row['response']}<|im_end|>\n"
        start = tokenizer.encode(prompt, add_special_tokens=False)
        assert ids[: len(start)] == start


def test_plain_text_gets_one_bos(tokenizer):
    ids = tokenizer.encode("春节快乐")
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_config_fits_the_tokenizer(tokenizer):
    config = json.loads((SAMPLE / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama"
    assert config["vocab_size"] == len(tokenizer)
    assert config["bos_token_id"] == tokenizer.bos_token_id == tokenizer.convert_tokens_to_ids("<s>")
    assert config["eos_token_id"] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("</s>")
    assert config["pad_token_id"] == tokenizer.pad_token_id
    generation = json.loads((SAMPLE / "model" / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_sample_is_small():
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 600_000
