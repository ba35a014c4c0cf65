"""Token ids that users bring must be ids of the model."""

import numpy as np

from care_jax.data.corpus import Corpus
from care_jax.errors import UserError


def check_token_ids(corpus: Corpus, vocab_size: int) -> None:
    """Raises UserError naming a question with an id for which the model has no embedding: a gather would take another.

    Token caches are not read for it, since their ids come from a tokenizer.
    """
    for part, tokens in (("prompt", corpus.prompts), ("completion", corpus.completions)):
        bad = np.flatnonzero((tokens.flat < 0) | (tokens.flat >= vocab_size))
        if not len(bad):
            continue
        inside = (tokens.starts <= bad[0]) & (bad[0] < tokens.starts + tokens.lengths)
        if tokens.places is not None:
            inside &= tokens.places[:, 0] < 0
        number = int(np.argmax(inside))
        question = number
        if part == "completion":
            question = int(np.searchsorted(corpus.first_response, number, side="right")) - 1
        row = corpus.questions[question].responses[0].row
        raise UserError(
            f"row {row} ({corpus.key(question)!r:.60}): token id {int(tokens.flat[bad[0]])} in the {part}; the model "
            f"has 0 to {vocab_size - 1} (config.json: vocab_size)"
        )
