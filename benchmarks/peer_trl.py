"""TRL's DPOTrainer as a `Case` of the harness: its own collator, loss and reference pass, torch's fused AdamW.

Its settings are the fastest: no checkpointing, float32 as ours, the number of pairs per microbatch that is fastest on
this machine, a fused optimizer. Its batches are built from our token ids, so that the token counts are equal; a check
counts them again in the output of its collator.
"""

import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import harness
import numpy as np
import tokenizers
import torch
import transformers
import trl
from datasets import Dataset

from care_jax.data.corpus import Corpus
from care_jax.data.preferences import Unit

transformers.utils.logging.set_verbosity_error()


def examples(units: Sequence[Unit], corpus: Corpus) -> list[dict[str, Any]]:
    """The pairs in the order of the units, as ids."""
    pairs = []
    for unit in units:
        prompt = corpus.prompts[unit.question].tolist()
        ids = [corpus.response_id(unit.question, response) for response in unit.responses]
        completions = [corpus.sequence(unit.question, each)[1].tolist() for each in ids]
        pairs += [
            {"prompt_ids": prompt, "chosen_ids": completions[chosen], "rejected_ids": completions[rejected]}
            for chosen, rejected in unit.pairs
        ]
    return pairs


def _tokenizer() -> Any:
    """The trainer requires one; it is used only for one row with one word."""
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    rust = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    rust.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=rust, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


@dataclasses.dataclass
class Peer:
    """A trainer of one model folder, with a reference from another."""

    trainer: Any
    reference: Any
    pairs: list[dict[str, Any]]
    optimizer: Any

    @classmethod
    def make(
        cls, policy: pathlib.Path, reference: pathlib.Path, pairs: list[dict[str, Any]], dtype: str = "float32"
    ) -> "Peer":
        def load(folder: pathlib.Path) -> Any:
            return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))

        with tempfile.TemporaryDirectory() as folder:
            config = trl.DPOConfig(
                output_dir=folder,
                use_cpu=not torch.cuda.is_available(),
                bf16=False,
                gradient_checkpointing=False,
                max_length=None,
                beta=harness.BETA,
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                precompute_ref_log_probs=False,
            )
            row = {"prompt": "a", "chosen": " b", "rejected": " c"}
            trainer = trl.DPOTrainer(
                model=load(policy),
                ref_model=load(reference),
                args=config,
                train_dataset=Dataset.from_list([row]),
                processing_class=_tokenizer(),
            )
        # If it were built with this option, it would compute the reference of its own data set of one row. Our rows are
        # ids, whose reference its own function computes in `reference_pass`. Otherwise the option changes nothing.
        trainer.precompute_ref_logps = True
        model = trainer.model.train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=harness.RATE, betas=(harness.B1, harness.B2), weight_decay=0.0, fused=True
        )
        peer = cls(trainer, trainer.ref_model, pairs, optimizer)
        peer.reference_pass(1)
        return peer

    def _batch(self, part: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self.trainer._prepare_inputs(self.trainer.data_collator(list(part)))

    def reference_pass(self, size: int) -> float:
        """Computes and stores the reference of every pair, in microbatches as in the step."""
        for at in range(0, len(self.pairs), size):
            part = self.pairs[at : at + size]
            logps = self.trainer.compute_ref_log_probs(self.reference, self._batch(part))
            for side, values in zip(("chosen", "rejected"), logps):
                for pair, value in zip(part, values.tolist()):
                    pair[f"ref_{side}_logps"] = value
        return self.pairs[0]["ref_chosen_logps"]

    def backward(self, part: Sequence[dict[str, Any]]) -> float:
        """Adds the gradient of one microbatch; returns its share of the loss of the step."""
        loss = self.trainer.compute_loss(self.trainer.model, self._batch(part)) * (len(part) / len(self.pairs))
        loss.backward()
        return float(loss.detach())

    def step(self, size: int) -> float:
        total = sum(self.backward(self.pairs[at : at + size]) for at in range(0, len(self.pairs), size))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return total

    def fastest(self, sizes: Sequence[int], sample: int) -> tuple[int, dict[str, float]]:
        """The fastest microbatch size on a sample spread over the pairs, and the seconds of each size."""
        chosen = [self.pairs[index] for index in np.linspace(0, len(self.pairs) - 1, sample).astype(int)]
        seconds = {}
        self.backward(chosen[:1])
        for size in sizes:
            began = time.perf_counter()
            for at in range(0, sample, size):
                self.backward(chosen[at : at + size])
            seconds[str(size)] = time.perf_counter() - began
        self.optimizer.zero_grad(set_to_none=True)
        return int(min(seconds, key=seconds.__getitem__)), seconds

    def counted(self, size: int) -> dict[str, int]:
        """Tokens of the step as its collator lays them out: all, those of completions, and slots with padding."""
        batches = [self._batch(self.pairs[at : at + size]) for at in range(0, len(self.pairs), size)]
        return {
            "tokens": sum(int(batch["attention_mask"].sum()) for batch in batches),
            "completion_tokens": sum(int(batch["completion_mask"].sum()) for batch in batches),
            "token_slots": sum(batch["input_ids"].numel() for batch in batches),
        }

    def gradient_norm(self) -> float:
        """Norm of the gradient of the first step, from AdamW's first moment after it."""
        squares = sum(float(state["exp_avg"].double().square().sum()) for state in self.optimizer.state.values())
        return squares**0.5 / (1 - harness.B1)


def cases(
    name: str,
    policy: pathlib.Path,
    reference: pathlib.Path,
    pairs: list[dict[str, Any]],
    size: int | None = None,
    dtype: str = "float32",
) -> tuple[harness.Case, harness.Case]:
    """A step of TRL over all pairs with the reference precomputed, and the pass that an online reference adds to it.

    size: pairs per microbatch; None finds the fastest on a sample, which is a warm-up too. The loss and the gradient
    norm of the first step, that of the first round, are kept.
    """
    peer = Peer.make(policy, reference, [dict(pair) for pair in pairs], dtype)
    seconds: dict[str, float] = {}
    if size is None:
        size, seconds = peer.fastest([1, 2, 4, 8], min(8, len(pairs)))
    else:
        peer.fastest([size], min(size, len(pairs)))
    facts: dict[str, Any] = {"pairs_per_microbatch": size, "calibration_seconds": list(seconds.values())}
    facts |= peer.counted(size)
    expected = sum(len(pair["chosen_ids"]) + len(pair["rejected_ids"]) for pair in pairs)
    if facts["completion_tokens"] != expected:
        raise AssertionError(f"TRL trains on {facts['completion_tokens']} completion tokens, ours are {expected}")
    facts["fill"] = facts["tokens"] / facts["token_slots"]
    case = harness.Case(name, lambda: peer.step(size), facts)

    def first() -> float:
        case.loss = peer.step(size)
        facts["gradient_norm"] = peer.gradient_norm()
        case.run = lambda: peer.step(size)
        return case.loss

    case.run = first
    return case, harness.Case(f"{name}: reference pass", lambda: peer.reference_pass(size))
