"""Rated answers of two systems."""

import json

import numpy as np

SYSTEMS = {"base": 0.0, "tuned": 1.0}
CELLS = {("arab", "norms"): 4.0, ("arab", "literacy"): 2.0, ("chinese", "norms"): 6.0}
TEXTS = {
    "arab": ("ما هي آداب <الضيافة>؟", "القهوة & التمر </script><b>"),
    "chinese": ("为什么不喜欢数字四？", "因为谐音"),
}


def write_rated(folder, system, shift, unrated=()):
    rng = np.random.default_rng(0)
    lines = []
    for (culture, category), mean in CELLS.items():
        for number in range(6):
            question, response = TEXTS[culture]
            rating = float(np.clip(np.round(mean + rng.normal()), 1, 9)) + shift
            lines.append(
                {
                    "question": f"{question} {category} {number}", "response": response, "reference": "gold",
                    "system": system, "culture": culture, "category": category,
                    "rating": None if number in unrated else rating,
                    "judgement": "fine <i>", "judge": "j",
                }
            )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "rated.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    # An answer that is not judged has no part in the report.
    (folder / "responses.jsonl").write_text(json.dumps({"question": "q", "response": "r"}) + "\n")
    return str(folder)
