"""The models of the digits example: arithmetic on NumPy arrays, which knows of no server."""

from __future__ import annotations

from importlib.metadata import distribution

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

HIDDEN = 64
LEVELS = 17  # of grey in scikit-learn's digits, 0 to 16
SHAPES = {
    "hidden_weight": (64, HIDDEN),
    "hidden_bias": (HIDDEN,),
    "output_weight": (HIDDEN, 10),
    "output_bias": (10,),
}


def load_digits() -> tuple[Floats, Ints, Floats, Ints]:
    """1,797 digits of 8 by 8 pixels: images (0 to 1) and labels to train on, and held out."""
    # Only its file is read: to import scikit-learn takes longer than to train.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.random.default_rng(7).permutation(np.loadtxt(str(file), delimiter=","))
    images = (table[:, :64] / (LEVELS - 1)).astype(np.float32)
    labels = table[:, 64].astype(np.int64)
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def _softmax_error(logits: Floats, labels: Ints) -> Floats:
    """The gradient of the summed cross entropy with respect to the logits."""
    scores: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    scores[np.arange(len(labels)), labels] -= 1
    return scores


def logits_of(values: dict[str, Floats], images: Floats) -> Floats:
    """One hidden layer of rectified units."""
    hidden = np.maximum(images @ values["hidden_weight"] + values["hidden_bias"], 0)
    logits: Floats = hidden @ values["output_weight"] + values["output_bias"]
    return logits


def gradients(values: dict[str, Floats], images: Floats, labels: Ints) -> dict[str, Floats]:
    """Gradients of the summed cross entropy over a batch, by name."""
    hidden = np.maximum(images @ values["hidden_weight"] + values["hidden_bias"], 0)
    error = _softmax_error(hidden @ values["output_weight"] + values["output_bias"], labels)
    back = (error @ values["output_weight"].T) * (hidden > 0)
    return {
        "hidden_weight": images.T @ back,
        "hidden_bias": back.sum(axis=0),
        "output_weight": hidden.T @ error,
        "output_bias": error.sum(axis=0),
    }


def accuracy(values: dict[str, Floats], images: Floats, labels: Ints) -> float:
    """The share of images that are recognized."""
    return float((logits_of(values, images).argmax(axis=1) == labels).mean())


def row_ids(images: Floats) -> Ints:
    """For each pixel of each image the row of its grey level, in a table of 64 * LEVELS rows."""
    grey = np.rint(images * (LEVELS - 1)).astype(np.int64)
    return np.arange(64) * LEVELS + grey


def table_gradient(rows: Floats, places: Ints, labels: Ints) -> Floats:
    """The gradient of a model whose logits are the sum of an image's rows.

    Args:
        rows: the rows that the batch touches, (touched, 10).
        places: for each pixel of each image, which of them.
        labels: of the images.
    """
    error = _softmax_error(rows[places].sum(axis=1), labels)
    gradient = np.zeros_like(rows)
    np.add.at(gradient, places.reshape(-1), np.repeat(error, places.shape[1], axis=0))
    return gradient


def table_accuracy(rows: Floats, images: Floats, labels: Ints) -> float:
    """The share of images that the table recognizes."""
    return float((rows[row_ids(images)].sum(axis=1).argmax(axis=1) == labels).mean())
