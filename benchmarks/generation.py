"""Generation: tokens per second of a batch against one prompt at a time, and whether the texts are the same.

    python benchmarks/generation.py --model MODEL [--batch 16] [--tokens 32] [--rounds 2]

The same prompts (questions of the packaged sample, in the model's chat template) are answered greedily with `tokens`
tokens each. The time of a round includes the pass over the prompts. Both ways are compiled first, and take turns.
"""

import argparse
import json
import statistics
import time

import jax

from care_jax import models
from care_jax.data import chat, readers
from care_jax.models import sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or hub id")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", help="a file for the figures")
    arguments = parser.parse_args()
    folder = models.resolve(arguments.model)
    tokenizer = chat.load_tokenizer(str(folder))
    questions = readers.read("care", "sample").questions[: arguments.batch]
    template = "model" if tokenizer.chat_template else "none"
    encoded = chat.encode_many(tokenizer, [(question.prompt, ()) for question in questions], template)
    prompts = [each.prompt_ids for each in encoded]
    model, params = models.from_pretrained(folder, arguments.dtype)

    def answers(batch: int, tokens: int) -> list[tuple[int, ...]]:
        generated = sampling.generate(model, params, prompts, max_tokens=tokens, batch_size=batch)
        return [answer.tokens for answer in generated]

    sizes = (1, arguments.batch)
    texts = {size: answers(size, arguments.tokens) for size in sizes}
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(arguments.rounds):
        for size in sizes:
            start = time.perf_counter()
            answers(size, arguments.tokens)
            seconds[size].append(time.perf_counter() - start)
    count = len(prompts) * arguments.tokens
    rates = {size: count / statistics.median(seconds[size]) for size in sizes}
    same = sum(single == batched for single, batched in zip(texts[1], texts[arguments.batch]))
    for size in sizes:
        shown = ", ".join(f"{value:.2f}" for value in seconds[size])
        print(f"batch {size}: {rates[size]:.1f} tokens per second (rounds of {shown} s)")
    ratio = rates[arguments.batch] / rates[1]
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    print(f"{len(prompts)} prompts of {shortest} to {longest} tokens, {arguments.dtype}, {jax.default_backend()}")
    print(f"batch {arguments.batch}: {ratio:.2f} times the rate of batch 1; {same} of {len(prompts)} texts the same")
    if arguments.json:
        figures = {"rates": rates, "seconds": seconds, "ratio": ratio, "same": same, "prompts": len(prompts)}
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(figures, file)


if __name__ == "__main__":
    main()
