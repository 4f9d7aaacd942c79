"""Laws: rounding by chance changes nothing on average, float32 parameters know nothing of it, and bfloat16 parameters
learn what float32 ones do where rounding to the nearest would not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bactrian.model import rounding


def test_it_rounds_to_a_neighbour_and_on_average_not_at_all():
    values = jnp.asarray([1.0, 1.001, -1.001, 3e-5, -700.3, 0.0, 1e-30], jnp.float32)
    draws = jax.vmap(lambda key: rounding.stochastic(values, key))(jax.random.split(jax.random.key(0), 20_000))
    assert draws.dtype == jnp.bfloat16
    drawn = np.asarray(draws.astype(jnp.float32), np.float64)
    exact = np.asarray(values, np.float64)
    spacing = np.maximum(np.abs(exact) * 2.0**-7, 1e-40)
    assert (np.abs(drawn - exact) <= spacing).all()
    assert (np.abs(drawn.mean(axis=0) - exact) <= 0.03 * spacing).all()
    assert len(np.unique(drawn[:, 1])) == 2
    assert (drawn[:, [0, 5]] == exact[[0, 5]]).all()  # what bfloat16 can say is said


def test_float32_parameters_are_changed_as_optax_changes_them():
    parameters = {"a": jnp.linspace(-1, 1, 7), "b": {"c": jnp.ones((2, 3))}}
    changes = jax.tree.map(lambda leaf: 1e-3 * leaf + 1e-5, parameters)
    found = rounding.apply_updates(parameters, changes, jnp.asarray(3))
    expected = optax.apply_updates(parameters, changes)
    assert jax.tree.all(jax.tree.map(lambda one, other: bool((one == other).all()), found, expected))


def test_the_same_update_is_rounded_the_same_way_and_the_next_otherwise():
    parameters = {"a": jnp.ones(1000, jnp.bfloat16), "b": jnp.ones(1000, jnp.bfloat16)}
    changes = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-3), parameters)
    first, again, later = (rounding.apply_updates(parameters, changes, jnp.asarray(number)) for number in (4, 4, 5))
    assert np.array_equal(first["a"], again["a"])
    assert not np.array_equal(first["a"], later["a"])
    assert not np.array_equal(first["a"], first["b"])


def test_many_small_changes_add_up_where_rounding_to_the_nearest_loses_them():
    weight = jnp.ones(4096, jnp.bfloat16)
    change = jnp.full(4096, 1e-4)  # a seventieth of the distance to the next bfloat16

    def one(number, weight):
        return rounding.apply_updates({"w": weight}, {"w": change}, number)["w"]

    moved = jax.lax.fori_loop(0, 500, one, weight).astype(jnp.float32).mean() - 1
    assert abs(float(moved) - 0.05) < 0.003
    nearest = jax.lax.fori_loop(0, 500, lambda _, w: (w + change).astype(jnp.bfloat16), weight)
    assert (nearest == 1).all()
