"""The article's network and step in TensorFlow, for comparison: the same layers, loss and optimizer.

It is written for current TensorFlow as one `tf.function`. Batch norm uses only the batch's own statistics, as
in the article's layer library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ENCODER = ((3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2), (256, 512, 2))
DECODER = ((512, 256), (256, 128), (128, 64), (64, 32))
LATENT = 512


def build(batch_size: int, size: int) -> Callable[[], Any]:
    """Returns a function that trains on one fixed random batch (N, S, S, 3) and returns the loss."""
    import tensorflow as tf

    variables: list[Any] = []

    def variable(shape: tuple[int, ...], fan_in: int) -> Any:
        made = tf.Variable(tf.random.truncated_normal(shape, stddev=(2 / fan_in) ** 0.5))
        variables.append(made)
        return made

    def constant(length: int, value: float) -> Any:
        made = tf.Variable(tf.fill([length], value))
        variables.append(made)
        return made

    def normalised(channels: int) -> Callable[[Any], Any]:
        bias, scale, offset = constant(channels, 0.0), constant(channels, 1.0), constant(channels, 0.0)

        def apply(x: Any) -> Any:
            x = tf.nn.bias_add(x, bias)
            mean, variance = tf.nn.moments(x, [0, 1, 2])
            return tf.nn.relu(tf.nn.batch_normalization(x, mean, variance, offset, scale, 1e-6))

        return apply

    side = size // 16
    encoder = [
        (variable((5, 5, inputs, outputs), 25 * inputs), stride, normalised(outputs))
        for inputs, outputs, stride in ENCODER
    ]
    features = side * side * ENCODER[-1][1]
    into, into_bias = variable((features, LATENT), features), constant(LATENT, 0.0)
    out, out_bias = variable((LATENT, features), LATENT), constant(features, 0.0)
    decoder = [
        (variable((5, 5, outputs, inputs), 25 * inputs), outputs, normalised(outputs))
        for inputs, outputs in DECODER
    ]
    last, last_bias = variable((5, 5, DECODER[-1][1], 3), 25 * DECODER[-1][1]), constant(3, 0.0)
    images = tf.random.uniform((batch_size, size, size, 3))
    optimizer = tf.keras.optimizers.Adam(1e-4, epsilon=1e-8)
    optimizer.build(variables)

    def reconstruct(x: Any) -> Any:
        for weights, stride, after in encoder:
            x = after(tf.nn.conv2d(x, weights, stride, "SAME"))
        x = tf.tanh(tf.reshape(x, (batch_size, -1)) @ into + into_bias)
        x = tf.reshape(tf.tanh(x @ out + out_bias), (batch_size, side, side, ENCODER[-1][1]))
        for number, (weights, outputs, after) in enumerate(decoder, start=1):
            shape = (batch_size, side << number, side << number, outputs)
            x = after(tf.nn.conv2d_transpose(x, weights, shape, 2, "SAME"))
        return tf.sigmoid(tf.nn.conv2d(x, last, 1, "SAME") + last_bias)

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            y = reconstruct(images)
            loss = -tf.reduce_mean(
                images * tf.math.log(y + 0.001) + (1 - images) * tf.math.log(1 - y + 0.001)
            )
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step
