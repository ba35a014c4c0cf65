"""Preference pairs and labelled responses, one group a row: TRL's formats, HH-RLHF's transcripts, token ids."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from care_jax.data.questions import (
    Content,
    Question,
    Response,
    Stored,
    category_id,
    culture_id,
    culture_language,
    is_messages,
    question_key,
)
from care_jax.data.readers.rated import Known, good_rows
from care_jax.data.rows import fields as f
from care_jax.data.rows.files import Row, shorten
from care_jax.data.rows.report import Report


def read_preferences(rows: Iterable[Row], fields: f.Fields, report: Report, known: Known) -> list[Question]:
    """TRL's standard formats, as text or messages: prompt, chosen, rejected; chosen and rejected with the prompt in
    both (implicit); prompt, completion, label. Chosen is rated 1, rejected 0.
    """
    return _rows(rows, fields, report, _preference)


def read_tokenized(rows: Iterable[Row], fields: f.Fields, report: Report, known: Known) -> list[Question]:
    """Token ids, used as they are: prompt_ids, chosen_ids, rejected_ids; or prompt_ids, completion_ids, label."""
    return _rows(rows, fields, report, _tokenized)


def read_hh_rlhf(rows: Iterable[Row], fields: f.Fields, report: Report, known: Known) -> list[Question]:
    """HH-RLHF: whole dialogues in chosen and rejected, split before the last answer into messages."""
    return _rows(rows, fields, report, lambda row, found: _transcripts(row, found, _dialogue))


def read_hh_rlhf_text(rows: Iterable[Row], fields: f.Fields, report: Report, known: Known) -> list[Question]:
    """HH-RLHF as plain text, for models without a chat template: the prompt ends in 'Assistant:'."""
    return _rows(rows, fields, report, lambda row, found: _transcripts(row, found, str))


def _rows(
    rows: Iterable[Row],
    fields: f.Fields,
    report: Report,
    parse: Callable[[Row, Mapping[str, Any]], Question],
) -> list[Question]:
    questions = []
    for row, found in good_rows(rows, fields, report):
        try:
            question = parse(row, found)
            answers = [response.content for response in question.responses]
            if answers[1:] == answers[:1] and not report.every_response:
                raise f.Bad("conflicting_duplicate", "rejected", "the same as chosen")
            questions.append(question)
        except f.Bad as bad:
            f.drop(report, row, bad)
    return questions


def _preference(row: Row, found: Mapping[str, Any]) -> Question:
    if "completion" in found and "label" in found and not ("chosen" in found and "rejected" in found):
        f.need(found, "prompt")
        prompt = f.content(found["prompt"], "prompt", "empty_question")
        completion = f.content(found["completion"], "completion", "empty_response")
        return _labelled(row, found, prompt, completion, f.label(found["label"]))
    f.need(found, "chosen", "rejected")
    chosen = f.content(found["chosen"], "chosen", "empty_response")
    rejected = f.content(found["rejected"], "rejected", "empty_response")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise f.Bad("unreadable", "rejected", "one of chosen and rejected is text, the other messages")
    prompt = f.content(found["prompt"], "prompt", "empty_question") if "prompt" in found else ""
    if not prompt or (isinstance(prompt, str) and not isinstance(chosen, str)):
        # No prompt, or only its words beside whole dialogues (ultrafeedback_binarized): what both begin with.
        prompt, chosen, rejected = _common(chosen, rejected)
    elif is_messages(prompt) and is_messages(chosen) and is_messages(rejected):
        n = len(prompt)
        if len(chosen) > n and len(rejected) > n and tuple(chosen[:n]) == tuple(prompt) == tuple(rejected[:n]):
            chosen, rejected = tuple(chosen[n:]), tuple(rejected[n:])
    return _pair(row, found, prompt, chosen, rejected)


def _common(chosen: Content, rejected: Content) -> tuple[Content, Content, Content]:
    """(prompt, chosen, rejected): the longest common beginning; of text, without a space before the difference."""
    assert not isinstance(chosen, Stored)  # rows hold the words or ids themselves
    assert not isinstance(rejected, Stored)
    shortest = min(len(chosen), len(rejected))
    n = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    if isinstance(chosen, str):
        if n and chosen[n - 1] == " ":
            n -= 1
    elif n == len(chosen) == len(rejected):
        raise f.Bad("conflicting_duplicate", "rejected", "the same dialogue as chosen")
    if n == 0:
        raise f.Bad("empty_question", "prompt", "no prompt, and chosen and rejected begin differently")
    for name, rest in (("chosen", chosen[n:]), ("rejected", rejected[n:])):
        if not rest:
            raise f.Bad("empty_response", name, "nothing after what chosen and rejected have in common")
    return chosen[:n], chosen[n:], rejected[n:]


def _pair(
    row: Row,
    found: Mapping[str, Any],
    prompt: Content,
    chosen: Content,
    rejected: Content,
    ratings: tuple[float, float] = (1.0, 0.0),
) -> Question:
    answers = (
        Response(chosen, ratings[0], "chosen", row.number, "chosen"),
        Response(rejected, ratings[1], "rejected", row.number, "rejected"),
    )
    return _question(row, found, prompt, answers)


def _labelled(row: Row, found: Mapping[str, Any], prompt: Content, completion: Content, label: bool) -> Question:
    answer = Response(completion, float(label), "desirable" if label else "undesirable", row.number, desirable=label)
    return _question(row, found, prompt, (answer,))


def _question(row: Row, found: Mapping[str, Any], prompt: Content, responses: tuple[Response, ...]) -> Question:
    """The question of one row; what the row says of culture and category is taken as it is (open sets)."""
    words = {key: f.optional_text(found.get(key), key) for key in ("culture", "category", "language", "translated")}
    culture = culture_id(words["culture"]) if words["culture"] else None
    return Question(
        prompt,
        responses,
        question_key(prompt, culture),
        culture=culture,
        category=category_id(words["category"]) if words["category"] else None,
        language=words["language"] or culture_language(culture),
        file=row.file,
        translated=words["translated"],
    )


def _tokenized(row: Row, found: Mapping[str, Any]) -> Question:
    f.need(found, "prompt_ids")
    prompt = f.ids(found["prompt_ids"], "prompt_ids", "empty_question")
    if "completion_ids" in found and "label" in found:
        completion = f.ids(found["completion_ids"], "completion_ids", "empty_response")
        return _labelled(row, found, prompt, completion, f.label(found["label"]))
    f.need(found, "chosen_ids", "rejected_ids")
    chosen = f.ids(found["chosen_ids"], "chosen_ids", "empty_response")
    rejected = f.ids(found["rejected_ids"], "rejected_ids", "empty_response")
    return _pair(row, found, prompt, chosen, rejected)


_ANSWER = "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant):")


def _transcripts(row: Row, found: Mapping[str, Any], form: Callable[[str], Content]) -> Question:
    f.need(found, "chosen", "rejected")
    parts = {}
    for name in ("chosen", "rejected"):
        dialogue = f.text(found[name], name, "empty_response")
        prompt, mark, answer = dialogue.rpartition(_ANSWER)
        if not mark or not prompt.strip():
            raise f.Bad("empty_question", name, f"no dialogue ending in an answer: {shorten(dialogue)}")
        if not answer.strip():
            raise f.Bad("empty_response", name, "nothing after the last 'Assistant:'")
        parts[name] = prompt + mark, answer
    if parts["chosen"][0] != parts["rejected"][0]:
        raise f.Bad("prompt_mismatch", "rejected", "what comes before the last answer differs from chosen's")
    prompt_text, answers = parts["chosen"][0], (parts["chosen"][1], parts["rejected"][1])
    if form is str:
        return _pair(row, found, prompt_text, *answers)
    chosen, rejected = (({"role": "assistant", "content": answer.strip()},) for answer in answers)
    return _pair(row, found, form(prompt_text), chosen, rejected)


def _dialogue(text: str) -> Content:
    """The turns of a transcript; two of one speaker in a row are one, as chat templates want roles to alternate."""
    body = text.removesuffix(_ANSWER)
    marks = list(_TURN.finditer(body))
    if not marks or body[: marks[0].start()].strip():
        raise f.Bad("empty_question", "chosen", f"not a dialogue of Human and Assistant: {shorten(body)}")
    ends = [*(mark.start() for mark in marks[1:]), len(body)]
    turns: list[dict[str, str]] = []
    for mark, end in zip(marks, ends):
        role = "user" if mark[1] == "Human" else "assistant"
        words = body[mark.end() : end].strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + words
        else:
            turns.append({"role": role, "content": words})
    return tuple(turns)
