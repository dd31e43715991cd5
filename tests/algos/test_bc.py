import jax
import jax.numpy as jnp
import numpy as np

from algos import bc
from tests.algos import toy


def test_loss_is_the_mean_squared_error_of_the_actions():
    algo = bc.make(bc.Static((8,)), toy.SPEC)
    state, batch = toy.member(algo, bc.Hyper()), toy.random_batch()
    net = bc.DeterministicActor((8,), 2, 1.0)
    error = np.asarray(algo.act(jax.random.key(0), state, batch.obs, bc.Hyper())) - np.asarray(batch.action)
    loss, metrics = bc.actor_loss(state.actor, net, batch)
    np.testing.assert_allclose(loss, (error**2).sum() / error.size, rtol=1e-5)
    assert metrics["actor_loss"] == loss


def test_learning_rate_scales_the_first_step():
    net, batch = bc.DeterministicActor((8,), 2, 1.0), toy.random_batch()
    state = toy.member(bc.make(bc.Static((8,)), toy.SPEC), bc.Hyper())
    moved = [bc.learn(net, state, batch, bc.Hyper(lr))[0].actor for lr in (0.0, 1e-3)]
    toy.assert_equal(moved[0], state.actor)
    step = jnp.abs(moved[1]["params"]["MLP_0"]["Dense_1"]["bias"] - state.actor["params"]["MLP_0"]["Dense_1"]["bias"])
    np.testing.assert_allclose(step, 1e-3, rtol=1e-3)  # Adam's first step has the size of the rate


def test_clones_the_expert_and_averages_over_mixed_behaviour():
    algo = bc.make(bc.Static((32, 32), 64), toy.SPEC)
    expert, mixed = (
        toy.returns(algo, toy.train(algo, bc.Hyper(actor_lr=1e-3), toy.dataset(rho), 1000)[0]) for rho in (1.0, 0.2)
    )
    assert (expert > -5.5).all()  # the expert itself: about -4.2
    assert (mixed < -15.0).all()
