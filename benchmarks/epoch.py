"""An epoch of the library's own loop: tokens per second, model FLOPs utilisation, input wait, start-up.

    python benchmarks/epoch.py --data care_rated.jsonl --model SMOLLM2_FOLDER --steps 8 row_length=1024
    python benchmarks/epoch.py --data care_rated.jsonl --model LLAMA_TOKENIZER_FOLDER --shape llama3-8b \\
        model.dtype=bfloat16 batch.examples=32 batch.microbatch_rows=4     # random weights; one H200
    ... --shape llama3-8b 'model.lora={r: 16}'                             # adapters
    ... --trl 64                                                           # TRL on 64 of the same pairs, in proportion

Further arguments are keys of the configuration. All rating-ordered pairs of a question are one unit. Utilisation counts
6 N operations per token (4 N with adapters), none for padding or recomputation, relative to the vendor's figure for the
device. --trl needs the `parity` extra and a CPU, or a GPU with enough memory for it after our run has ended.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from typing import Any

import harness
import yaml

import care_jax
from care_jax import models
from care_jax.config import Config

SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
}


def configuration(arguments: argparse.Namespace, model: pathlib.Path, folder: pathlib.Path) -> Config:
    keys = dict(word.split("=", 1) for word in arguments.keys)
    return Config.from_any(
        {
            "name": "epoch",
            "output_dir": str(folder / "run"),
            "model": {"path": str(model), "init": "random" if arguments.shape else "pretrained", "dtype": "float32"},
            "data": {
                "train": [{"reader": "care", "path": arguments.data}],
                "eval": [],
                "pairs": {"policy": "all"},
                "max_length": 512,
                "max_steps": arguments.steps,
            },
            "batch": {"unit": "group", "examples": 4, "row_length": 1024, "microbatch_rows": 2},
            "checkpoint": {"every": None},
            "trackers": [],
        },
        **{key: yaml.safe_load(value) for key, value in keys.items()},
    )


def ours(config: Config, folder: pathlib.Path) -> tuple[dict[str, Any], int]:
    """The figures of a run, and the number of pairs in its steps."""
    began = time.perf_counter()
    with harness.Peak() as peak:
        run = care_jax.train(config)
    run_seconds = time.perf_counter() - began
    steps = [line for line in run.metrics if "step_seconds" in line]
    timed = steps[1:] or steps  # the first one waits for the pipeline to fill
    seconds = sum(line["step_seconds"] for line in timed)
    tokens, waited = (sum(line[key] for line in timed) for key in ("tokens", "input_wait_seconds"))
    figures = {
        "parameters": models.num_params(run.model.arch),
        "steps": len(steps),
        "step_seconds": [line["step_seconds"] for line in steps],
        "median": statistics.median(line["step_seconds"] for line in timed),
        "minimum": min(line["step_seconds"] for line in timed),
        "tokens_per_second": tokens / seconds,
        "input_wait_share": waited / seconds,
        "fill": statistics.mean(line["packing_efficiency"] for line in timed),
        "whole_run_seconds": run_seconds,
        "peak": peak.most,
        "mfu": None if timed[0]["mfu"] is None else sum(line["mfu"] * line["step_seconds"] for line in timed) / seconds,
    }
    return figures, sum(line["pairs"] for line in steps)


def trl(arguments: argparse.Namespace, config: Config, model: pathlib.Path, pairs: int) -> dict[str, Any]:
    """TRL's step on a sample of the pairs, and its time scaled to all of them."""
    import peer_trl

    from care_jax.data import chat, pipeline, readers

    corpus = pipeline.tokenize(
        readers.read("care", arguments.data).questions,
        chat.load_tokenizer(str(model)),
        max_length=config.data.max_length,
    )
    sample = peer_trl.examples(harness.all_pairs(corpus), corpus)[: arguments.trl]
    step, _ = peer_trl.cases("trl", model, model, sample, dtype=config.model.dtype)
    measured = harness.measure([step], arguments.rounds)["trl"]
    return measured | {"pairs_timed": len(sample), "scaled_seconds": measured["median"] * pairs / len(sample)}


def main() -> None:
    parser = harness.parser(__doc__, rounds=1)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--model", default="sample", help="a folder; with --shape only its tokenizer is used")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this size")
    parser.add_argument("--steps", type=int, help="number of steps, in place of a whole epoch")
    parser.add_argument("--trl", type=int, metavar="PAIRS", help="time TRL on this number of pairs too")
    parser.add_argument("keys", nargs="*", help="key=value of the configuration")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps = 3
        small = {"model.init": "random", "data.max_length": 128, "batch.row_length": 256, "batch.microbatch_rows": 8}
        arguments.keys = [*(f"{key}={value}" for key, value in small.items()), *arguments.keys]
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        model: Any = arguments.model
        if arguments.shape:
            model = folder / "model"
            shutil.copytree(arguments.model, model, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
            (model / "config.json").write_text(json.dumps(SHAPES[arguments.shape]))
        config = configuration(arguments, model, folder)
        results: dict[str, Any] = {}
        results["ours"], pairs = ours(config, folder)
        ratios = {}
        if arguments.trl:
            results["trl"] = trl(arguments, config, model, pairs)
            seconds = sum(results["ours"]["step_seconds"])
            ratios["trl / ours (all steps)"] = results["trl"]["scaled_seconds"] / seconds
        shapes = {"model": arguments.shape or pathlib.Path(str(model)).name, "pairs": pairs}
        shapes |= {"batch": config.batch.model_dump(), "lora": config.model.lora is not None}
        harness.record("epoch", arguments, shapes, results, ratios)


if __name__ == "__main__":
    sys.exit(main())
