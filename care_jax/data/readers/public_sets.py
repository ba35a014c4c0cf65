"""Other people's preference and instruction sets, each from its documented fields, into the same questions.

Where one row of the input holds several candidates (UltraFeedback, PRISM), each candidate counts as a row.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from care_jax.data.questions import Content, Message, Question, Response, culture_id, culture_language, question_key
from care_jax.data.readers.rated import Groups, Known, assistant_turn, good_rows, user_turn
from care_jax.data.rows import fields as f
from care_jax.data.rows.files import Row, describe
from care_jax.data.rows.report import Report

ULTRAFEEDBACK = {"instruction": ("instruction", "prompt"), "completions": ("completions",), "source": ("source",)}
OASST = {
    "id": ("message_id",),
    "parent": ("parent_id",),
    "text": ("text",),
    "role": ("role",),
    "language": ("lang",),
    "rank": ("rank",),
    "deleted": ("deleted",),
    "reviewed": ("review_result",),
}
TFDS: dict[str, tuple[str, ...]] = {
    name: (name,)
    for name in "question key responses culture relation category language reference translated".split()  # noqa: SIM905
}
PRISM = {"history": ("conversation_history",), "user": ("user_id",)}
SFT = {
    "prompt": ("inputs", "instruction", "prompt", "question", "eval_question"),
    "input": ("input",),
    "response": ("targets", "output", "response", "completion", "answer", "eval_whole_desc"),
    "messages": ("messages", "conversations"),
    "language": ("language_code", "language", "lang"),
    "culture": ("culture", "country", "cultural group"),
    "source": ("source", "annotation_type"),
}


def read_ultrafeedback(rows: Iterable[Row], fields: f.Fields, report: Report, known: Known) -> list[Question]:
    """openbmb/UltraFeedback: instruction and completions of model, response, overall_score (1-10)."""
    groups = Groups(report)
    for row, found in good_rows(rows, fields, report):
        try:
            f.need(found, "instruction", "completions")
            prompt = user_turn(f.text(found["instruction"], "instruction", "empty_question"))
            candidates = _some(found["completions"], "completions")
        except f.Bad as bad:
            f.drop(report, row, bad)
            continue
        report.rows += len(candidates) - 1
        for place, candidate in enumerate(candidates):
            name = f"completions[{place}]"
            try:
                response, rating, model = _candidate(candidate, name, "response", "overall_score", "model")
                groups.add(row, prompt, assistant_turn(response), rating, model)
            except f.Bad as bad:
                f.drop(report, row, bad)
    return groups.questions()


def _some(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise f.Bad("empty_response", name, describe(value))
    return value


def _candidate(value: Any, name: str, text: str, score: str, model: str) -> tuple[str, float, str]:
    """(response, rating, source) of one candidate of a row."""
    if not isinstance(value, Mapping):
        raise f.Bad("unreadable", name, describe(value))
    for key in (text, score):
        if key not in value:
            raise f.Bad("missing_field", f"{name}.{key}", "no such key")
    response = f.text(value[text], f"{name}.{text}", "empty_response")
    rating = f.rating(value[score], f"{name}.{score}")
    return response, rating, f.optional_text(value.get(model), f"{name}.{model}") or "unknown"


def read_tfds(rows: Iterable[Row], fields: f.Fields, report: Report, known: Known) -> list[Question]:
    """The TFDS dataset `care`, one record a question: see care_tfds."""
    questions = []
    for row, found in good_rows(rows, fields, report):
        try:
            f.need(found, "question", "key", "responses")
            question = f.text(found["question"], "question", "empty_question")
            answers = found["responses"]
            if not isinstance(answers, Mapping) or not {"text", "rating", "source", "row"} <= set(answers):
                raise f.Bad("unreadable", "responses", describe(answers))
        except f.Bad as bad:
            f.drop(report, row, bad)
            continue
        report.rows += len(answers["text"]) - 1
        about = {name: found.get(name) or None for name in TFDS if name not in ("question", "key", "responses")}
        responses = tuple(
            Response(assistant_turn(text), None if rating != rating else rating, source, number)  # NaN: not rated
            for text, rating, source, number in zip(*(answers[name] for name in ("text", "rating", "source", "row")))
        )
        questions.append(Question(user_turn(question), responses, found["key"], file=row.file, **about))
    return questions


def read_prism(rows: Iterable[Row], fields: f.Fields, report: Report, known: Known) -> list[Question]:
    """PRISM's conversations: each turn's candidates, rated 1-100 by the person who asked, after the turns before it."""
    groups = Groups(report)
    for row, found in good_rows(rows, fields, report):
        try:
            f.need(found, "history")
            turns = _turns(_some(found["history"], "conversation_history"))
        except f.Bad as bad:
            f.drop(report, row, bad)
            continue
        report.rows -= 1  # its candidates count instead
        prompt: list[Message] = []
        for number in sorted(turns):
            asked, candidates = turns[number]
            report.rows += len(candidates)
            prompt = [*prompt, {"role": "user", "content": asked}]
            chosen = None
            for candidate in candidates:
                name = f"conversation_history (turn {number})"
                try:
                    response, rating, model = _candidate(candidate, name, "content", "score", "model_name")
                    groups.add(row, tuple(prompt), assistant_turn(response), rating, model)
                    chosen = response if candidate.get("if_chosen") is True else chosen
                except f.Bad as bad:
                    f.drop(report, row, bad)
            if chosen is None:
                break  # without the answer that the person went on from, later turns have no prompt
            prompt = [*prompt, {"role": "assistant", "content": chosen}]
        lost = sum(len(candidates) for later, (_, candidates) in turns.items() if later > number)
        for _ in range(lost):
            report.rows += 1
            report.drop(row, "missing_field", "conversation_history", f"no chosen answer in turn {number}")
    return groups.questions()


def _turns(history: list[Any]) -> dict[int, tuple[str, list[Mapping[str, Any]]]]:
    """turn -> (what the person asked, the models' candidates)."""
    asked: dict[int, str] = {}
    candidates: dict[int, list[Mapping[str, Any]]] = {}
    for item in history:
        if not isinstance(item, Mapping) or not isinstance(item.get("turn"), int):
            raise f.Bad("unreadable", "conversation_history", f"no numbered turn: {describe(item)}")
        if item.get("role") == "user":
            asked[item["turn"]] = f.text(item.get("content"), "conversation_history", "empty_question")
        else:
            candidates.setdefault(item["turn"], []).append(item)
    without = next((turn for turn in candidates if turn not in asked), None)
    if without is not None or not candidates:
        raise f.Bad("empty_question", "conversation_history", f"no question in turn {without or 0}")
    return {turn: (asked[turn], candidates[turn]) for turn in candidates}


def read_oasst(rows: Iterable[Row], fields: f.Fields, report: Report, known: Known) -> list[Question]:
    """OpenAssistant's trees: the replies to one message, ranked (0 is best), after the messages above it.

    Only replies of the assistant count as rows; `cultures: [ar, zh]` selects by language.
    """
    messages: dict[str, dict[str, Any]] = {}
    replies: list[tuple[Row, dict[str, Any]]] = []
    for row, found in good_rows(rows, fields, report):
        try:
            f.need(found, "id", "parent", "text", "role")
            found["text"] = f.text(found["text"], "text", "empty_response")
            if found["role"] not in ("prompter", "assistant"):
                raise f.Bad("unreadable", "role", describe(found["role"]))
            messages[f.text(found["id"], "message_id", "unreadable")] = found
            if found["role"] == "assistant":
                replies.append((row, found))
            else:
                report.rows -= 1
        except f.Bad as bad:
            f.drop(report, row, bad)
    ranked: list[tuple[Row, dict[str, Any], Content]] = []
    lowest: dict[str, float] = {}
    for row, found in replies:
        try:
            if found.get("deleted") is True or found.get("reviewed") is False:
                raise f.Bad("not_reviewed", "review_result", "deleted, or refused by its reviewers")
            found["rank"] = f.rating(found.get("rank"), "rank", 0.0)
            found["language"] = f.optional_text(found.get("language"), "lang")
            ranked.append((row, found, _thread(messages, found["parent"])))
            lowest[found["parent"]] = max(lowest.get(found["parent"], 0.0), found["rank"])
        except f.Bad as bad:
            f.drop(report, row, bad)
    groups = Groups(report)
    for row, found, prompt in ranked:
        rating = lowest[found["parent"]] - found["rank"] + 1.0
        groups.add(row, prompt, assistant_turn(found["text"]), rating, "human", language=found["language"])
    return groups.questions()


def _thread(messages: Mapping[str, Mapping[str, Any]], last: Any) -> Content:
    """The conversation down to a message."""
    turns: list[Message] = []
    while last is not None:
        message = messages.get(last) if isinstance(last, str) else None
        if message is None or len(turns) > 1000:
            raise f.Bad("empty_question", "parent_id", f"no such message: {describe(last)}")
        turns.append({"role": "user" if message["role"] == "prompter" else "assistant", "content": message["text"]})
        last = message["parent"]
    if not turns:
        raise f.Bad("empty_question", "parent_id", "a reply to nothing")
    return tuple(reversed(turns))


def read_sft(rows: Iterable[Row], fields: f.Fields, report: Report, known: Known) -> list[Question]:
    """Instructions with one good response each (Aya, CIDAR, Palm, CultureBank, messages files), labelled desirable."""
    questions = []
    for row, found in good_rows(rows, fields, report):
        try:
            questions.append(_instruction(row, found))
        except f.Bad as bad:
            f.drop(report, row, bad)
    return questions


def _instruction(row: Row, found: Mapping[str, Any]) -> Question:
    if "messages" in found:
        turns = f.messages(found["messages"], "messages", "empty_response")
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise f.Bad("empty_response", "messages", "it does not end in an answer of the assistant")
        prompt, response = turns[:-1], turns[-1:]
    else:
        f.need(found, "prompt", "response")
        asked = f.text(found["prompt"], "prompt", "empty_question")
        more = f.optional_text(found.get("input"), "input")
        prompt = user_turn(asked if more is None else f"{asked}\n\n{more}")
        response = assistant_turn(f.text(found["response"], "response", "empty_response"))
    named = f.optional_text(found.get("culture"), "culture")
    culture = culture_id(named) if named else None
    source = f.optional_text(found.get("source"), "source") or "unknown"
    return Question(
        prompt,
        (Response(response, 1.0, source, row.number, desirable=True),),
        question_key(prompt, culture),
        culture=culture,
        language=f.optional_text(found.get("language"), "language") or culture_language(culture),
        file=row.file,
    )
