"""`check_loss` tests a loss of your own: one call, which reports all failures at once."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from care_jax.losses.signature import Loss, Spec, spec

# Logps of a long response that a model finds impossible, an ordinary one, one of probability nearly 1, and of 1.
ENDS = (-1e5, -1.0, -1e-6, 0.0)
# One unit for every combination of four such logps. All checks share this shape, so jax compiles each operation once.
UNITS, RESPONSES = len(ENDS) ** 4, 4
POLICY = ("chosen_logps", "rejected_logps", "logps", "group_logps")

Quantities: TypeAlias = Mapping[str, ArrayLike]  # inputs of a loss by name
Arrays: TypeAlias = dict[str, jax.Array]


@dataclass(frozen=True)
class LossReport:
    """A sound loss: its name, the checks that it passed, and the checks that were switched off."""

    name: str
    passed: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """Always empty: if a check fails, UnsoundLoss is raised, whose `failures` lists them."""
        return ()


class UnsoundLoss(AssertionError):
    """A loss fails checks. failures: one line each, with the numbers; the message contains them all."""

    def __init__(self, name: str, failures: tuple[str, ...]) -> None:
        self.failures = failures
        super().__init__("\n".join([f"{name}: {len(failures)} failures", *(f"  - {line}" for line in failures)]))


def check_loss(loss: Loss, *, monotone: bool = True) -> LossReport:
    """Returns a LossReport if the loss is sound; raises UnsoundLoss (an AssertionError) with all failures otherwise.

        care_jax.testing.check_loss(my_loss)

    The checks:

    - value and gradient are finite for every combination of logps from -1e5 to 0;
    - the losses are float32 of shape [P] (or [N], [G]), logged values have the same shape, and `weights` do not depend
      on the logps;
    - jit, vmap (over steps) and grad agree with the plain call;
    - permuted units give permuted losses, and a subset gives the same losses as among all (not for a loss that is
      marked `losses.whole_step`);
    - the gradient agrees with finite differences in float64;
    - with `monotone`, raising a chosen logp (pairs), a desirable one (unpaired) or the best rated one (lists) raises no
      loss. Pass False for a loss that is meant otherwise, as the square of ipo is.

    Hyperparameters have their defaults; set others with functools.partial. Raises UserError if the signature is not
    that of a loss.
    """
    known = spec(loss)
    checks: list[Callable[[Loss, Spec], list[str]]] = [_outputs, _finite, _transformed, _finite_differences]
    if not known.whole_step:
        checks.append(_separate)
    if monotone:
        checks.append(_monotone)
    failures: list[str] = []
    passed: list[str] = []
    for check in checks:
        name = (check.__doc__ or "").split("\n")[0].rstrip(".")
        try:
            failures_of_check = check(loss, known)
        except Exception as error:  # an exception in the loss is a failure of the check
            failures_of_check = [f"{name}: raised {type(error).__name__}: {str(error).partition(chr(10))[0]}"]
        failures += failures_of_check
        if not failures_of_check:
            passed.append(name)
    if failures:
        raise UnsoundLoss(known.name, tuple(failures))
    return LossReport(known.name, tuple(passed), () if monotone else ((_monotone.__doc__ or "").rstrip("."),))


def example(known: Spec, seed: int = 0, dtype: DTypeLike = np.float32) -> dict[str, np.ndarray]:
    """Random inputs of a loss by name, UNITS of each: logps from -35 to -5, lengths 1 to 30, ratings 1 to 10."""
    rng = np.random.default_rng(seed)
    shape = (UNITS, RESPONSES) if known.view == "lists" else (UNITS,)
    quantities: dict[str, np.ndarray] = {}
    for name in known.needs:
        if name == "kl":
            quantities[name] = np.asarray(1.5, dtype)
        elif name == "desirable":
            quantities[name] = np.arange(UNITS) % 2 == 0
        elif name == "group_mask":
            quantities[name] = np.arange(RESPONSES)[None, :] < rng.integers(2, RESPONSES + 1, UNITS)[:, None]
        elif name.endswith("lengths"):
            quantities[name] = rng.integers(1, 31, shape).astype(np.int32)
        elif name.endswith("ratings"):
            quantities[name] = rng.integers(1, 11, shape).astype(dtype)
        else:
            quantities[name] = -rng.uniform(5.0, 35.0, shape).astype(dtype)
    if "chosen_ratings" in quantities and "rejected_ratings" in quantities:
        both = np.stack([quantities["chosen_ratings"], quantities["rejected_ratings"]])
        quantities["chosen_ratings"], quantities["rejected_ratings"] = both.max(0) + 1, both.min(0)
    return quantities


def extremes(known: Spec) -> dict[str, np.ndarray]:
    """One unit per combination of logps ENDS (in lists, of two responses); the rest as in `example`."""
    quantities = example(known)
    names = [name for name in known.needs if name.endswith("logps")]
    slots = len(names) * (2 if known.view == "lists" else 1)
    grid = np.stack(np.meshgrid(*[np.asarray(ENDS, np.float32)] * slots, indexing="ij"), -1).reshape(-1, slots)
    grid = np.resize(grid, (UNITS, slots))
    for column, name in enumerate(names):
        if known.view == "lists":
            quantities[name][:, :2] = grid[:, 2 * column : 2 * column + 2]
        else:
            quantities[name] = grid[:, column]
    return quantities


def _arrays(quantities: Quantities) -> Arrays:
    return {name: jnp.asarray(value) for name, value in quantities.items()}


def _split(quantities: Quantities) -> tuple[Arrays, Arrays]:
    """Returns (the policy's logps, all other quantities)."""
    arrays = _arrays(quantities)
    return {k: v for k, v in arrays.items() if k in POLICY}, {k: v for k, v in arrays.items() if k not in POLICY}


def _losses_and_gradients(loss: Loss, logps: Arrays, others: Arrays) -> tuple[jax.Array, Arrays]:
    """Returns (losses, gradient of their sum with respect to each of the policy's logps); traceable."""

    def total(logps: Arrays) -> tuple[jax.Array, jax.Array]:
        losses, _ = loss(**(logps | others))
        return jnp.sum(losses), losses

    gradients, losses = jax.grad(total, has_aux=True)(logps)
    return losses, gradients


def _outputs(loss: Loss, known: Spec) -> list[str]:
    """Shape and dtype of what the loss returns; `weights` do not depend on the logps."""
    quantities = _arrays(example(known))
    result = loss(**quantities)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        return [f"output: expected (losses, dict of arrays), found {type(result).__name__}"]
    losses, logged = result
    failures = []
    if np.shape(losses) != (UNITS,):
        failures.append(f"shape: losses are {np.shape(losses)}, expected ({UNITS},), one per unit")
    if jnp.result_type(losses) != jnp.float32:
        failures.append(f"dtype: losses are {jnp.result_type(losses)}, expected float32")
    for name, value in logged.items():
        if np.shape(value) != (UNITS,):
            failures.append(f"shape: {name!r} of the dict is {np.shape(value)}, expected ({UNITS},)")
    if "weights" in logged:
        moved = {k: v - 1.0 if k in POLICY else v for k, v in quantities.items()}
        if not np.array_equal(logged["weights"], loss(**moved)[1]["weights"]):
            failures.append("weights: they change with the policy's logps, but the denominator of the mean must not")
    return failures


def _finite(loss: Loss, known: Spec) -> list[str]:
    """Value and gradient are finite at the ends of the logps."""
    quantities = extremes(known)
    losses, gradients = _losses_and_gradients(loss, *_split(quantities))
    failures = []
    results = {"value": losses, **{f"gradient by {name}": gradient for name, gradient in gradients.items()}}
    for what, values in ((what, np.asarray(result)) for what, result in results.items()):
        bad = ~np.isfinite(values)
        if bad.any():
            unit = int(np.argwhere(bad)[0][0])
            at = ", ".join(f"{k} = {quantities[k][unit].tolist()}" for k in known.needs if k.endswith("logps"))
            failures.append(f"finite {what}: {values[unit].tolist()} at {at} ({bad.sum()} of {bad.size} units)")
    return failures


def _compare(what: str, actual: ArrayLike, expected: ArrayLike, tolerance: float, slack: ArrayLike = 0.0) -> list[str]:
    """One failure with the largest difference, if it is above tolerance x (1 + |expected|) + slack."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return [f"{what}: shape {actual.shape}, expected {expected.shape}"]
    excess = np.abs(actual - expected) - tolerance * (1.0 + np.abs(expected)) - np.asarray(slack)
    if np.all(excess <= 0):
        return []
    index = np.unravel_index(int(np.nanargmax(np.where(np.isnan(excess), np.inf, excess))), excess.shape)
    at = f" at {[int(i) for i in index]}" if index else ""
    return [f"{what}: {float(actual[index]):.9g}, expected {float(expected[index]):.9g}{at}"]


def _transformed(loss: Loss, known: Spec) -> list[str]:
    """jit, vmap over steps, and grad agree with the plain call."""
    steps = example(known, seed=1), example(known, seed=2)
    run = functools.partial(_losses_and_gradients, loss)
    plain = [run(*_split(quantities)) for quantities in steps]
    stacked = _split({name: np.stack([step[name] for step in steps]) for name in steps[0]})
    failures = []
    mapped = jax.jit(jax.vmap(run))(*stacked)
    for step in range(2):
        losses, gradients = jax.tree.map(lambda x, step=step: x[step], mapped)
        expected_losses, expected_gradients = plain[step]
        failures += _compare(f"jit and vmap, step {step}: losses", losses, expected_losses, 1e-5)
        for name, expected in expected_gradients.items():
            failures += _compare(f"jit and vmap, step {step}: gradient by {name}", gradients[name], expected, 1e-5)
    return failures


def _separate(loss: Loss, known: Spec) -> list[str]:
    """Permuted units give permuted losses, and a subset of the units gives the same losses as among all."""
    quantities = example(known, seed=3)
    losses = np.asarray(loss(**_arrays(quantities))[0])
    hint = "; mark it @losses.whole_step if it is meant to couple them"
    order = np.random.default_rng(0).permutation(UNITS)
    subset = np.arange(0, UNITS, 3)
    failures = []
    for what, pick in (("permuted units", order), ("a subset of the units", subset)):
        picked = {name: value if name == "kl" else value[pick] for name, value in quantities.items()}
        failures += [line + hint for line in _compare(what, loss(**_arrays(picked))[0], losses[pick], 1e-5)]
    return failures


def _monotone(loss: Loss, known: Spec) -> list[str]:
    """Raising the logp of a chosen response raises no loss (for a whole-step loss: not the sum)."""
    failures = []
    for seed, step in ((4, 0.5), (5, 5.0), (6, 60.0)):
        low = example(known, seed=seed)
        if "chosen_logps" in low:
            raised = {"chosen_logps": low["chosen_logps"] + step}
        elif "logps" in low:
            desirable = low.get("desirable", np.ones(UNITS, bool))
            raised = {"logps": low["logps"] + step * desirable}
        elif "group_logps" in low:
            ratings = np.where(low.get("group_mask", True), low.get("group_ratings", np.zeros((UNITS, RESPONSES))), -1)
            best = ratings == ratings.max(-1, keepdims=True)
            # Only one of those rated best, since several of them may compete with each other.
            first = np.arange(RESPONSES)[None, :] == best.argmax(-1)[:, None]
            raised = {"group_logps": low["group_logps"] + step * first}
        else:
            return []
        # Logps are at most 0, so lower all of them before raising some.
        name = next(iter(raised))
        low, high = low | {name: low[name] - 60.0}, low | {name: (raised[name] - 60.0).astype(np.float32)}
        before, after = (np.asarray(loss(**_arrays(q))[0]) for q in (low, high))
        if known.whole_step:
            before, after = before.sum(keepdims=True), after.sum(keepdims=True)
        worse = after > before + 1e-5 * (1.0 + np.abs(before))
        if worse.any():
            unit = int(worse.argmax())
            failures.append(
                f"monotone: raising {name} by {step:g} raises the loss from {before[unit]:.6g} to {after[unit]:.6g} "
                "(monotone=False if that is meant)"
            )
    return failures


def _finite_differences(loss: Loss, known: Spec) -> list[str]:
    """The gradient agrees with central differences in float64."""
    # Narrow for a whole step: if a loss sorts its units, a wide step changes their order.
    width = 1e-7 if known.whole_step else 1e-5
    failures = []
    with jax.enable_x64(True):
        quantities = example(known, seed=7, dtype=np.float64)
        losses, gradients = _losses_and_gradients(loss, *_split(quantities))
        if losses.dtype != np.float64:
            return [f"finite differences: losses of float64 logps are {losses.dtype}; a cast inside prevents the check"]
        # Rounding errors of the losses in float64, divided by the step.
        noise = 1e-15 * np.abs(np.asarray(losses)) / width
        for name, gradient in ((name, np.asarray(value)) for name, value in gradients.items()):
            for move in _directions(known, quantities[name]):
                up, down = (
                    np.asarray(loss(**_arrays(quantities | {name: quantities[name] + sign * width * move}))[0])
                    for sign in (1.0, -1.0)
                )
                slope, expected = (up - down) / (2.0 * width), gradient * move
                if known.whole_step:
                    slope, expected, error = slope.sum(), expected.sum(), noise.sum()
                else:
                    expected, error = expected.reshape(UNITS, -1).sum(-1), noise
                failures += _compare(f"gradient by {name}, against finite differences", expected, slope, 1e-6, error)
    return failures


def _directions(known: Spec, logps: np.ndarray) -> list[np.ndarray]:
    """Directions of the shape of `logps`: random ones for a whole step, else all units at once, one list slot each."""
    if known.whole_step:
        return [np.random.default_rng(seed).normal(size=logps.shape) for seed in range(4)]
    if logps.ndim == 1:
        return [np.ones_like(logps)]
    slots = np.arange(logps.shape[1])
    return [np.broadcast_to(slots == slot, logps.shape).astype(float) for slot in slots]
