"""Disturbed demonstrations: what is labelled, what may be chunked, and that noise and states are reproducible."""

import numpy as np
import pytest

from pokevla_jax.sim.demonstrate import Noise
from pokevla_jax.sim.demonstrate import Trajectory
from pokevla_jax.sim.demonstrate import demonstrate
from pokevla_jax.sim.demonstrate import load_trajectories
from pokevla_jax.sim.demonstrate import save_trajectories
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.experts.expert import ScriptedExpert
from pokevla_jax.sim.layouts import Layout
from pokevla_jax.sim.layouts import sample_layout
from pokevla_jax.sim.scenes import make_environment

pytestmark = pytest.mark.sim

LAYOUT = Layout("moved", "libero_object", 0, 1, 2, "alphabet_soup_1", 3, {"basket_1": (0.0,) * 7})


def trajectory(random: list[bool]) -> Trajectory:
    steps = len(random)
    rng = np.random.default_rng(steps)
    return Trajectory(
        layout=LAYOUT,
        success=True,
        sim_state=rng.normal(size=(steps, 5)),
        proprio=rng.normal(size=(steps, 8)).astype(np.float32),
        label=rng.normal(size=(steps, 7)).astype(np.float32),
        executed=rng.normal(size=(steps, 7)).astype(np.float32),
        random=np.array(random),
    )


def test_a_chunk_ends_with_the_first_label_that_was_not_followed():
    ends = trajectory([True, True, False, False, True, True, False, False]).chunk_end()
    # Steps 2 to 4 share labels up to the burst's first (4); within a burst a label stands alone; then to the end.
    np.testing.assert_array_equal(ends, [1, 2, 5, 5, 5, 6, 8, 8])
    np.testing.assert_array_equal(trajectory([False] * 4).chunk_end(), [4, 4, 4, 4])


def test_states_survive_the_disk(tmp_path):
    path = tmp_path / "states" / "a.npz"
    written = [trajectory([False] * 3), trajectory([True] * 5)]
    save_trajectories(path, written, {"noise": 1})
    read, settings = load_trajectories(path)
    assert settings == {"noise": 1}
    assert [path.name] == [p.name for p in path.parent.iterdir()]
    for a, b in zip(written, read, strict=True):
        assert (a.layout, a.success) == (b.layout, b.success)
        for name in ("sim_state", "proprio", "label", "executed", "random"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            assert getattr(a, name).dtype == getattr(b, name).dtype


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_truncated_states_are_named(tmp_path, keep):
    path = tmp_path / "a.npz"
    save_trajectories(path, [trajectory([False] * 30)], {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SimulationError, match=r"a\.npz cannot be read .* delete the file"):
        load_trajectories(path)


def test_noise_disturbs_what_is_done_and_not_what_is_labelled(libero_assets):
    environment = make_environment("libero_object", 0, "moved", assets=libero_assets)
    try:
        layout = sample_layout(environment, "moved", 5, 0)
        noisy = demonstrate(environment, layout, Noise(start_steps=6))
        clean = ~noisy.random
        difference = noisy.executed - noisy.label
        assert noisy.random.any()
        # Noise of the stated size on clean steps (less where clipped at 1), none on the gripper.
        free = np.abs(noisy.label[clean][:, :3]) < 0.5
        assert 0.10 < difference[clean][:, :3][free].std() < 0.20
        assert difference[clean][:, 3:6].std() < 0.05
        assert not difference[clean][:, 6].any()
        assert np.abs(noisy.executed).max() <= 1.0
        # The label is what the expert says in the stored state.
        environment.set_sim_state(noisy.sim_state[len(noisy.label) // 3])
        np.testing.assert_allclose(ScriptedExpert(environment).act(), noisy.label[len(noisy.label) // 3], atol=0.05)
    finally:
        environment.close()
