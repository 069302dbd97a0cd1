"""The steps of an epoch in JAX; as a script, a process that trains SMLP for ten epochs."""

import os

# JAX reads these when it is imported. With NPROC its epochs run on one core, as those of the other
# contenders; with the flags alone, which are often recommended, they take 1.5 to 1.8 cores.
os.environ["NPROC"] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"

import sys
import time
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.nn import relu


class JaxEpoch:
    """An epoch as one compiled function: ``lax.scan`` over the steps, with optax's Adam.

    :param layers: weight (in, out) and bias (out,) of each layer.
    :param images: float32 (N, pixels) in [0, 1].
    :ivar start: the parameters and the optimizer's state before the first step.
    :ivar compile_seconds: tracing and compilation.
    """

    def __init__(
        self,
        layers: list[tuple[np.ndarray, np.ndarray]],
        negative_slope: float,
        images: np.ndarray,
        classes: np.ndarray,
        batch_size: int,
    ) -> None:
        self.negative_slope, self.batch_size = negative_slope, batch_size
        self.data = jnp.asarray(images), jnp.asarray(classes)
        self.adam = optax.adam(1e-3)
        parameters = [(jnp.asarray(weight), jnp.asarray(bias)) for weight, bias in layers]
        self.start = parameters, self.adam.init(parameters)
        started = time.perf_counter()
        order = np.arange(len(images), dtype=np.int32)
        self.epoch = jax.jit(self.steps).lower(self.start, *self.data, order).compile()
        self.compile_seconds = time.perf_counter() - started

    def loss(self, parameters, images, classes):
        """Return the mean cross-entropy of a batch."""
        *hidden, (weight, bias) = parameters
        x = images
        for w, b in hidden:
            x = x @ w + b
            x = jnp.where(x > 0, x, self.negative_slope * x) if self.negative_slope else relu(x)
        logits = x @ weight + bias
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

    def steps(self, state, images, classes, order):
        """Return the state after an epoch, and its mean loss."""

        def step(state, rows):
            parameters, moments = state
            batch = images[rows], classes[rows]
            loss, gradients = jax.value_and_grad(self.loss)(parameters, *batch)
            updates, moments = self.adam.update(gradients, moments, parameters)
            return (optax.apply_updates(parameters, updates), moments), loss * len(rows)

        full = len(order) - len(order) % self.batch_size
        state, losses = jax.lax.scan(step, state, order[:full].reshape(-1, self.batch_size))
        total = losses.sum()
        if full < len(order):
            state, loss = step(state, order[full:])
            total += loss
        return state, total / len(order)

    def train(self, orders: list[np.ndarray]) -> list[float]:
        """Return the mean loss of each epoch, from the start, over the images in these orders."""
        state, losses = self.start, []
        for order in orders:
            state, loss = self.epoch(state, *self.data, order)
            losses.append(float(loss))
        return losses


def main(file: Path) -> None:
    """Train SMLP on the first nine tenths of a file, without validation and without results."""
    import h5py

    with h5py.File(file) as h5:
        count = len(h5["labels"]) * 9 // 10
        images = h5["images"][:count].reshape(count, -1).astype(np.float32) / 255
        classes = h5["labels"][:count].astype(np.int32) - 4
    rng = np.random.default_rng(42)
    widths = [784, 77, 77, 77, 77, 6]
    layers = [
        (rng.uniform(-1, 1, shape).astype(np.float32) / shape[0] ** 0.5, np.zeros(shape[1], "f"))
        for shape in pairwise(widths)
    ]
    orders = [rng.permutation(count).astype(np.int32) for _ in range(10)]
    print(JaxEpoch(layers, 0.0, images, classes, 64).train(orders))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
