"""Reads public preference and instruction sets by their documented fields.

If one row of the input holds several candidates (UltraFeedback, PRISM), each candidate counts as a row.
"""

from collections.abc import Mapping

from care_jax.data.questions import Content, Message, Question, Response, assistant_turn, plain_text, user_turn
from care_jax.data.readers.rated import Groups, Known
from care_jax.data.rows import fields
from care_jax.data.rows.fields import BadField
from care_jax.data.rows.row import Row, describe
from care_jax.data.rows.table import Table
from care_jax.textfiles import JsonObject

ULTRAFEEDBACK = {"instruction": ("instruction", "prompt"), "completions": ("completions",)}
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
PRISM = {"history": ("conversation_history",)}


def read_ultrafeedback(table: Table, known: Known) -> list[Question]:
    """Reads openbmb/UltraFeedback: instruction, and completions of model, response, overall_score (1-10)."""
    groups = Groups(table.report)

    def add(row: Row, values: JsonObject) -> None:
        fields.need(values, "instruction", "completions")
        prompt = user_turn(fields.text(values["instruction"], "instruction", "empty_question"))
        candidates = _not_empty(values["completions"], "completions")
        table.report.rows += len(candidates) - 1
        for index, candidate in enumerate(candidates):
            name = f"completions[{index}]"
            try:
                groups.add(row, prompt, _candidate(row, candidate, name, ("response", "overall_score", "model")))
            except BadField as bad:
                table.drop(row, bad)

    table.for_each(add)
    return groups.questions()


def _not_empty(value: object, name: str) -> list[object]:
    if not isinstance(value, list) or not value:
        raise BadField("empty_response", name, describe(value))
    return value


def _candidate(row: Row, value: object, name: str, keys: tuple[str, str, str]) -> Response:
    """Returns one candidate of a row. name: its place in the row. keys: field names of its text, rating and source."""
    text, rating, source = keys
    if not isinstance(value, Mapping):
        raise BadField("unreadable", name, describe(value))
    for key in (text, rating):
        if key not in value:
            raise BadField("missing_field", f"{name}.{key}", "no such key")
    return Response(
        assistant_turn(fields.text(value[text], f"{name}.{text}", "empty_response")),
        fields.rating(value[rating], f"{name}.{rating}"),
        fields.optional_text(value.get(source), f"{name}.{source}") or "unknown",
        row.number,
    )


def read_tfds(table: Table, known: Known) -> list[Question]:
    """Reads the TFDS dataset `care`, one record per question (see care_tfds)."""

    def parse(row: Row, values: JsonObject) -> Question:
        fields.need(values, "question", "key", "responses")
        question = fields.text(values["question"], "question", "empty_question")
        columns = values["responses"]
        if not isinstance(columns, Mapping) or not {"text", "rating", "source", "row"} <= set(columns):
            raise BadField("unreadable", "responses", describe(columns))
        table.report.rows += len(columns["text"]) - 1
        about = {name: values.get(name) or None for name in TFDS if name not in ("question", "key", "responses")}
        responses = tuple(
            Response(assistant_turn(text), None if rating != rating else rating, source, number)  # NaN: not rated
            for text, rating, source, number in zip(*(columns[name] for name in ("text", "rating", "source", "row")))
        )
        return Question(user_turn(question), responses, values["key"], file=row.file, **about)

    return list(table.parse(parse))


def read_prism(table: Table, known: Known) -> list[Question]:
    """Reads PRISM: the candidates of each turn, rated 1-100 by the person who asked, after the turns before it."""
    groups = Groups(table.report)

    def add(row: Row, values: JsonObject) -> None:
        fields.need(values, "history")
        turns = _prism_turns(_not_empty(values["history"], "conversation_history"))
        table.report.rows += sum(len(candidates) for _, candidates in turns.values()) - 1
        _add_conversation(groups, table, row, turns)

    table.for_each(add)
    return groups.questions()


_Turns = dict[int, tuple[str, list[JsonObject]]]  # turn -> (question, candidates)


def _add_conversation(groups: Groups, table: Table, row: Row, turns: _Turns) -> None:
    prompt: list[Message] = []
    for number in sorted(turns):
        question, candidates = turns[number]
        prompt = [*prompt, *user_turn(question)]
        chosen = None
        for candidate in candidates:
            name = f"conversation_history (turn {number})"
            try:
                response = _candidate(row, candidate, name, ("content", "score", "model_name"))
                groups.add(row, tuple(prompt), response)
                chosen = response if candidate.get("if_chosen") is True else chosen
            except BadField as bad:
                table.drop(row, bad)
        if chosen is None:
            break  # later turns have no prompt without the response that the person chose
        prompt = [*prompt, {"role": "assistant", "content": plain_text(chosen.content)}]
    for _ in range(sum(len(candidates) for later, (_, candidates) in turns.items() if later > number)):
        table.report.drop(row, "missing_field", "conversation_history", f"no chosen response in turn {number}")


def _prism_turns(history: list[object]) -> _Turns:
    questions: dict[int, str] = {}
    candidates: dict[int, list[JsonObject]] = {}
    for item in history:
        if not isinstance(item, dict) or not isinstance(item.get("turn"), int):
            raise BadField("unreadable", "conversation_history", f"no numbered turn: {describe(item)}")
        if item.get("role") == "user":
            questions[item["turn"]] = fields.text(item.get("content"), "conversation_history", "empty_question")
        else:
            candidates.setdefault(item["turn"], []).append(item)
    without = next((turn for turn in candidates if turn not in questions), None)
    if without is not None or not candidates:
        raise BadField("empty_question", "conversation_history", f"no question in turn {without or 0}")
    return {turn: (questions[turn], candidates[turn]) for turn in candidates}


def read_oasst(table: Table, known: Known) -> list[Question]:
    """Reads OpenAssistant's trees: the replies to one message, ranked (0 is best), after the messages above it.

    Only replies of the assistant count as rows; `cultures: [ar, zh]` selects by language.
    """
    report = table.report
    messages: dict[str, JsonObject] = {}

    def parse(row: Row, values: JsonObject) -> tuple[Row, JsonObject]:
        fields.need(values, "id", "parent", "text", "role")
        values["text"] = fields.text(values["text"], "text", "empty_response")
        if values["role"] not in ("prompter", "assistant"):
            raise BadField("unreadable", "role", describe(values["role"]))
        messages[fields.text(values["id"], "message_id", "unreadable")] = values
        report.rows -= values["role"] == "prompter"
        return row, values

    replies = [(row, values) for row, values in table.parse(parse) if values["role"] == "assistant"]
    ranked: list[tuple[Row, JsonObject, Content]] = []
    last_rank: dict[str, float] = {}  # of the replies to a message
    for row, values in replies:
        try:
            if values.get("deleted") is True or values.get("reviewed") is False:
                raise BadField("not_reviewed", "review_result", "deleted, or rejected by its reviewers")
            values["rank"] = fields.rating(values.get("rank"), "rank", 0.0)
            values["language"] = fields.optional_text(values.get("language"), "lang")
            ranked.append((row, values, _thread(messages, values["parent"])))
            last_rank[values["parent"]] = max(last_rank.get(values["parent"], 0.0), values["rank"])
        except BadField as bad:
            table.drop(row, bad)
    groups = Groups(report)
    for row, values, prompt in ranked:
        rating = last_rank[values["parent"]] - values["rank"] + 1.0
        response = Response(assistant_turn(values["text"]), rating, "human", row.number)
        groups.add(row, prompt, response, {"language": values["language"]})
    return groups.questions()


def _thread(messages: Mapping[str, JsonObject], last: object) -> Content:
    """Returns the conversation from the root down to the message of this id."""
    turns: list[Message] = []
    while last is not None:
        message = messages.get(last) if isinstance(last, str) else None
        if message is None or len(turns) > 1000:
            raise BadField("empty_question", "parent_id", f"no such message: {describe(last)}")
        turns.append({"role": "user" if message["role"] == "prompter" else "assistant", "content": message["text"]})
        last = message["parent"]
    if not turns:
        raise BadField("empty_question", "parent_id", "the reply has no parent")
    return tuple(reversed(turns))
