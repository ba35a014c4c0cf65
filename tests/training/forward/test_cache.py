"""The reference cache: found by content, resumed where it stopped, refused if it is damaged or of another model."""

import contextlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax.errors import UserError
from care_jax.sharding import make_mesh, sharding
from care_jax.training.forward.cache import ReferenceCache, digest, fill_cache, fingerprint
from tests.training.run.damage import harm, no_privileges

KEY = {"weights": "w", "dtype": "float32"}


def digests(count):
    return [digest(np.array([1, 2]), np.array([index])) for index in range(count)]


def test_the_boundary_is_part_of_the_content():
    assert digest(np.array([1, 2]), np.array([3])) != digest(np.array([1]), np.array([2, 3]))


def test_a_killed_pass_goes_on_in_the_same_layout(tmp_path):
    names = digests(6)
    microbatches = [[0, 3], [1, 4], [2, 5]]

    def run(number):
        ran.append(number)
        return jnp.asarray([10.0 * number, 10.0 * number + 1, -1.0]), np.array([0, 1])

    ran = []
    cache = ReferenceCache(tmp_path, KEY)
    cache.add([names[1], names[4]], np.array([10.0, 11.0]), write=True)
    again = ReferenceCache(tmp_path, KEY)
    assert fill_cache(again, names, microbatches, run, write=True) == 2
    assert ran == [0, 2]
    expected = [0, 10, 20, 1, 11, 21]
    np.testing.assert_array_equal(again.values(names), expected)
    np.testing.assert_array_equal(ReferenceCache(tmp_path, KEY).values(names), expected)


def test_of_the_same_tokens_twice_the_first_number_stays(tmp_path):
    (one,) = digests(1)
    cache = ReferenceCache(tmp_path, KEY)
    cache.add([one], np.array([-1.0]), write=True)
    cache.add([one], np.array([-1.00003]), write=True)
    assert cache.values([one]) == -1.0
    assert ReferenceCache(tmp_path, KEY).values([one]) == -1.0


def test_another_model_or_a_damaged_file_is_refused(tmp_path):
    cache = ReferenceCache(tmp_path, KEY)
    cache.add(digests(2), np.array([1.0, 2.0]), write=True)
    other = ReferenceCache(tmp_path, KEY | {"weights": "other"})
    assert digests(2)[0] not in other
    (part,) = cache.folder.glob("part-*")
    shutil.copy(part, other.folder)
    with pytest.raises(UserError, match="was made for"):
        ReferenceCache(tmp_path, KEY | {"weights": "other"})
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(UserError, match="damaged"):
        ReferenceCache(tmp_path, KEY)
    part.write_bytes(bytes(data[:20]))
    with pytest.raises(UserError, match="damaged"):
        ReferenceCache(tmp_path, KEY)


@pytest.mark.parametrize("seed", range(20))
def test_of_twenty_damaged_caches_none_gives_a_wrong_number(open_folder, seed):
    """The damage is reported, or a part is missing and will be computed again, or no number is affected."""
    tmp_path, names = open_folder, digests(12)
    cache = ReferenceCache(tmp_path, KEY)
    for part in range(3):
        cache.add(names[4 * part : 4 * part + 4], np.arange(4.0) + 4 * part, write=True)
    kind = harm(cache.folder, seed)
    caught = None
    with contextlib.suppress(UserError), no_privileges(tmp_path):
        caught = ReferenceCache(tmp_path, KEY)
    if caught is None:
        reason = pytest.raises(UserError, match=f"{cache.folder}.*(damaged|was made for|cannot be read)")
        with reason, no_privileges(tmp_path):
            ReferenceCache(tmp_path, KEY)
        return
    known = [index for index, name in enumerate(names) if name in caught]
    np.testing.assert_array_equal(caught.values([names[index] for index in known]), np.asarray(known, np.float32))
    assert kind.startswith("delete") == (len(known) == 8)
    if kind.startswith("delete"):
        caught.add(digests(13)[12:], np.array([12.0]), write=True)
        assert sum(name in ReferenceCache(tmp_path, KEY) for name in digests(13)) == 9, "no part is overwritten"


def test_the_fingerprint_sees_values_and_places_and_no_mesh():
    tree = {"a": jax.random.normal(jax.random.key(0), (8, 4)), "b": jnp.zeros((4,), jnp.bfloat16)}
    mark = fingerprint(tree)
    mesh = make_mesh(1, 8, 1)
    placed = {**tree, "a": jax.device_put(tree["a"], sharding(mesh, ("embed", None), (8, 4)))}
    assert fingerprint(placed) == mark
    assert fingerprint({**tree, "a": tree["a"].at[3, 1].add(1e-6)}) != mark
    assert fingerprint({**tree, "a": tree["a"][::-1]}) != mark
