"""How answers are generated, by a model on this machine or by an endpoint. Imports no jax."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """Settings of sampling. A temperature of 0 is greedy decoding.

    n: answers per prompt. chat_template: `model`, `none` or a file; an endpoint only distinguishes `none`, which sends
    the prompt as plain text. date: today's date for a template that asks for it. batch_size: prompts per batch of a
    model on this machine.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 256
    n: int = 1
    seed: int = 0
    chat_template: str = "model"
    date: str | None = None
    batch_size: int = 16
