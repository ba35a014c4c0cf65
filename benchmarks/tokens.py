"""Tokens per second of one core, from raw JSON lines to ids: reading, grouping, template and tokenizer together.

    python benchmarks/tokens.py care_rated.jsonl TOKENIZER_FOLDER [--copies 10]

Counts the tokens that reach a batch: each prompt and each completion once. The rows are repeated with other questions,
so that the result does not depend on a cache of the tokenizer or on the start-up.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

os.environ["RAYON_NUM_THREADS"] = "1"  # the tokenizer's threads: one core is measured
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from care_jax.data import chat, readers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="rows in CARE's schema, JSON lines")
    parser.add_argument("tokenizer", help="a folder or hub id")
    parser.add_argument("--copies", type=int, default=10)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in pathlib.Path(arguments.data).read_text(encoding="utf-8").splitlines()]
    tokenizer = chat.load_tokenizer(arguments.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for copy in range(arguments.copies):
                for row in rows:
                    again = row | {"question": f"{row['question']} {copy}", "response": f"{row['response']} {copy}"}
                    file.write(json.dumps(again, ensure_ascii=False) + "\n")
        start = time.process_time()
        questions = readers.read("care", str(path)).questions
        read_seconds = time.process_time() - start
        encoded = chat.encode_many(tokenizer, [(q.prompt, [r.content for r in q.responses]) for q in questions])
        seconds = time.process_time() - start
    tokens = sum(len(each.prompt_ids) + sum(map(len, each.completions)) for each in encoded)
    responses = sum(len(each.completions) for each in encoded)
    count = len(rows) * arguments.copies
    print(f"{count:,} rows, {len(questions):,} questions, {responses:,} responses, {tokens:,} tokens")
    print(f"read {read_seconds:.2f} s, template and tokenizer {seconds - read_seconds:.2f} s (CPU time)")
    print(f"{tokens / seconds:,.0f} tokens per second per core")


if __name__ == "__main__":
    main()
