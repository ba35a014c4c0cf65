"""Reads one question per row: TRL's formats, token ids, HH-RLHF's dialogues, instructions with one good response."""

import re
from collections.abc import Callable

from care_jax.data.cultures import category_id, culture_id, culture_language
from care_jax.data.questions import Content, Message, Question, Response, assistant_turn, question_key, user_turn
from care_jax.data.readers.rated import Known
from care_jax.data.rows import fields
from care_jax.data.rows.fields import BadField
from care_jax.data.rows.row import Row, shorten
from care_jax.data.rows.table import Table
from care_jax.textfiles import JsonObject

SFT = {
    "prompt": ("inputs", "instruction", "prompt", "question", "eval_question"),
    "input": ("input",),
    "response": ("targets", "output", "response", "completion", "answer", "eval_whole_desc"),
    "messages": ("messages", "conversations"),
    "language": ("language_code", "language", "lang"),
    "culture": ("culture", "country", "cultural group"),
    "source": ("source", "annotation_type"),
}
_Wording = str | tuple[Message, ...]


def per_row(parse_row: Callable[[Row, JsonObject], Question]) -> Callable[[Table, Known], list[Question]]:
    """Returns the reader that makes a question of each row, and drops a pair of equal responses."""

    def reader(table: Table, known: Known) -> list[Question]:
        def parse(row: Row, values: JsonObject) -> Question:
            question = parse_row(row, values)
            contents = [response.content for response in question.responses]
            if contents[1:] == contents[:1] and not table.report.every_response:
                raise BadField("conflicting_duplicate", "rejected", "the same as chosen")
            return question

        return list(table.parse(parse))

    return reader


def preference(row: Row, values: JsonObject) -> Question:
    """Returns the question of a row in TRL's standard formats, as text or messages. Chosen is rated 1, rejected 0.

    A row holds prompt, chosen, rejected; or chosen and rejected that both begin with the prompt; or prompt,
    completion, label.
    """
    if "completion" in values and "label" in values and not ("chosen" in values and "rejected" in values):
        fields.need(values, "prompt")
        prompt = fields.content(values["prompt"], "prompt", "empty_question")
        completion = fields.content(values["completion"], "completion", "empty_response")
        return _labelled(row, values, prompt, completion, fields.label(values["label"]))
    fields.need(values, "chosen", "rejected")
    chosen = fields.content(values["chosen"], "chosen", "empty_response")
    rejected = fields.content(values["rejected"], "rejected", "empty_response")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadField("unreadable", "rejected", "one of chosen and rejected is text, the other messages")
    prompt = fields.content(values["prompt"], "prompt", "empty_question") if "prompt" in values else ""
    if not prompt or (isinstance(prompt, str) and not isinstance(chosen, str)):
        # No prompt, or a text next to dialogues (ultrafeedback_binarized): the prompt is what both begin with.
        prompt, chosen, rejected = _common(chosen, rejected)
    elif isinstance(prompt, tuple):
        n = len(prompt)
        if len(chosen) > n and len(rejected) > n and chosen[:n] == prompt == rejected[:n]:
            chosen, rejected = chosen[n:], rejected[n:]
    return _pair(row, values, prompt, chosen, rejected)


def _common(chosen: _Wording, rejected: _Wording) -> tuple[_Wording, _Wording, _Wording]:
    """Returns (prompt, chosen, rejected), where the prompt is the longest common beginning.

    In text, a space before the first difference belongs to the responses.
    """
    shortest = min(len(chosen), len(rejected))
    n = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    if isinstance(chosen, str):
        if n and chosen[n - 1] == " ":
            n -= 1
    elif n == len(chosen) == len(rejected):
        raise BadField("conflicting_duplicate", "rejected", "the same dialogue as chosen")
    if n == 0:
        raise BadField("empty_question", "prompt", "no prompt, and chosen and rejected have no common beginning")
    for name, rest in (("chosen", chosen[n:]), ("rejected", rejected[n:])):
        if not rest:
            raise BadField("empty_response", name, "empty after the common beginning of chosen and rejected")
    return chosen[:n], chosen[n:], rejected[n:]


def tokenized(row: Row, values: JsonObject) -> Question:
    """Returns a row of token ids, unchanged: prompt_ids, and chosen_ids, rejected_ids or completion_ids, label."""
    fields.need(values, "prompt_ids")
    prompt = fields.ids(values["prompt_ids"], "prompt_ids", "empty_question")
    if "completion_ids" in values and "label" in values:
        completion = fields.ids(values["completion_ids"], "completion_ids", "empty_response")
        return _labelled(row, values, prompt, completion, fields.label(values["label"]))
    fields.need(values, "chosen_ids", "rejected_ids")
    chosen = fields.ids(values["chosen_ids"], "chosen_ids", "empty_response")
    rejected = fields.ids(values["rejected_ids"], "rejected_ids", "empty_response")
    return _pair(row, values, prompt, chosen, rejected)


_ANSWER = "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant):")


def dialogue_pair(row: Row, values: JsonObject) -> Question:
    """Returns a row of HH-RLHF as messages: the dialogues in chosen and rejected, split before the last response."""
    prompt, chosen, rejected = _split_dialogues(values)
    return _pair(row, values, _turns(prompt), assistant_turn(chosen.strip()), assistant_turn(rejected.strip()))


def text_dialogue_pair(row: Row, values: JsonObject) -> Question:
    """Returns a row of HH-RLHF as text, for models without a chat template: the prompt ends in 'Assistant:'."""
    return _pair(row, values, *_split_dialogues(values))


def _split_dialogues(values: JsonObject) -> tuple[str, str, str]:
    """Returns (prompt, chosen, rejected)."""
    fields.need(values, "chosen", "rejected")
    parts = {}
    for name in ("chosen", "rejected"):
        dialogue = fields.text(values[name], name, "empty_response")
        prompt, mark, answer = dialogue.rpartition(_ANSWER)
        if not mark or not prompt.strip():
            raise BadField("empty_question", name, f"not a dialogue that ends in a response: {shorten(dialogue)}")
        if not answer.strip():
            raise BadField("empty_response", name, "nothing after the last 'Assistant:'")
        parts[name] = prompt + mark, answer
    (prompt, chosen), (rejected_prompt, rejected) = parts["chosen"], parts["rejected"]
    if prompt != rejected_prompt:
        raise BadField("prompt_mismatch", "rejected", "the turns before the last response differ from those of chosen")
    return prompt, chosen, rejected


def _turns(prompt: str) -> Content:
    """Returns the turns of a dialogue; joins consecutive turns of one speaker, since chat templates alternate."""
    body = prompt.removesuffix(_ANSWER)
    marks = list(_TURN.finditer(body))
    if not marks or body[: marks[0].start()].strip():
        raise BadField("empty_question", "chosen", f"not a dialogue of Human and Assistant: {shorten(body)}")
    ends = [*(mark.start() for mark in marks[1:]), len(body)]
    turns: list[dict[str, str]] = []
    for mark, end in zip(marks, ends):
        role = "user" if mark[1] == "Human" else "assistant"
        text = body[mark.end() : end].strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + text
        else:
            turns.append({"role": role, "content": text})
    return tuple(turns)


def instruction(row: Row, values: JsonObject) -> Question:
    """Returns an instruction and its good response, labelled desirable (Aya, CIDAR, Palm, CultureBank, messages)."""
    prompt: Content
    if "messages" in values:
        turns = fields.messages(values["messages"], "messages", "empty_response")
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise BadField("empty_response", "messages", "the conversation does not end in a response of the assistant")
        prompt, response = turns[:-1], turns[-1:]
    else:
        fields.need(values, "prompt", "response")
        text = fields.text(values["prompt"], "prompt", "empty_question")
        more = fields.optional_text(values.get("input"), "input")
        prompt = user_turn(text if more is None else f"{text}\n\n{more}")
        response = assistant_turn(fields.text(values["response"], "response", "empty_response"))
    source = fields.optional_text(values.get("source"), "source") or "unknown"
    return _question(row, values, prompt, Response(response, 1.0, source, row.number, desirable=True))


def _pair(row: Row, values: JsonObject, prompt: Content, chosen: Content, rejected: Content) -> Question:
    better = Response(chosen, 1.0, "chosen", row.number, "chosen")
    worse = Response(rejected, 0.0, "rejected", row.number, "rejected")
    return _question(row, values, prompt, better, worse)


def _labelled(row: Row, values: JsonObject, prompt: Content, completion: Content, label: bool) -> Question:
    source = "desirable" if label else "undesirable"
    return _question(row, values, prompt, Response(completion, float(label), source, row.number, desirable=label))


def _question(row: Row, values: JsonObject, prompt: Content, *responses: Response) -> Question:
    """Returns the question of one row; any culture and category is accepted (they are open sets)."""
    names = ("culture", "category", "language", "translated")
    culture, category, language, translated = (fields.optional_text(values.get(name), name) for name in names)
    culture = culture_id(culture) if culture else None
    return Question(
        prompt,
        responses,
        question_key(prompt, culture),
        culture=culture,
        category=category_id(category) if category else None,
        language=language or culture_language(culture),
        file=row.file,
        translated=translated,
    )
