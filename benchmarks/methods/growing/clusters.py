"""Clusters of what tasks have of their own, for one shared copy of what is alike in a cluster."""

import jax
import jax.numpy as jnp

# Of k-means; what is assigned to the same clusters again stays there.
_ROUNDS = 100


def assign(
    x: jax.Array, cluster: jax.Array, num_points: jax.Array, num_clusters: jax.Array
) -> jax.Array:
    """k-means of the first points, from the clusters that they have so far.

    A cluster without a point begins with the point that is furthest from the others' means. Means
    are linear in the points, so the points' inner products are all that is looked at.

    Args:
      x: ``[n, d]``, one point a row.
      cluster: int32 ``[n]``, the cluster of each so far, -1 for none.
      num_points: int32 scalar, how many rows count.
      num_clusters: int32 scalar, how many clusters there may be, ``num_points`` at most.

    Returns:
      int32 ``[n]``; -1 for rows that do not count.
    """
    n = len(x)
    inner = jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
    counts = jnp.arange(n) < num_points

    def distances(member: jax.Array) -> jax.Array:
        """Squared distances ``[n, n]`` of points to means, of ``member [clusters, points]``."""
        size = jnp.sum(member, axis=1)
        weight = member / jnp.maximum(size, 1)[:, None]
        to_mean = inner @ weight.T
        squares = jnp.diagonal(inner)[:, None] - 2 * to_mean
        squares += jnp.sum(weight.T * to_mean, axis=0)[None]
        return jnp.where(size > 0, squares, jnp.inf)

    def members(cluster: jax.Array) -> jax.Array:
        return (cluster[None] == jnp.arange(n)[:, None]).astype(x.dtype)

    def begin(k: jax.Array, member: jax.Array) -> jax.Array:
        nearest = jnp.min(distances(member), axis=1)
        furthest = jnp.argmax(jnp.where(counts, nearest, -1))
        is_empty = (jnp.sum(member[k]) == 0) & (k < num_clusters)
        return member.at[k].set(jnp.where(is_empty, jax.nn.one_hot(furthest, n), member[k]))

    def improve(_: jax.Array, cluster: jax.Array) -> jax.Array:
        return jnp.where(counts, jnp.argmin(distances(members(cluster)), axis=1), -1)

    member = jax.lax.fori_loop(0, n, begin, members(jnp.where(counts, cluster, -1)))
    first = jnp.where(counts, jnp.argmin(distances(member), axis=1), -1)
    return jax.lax.fori_loop(0, _ROUNDS, improve, first)


def share(
    x: jax.Array, cluster: jax.Array, num_clusters: int, spread: float
) -> tuple[jax.Array, jax.Array]:
    """Moves elements that are alike in all points of a cluster to one copy of the cluster's.

    Args:
      x: ``[n, d]``.
      cluster: int32 ``[n]``, -1 for points that belong to none.
      num_clusters: how many copies there is room for.
      spread: the largest difference of elements that are alike.

    Returns:
      ``[n, d]``, what is left of each point, and ``[num_clusters, d]``, the middle of what was
      moved; 0 for elements that were not, and for clusters of fewer than two points.
    """

    def of_cluster(left: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        member = (cluster == k)[:, None]
        high = jnp.max(jnp.where(member, x, -jnp.inf), axis=0)
        low = jnp.min(jnp.where(member, x, jnp.inf), axis=0)
        alike = (jnp.sum(member) > 1) & (high - low <= spread)
        left = jnp.where(member & alike[None], 0, left)
        return left, jnp.where(alike, (high + low) / 2, 0)

    return jax.lax.scan(of_cluster, x, jnp.arange(num_clusters))
