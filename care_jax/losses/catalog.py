"""What the losses are, in text and pictures: the listing of `care-jax losses`, docs/losses.md, and a drawing of one."""

import inspect
import pathlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from care_jax.errors import UserError
from care_jax.losses.registry import bind, get, names
from care_jax.losses.signature import QUANTITIES, Spec, spec, unwrap

SECTIONS = ("Formula", "Shapes", "Paper", "Peers")
_VIEW_TITLES = {
    "pairs": "Pairs",
    "unpaired": "Labelled responses",
    "lists": "Rated lists",
}


@dataclass(frozen=True)
class Entry:
    """A loss as its signature and docstring describe it; a section that the docstring lacks is ''."""

    spec: Spec
    summary: str
    formula: str
    shapes: str
    paper: str
    peers: str


def entry(name: str) -> Entry:
    """The entry of a loss, by name or "module:function"."""
    loss = get(name)
    text = inspect.getdoc(unwrap(loss)) or ""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", text, flags=re.MULTILINE)
    found = {key.lower(): _joined(value) for key, value in zip(parts[1::2], parts[2::2])}
    # The part before the sections; of a docstring without them, its first paragraph.
    summary = _joined(parts[0].strip().split("\n\n")[0])
    return Entry(spec(loss), summary, *(found.get(section.lower(), "") for section in SECTIONS))


def _joined(text: str) -> str:
    return " ".join(text.split())


def _hyperparameters(known: Spec) -> str:
    return " ".join(f"{name}={default!r}" for name, (_, default) in known.hyperparameters.items()) or "none"


def listing(name: str | None = None) -> str:
    """Every loss, or the one called `name`: view, what it needs, hyperparameters with defaults, formula and paper."""
    blocks = []
    for one in [name] if name else names():
        found = entry(one)
        needs = " ".join(found.spec.needs) + (" (whole step)" if found.spec.whole_step else "")
        lines = [f"{one}: {found.summary}"]
        fields = [("view", found.spec.view), ("needs", needs), ("hyperparameters", _hyperparameters(found.spec))]
        fields += [("formula", found.formula), ("paper", found.paper)]
        if name:
            fields += [("shapes", found.shapes), ("peers", found.peers)]
        blocks.append("\n".join(lines + [f"  {key}: {value}" for key, value in fields if value]))
    return "\n\n".join(blocks) + "\n"


_HEAD = """# Losses

Made from the docstrings by `python -m care_jax.losses.catalog docs/losses.md`; a test says when it is not up to date.

A loss is a plain function: `loss: {name: dpo, beta: 0.1}` in a configuration, `care_jax.losses.dpo(...)` from Python.
Its positional parameters are the quantities it needs, its keyword-only parameters its hyperparameters. Your own:
[new_loss.md](new_loss.md). One drawn: `care-jax losses dpo --plot dpo.png`.

Notation. `lw`, `ll`: summed log-probabilities (nats) of the chosen and the rejected completion under the policy; `rw`,
`rl` under the reference; `hw = lw - rw`, `hl = ll - rl`, `D = hw - hl`; `|y|` completion tokens, the turn end included;
`aw = lw/|yw|`, `al = ll/|yl|`; `s` the sigmoid; `b` is `beta`, `e` is `label_smoothing`.

All are finite, in value and gradient, for log-probabilities from -1e5 to 0 in float32.

## Mixtures

`loss` may be a list, each with a `weight`; all share one forward pass and one view. RPO is DPO and the chosen's NLL:

```yaml
loss: [{name: dpo, beta: 0.1}, {name: sft, weight: 1.0}]
```

MPO is `dpo` 0.8, `bco_pair` 0.2 and `sft` 1.0.
"""

_TAIL = """## What does not fit

The contract ends at one number a response, its summed log-probability. Some published losses need more:

- **LD-DPO** (Liu et al. 2024, arXiv 2409.06411) weighs the tokens of a response beyond the shorter length of its
  *pair*: a response would have another number in each pair that it stands in, and could not be computed once.
- **WPO** (Zhou et al. 2024, arXiv 2406.11827) weighs a pair by exp of a mean over tokens of log p(y_t) minus the log of
  the sum of all squared probabilities: a sum over the vocabulary at each token, not a function of the summed logp.
- **Token-level losses** (TDPO, Zeng et al. 2024, arXiv 2404.11999; token-weighted DPO) need log-probabilities, or KL
  divergences over the vocabulary, of each token.
- **BCO's shift** (Jung et al. 2024, arXiv 2404.04656) is a running mean over past steps: a loss here has no memory.
  `bco_pair` is without it; the mean of one step is a loss of your own, marked `@care_jax.losses.whole_step`.
- **TR-DPO** (Gorbatovski et al. 2024, arXiv 2404.09656) moves the reference while training, which makes precomputed
  reference log-probabilities wrong.
"""


def markdown() -> str:
    """The text of docs/losses.md."""
    entries = [entry(name) for name in names()]
    lines = [_HEAD]
    for view, title in _VIEW_TITLES.items():
        lines += [f"## {title}", "", f"Quantities: {', '.join(f'`{name}`' for name in QUANTITIES[view])}.", ""]
        for found in entries:
            if found.spec.view == view:
                lines += _section(found)
    return "\n".join(lines) + "\n" + _TAIL


def _section(found: Entry) -> list[str]:
    known = found.spec
    needs = ", ".join(f"`{name}`" for name in known.needs)
    fields = [
        ("Formula", f"`{found.formula}`"),
        ("Needs", needs + ("; all pairs of the step at once" if known.whole_step else "")),
        ("Hyperparameters", ", ".join(f"`{k}` {v!r}" for k, (_, v) in known.hyperparameters.items()) or "none"),
        ("Shapes", found.shapes),
        ("Paper", found.paper),
        ("Peers", found.peers),
    ]
    return [f"### {known.name}", "", found.summary, "", *(f"- {key}: {value}" for key, value in fields), ""]


def curves(
    name: str, points: int = 201, **hyperparameters: Any
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A loss along its margin: {label: (margin [points] in nats, loss, slope of the loss by the margin)}.

    Pairs: half of the margin is the chosen's gain over the reference, half the rejected's loss (without a reference:
    over each other). Responses have 100 tokens. Unpaired: the margin is logp - reference (without one: logp less that
    of an ordinary response), a curve for each label, z0 = 0. Lists: two responses, rated 9 and 5.
    """
    import jax
    import jax.numpy as jnp

    loss = bind(name, **hyperparameters)
    known = spec(loss)
    beta = next((value for key, (_, value) in known.hyperparameters.items() if key == "beta"), None)
    beta = beta if isinstance(beta, float) and beta > 0 else 0.1
    tokens = 100
    # As far as beta makes it interesting: in nats, or in nats a token where the loss divides by lengths.
    normalised = "rejected_lengths" in known.needs or known.needs == ("logps", "lengths")
    width = min(990.0, 500.0 / beta) if normalised else 5.0 / beta
    base = -500.0 if normalised else -1000.0 - width

    def at(margin: Any, desirable: bool) -> Any:
        won, lost = base + margin / 2, base - margin / 2
        values = {
            **{"chosen_logps": won, "rejected_logps": lost, "ref_chosen_logps": base, "ref_rejected_logps": base},
            **{"chosen_lengths": tokens, "rejected_lengths": tokens, "chosen_ratings": 9.0, "rejected_ratings": 5.0},
            **{"logps": base + margin, "ref_logps": base, "lengths": tokens, "desirable": desirable},
            **{"ratings": 9.0 if desirable else 2.0, "group_logps": [won, lost], "group_ref_logps": [base, base]},
            **{"group_lengths": [tokens, tokens], "group_ratings": [9.0, 5.0], "group_mask": [True, True]},
        }
        quantities = {q: jnp.asarray(0.0) if q == "kl" else jnp.asarray(values[q])[None] for q in known.needs}
        return loss(**quantities)[0][0]

    margins = np.linspace(-width, width, points)
    if known.view == "unpaired":
        margins = np.minimum(margins, -base)
    labels = {"desirable": True, "undesirable": False} if "desirable" in known.needs else {"loss": True}
    drawn = {}
    for label, desirable in labels.items():
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(lambda m, d=desirable: at(m, d))))(margins)
        drawn[label] = (margins, np.asarray(values), np.asarray(slopes))
    return drawn


def draw(name: str, path: str | pathlib.Path, **hyperparameters: Any) -> pathlib.Path:
    """Draw a loss, and its slope, against its margin to an image file; returns its path. Needs matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise UserError("--plot needs matplotlib, which is not installed: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    known = spec(bind(name, **hyperparameters))
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    value_axes, slope_axes = figure.subplots(1, 2)
    for label, (margins, values, slopes) in curves(name, **hyperparameters).items():
        value_axes.plot(margins, values, label=label)
        slope_axes.plot(margins, slopes, label=label)
    axis = "margin: chosen over rejected (nats)"
    if known.view == "unpaired":
        axis = "logp - reference (nats)" if known.needs_ref else "logp less an ordinary response's (nats)"
    for axes, title in ((value_axes, "loss"), (slope_axes, "d loss / d margin")):
        axes.set(title=f"{known.name}: {title}", xlabel=axis)
        axes.axvline(0.0, color="0.8", zorder=0)
        axes.axhline(0.0, color="0.8", zorder=0)
        if "desirable" in known.needs:
            axes.legend()
    figure.suptitle(f"{_hyperparameters(known)}", fontsize="small")
    figure.savefig(path, dpi=150)
    return pathlib.Path(path)


if __name__ == "__main__":
    import sys

    pathlib.Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
