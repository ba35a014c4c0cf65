"""Trains a tiny model with TRL's own trainers and stores each step: tests/golden/trl/{dpo,kto,simpo}.json and model/.

    TRL_EXPERIMENTAL_SILENCE=1 python tests/make_golden_trl.py

needs the `parity` extra; about a minute on a CPU. The model is a random llama (tests/golden/trl/model, float32). Each
trainer makes 8 optimizer steps of AdamW at a constant rate, in file order, without clipping. A JSON file has every
hyperparameter, the token ids of the rows of each step (as TRL passed them to the model, to be used without additions),
and what TRL logged before the update of that step. Losses are read before the Trainer rounds them. `float64` has the
losses of the same run in float64, to show the effect of rounding alone.
"""

import contextlib
import json
import pathlib
import re
import tempfile

import numpy as np
import tokenizers
import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

OUT = pathlib.Path(__file__).parent / "golden" / "trl"
STEPS, PAIRS = 8, 4
OPTIMIZER = {
    "name": "adamw",
    "learning_rate": 2e-3,
    "schedule": "constant",
    "warmup": 0,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.1,
    "max_grad_norm": None,
}
LOGGED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
LOGGED += ("logps/chosen", "logps/rejected", "kl", "grad_norm", "learning_rate")


def make_model():
    """A llama of two layers with grouped queries, with initial weights large enough for distinct logits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, 64)}
    rust = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    rust.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rust, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    LlamaForCausalLM(config).save_pretrained(OUT / "model")
    tokenizer.save_pretrained(OUT / "model")
    return tokenizer


def make_rows():
    """STEPS * PAIRS preference rows as text; all prompts differ."""
    rng = np.random.default_rng(0)

    def words(low, high):
        return " ".join(f"w{i}" for i in rng.integers(4, 64, rng.integers(low, high)))

    rows = [
        {"prompt": f"<s> {words(3, 9)}", "chosen": f" {words(2, 12)}", "rejected": f" {words(2, 12)}"}
        for _ in range(STEPS * PAIRS)
    ]
    assert len({row["prompt"] for row in rows}) == len(rows)
    return rows


def common(folder, batch):
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "max_steps": STEPS,
        "learning_rate": OPTIMIZER["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "adam_beta1": OPTIMIZER["b1"],
        "adam_beta2": OPTIMIZER["b2"],
        "adam_epsilon": OPTIMIZER["eps"],
        "weight_decay": OPTIMIZER["weight_decay"],
        # High enough never to clip; 0 would also switch off the logging of grad_norm.
        "max_grad_norm": 1e9,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }


def train(trainer_class, config, rows, tokenizer, dtype, **models):
    """(exact loss of each step, TRL's logs of each step, the trainer)."""
    losses = []

    class Recording(trainer_class):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.item())
            return loss

    def load():
        return AutoModelForCausalLM.from_pretrained(OUT / "model", dtype=dtype)

    trainer = Recording(
        model=load(),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        **{name: load() for name in models},
    )
    with contextlib.redirect_stdout(None):
        trainer.train()
    logs = [line for line in trainer.state.log_history if "grad_norm" in line]
    assert len(logs) == len(losses) == STEPS
    return losses, logs, trainer


def check_rows(data):
    """The stored rows of the first step, through the starting model, give the logps that TRL logged."""
    model = AutoModelForCausalLM.from_pretrained(OUT / "model", dtype=torch.float32)
    sums = []
    for row in data["steps"][0]["rows"]:
        if row.get("label", True):
            completion = row.get("chosen_ids", row.get("completion_ids"))
            ids = torch.tensor([row["prompt_ids"] + completion])
            with torch.no_grad():
                logps = torch.log_softmax(model(ids).logits, -1)[0, :-1].gather(1, ids[0, 1:, None])
            total = logps[-len(completion) :].sum().item()
            sums.append(total / len(completion) if data["loss"]["name"] == "simpo" else total)
    assert abs(np.mean(sums) - data["steps"][0]["logps/chosen"]) < 1e-4


def store(name, description, loss, rows, results, view, batch):
    (losses, logs, trainer), (exact, _, _) = results
    steps = [
        {"step": n + 1, "loss": losses[n]}
        | {key: log[key] for key in LOGGED if key in log}
        | {"rows": rows(trainer, n)}
        for n, log in enumerate(logs)
    ]
    data = {
        "description": description,
        "made_by": f"TRL {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
        "model": "model (beside this file), float32",
        "loss": loss,
        "optimizer": OPTIMIZER,
        "batch": {"view": view, "examples": batch, "microbatches": 1, "shuffle": False},
        "steps": steps,
        "float64": {"loss": exact, "largest_difference": float(np.max(np.abs(np.subtract(losses, exact))))},
    }
    text = json.dumps(data, indent=1)
    # One line per list of ids.
    text = re.sub(r"\[[\s\d,]+\]", lambda match: "[" + " ".join(match.group()[1:-1].split()) + "]", text)
    check_rows(data)
    (OUT / f"{name}.json").write_text(text + "\n")
    print(name, "largest difference to float64:", data["float64"]["largest_difference"], "losses", losses)


def both(trainer_class, config_class, rows, tokenizer, batch, options, **models):
    """The run in float32, and again in float64."""
    results = []
    for dtype in (torch.float32, torch.float64):
        with tempfile.TemporaryDirectory() as folder:
            config = config_class(**common(folder, batch), **options)
            results.append(train(trainer_class, config, rows, tokenizer, dtype, **models))
    return results


def pair_rows(trainer, n):
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [{k: trainer.train_dataset[i][k] for k in names} for i in range(n * PAIRS, (n + 1) * PAIRS)]


def cpo_rows(trainer, n):
    rows = []
    for i in range(n * PAIRS, (n + 1) * PAIRS):
        row = trainer.train_dataset[i]
        start = len(row["prompt_input_ids"])
        sides = {f"{side}_ids": row[f"{side}_input_ids"][start:] for side in ("chosen", "rejected")}
        assert all(row[f"{side}_input_ids"][:start] == row["prompt_input_ids"] for side in ("chosen", "rejected"))
        assert all(row[f"{side}_labels"].count(-100) == start for side in ("chosen", "rejected"))
        rows.append({"prompt_ids": row["prompt_input_ids"]} | sides)
    return rows


def label_rows(trainer, n):
    batch = 2 * PAIRS
    rows = [trainer.train_dataset[i] for i in range(n * batch, (n + 1) * batch)]
    for i, row in enumerate(rows):
        # TRL's mismatched completion is that of the row before, cyclic within the step.
        assert row["KL_completion_ids"] == rows[i - 1]["completion_ids"]
    names = ("prompt_ids", "completion_ids", "KL_completion_ids", "label")
    return [{{"KL_completion_ids": "mismatched_completion_ids"}.get(k, k): row[k] for k in names} for row in rows]


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    tokenizer, rows = make_model(), make_rows()
    before_update = "values of a step are from before its update, means over the step's rows"

    results = both(DPOTrainer, DPOConfig, rows, tokenizer, PAIRS, {"beta": 0.1, "max_length": None}, ref_model=True)
    description = f"TRL's DPOTrainer, loss_type sigmoid, the reference is the starting model; {before_update}"
    store("dpo", description, {"name": "dpo", "beta": 0.1}, pair_rows, results, "pairs", PAIRS)

    # Labelled rows: the chosen and rejected response of each pair, each with its own prompt.
    labelled = []
    for i, row in enumerate(rows):
        other = rows[i - 1]["prompt"] + " w9"
        labelled.append({"prompt": row["prompt"], "completion": row["chosen"], "label": True})
        labelled.append({"prompt": other, "completion": row["rejected"], "label": i % 4 == 3})
    for n in range(STEPS):
        step = labelled[n * 2 * PAIRS : (n + 1) * 2 * PAIRS]
        assert len({row["prompt"] for row in step}) == len(step)
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.5}
    options = {"beta": 0.1, "max_length": None, **weights}
    results = both(KTOTrainer, KTOConfig, labelled, tokenizer, 2 * PAIRS, options, ref_model=True)
    description = (
        "TRL's KTOTrainer, loss_type kto, the reference is the starting model; one microbatch per step, so that z0 is "
        "the mean over the step's mismatched completions (each prompt with the completion of the row before, cyclic "
        f"within the step), clamped at 0; kl is that z0; means of rewards and logps are over a class; {before_update}"
    )
    loss = {"name": "kto", "beta": 0.1, **weights}
    store("kto", description, loss, label_rows, results, "unpaired", 2 * PAIRS)

    options = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0, "max_length": 128}
    results = both(CPOTrainer, CPOConfig, rows, tokenizer, PAIRS, options)
    description = (
        "TRL's CPOTrainer, loss_type simpo, cpo_alpha 0, simpo_gamma 1.0 (gamma_beta_ratio 0.5 at beta 2.0). Its "
        "logps are means over completion tokens, not sums: logps/* here are to be compared with logps/lengths; "
        f"{before_update}"
    )
    loss = {"name": "simpo", "beta": 2.0, "gamma_beta_ratio": 0.5}
    store("simpo", description, loss, cpo_rows, results, "pairs", PAIRS)


if __name__ == "__main__":
    main()
