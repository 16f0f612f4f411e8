"""ProjectedGradient gradients as plain trees."""

import jax
import optax

import rgo_jax


def gradients(tree):
    """The tree with each `rgo_jax.ProjectedGradient` as its gradient."""

    def is_projected(node):
        return isinstance(node, rgo_jax.ProjectedGradient)

    return jax.tree.map(
        lambda node: node.gradient if is_projected(node) else node, tree, is_leaf=is_projected
    )


def projected(loss_fn, state, params, *args):
    """``P g``, from `rgo_jax.value_and_grad`."""
    return gradients(rgo_jax.value_and_grad(loss_fn, state)(params, *args)[1])


def sgd_with_a_state(learning_rate):
    """SGD whose state is RGO's, so that it can be consolidated, which changes nothing."""
    return optax.GradientTransformation(
        rgo_jax.rgo(learning_rate).init,
        lambda grads, state, params=None: (
            jax.tree.map(lambda g: -learning_rate * g, grads),
            state,
        ),
    )
