"""A page to read questions, answers and judgements side by side: one file, no network, no build."""

import json
from collections.abc import Sequence
from typing import Any

from care_jax.evaluation.report.records import Record


def page(records: Sequence[Record], systems: Sequence[str]) -> str:
    """The HTML. Texts stand in it as JSON and are shown as text, never as markup; each finds its own direction."""
    items: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        one = items.setdefault(
            (record.task, record.item),
            {
                "task": record.task, "culture": record.culture, "category": record.category,
                "question": record.question, "reference": record.reference, "answers": {},
            },
        )  # fmt: skip
        one["reference"] = one["reference"] or record.reference
        one["answers"].setdefault(record.system, []).append(
            {
                "response": record.response, "rating": record.value, "judgement": record.judgement,
                "judge": record.judge, "language": record.language,
            }
        )  # fmt: skip
    data = json.dumps({"systems": list(systems), "items": list(items.values())}, ensure_ascii=False)
    # '<' could end the script element or open a comment in it; in JSON it may be written as an escape.
    return _PAGE.replace("/*DATA*/", data.replace("<", "\\u003c").replace("\u2028", "\\u2028"))
