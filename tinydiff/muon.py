"""Muon: Adam, but a matrix moves along its orthogonalised momentum (Jordan et al. 2024, Muon).

    N = (1 - beta1) g + beta1 m                                   Nesterov's momentum, from Adam's m of this step
    theta <- theta - lr 0.2 sqrt(max(rows, columns)) O(N)         for N = U S V^T:  O(N) is close to U V^T

The gradient of a matrix has a few large singular values and many small ones.  Adam's step mostly follows the large
ones.  In O(N) all singular values are about 1, so the network also learns the other directions.  The factor gives the
entries of the step a root mean square of about 0.2 lr.  Adam's steps are about as long (Liu et al. 2025, Muon is
scalable, section 2.2), so one learning rate serves both.

A filter (KH, KW, C, O) is the matrix (KH KW C, O) by which patches are multiplied.  What is no matrix, or has a side
below LEAST (the first and the last filter, the labels of a few classes), follows Adam.  Read next: autograd.py.
"""

from typing import Any

from tinydiff.backend import fusable, xp
from tinydiff.optim import Adam, adam_update

LEAST, ROUNDS = 16, 5  # the least rows and columns of a matrix; rounds of `orthogonalized`
A, B, C = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024: A s + B s^3 + C s^5, repeated, brings s to about 1


@fusable
def muon_update(p: Any, m: Any, v: Any, *, lr: float, betas: tuple[float, float], eps: float, k: int) -> None:
    """The step above for the matrices of one parameter, and Adam's step for the rest, written to p.data, m and v."""
    matrices = matrices_of(p, m)
    before = [theta.copy() for theta, _, _ in matrices]
    adam_update(p, m, v, lr=lr, betas=betas, eps=eps, k=k)
    steps = orthogonalize(p, [(1 - betas[0]) * g + betas[0] * moment for _, g, moment in matrices])
    for old, (theta, _, _), step in zip(before, matrices, steps):
        theta[...] = old - lr * 0.2 * max(step.shape) ** 0.5 * step


class Muon(Adam):
    """Adam with the step above for matrices.  Settings, state and errors are those of Adam."""

    update = staticmethod(muon_update)


def matrices_of(p: Any, m: Any) -> list[list[Any]]:
    """[theta, gradient, momentum] of each matrix that is not frozen, as views with two axes.

    p: a Tensor, or a buffer of several, with .parameters and .split(array).  m: Adam's first moment of p.
    """
    parts = zip(p.parameters, p.split(m)) if hasattr(p, "parameters") else [(p, m)]
    groups = [(q.data, xp.zeros_like(q.data) if q.grad is None else q.grad, of) for q, of in parts if q.requires_grad]
    matrices = ([a.reshape(-1, a.shape[-1]) for a in group] for group in groups if group[0].ndim > 1)
    return [matrix for matrix in matrices if min(matrix[0].shape) >= LEAST]


@fusable
def orthogonalize(p: Any, ns: list[Any]) -> list[Any]:
    """O(N) of each matrix of the parameter p."""
    return list(map(orthogonalized, ns))


def orthogonalized(n: Any) -> Any:
    """O(N): N's singular vectors with singular values of about 1, for a matrix (rows, columns).  Zeros give zeros.

        X <- X Z,   Z = A I + B R + C R^2,   R = X^T X        ROUNDS times from X = N / |N|

    So each singular value becomes A s + B s^3 + C s^5.  Only the small matrices R <- Z R Z and the product of all Z
    are computed in the rounds; N has more rows than columns for that, or its transpose is taken.
    """
    if n.shape[0] < n.shape[1]:
        return orthogonalized(n.T).T
    x = n / (xp.sqrt(xp.sum(n * n)) + 1e-20)
    r, product = x.T @ x, xp.eye(n.shape[1], dtype=n.dtype)
    for _ in range(ROUNDS):
        z = A * xp.eye(len(r), dtype=r.dtype) + B * r + C * (r @ r)
        r, product = z @ r @ z, product @ z
    return x @ product


OPTIMIZERS = {"adam": Adam, "muon": Muon}  # by the names in the settings of a run
