"""What a researcher's own loss should pass: `check_loss`, one call, all failures at once."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from care_jax.losses.signature import Loss, Spec, spec

# A long response that a model finds impossible, an ordinary one, one of probability nearly 1, and 1.
ENDS = (-1e5, -1.0, -1e-6, 0.0)
# Every combination of four such logps: all checks share this shape, so that jax compiles its operations once.
UNITS, RESPONSES = len(ENDS) ** 4, 4
POLICY = ("chosen_logps", "rejected_logps", "logps", "group_logps")


@dataclass(frozen=True)
class LossReport:
    """A loss that passed: its name, the checks that it passed, and those that were switched off."""

    name: str
    passed: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """Empty: a loss that fails a check is raised as an UnsoundLoss, whose `failures` lists all."""
        return ()


class UnsoundLoss(AssertionError):
    """A loss that fails checks; `failures` has one line for each, with the numbers, and the message has them all."""

    def __init__(self, name: str, failures: tuple[str, ...]) -> None:
        self.failures = failures
        super().__init__("\n".join([f"{name}: {len(failures)} failures", *(f"  - {line}" for line in failures)]))


def check_loss(loss: Loss, *, monotone: bool = True) -> LossReport:
    """Check that a loss is sound: a LossReport, or one UnsoundLoss raised (an AssertionError) with all that fails.

        care_jax.testing.check_loss(my_loss)

    Checked: value and gradient finite for logps of -1e5 and 0 in every combination; shape [P] (or [N], [G]) and float32
    of the losses, and the shape of what is logged; `weights` independent of the logps; jit, vmap (over steps) and grad
    agree with the plain call; permuting the units permutes the losses and a subset alone gives the same losses (unless
    the loss is marked `losses.whole_step`); the gradient agrees with finite differences in float64; with `monotone`,
    raising a chosen logp (of pairs; a desirable one of unpaired; one rated best of lists) raises no loss: False for a
    loss that is meant otherwise, as ipo's square is. Hyperparameters are at their defaults: set others with
    functools.partial. UserError where the signature is no loss's.
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
        what = (check.__doc__ or "").split("\n")[0].rstrip(".")
        try:
            found = check(loss, known)
        except Exception as error:  # whatever a loss raises is one of its failures
            found = [f"{what}: raised {type(error).__name__}: {str(error).partition(chr(10))[0]}"]
        failures += found
        if not found:
            passed.append(what)
    if failures:
        raise UnsoundLoss(known.name, tuple(failures))
    return LossReport(known.name, tuple(passed), () if monotone else ((_monotone.__doc__ or "").rstrip("."),))


def example(known: Spec, seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Moderate random quantities of a loss, by name: UNITS logps from -35 to -5, lengths 1 to 30, ratings 1 to 10."""
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
    """Every combination of logps at ENDS, a unit each (of lists: of two of their responses); the rest as `example`."""
    quantities = example(known)
    names = [name for name in known.needs if name.endswith("logps")]
    slots = len(names) * (2 if known.view == "lists" else 1)
    grid = np.stack(np.meshgrid(*[np.asarray(ENDS, np.float32)] * slots, indexing="ij"), -1).reshape(-1, slots)
    grid = np.resize(grid, (UNITS, slots))
    for place, name in enumerate(names):
        if known.view == "lists":
            quantities[name][:, :2] = grid[:, 2 * place : 2 * place + 2]
        else:
            quantities[name] = grid[:, place]
    return quantities


def _call(loss: Loss, quantities: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
    losses, logged = loss(**quantities)
    return losses, logged


def _split(known: Spec, quantities: dict[str, Any]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """(the policy's logps, all others), as arrays of jax."""
    arrays = {name: jnp.asarray(value) for name, value in quantities.items()}
    return {k: v for k, v in arrays.items() if k in POLICY}, {k: v for k, v in arrays.items() if k not in POLICY}


def _values_and_gradients(
    loss: Loss, known: Spec, quantities: dict[str, Any]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(losses, gradient of their sum with respect to each of the policy's logps)."""
    leaves, rest = _split(known, quantities)

    def total(leaves: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        losses, _ = _call(loss, leaves | rest)
        return jnp.sum(losses), losses

    gradients, losses = jax.grad(total, has_aux=True)(leaves)
    return np.asarray(losses), {name: np.asarray(value) for name, value in gradients.items()}


def _outputs(loss: Loss, known: Spec) -> list[str]:
    """Shape and dtype of what the loss returns, and `weights` that hang on no logp."""
    quantities = {name: jnp.asarray(value) for name, value in example(known).items()}
    result = loss(**quantities)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        return [f"output: expected (losses, dict of arrays), found {type(result).__name__}"]
    losses, logged = result
    found = []
    if np.shape(losses) != (UNITS,):
        found.append(f"shape: losses are {np.shape(losses)}, expected ({UNITS},), one a unit")
    if jnp.result_type(losses) != jnp.float32:
        found.append(f"dtype: losses are {jnp.result_type(losses)}, expected float32")
    for name, value in logged.items():
        if np.shape(value) != (UNITS,):
            found.append(f"shape: {name!r} of the dict is {np.shape(value)}, expected ({UNITS},)")
    if "weights" in logged:
        moved = {k: v - 1.0 if k in POLICY else v for k, v in quantities.items()}
        if not np.array_equal(logged["weights"], _call(loss, moved)[1]["weights"]):
            found.append("weights: they change with the policy's logps; the mean's denominator must not")
    return found


def _finite(loss: Loss, known: Spec) -> list[str]:
    """Value and gradient are finite at the ends of the logps."""
    quantities = extremes(known)
    losses, gradients = _values_and_gradients(loss, known, quantities)
    found = []
    for what, values in [("value", losses), *((f"gradient by {name}", g) for name, g in gradients.items())]:
        bad = ~np.isfinite(values)
        if bad.any():
            unit = int(np.argwhere(bad)[0][0])
            at = ", ".join(f"{k} = {quantities[k][unit].tolist()}" for k in known.needs if k.endswith("logps"))
            found.append(f"finite {what}: {values[unit].tolist()} at {at} ({bad.sum()} of {bad.size} units)")
    return found


def _compare(what: str, found: Any, expected: Any, tolerance: float, slack: Any = 0.0) -> list[str]:
    """One failure with the largest difference, if it is above tolerance x (1 + |expected|) + slack."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return [f"{what}: shape {found.shape}, expected {expected.shape}"]
    excess = np.abs(found - expected) - tolerance * (1.0 + np.abs(expected)) - slack
    if np.all(excess <= 0):
        return []
    place = np.unravel_index(int(np.nanargmax(np.where(np.isnan(excess), np.inf, excess))), excess.shape)
    at = f" at {[int(i) for i in place]}" if place else ""
    return [f"{what}: {float(found[place]):.9g}, expected {float(expected[place]):.9g}{at}"]


def _transformed(loss: Loss, known: Spec) -> list[str]:
    """jit, vmap over steps, and grad agree with the plain call."""
    steps = example(known, seed=1), example(known, seed=2)
    run = functools.partial(_jittable, loss, known)
    plain = [run(*_split(known, quantities)) for quantities in steps]
    stacked = _split(known, {name: np.stack([step[name] for step in steps]) for name in steps[0]})
    found = []
    mapped = jax.jit(jax.vmap(run))(*stacked)
    for step in range(2):
        losses, gradients = jax.tree.map(lambda x, step=step: x[step], mapped)
        expected_losses, expected_gradients = plain[step]
        found += _compare(f"jit and vmap, step {step}: losses", losses, expected_losses, 1e-5)
        for name, expected in expected_gradients.items():
            found += _compare(f"jit and vmap, step {step}: gradient by {name}", gradients[name], expected, 1e-5)
    return found


def _jittable(loss: Loss, known: Spec, leaves: dict[str, Any], rest: dict[str, Any]) -> Any:
    """(losses, gradients of their sum), traceable."""

    def total(leaves: dict[str, Any]) -> Any:
        losses, _ = _call(loss, leaves | rest)
        return jnp.sum(losses), losses

    gradients, losses = jax.grad(total, has_aux=True)(leaves)
    return losses, gradients


def _separate(loss: Loss, known: Spec) -> list[str]:
    """Permuted units give permuted losses, and some units alone the losses that they have among all."""
    quantities = example(known, seed=3)
    losses = np.asarray(_call(loss, _arrays(quantities))[0])
    hint = "; mark it @losses.whole_step if it is meant to couple them"
    order = np.random.default_rng(0).permutation(UNITS)
    some = np.arange(0, UNITS, 3)
    found = []
    for what, pick in (("permuted units", order), ("a subset of the units", some)):
        picked = {name: value if name == "kl" else value[pick] for name, value in quantities.items()}
        found += [line + hint for line in _compare(what, _call(loss, _arrays(picked))[0], losses[pick], 1e-5)]
    return found


def _arrays(quantities: dict[str, Any]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(value) for name, value in quantities.items()}


def _monotone(loss: Loss, known: Spec) -> list[str]:
    """Raising what is chosen raises no loss (of a whole-step loss: not their sum)."""
    found = []
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
            # One of those rated best: where several are, they may compete with each other.
            first = np.arange(RESPONSES)[None, :] == best.argmax(-1)[:, None]
            raised = {"group_logps": low["group_logps"] + step * first}
        else:
            return []
        # Logps end at 0: what is raised starts that much lower.
        name = next(iter(raised))
        low, high = low | {name: low[name] - 60.0}, low | {name: (raised[name] - 60.0).astype(np.float32)}
        before, after = (np.asarray(_call(loss, _arrays(q))[0]) for q in (low, high))
        if known.whole_step:
            before, after = before.sum(keepdims=True), after.sum(keepdims=True)
        worse = after > before + 1e-5 * (1.0 + np.abs(before))
        if worse.any():
            unit = int(worse.argmax())
            found.append(
                f"monotone: raising {name} by {step:g} raises the loss from {before[unit]:.6g} to {after[unit]:.6g} "
                "(monotone=False if that is meant)"
            )
    return found


def _finite_differences(loss: Loss, known: Spec) -> list[str]:
    """The gradient agrees with central differences in float64."""
    # Narrow for a whole step: where a loss sorts, a wide step makes units change places.
    width = 1e-7 if known.whole_step else 1e-5
    found = []
    with jax.enable_x64(True):
        quantities = example(known, seed=7, dtype=np.float64)
        losses, gradients = _values_and_gradients(loss, known, quantities)
        if losses.dtype != np.float64:
            return [
                f"finite differences: losses of float64 logps are {losses.dtype}; a cast inside keeps this unchecked"
            ]
        # What float64 rounds off the losses comes back divided by the step.
        noise = 1e-15 * np.abs(losses) / width
        for name, gradient in gradients.items():
            for move in _moves(known, quantities[name]):
                up, down = (
                    np.asarray(_call(loss, _arrays(quantities | {name: quantities[name] + sign * width * move}))[0])
                    for sign in (1.0, -1.0)
                )
                slope, expected = (up - down) / (2.0 * width), gradient * move
                if known.whole_step:
                    slope, expected, error = slope.sum(), expected.sum(), noise.sum()
                else:
                    expected, error = expected.reshape(UNITS, -1).sum(-1), noise
                found += _compare(f"gradient by {name}, against finite differences", expected, slope, 1e-6, error)
    return found


def _moves(known: Spec, logps: np.ndarray) -> list[np.ndarray]:
    """Directions like `logps`: all units at once where none hangs on another, one slot of all lists, or at random."""
    if known.whole_step:
        return [np.random.default_rng(seed).normal(size=logps.shape) for seed in range(4)]
    if logps.ndim == 1:
        return [np.ones_like(logps)]
    slots = np.arange(logps.shape[1])
    return [np.broadcast_to(slots == slot, logps.shape).astype(float) for slot in slots]
