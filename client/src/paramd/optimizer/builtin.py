"""The optimizers, with MXNet 1.9.1's argument names and defaults.

Each class says what the server computes; `Optimizer` says what w, g, lr, wd and t are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from paramd.hyperparameter import flag, real
from paramd.optimizer.base import Optimizer

__all__ = [
    "DCASGD",
    "LAMB",
    "NAG",
    "SGD",
    "AdaDelta",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Ftrl",
    "RMSProp",
    "Signum",
]


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum.

    m = momentum * m - lr * (g + wd * w); w += m. MXNet's `sgd_mom_update`, which is Polyak's heavy
    ball with the learning rate inside the momentum.

    Args:
        momentum: 0 to 1; 0 for none, which needs no state.
        lazy_update: whether a row-sparse gradient changes only its rows, of momentum too.
    """

    name = "sgd"

    momentum: float = field(default=0.0, metadata=real(at_least=0.0, at_most=1.0))
    lazy_update: bool = field(default=True, metadata=flag())


@dataclass(frozen=True, kw_only=True)
class NAG(Optimizer):
    """Nesterov's accelerated gradient.

    p = momentum * m; w += momentum * p - (1 + momentum) * lr * (g + wd * w);
    m = p - lr * (g + wd * w), with the new w, as MXNet's `nag_mom_update` has it where it works in
    place. Sutskever, Martens, Dahl & Hinton, "On the importance of initialization and momentum in
    deep learning" (2013).

    Args:
        momentum: 0 to 1; 0 is plain SGD, which needs no state.
    """

    name = "nag"

    momentum: float = field(default=0.0, metadata=real(at_least=0.0, at_most=1.0))


@dataclass(frozen=True, kw_only=True)
class Signum(Optimizer):
    """Steps by the sign of the momentum.

    m = momentum * m - (1 - momentum) * (g + wd * w); w = (1 - lr * wd_lh) * w + lr * sign(m);
    without momentum w = (1 - lr * wd) * w - lr * sign(g): as MXNet's `signum_update` and
    `signsgd_update` have it. Bernstein, Wang, Azizzadenesheli & Anandkumar, "signSGD:
    Compressed Optimisation for Non-Convex Problems" (2018).

    Args:
        momentum: 0 to 1; 0 for none, which needs no state.
        wd_lh: decoupled weight decay, after Loshchilov & Hutter; 0 without momentum, where wd is
            decoupled.
    """

    name = "signum"

    learning_rate: float | None = field(default=0.01, metadata=real(at_least=0.0, optional=True))
    momentum: float = field(default=0.9, metadata=real(at_least=0.0, at_most=1.0))
    wd_lh: float = field(default=0.0, metadata=real(at_least=0.0))

    def _check_together(self) -> None:
        if self.wd_lh and not self.momentum:
            raise ValueError(
                f"Signum: wd_lh: expected 0 without momentum, where wd is decoupled, but got "
                f"{self.wd_lh!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam.

    d = clip(rescale_grad * gradient + wd * w); m = beta1 * m + (1 - beta1) * d;
    v = beta2 * v + (1 - beta2) * d^2; w -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m
    / (sqrt(v) + epsilon): Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015), in the
    order of the end of its section 2.

    Args:
        beta1: decay of the mean, 0 to below 1.
        beta2: decay of the mean square, 0 to below 1.
        epsilon: at least 0.
        lazy_update: whether a row-sparse gradient changes only its rows, of the means too.
    """

    name = "adam"

    learning_rate: float | None = field(default=0.001, metadata=real(at_least=0.0, optional=True))
    beta1: float = field(default=0.9, metadata=real(at_least=0.0, below=1.0))
    beta2: float = field(default=0.999, metadata=real(at_least=0.0, below=1.0))
    epsilon: float = field(default=1e-8, metadata=real(at_least=0.0))
    lazy_update: bool = field(default=True, metadata=flag())


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay. MXNet 1.9.1 has no such class.

    m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g^2; with
    m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t)
    w -= lr * (m' / (sqrt(v') + epsilon) + wd * w), w on the right being the old one: Loshchilov &
    Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2. Its schedule multiplier
    eta_t scales both terms, and so does lr, which is eta_t * alpha here; its lambda is
    alpha * wd.

    Args:
        beta1: decay of the mean, 0 to below 1.
        beta2: decay of the mean square, 0 to below 1.
        epsilon: at least 0.
        wd: decoupled weight decay, at least 0, relative to the learning rate.
        lazy_update: whether a row-sparse gradient changes only its rows, of the means too.
    """

    name = "adamw"

    learning_rate: float | None = field(default=0.001, metadata=real(at_least=0.0, optional=True))
    beta1: float = field(default=0.9, metadata=real(at_least=0.0, below=1.0))
    beta2: float = field(default=0.999, metadata=real(at_least=0.0, below=1.0))
    epsilon: float = field(default=1e-8, metadata=real(at_least=0.0))
    wd: float = field(default=0.01, metadata=real(at_least=0.0))
    lazy_update: bool = field(default=True, metadata=flag())


@dataclass(frozen=True, kw_only=True)
class AdaGrad(Optimizer):
    """AdaGrad.

    h += g^2; w -= lr * (g / sqrt(h + eps) + wd * w): Duchi, Hazan & Singer, "Adaptive Subgradient
    Methods for Online Learning and Stochastic Optimization" (2011). A row-sparse gradient changes
    only its rows.

    Args:
        eps: at least 0.
    """

    name = "adagrad"

    eps: float = field(default=1e-7, metadata=real(at_least=0.0))


@dataclass(frozen=True, kw_only=True)
class RMSProp(Optimizer):
    """RMSProp, plain or centered.

    With d = rescale_grad * gradient + wd * w, clipped, plain is
    n = gamma1 * n + (1 - gamma1) * d^2; w -= lr * d / sqrt(n + epsilon): Tieleman & Hinton, "Neural
    Networks for Machine Learning", lecture 6.5 (2012). Centered has
    a = gamma1 * a + (1 - gamma1) * d beside n, and
    delta = gamma2 * delta - lr * d / sqrt(n - a^2 + epsilon); w += delta: Graves, "Generating
    Sequences With Recurrent Neural Networks" (2013), eq. 38 to 45.

    Args:
        gamma1: decay of the means, 0 to 1.
        gamma2: momentum of the centered form, 0 to 1.
        epsilon: at least 0.
        centered: which form.
        clip_weights: largest magnitude of a new weight; None for any.
    """

    name = "rmsprop"

    learning_rate: float | None = field(default=0.001, metadata=real(at_least=0.0, optional=True))
    gamma1: float = field(default=0.9, metadata=real(at_least=0.0, at_most=1.0))
    gamma2: float = field(default=0.9, metadata=real(at_least=0.0, at_most=1.0))
    epsilon: float = field(default=1e-8, metadata=real(at_least=0.0))
    centered: bool = field(default=False, metadata=flag())
    clip_weights: float | None = field(default=None, metadata=real(above=0.0, optional=True))


@dataclass(frozen=True, kw_only=True)
class AdaDelta(Optimizer):
    """AdaDelta, which has no use for a learning rate.

    s = rho * s + (1 - rho) * g^2; d = sqrt(u + epsilon) / sqrt(s + epsilon) * g;
    u = rho * u + (1 - rho) * d^2; w -= d + wd * w: Zeiler, "ADADELTA: An Adaptive Learning Rate
    Method" (2012).

    Args:
        rho: decay of both mean squares, 0 to 1.
        epsilon: at least 0.
    """

    name = "adadelta"

    rho: float = field(default=0.9, metadata=real(at_least=0.0, at_most=1.0))
    epsilon: float = field(default=1e-5, metadata=real(at_least=0.0))


@dataclass(frozen=True, kw_only=True)
class Ftrl(Optimizer):
    """Follow the regularized leader, with L1 regularization.

    z += g - (sqrt(n + g^2) - sqrt(n)) / lr * w; n += g^2;
    w = (sign(z) * lamda1 - z) / ((beta + sqrt(n)) / lr + wd) where abs(z) > lamda1, else 0:
    McMahan et al., "Ad Click Prediction: a View from the Trenches" (2013). With a schedule,
    learning_rate is without effect, as in MXNet.

    Args:
        lamda1: L1 regularization, at least 0.
        learning_rate: above 0.
        beta: at least 0.
    """

    name = "ftrl"
    _replaces_base_lr: ClassVar[bool] = False

    learning_rate: float | None = field(default=0.1, metadata=real(above=0.0, optional=True))
    lamda1: float = field(default=0.01, metadata=real(at_least=0.0))
    beta: float = field(default=1.0, metadata=real(at_least=0.0))


@dataclass(frozen=True, kw_only=True)
class LAMB(Optimizer):
    """Adam's step, as long as the weight's norm asks for.

    m and v as in Adam, of g; with bias_correction m' = m / (1 - beta1^t) and
    v' = v / (1 - beta2^t), else m and v; d = m' / (sqrt(v') + epsilon) + wd * w;
    r = norm(w), raised to lower_bound and cut to upper_bound; w -= lr * r / norm(d) * d, with
    r / norm(d) taken as 1 where one of them is 0: You et al., "Large Batch Optimization for Deep
    Learning: Training BERT in 76 minutes" (2020). Norms are over the whole parameter.

    Args:
        beta1: decay of the mean, 0 to below 1.
        beta2: decay of the mean square, 0 to below 1.
        epsilon: at least 0.
        lower_bound: smallest r, above 0; None for any.
        upper_bound: largest r, above 0; None for any.
        bias_correction: whether the means are corrected for having begun at 0.
    """

    name = "lamb"

    learning_rate: float | None = field(default=0.001, metadata=real(at_least=0.0, optional=True))
    beta1: float = field(default=0.9, metadata=real(at_least=0.0, below=1.0))
    beta2: float = field(default=0.999, metadata=real(at_least=0.0, below=1.0))
    epsilon: float = field(default=1e-6, metadata=real(at_least=0.0))
    lower_bound: float | None = field(default=None, metadata=real(above=0.0, optional=True))
    upper_bound: float | None = field(default=None, metadata=real(above=0.0, optional=True))
    bias_correction: bool = field(default=True, metadata=flag())

    def _check_together(self) -> None:
        if self.lower_bound is None or self.upper_bound is None:
            return
        if self.lower_bound > self.upper_bound:
            raise ValueError(
                f"LAMB: lower_bound: expected at most the upper_bound, {self.upper_bound!r}, but "
                f"got {self.lower_bound!r}"
            )


@dataclass(frozen=True, kw_only=True)
class DCASGD(Optimizer):
    """Asynchronous SGD that compensates for the delay of gradients.

    m = momentum * m - lr * (g + wd * w + lamda * g^2 * (w - w_previous)); w_previous = w; w += m,
    where w_previous is the weight before the last update: Zheng et al., "Asynchronous Stochastic
    Gradient Descent with Delay Compensation" (2017). MXNet's own fails with momentum, except for
    weights of one element.

    Args:
        momentum: 0 to 1; 0 for none.
        lamda: how much is compensated, at least 0.
    """

    name = "dcasgd"

    momentum: float = field(default=0.0, metadata=real(at_least=0.0, at_most=1.0))
    lamda: float = field(default=0.04, metadata=real(at_least=0.0))
