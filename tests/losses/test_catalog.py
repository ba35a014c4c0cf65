"""The listing, the page generated from docstrings, the drawing, and the example of docs/new_loss.md."""

import pathlib
import re

import numpy as np

from care_jax import losses
from care_jax.losses import catalog
from care_jax.testing import check_loss

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date():
    """If this fails: python -m care_jax.losses.catalog docs/losses.md"""
    assert (DOCS / "losses.md").read_text(encoding="utf-8") == catalog.markdown()


def test_the_listing_has_every_loss():
    text = catalog.listing()
    for name in losses.names():
        assert re.search(rf"^{name}: .", text, re.MULTILINE)
    assert "  hyperparameters: beta=0.1 tau=0.05" in text
    assert "  needs: chosen_logps rejected_logps ref_chosen_logps ref_rejected_logps (whole step)" in text
    one = catalog.listing("simpo")
    assert "  formula: u = b (aw - al - gamma_beta_ratio); -(1-e) log s(u) - e log s(-u)" in one
    assert "2405.14734" in one


def test_curves_are_the_loss_and_its_slope():
    ((margins, values, slopes),) = catalog.curves("dpo", beta=0.2).values()
    np.testing.assert_allclose(values, np.logaddexp(0, -0.2 * margins), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes, -0.2 / (1 + np.exp(0.2 * margins)), rtol=1e-4, atol=1e-6)
    assert set(catalog.curves("kto")) == {"desirable", "undesirable"}


def test_a_drawing_is_a_png(tmp_path):
    path = catalog.draw("plackett_luce", tmp_path / "loss.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_worked_example_is_short_and_sound(tmp_path, monkeypatch):
    """Tests the blocks before the run, which a test of the trainer covers."""
    text = (DOCS / "new_loss.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```\w+ title=(\S+)\n(.*?)```", text, re.DOTALL))
    assert set(blocks) == {"my_loss.py", "check_my_loss.py", "run.sh"}
    assert sum(len(block.splitlines()) for block in blocks.values()) < 30
    (tmp_path / "my_loss.py").write_text(blocks["my_loss.py"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    exec(blocks["check_my_loss.py"], {})
    assert check_loss.__name__ in blocks["check_my_loss.py"]
    assert losses.spec(losses.get("my_loss:offset_dpo")).hyperparameters == {
        "beta": (float, 0.1),
        "scale": (float, 0.1),
    }
    assert catalog.listing("my_loss:offset_dpo").startswith("my_loss:offset_dpo: DPO whose margin must exceed")


def test_the_page_lists_the_quantities_of_the_contract():
    text = (DOCS / "new_loss.md").read_text(encoding="utf-8")
    for names in losses.QUANTITIES.values():
        assert all(f"`{name}`" in text for name in names)
