"""Topologies, cards that are not here, and this machine."""

import re

import jax
import pytest

from care_jax.errors import UserError
from care_jax.plan import targets


@pytest.mark.parametrize(("text", "size"), [("24GB", 24 * 10**9), ("22.5GiB", int(22.5 * 2**30))])
def test_memory_has_a_unit(text, size):
    assert targets.parse_memory(text) == size
    for wrong in ("24", "0GB", "-1GB"):
        with pytest.raises(UserError, match="--memory"):
            targets.parse_memory(wrong)


def test_a_cpu_device_has_its_share_of_this_machines_memory():
    assert 2**28 < targets.local().memory * len(jax.devices()) < 2**50


def test_the_devices_of_a_run_as_options_of_plan():
    assert re.fullmatch(r"--devices 8 --memory [\d.]+GB", targets.plan_options(jax.devices()))


def test_without_libtpu_the_extra_is_named(monkeypatch):
    from jax.experimental import topologies

    def missing(**options):
        raise NotImplementedError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match=r'pip install "care-jax\[plan\]"'):
        targets.topology("v5e:2x2")


def needs_libtpu():
    try:
        targets.topology("v5e:2x2")
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x2", "v6e:2x4", "7x:2x2x1"])
def test_a_topology_is_known_by_its_devices(name):
    needs_libtpu()
    assert targets.plan_options(targets.topology(name).devices) == f"--topology {name}"


@pytest.mark.parametrize("name", ["v5:2x2", "v5p", "v5p:2", "v5p:2x2x2x2", "h100:2x2"])
def test_a_topology_is_a_generation_and_its_chips(name):
    with pytest.raises(UserError, match="--topology"):
        targets.topology(name)
