"""A page to read questions, answers and judgements side by side: one file that needs no network."""

import json
import pathlib
from collections.abc import Sequence

from care_jax.evaluation.report.records import Record
from care_jax.textfiles import JsonObject

_TEMPLATE = pathlib.Path(__file__).with_name("page.html")


def page(records: Sequence[Record], systems: Sequence[str]) -> str:
    """Returns the HTML. The texts are in it as JSON, and are shown as text, never as markup."""
    items: dict[tuple[str, str], JsonObject] = {}
    for record in records:
        item = items.setdefault(
            (record.task, record.item),
            {
                "task": record.task, "culture": record.culture, "category": record.category,
                "question": record.question, "reference": record.reference, "answers": {},
            },
        )  # fmt: skip
        item["reference"] = item["reference"] or record.reference
        item["answers"].setdefault(record.system, []).append(
            {
                "response": record.response, "rating": record.value, "judgement": record.judgement,
                "judge": record.judge, "language": record.language,
            }
        )  # fmt: skip
    data = json.dumps({"systems": list(systems), "items": list(items.values())}, ensure_ascii=False)
    # '<' could end the script element or open a comment in it; in JSON it may be written as an escape.
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028")
    return _TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/", data)
