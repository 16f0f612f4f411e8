"""RGO in NumPy float64, written from the paper's formulas and from nothing in the library."""

from functools import partial

import jax
import numpy as np

# For where jax is to be as precise. The first under jax 0.8 and later.
enable_x64 = (
    partial(jax.enable_x64, True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
)


def fan_in_matrix(leaf):
    leaf = np.asarray(leaf, np.float64)
    return leaf.reshape(-1, 1) if leaf.ndim == 1 else leaf.reshape(-1, leaf.shape[-1])


def projection(gradients, alpha=0.01):
    """P after folding in the mean over the columns of each of these gradients."""
    return projection_of(np.stack([fan_in_matrix(g).mean(axis=1) for g in gradients]), alpha)


def projection_of(vectors, alpha=0.01):
    """P after folding in these vectors: alpha (alpha I + sum v v')^-1, in closed form."""
    vectors = np.asarray(vectors, np.float64)
    precision = alpha * np.eye(vectors.shape[1]) + vectors.T @ vectors
    return alpha * np.linalg.inv(precision)


def modified_gradient(p, gradient):
    """(d / tr P) P g in the shape of the gradient."""
    d = len(p)
    return ((d / np.trace(p)) * p @ fan_in_matrix(gradient)).reshape(np.shape(gradient))


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)
