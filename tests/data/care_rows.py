"""Rows in CARE's schema, and what was read from them, for tests."""

import json


def care_row(**changes):
    row = {
        "question": "为什么？",
        "answer": "因为。",
        "response": "A",
        "human_rating": 7,
        "source": "gpt-4o",
        "cul_type": "Social norms",
        "associated_culture": "Native (Chinese)",
        "translated_question (optional)": None,
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def write(folder, rows, name="care.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def counts(reading):
    """Returns the dropped rows by reason; checks that every row is counted and every dropped row is listed."""
    dropped = {reason: n for reason, n in reading.report.dropped.items() if n}
    responses = sum(r.field != "rejected" for q in reading.questions for r in q.responses)
    assert reading.report.rows == responses + sum(dropped.values())
    assert sum(dropped.values()) == len(reading.report.rejected) + dropped.get("not_selected", 0)
    return dropped


def texts(question):
    """Returns (text, rating, source) of each response."""
    return [(r.content[0]["content"], r.rating, r.source) for r in question.responses]
