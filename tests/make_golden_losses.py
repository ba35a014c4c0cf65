"""Runs the loss code of other libraries and stores the results: tests/golden/losses/*.json, read without torch.

    python tests/make_golden_losses.py --halos PATH/train/trainers.py --simpo PATH/scripts/simpo_trainer.py

needs the `parity` extra (torch, TRL 1.16), and one file each of ContextualAI/HALOs (at 4831988) and princeton-nlp/SimPO
(at 1b3e8f3). TRL's trainers are never built: their loss methods are called with a substitute for `self` and a model
whose token log-probabilities are the leaves of the gradients, so every formula, mean and mask is TRL's. From the other
two files only the loss functions are read and run. Everything is in float64, except what a peer casts itself.

A case has the name of the loss here, our hyperparameters, the options of the peer, the inputs by quantity, and either
`losses` (one number per pair, with the gradients of each pair's loss) or, if the peer's batch mean defines the loss,
`mean` (of a step, with its gradients).
"""

import argparse
import ast
import collections
import json
import pathlib
import types

import numpy as np
import torch
import torch.nn.functional as F
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

OUT = pathlib.Path(__file__).parent / "golden" / "losses"
PROMPT_LOGP = -0.7

ACCELERATOR = types.SimpleNamespace(
    device=torch.device("cpu"),
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x,
)


def exact(values):
    """float64 numbers that are exact in float32, so that the inputs of the test are the same numbers."""
    return np.asarray(values, np.float32).astype(np.float64)


def pair_inputs():
    rng = np.random.default_rng(7)
    count = 10
    chosen_lengths, rejected_lengths = rng.integers(1, 30, count), rng.integers(1, 30, count)
    ref_chosen, ref_rejected = -2.1 * chosen_lengths, -2.3 * rejected_lengths
    shift_w, shift_l = rng.normal(0, 4, count), rng.normal(0, 4, count)
    # The start (policy equal to reference), and large margins of both signs.
    shift_w[0] = shift_l[0] = 0.0
    shift_w[1], shift_l[1] = -60.0, 55.0
    ref_rejected[1] -= 60.0
    shift_w[2], shift_l[2] = 40.0, -45.0
    ref_chosen[2] -= 50.0
    return {
        "chosen_logps": exact(np.minimum(exact(ref_chosen) + shift_w, -0.01)),
        "rejected_logps": exact(np.minimum(exact(ref_rejected) + shift_l, -0.01)),
        "ref_chosen_logps": exact(ref_chosen),
        "ref_rejected_logps": exact(ref_rejected),
        "chosen_lengths": chosen_lengths,
        "rejected_lengths": rejected_lengths,
    }


def leaf(values, dtype=torch.float64):
    return torch.tensor(np.asarray(values), dtype=dtype, requires_grad=True)


def spread(sums, lengths, width):
    """[B, width] token log-probabilities whose sums are `sums`, equal on all tokens of a completion."""
    mask = (torch.arange(width)[None, :] < torch.as_tensor(lengths)[:, None]).to(sums.dtype)
    return mask * (sums / torch.as_tensor(lengths, dtype=sums.dtype))[:, None]


def as_case(loss, hyperparameters, peer, options, inputs, result, gradients):
    names = {k: np.asarray(v).tolist() for k, v in inputs.items()}
    return {
        "loss": loss,
        "hyperparameters": hyperparameters,
        "peer": peer,
        "peer_options": options,
        "inputs": names,
    } | {
        **result,
        "gradients": {k: np.asarray(v).tolist() for k, v in gradients.items()},
    }


# --- TRL's DPOTrainer ---------------------------------------------------------------------------------------------


def trl_dpo(inputs, *, loss_type, dtype=torch.float64, **options):
    """(loss of this batch, gradients wrt the four summed logps) from DPOTrainer._compute_loss."""
    sums = {name: leaf(inputs[name], dtype) for name in ("chosen_logps", "rejected_logps")}
    lengths = np.concatenate([inputs["chosen_lengths"], inputs["rejected_lengths"]])
    width = int(lengths.max())
    tokens = spread(torch.cat([sums["chosen_logps"], sums["rejected_logps"]]), lengths, width)
    zeros = torch.zeros_like(tokens)
    outputs = types.SimpleNamespace(log_probs=tokens, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    # One prompt token, then the completion; the mask covers completion tokens only.
    mask = torch.cat([torch.zeros(len(lengths), 1), (torch.arange(width)[None] < torch.as_tensor(lengths)[:, None])], 1)
    trainer = types.SimpleNamespace(
        model=types.SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type=options.get("f_divergence_type", "reverse_kl"),
        f_alpha_divergence_coef=options.get("f_alpha_divergence_coef", 0.5),
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=options.get("beta", 0.1),
        label_smoothing=options.get("label_smoothing", 0.0),
        args=types.SimpleNamespace(discopop_tau=options.get("discopop_tau", 0.05)),
        use_weighting=False,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    batch = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long),
        "attention_mask": torch.ones(mask.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "ref_chosen_logps": leaf(inputs["ref_chosen_logps"], dtype),
        "ref_rejected_logps": leaf(inputs["ref_rejected_logps"], dtype),
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, batch, False)
    leaves = sums | {name: batch[name] for name in ("ref_chosen_logps", "ref_rejected_logps")}
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return loss.item(), {
        name: (torch.zeros_like(x) if g is None else g).detach().numpy()
        for (name, x), g in zip(leaves.items(), gradients)
    }


def one_by_one(function, inputs, **options):
    """The loss and gradients of each pair (or response) as a batch of its own."""
    losses, gradients = [], []
    for index in range(len(next(iter(inputs.values())))):
        row = {name: np.asarray(v)[index : index + 1] for name, v in inputs.items()}
        loss, gradient = function(row, **options)
        losses.append(loss)
        gradients.append(gradient)
    return {"losses": losses}, {name: np.concatenate([g[name] for g in gradients]) for name in gradients[0]}


def trl_dpo_cases():
    inputs = pair_inputs()
    elementwise = [
        ("dpo", "sigmoid", {}),
        ("dpo", "sigmoid", {"beta": 0.5}),
        ("robust_dpo", "robust", {"label_smoothing": 0.1}),
        ("ipo", "ipo", {}),
        ("hinge", "hinge", {}),
        ("exo_pair", "exo_pair", {"label_smoothing": 1e-3}),
        ("nca_pair", "nca_pair", {}),
        ("bco_pair", "bco_pair", {}),
        ("sppo_hard", "sppo_hard", {}),
        ("apo_zero", "apo_zero", {}),
        ("apo_down", "apo_down", {}),
        ("discopop", "discopop", {"tau": 0.05}),
        ("sigmoid_norm", "sigmoid_norm", {"beta": 5.0}),
        ("dpo_forward_kl", "sigmoid", {"f_divergence_type": "forward_kl"}),
        ("dpo_js", "sigmoid", {"f_divergence_type": "js_divergence"}),
        ("dpo_alpha", "sigmoid", {"f_divergence_type": "alpha_divergence", "alpha": 0.5}),
        ("dpo_alpha", "sigmoid", {"f_divergence_type": "alpha_divergence", "alpha": 1.0}),
    ]
    cases = []
    for name, loss_type, given in elementwise:
        options = {
            {"tau": "discopop_tau", "alpha": "f_alpha_divergence_coef"}.get(key, key): value
            for key, value in given.items()
        }
        # The clamp of the alpha divergence does not support float64.
        dtype = torch.float32 if name == "dpo_alpha" else torch.float64
        result, gradients = one_by_one(trl_dpo, inputs, loss_type=loss_type, dtype=dtype, **options)
        ours = {key: value for key, value in given.items() if key != "f_divergence_type"}
        cases.append(as_case(name, ours, "TRL 1.16.0", {"loss_type": loss_type} | options, inputs, result, gradients))
    for name, given in (
        ("aot", {}),
        ("aot", {"label_smoothing": 0.1}),
        ("aot_unpaired", {}),
        ("aot_unpaired", {"label_smoothing": 0.1}),
        ("sft", {}),
    ):
        mean, gradients = trl_dpo(inputs, loss_type=name, **given)
        cases.append(as_case(name, given, "TRL 1.16.0", {"loss_type": name} | given, inputs, {"mean": mean}, gradients))
    # TRL ignores label smoothing in `sigmoid`.
    result, gradients = one_by_one(trl_dpo, inputs, loss_type="sigmoid", label_smoothing=0.1)
    options = {"loss_type": "sigmoid", "label_smoothing": 0.1}
    cases.append(
        as_case("dpo", {"label_smoothing": 0.1}, "TRL 1.16.0", options, inputs, result, gradients) | {"differs": True}
    )
    return cases


# --- TRL's KTOTrainer ---------------------------------------------------------------------------------------------


def label_inputs():
    rng = np.random.default_rng(3)
    ref = exact(-rng.uniform(1, 60, 8))
    shift = rng.normal(0, 8, 8)
    shift[0] = 0.0
    return {
        "logps": exact(np.minimum(ref + shift, -0.01)),
        "ref_logps": ref,
        "desirable": np.array([True, False, True, True, False, False, True, False]),
    }


def trl_kto(inputs, kl_logps, ref_kl_logps, *, beta, desirable_weight, undesirable_weight):
    sums, ref = leaf(inputs["logps"]), leaf(inputs["ref_logps"])
    tokens = sums[:, None]
    outputs = types.SimpleNamespace(
        log_probs=tokens, entropy=torch.zeros_like(tokens), mean_logits=torch.zeros_like(tokens)
    )
    trainer = types.SimpleNamespace(
        model=types.SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        _compute_kl_logps=lambda *_: torch.tensor(kl_logps, dtype=torch.float64),
    )
    count = len(inputs["logps"])
    batch = {
        "input_ids": torch.zeros((count, 2), dtype=torch.long),
        "attention_mask": torch.ones((count, 2), dtype=torch.long),
        "completion_mask": torch.tensor([[0, 1]] * count),
        "label": torch.tensor(inputs["desirable"]),
        "ref_logps": ref,
        "ref_KL_logps": torch.tensor(ref_kl_logps, dtype=torch.float64),
    }
    loss = KTOTrainer._compute_loss(trainer, lambda **_: outputs, batch, False)
    gradients = torch.autograd.grad(loss, [sums, ref])
    return loss.item(), dict(zip(("logps", "ref_logps"), (g.numpy() for g in gradients)))


def trl_kto_cases():
    inputs = label_inputs()
    ref_kl = exact(-np.linspace(5, 50, 8))
    cases = []
    for mean_shift, options in (
        (3.0, {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
        (-3.0, {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
        (2.0, {"beta": 0.3, "desirable_weight": 1.25, "undesirable_weight": 0.75}),
    ):
        kl_logps = exact(ref_kl + mean_shift + np.linspace(-1, 1, 8))
        result, gradients = one_by_one(trl_kto, inputs, kl_logps=kl_logps, ref_kl_logps=ref_kl, **options)
        z0 = {"kl_logps": kl_logps, "ref_kl_logps": ref_kl}
        cases.append(as_case("kto", options, "TRL 1.16.0", {}, inputs | z0, result, gradients))
    return cases


# --- TRL's CPOTrainer and ORPOTrainer, from logits to the loss --------------------------------------------------------


def token_model(sums, lengths, prompt):
    """A model of two words whose logits give each completion token (word 0) sum/length and each prompt token -0.7."""
    width = prompt + int(np.max(lengths))
    logps = torch.full((len(lengths), width), PROMPT_LOGP, dtype=sums.dtype)
    logps = torch.cat([logps[:, :prompt], spread(sums, lengths, width - prompt)], 1)
    logps = torch.where(logps == 0, torch.tensor(PROMPT_LOGP, dtype=sums.dtype), logps)
    other = torch.log(-torch.expm1(logps))
    is_prompt = (torch.arange(width) < prompt)[None, :, None]
    logits = torch.where(is_prompt, torch.stack([other, logps], -1), torch.stack([logps, other], -1))
    # The logits at a position predict the next token.
    logits = torch.cat([logits[:, 1:], logits[:, :1]], 1)
    return lambda *_, **__: types.SimpleNamespace(logits=logits)


def token_batch(inputs, prompt):
    batch = {}
    for side in ("chosen", "rejected"):
        lengths = inputs[f"{side}_lengths"]
        width = prompt + int(np.max(lengths))
        place = torch.arange(width)[None, :]
        end = torch.as_tensor(lengths)[:, None] + prompt
        ids = torch.where(place < prompt, 1, 0).expand(len(lengths), width)
        batch[f"{side}_input_ids"] = ids.clone()
        batch[f"{side}_attention_mask"] = (place < end).long()
        batch[f"{side}_labels"] = torch.where((place >= prompt) & (place < end), ids, -100)
    return batch


def trl_whole(inputs, *, trainer_class, prompt, **options):
    sums = {name: leaf(inputs[name]) for name in ("chosen_logps", "rejected_logps")}
    lengths = np.concatenate([inputs["chosen_lengths"], inputs["rejected_lengths"]])
    trainer = types.SimpleNamespace(
        accelerator=ACCELERATOR,
        is_encoder_decoder=False,
        pad_token_id=0,
        padding_value=0,
        aux_loss_enabled=False,
        **options,
    )
    for method in ("concatenated_inputs", "get_batch_logps"):
        setattr(trainer, method, getattr(trainer_class, method))
    for method in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(trainer_class, method):
            setattr(trainer, method, types.MethodType(getattr(trainer_class, method), trainer))
    model = token_model(torch.cat(list(sums.values())), lengths, prompt)
    loss, _ = trainer_class.get_batch_loss_metrics(trainer, model, token_batch(inputs, prompt))
    gradients = torch.autograd.grad(loss, list(sums.values()))
    return loss.item(), dict(zip(sums, (g.numpy() for g in gradients)))


def trl_free_cases():
    inputs = pair_inputs()
    inputs = {k: v for k, v in inputs.items() if not k.startswith("ref")}
    # No token has nearly all the probability, since the logits of the two-word model cannot express that in float64.
    for side in ("chosen", "rejected"):
        inputs[f"{side}_logps"] = exact(np.minimum(inputs[f"{side}_logps"], -0.05 * inputs[f"{side}_lengths"]))
    cases = []
    cpo_options = {"beta": 0.1, "label_smoothing": 0.0, "alpha": 0.0, "cpo_alpha": 0.0, "simpo_gamma": 0.5}
    free = [
        ("cpo", CPOTrainer, {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.0}, 3),
        ("cpo", CPOTrainer, {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.0, "label_smoothing": 0.1}, 3),
        ("cpo", CPOTrainer, {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0}, 3),
        ("simpo", CPOTrainer, {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.0, "simpo_gamma": 1.0}, 3),
        ("simpo", CPOTrainer, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "label_smoothing": 0.1}, 3),
        ("cpo_simpo", CPOTrainer, {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.7, "simpo_gamma": 1.0}, 3),
        ("orpo", ORPOTrainer, {"beta": 0.1}, 1),
    ]
    for name, trainer, given, prompt in free:
        options = (cpo_options | given) if trainer is CPOTrainer else given
        ours = {k: v for k, v in given.items() if k not in ("loss_type", "simpo_gamma")}
        if "simpo" in name:
            ours["gamma_beta_ratio"] = given["simpo_gamma"] / given["beta"]
        if name == "simpo":
            ours.pop("cpo_alpha", None)
        result, gradients = one_by_one(trl_whole, inputs, trainer_class=trainer, prompt=prompt, **options)
        cases.append(as_case(name, ours, "TRL 1.16.0", options, inputs, result, gradients))
    # Over a batch of several lengths, and for ORPO with a prompt, TRL's NLL is another mean than ours.
    for name, trainer, given, prompt in (free[2], free[5], (*free[6][:3], 4)):
        options = (cpo_options | given) if trainer is CPOTrainer else given
        ours = {k: v for k, v in given.items() if k not in ("loss_type", "simpo_gamma")}
        if "simpo" in name:
            ours["gamma_beta_ratio"] = given["simpo_gamma"] / given["beta"]
        mean, gradients = trl_whole(inputs, trainer_class=trainer, prompt=prompt, **options)
        case = as_case(name, ours, "TRL 1.16.0", options | {"prompt_tokens": prompt}, inputs, {"mean": mean}, gradients)
        cases.append(case | {"differs": True, "prompt_logp": PROMPT_LOGP})
    return cases


# --- HALOs and the SimPO repository, from the text of their files ---------------------------------------------------


def methods_of(path, wanted):
    """{(class, method): function} compiled from a file, without running its imports."""
    tree = ast.parse(pathlib.Path(path).read_text())
    methods = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and (node.name, item.name) in wanted:
                    namespace = {"torch": torch, "F": F, "nn": torch.nn}
                    namespace |= {
                        name: getattr(__import__("typing"), name) for name in ("Dict", "List", "Tuple", "Union")
                    }
                    exec(compile(ast.Module([item], []), str(path), "exec"), namespace)
                    methods[node.name, item.name] = namespace[item.name]
    assert set(methods) == set(wanted), set(wanted) - set(methods)
    return methods


def halos_cases(path):
    methods = methods_of(
        path,
        [
            ("BasicTrainer", "get_sequence_rewards"),
            *((f"{n}Trainer", "loss") for n in ("DPO", "CDPO", "IPO", "SimPO", "KTO")),
        ],
    )
    inputs = pair_inputs()
    cases = []

    def trainer(**loss_options):
        config = types.SimpleNamespace(loss=types.SimpleNamespace(**loss_options), humanline=False)
        stub = types.SimpleNamespace(config=config, accelerator=ACCELERATOR, policy_dtype=torch.float64)
        stub.get_sequence_rewards = types.MethodType(methods["BasicTrainer", "get_sequence_rewards"], stub)
        return stub

    for name, kind, given, options in (
        ("dpo", "DPO", {"beta": 0.1}, {"beta": 0.1}),
        ("dpo", "CDPO", {"beta": 0.1, "label_smoothing": 0.1}, {"beta": 0.1, "epsilon": 0.1}),
        ("ipo", "IPO", {"beta": 0.1}, {"tau": 0.1}),
        ("simpo", "SimPO", {"beta": 10.0, "gamma_beta_ratio": 0.3}, {"beta": 10.0, "gamma_beta_ratio": 0.3}),
    ):
        names = ["chosen_logps", "rejected_logps"] + (
            [] if kind == "SimPO" else ["ref_chosen_logps", "ref_rejected_logps"]
        )
        # HALOs counts only tokens whose reward is not 0, so leave out the row in which policy equals reference.
        rows = slice(1, None) if kind == "IPO" else slice(None)
        used = {k: v[rows] for k, v in inputs.items() if k in names or k.endswith("lengths")}
        leaves = {k: leaf(used[k]) for k in names}
        width = int(max(used["chosen_lengths"].max(), used["rejected_lengths"].max()))
        tokens = [
            spread(x, used["rejected_lengths" if "rejected" in k else "chosen_lengths"], width)
            for k, x in leaves.items()
        ]
        losses = methods[f"{kind}Trainer", "loss"](trainer(**options), {}, *tokens)[0]
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()))
        result = {"losses": losses.tolist()}
        gradients = dict(zip(names, (g.numpy() for g in gradients)))
        cases.append(as_case(name, given, "HALOs 4831988", {"trainer": kind} | options, used, result, gradients))
    # IPO with policy equal to reference is 0/0 in HALOs.
    start = {
        k: torch.tensor(inputs[k][:1])
        for k in ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    }
    nan = methods["IPOTrainer", "loss"](trainer(tau=0.1), {}, *(v[:, None] for v in start.values()))[0]
    case = as_case(
        "ipo", {"beta": 0.1}, "HALOs 4831988", {"trainer": "IPO"}, {k: v[:1] for k, v in inputs.items()}, {}, {}
    )
    cases.append(case | {"differs": True, "losses": [repr(nan.item())]})

    labelled = label_inputs()
    options = {"beta": 0.1, "desirable_weight": 1.25, "undesirable_weight": 0.75}
    desirable = labelled["desirable"]
    ref_kl = exact(-np.linspace(5, 50, 8))
    kl_logps = exact(ref_kl + 3.0 + np.linspace(-1, 1, 8))
    policy, reference = leaf(labelled["logps"]), leaf(labelled["ref_logps"])
    arguments = [
        policy[desirable],
        policy[~desirable],
        torch.tensor(kl_logps),
        reference[desirable],
        reference[~desirable],
    ]
    arguments = [x[:, None] for x in (*arguments, torch.tensor(ref_kl))]
    losses, *_ = methods["KTOTrainer", "loss"](trainer(**options), {}, *arguments)
    gradients = torch.autograd.grad(losses.sum(), [policy, reference])
    ordered = np.empty(8)
    ordered[desirable], ordered[~desirable] = losses[: desirable.sum()].tolist(), losses[desirable.sum() :].tolist()
    gradients = dict(zip(("logps", "ref_logps"), (g.numpy() for g in gradients)))
    z0 = {"kl_logps": kl_logps, "ref_kl_logps": ref_kl}
    cases.append(as_case("kto", options, "HALOs 4831988", {}, labelled | z0, {"losses": ordered.tolist()}, gradients))
    return cases


def simpo_cases(path):
    method = methods_of(path, [("SimPOTrainer", "simpo_loss")])["SimPOTrainer", "simpo_loss"]
    inputs = {k: v for k, v in pair_inputs().items() if not k.startswith("ref")}
    cases = []
    for name, given in (
        ("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.25, "label_smoothing": 0.0}),
        ("simpo", {"beta": 10.0, "gamma_beta_ratio": 0.5, "label_smoothing": 0.1}),
        ("simpo_hinge", {"beta": 2.0, "gamma_beta_ratio": 0.25}),
    ):
        options = {"loss_type": "hinge" if name == "simpo_hinge" else "sigmoid"} | given
        trainer = types.SimpleNamespace(accelerator=ACCELERATOR, **options)
        leaves = {k: leaf(inputs[k]) for k in ("chosen_logps", "rejected_logps")}
        means = [leaves[f"{side}_logps"] / torch.tensor(inputs[f"{side}_lengths"]) for side in ("chosen", "rejected")]
        losses = method(trainer, *means)[0]
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()))
        gradients = dict(zip(leaves, (g.numpy() for g in gradients)))
        result = {"losses": losses.tolist()}
        cases.append(as_case(name, given, "SimPO 1b3e8f3", options, inputs, result, gradients))
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--halos", required=True, help="train/trainers.py of ContextualAI/HALOs")
    parser.add_argument("--simpo", required=True, help="scripts/simpo_trainer.py of princeton-nlp/SimPO")
    arguments = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    for name, cases in (
        ("trl_dpo", trl_dpo_cases()),
        ("trl_kto", trl_kto_cases()),
        ("trl_reference_free", trl_free_cases()),
        ("halos", halos_cases(arguments.halos)),
        ("simpo", simpo_cases(arguments.simpo)),
    ):
        lines = ",\n".join(json.dumps(case) for case in cases)
        (OUT / f"{name}.json").write_text(f"[\n{lines}\n]\n")
        print(name, len(cases), "cases")


if __name__ == "__main__":
    main()
