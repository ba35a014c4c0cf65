"""The mesh: sizes that fit, and the numbers in the message for those that do not."""

import os

import pytest

from care_jax.errors import UserError
from care_jax.hardware import MEMORY_FRACTION
from care_jax.sharding import make_mesh, row_parts, sharding


def test_one_axis_takes_what_is_left():
    assert dict(make_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("sizes", [(3, -1, 1), (1, 4, 1), (-1, -1, 1), (0, 8, 1), (1, 16, 1)])
def test_sizes_that_do_not_multiply_are_refused(sizes):
    with pytest.raises(UserError, match="mesh"):
        make_mesh(*sizes)


def test_rows_are_shared_by_data_and_fsdp():
    assert row_parts(make_mesh(2, 2, 2)) == 4
    assert row_parts(make_mesh(1, 1, 8)) == 1
    assert row_parts(None) == 1


def test_a_dimension_that_does_not_divide_is_named():
    with pytest.raises(UserError, match=r"blocks/q has embed=6"):
        sharding(make_mesh(1, 4, 2), ("embed", "heads"), (6, 4), "blocks/q")


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_a_run_takes_the_memory_that_plans_count_on_unless_set(monkeypatch, name):
    """jax reads the variable when it first looks for GPUs."""
    monkeypatch.setattr(os, "environ", {})
    make_mesh()
    assert MEMORY_FRACTION < float(os.environ["XLA_CLIENT_MEM_FRACTION"]) < 1
    monkeypatch.setattr(os, "environ", {name: "0.5"})
    make_mesh()
    assert os.environ == {name: "0.5"}
