"""Describes the losses: the listing of `care-jax losses`, docs/losses.md, and a drawing of one loss."""

import inspect
import pathlib
import re
from dataclasses import dataclass

import numpy as np

from care_jax.errors import UserError
from care_jax.losses.registry import bind, get, names
from care_jax.losses.signature import QUANTITIES, Spec, spec, unwrap

SECTIONS = ("Formula", "Shapes", "Paper", "Peers")
PAGE = pathlib.Path(__file__).with_name("page.md")  # docs/losses.md without the losses
_MARK = "<!-- one section per view -->"
_VIEW_TITLES = {"pairs": "Pairs", "unpaired": "Labelled responses", "lists": "Rated lists"}


@dataclass(frozen=True)
class Entry:
    """A loss as its signature and docstring describe it; a section that the docstring does not have is ''."""

    spec: Spec
    summary: str
    formula: str
    shapes: str
    paper: str
    peers: str


def describe(name: str) -> Entry:
    """Returns the entry of a loss, by name or "module:function"."""
    loss = get(name)
    text = inspect.getdoc(unwrap(loss)) or ""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", text, flags=re.MULTILINE)
    sections = {key: _on_one_line(value) for key, value in zip(parts[1::2], parts[2::2])}
    # The summary is the part before the sections; of a docstring without them, its first paragraph.
    summary = _on_one_line(parts[0].strip().split("\n\n")[0])
    return Entry(spec(loss), summary, *(sections.get(section, "") for section in SECTIONS))


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _hyperparameters(loss_spec: Spec) -> str:
    return " ".join(f"{name}={default!r}" for name, (_, default) in loss_spec.hyperparameters.items()) or "none"


def listing(name: str | None = None) -> str:
    """Returns what `care-jax losses` prints: every loss, or the one called `name` in more detail."""
    blocks = []
    for loss_name in [name] if name else names():
        entry = describe(loss_name)
        needs = " ".join(entry.spec.needs) + (" (whole step)" if entry.spec.whole_step else "")
        lines = [f"{loss_name}: {entry.summary}"]
        fields = [("view", entry.spec.view), ("needs", needs), ("hyperparameters", _hyperparameters(entry.spec))]
        fields += [("formula", entry.formula), ("paper", entry.paper)]
        if name:
            fields += [("shapes", entry.shapes), ("peers", entry.peers)]
        blocks.append("\n".join(lines + [f"  {key}: {value}" for key, value in fields if value]))
    return "\n\n".join(blocks) + "\n"


def markdown() -> str:
    """Returns the text of docs/losses.md: `page.md` with the losses of each view in it."""
    lines = []
    for view, title in _VIEW_TITLES.items():
        lines += [f"## {title}", "", f"Quantities: {', '.join(f'`{name}`' for name in QUANTITIES[view])}.", ""]
        for entry in map(describe, names()):
            lines += _section(entry) if entry.spec.view == view else []
    return PAGE.read_text(encoding="utf-8").replace(_MARK, "\n".join(lines).rstrip())


def _section(entry: Entry) -> list[str]:
    needs = ", ".join(f"`{name}`" for name in entry.spec.needs)
    defaults = ", ".join(f"`{name}` {default!r}" for name, (_, default) in entry.spec.hyperparameters.items())
    fields = [
        ("Formula", f"`{entry.formula}`"),
        ("Needs", needs + ("; all pairs of the step at once" if entry.spec.whole_step else "")),
        ("Hyperparameters", defaults or "none"),
        ("Shapes", entry.shapes),
        ("Paper", entry.paper),
        ("Peers", entry.peers),
    ]
    return [f"### {entry.spec.name}", "", entry.summary, "", *(f"- {key}: {value}" for key, value in fields), ""]


def curves(name: str, **hyperparameters: object) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns a loss along its margin: {label: (margin [201] in nats, loss, derivative by the margin)}.

    Pairs: half of the margin is what the chosen gains over the reference, half what the rejected loses (without a
    reference: over each other). Responses have 100 tokens. Unpaired: the margin is logp - reference (without one: logp
    minus that of an ordinary response), with a curve for each label, z0 = 0. Lists: two responses, rated 9 and 5.
    """
    import jax
    import jax.numpy as jnp

    loss = bind(name, **hyperparameters)
    loss_spec = spec(loss)
    beta = next((value for key, (_, value) in loss_spec.hyperparameters.items() if key == "beta"), None)
    beta = beta if isinstance(beta, float) and beta > 0 else 0.1
    tokens = 100
    # The margin goes as far as beta makes it interesting: in nats, or nats per token if the loss divides by lengths.
    normalised = "rejected_lengths" in loss_spec.needs or loss_spec.needs == ("logps", "lengths")
    width = min(990.0, 500.0 / beta) if normalised else 5.0 / beta
    base = -500.0 if normalised else -1000.0 - width

    def loss_at(margin: jax.Array, desirable: bool) -> jax.Array:
        won, lost = base + margin / 2, base - margin / 2
        values = {
            **{"chosen_logps": won, "rejected_logps": lost, "ref_chosen_logps": base, "ref_rejected_logps": base},
            **{"chosen_lengths": tokens, "rejected_lengths": tokens, "chosen_ratings": 9.0, "rejected_ratings": 5.0},
            **{"logps": base + margin, "ref_logps": base, "lengths": tokens, "desirable": desirable},
            **{"ratings": 9.0 if desirable else 2.0, "group_logps": [won, lost], "group_ref_logps": [base, base]},
            **{"group_lengths": [tokens, tokens], "group_ratings": [9.0, 5.0], "group_mask": [True, True]},
        }
        quantities = {q: jnp.asarray(0.0) if q == "kl" else jnp.asarray(values[q])[None] for q in loss_spec.needs}
        return loss(**quantities)[0][0]

    margins = np.linspace(-width, width, 201)
    if loss_spec.view == "unpaired":
        margins = np.minimum(margins, -base)
    labels = {"desirable": True, "undesirable": False} if "desirable" in loss_spec.needs else {"loss": True}
    curve_of = {}
    for label, desirable in labels.items():
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(lambda m, d=desirable: loss_at(m, d))))(margins)
        curve_of[label] = (margins, np.asarray(values), np.asarray(slopes))
    return curve_of


def draw(name: str, path: str | pathlib.Path, **hyperparameters: object) -> pathlib.Path:
    """Draws a loss and its derivative against the margin into an image file; returns its path. Needs matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise UserError("--plot needs matplotlib, which is not installed: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    loss_spec = spec(bind(name, **hyperparameters))
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    value_axes, slope_axes = figure.subplots(1, 2)
    for label, (margins, values, slopes) in curves(name, **hyperparameters).items():
        value_axes.plot(margins, values, label=label)
        slope_axes.plot(margins, slopes, label=label)
    axis = "margin: chosen over rejected (nats)"
    if loss_spec.view == "unpaired":
        axis = "logp - reference (nats)" if loss_spec.needs_ref else "logp - that of an ordinary response (nats)"
    for axes, title in ((value_axes, "loss"), (slope_axes, "d loss / d margin")):
        axes.set(title=f"{loss_spec.name}: {title}", xlabel=axis)
        axes.axvline(0.0, color="0.8", zorder=0)
        axes.axhline(0.0, color="0.8", zorder=0)
        if "desirable" in loss_spec.needs:
            axes.legend()
    figure.suptitle(_hyperparameters(loss_spec), fontsize="small")
    figure.savefig(path, dpi=150)
    return pathlib.Path(path)


if __name__ == "__main__":
    import sys

    pathlib.Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
