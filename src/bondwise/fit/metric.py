"""How an error is weighed: second moments of the inputs, counted once and shrunk.

The output error of a weight is its own error in the metric of its inputs:

    E ||(W - W~) x||^2 = tr (W - W~) C (W - W~)^T,    C = E[x x^T]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from bondwise.errors import DataError, FitError
from bondwise.fit.moment import Moment
from bondwise.fit.whitened import metric_norm, whitened_split


@dataclass(frozen=True, eq=False)
class Metric:
    """Second moment of the inputs, ``X^T X`` (in x in), and how far it is shrunk.

    Few tokens leave the correlations noisy long before the variances: each variance has a relative
    error of about ``sqrt(2 / tokens)``, whatever the size. So the shrinkage pulls towards the
    diagonal, which keeps what is well known (Schaefer and Strimmer 2005), and not towards a scaled
    identity (Ledoit and Wolf 2004), which would lift quiet inputs to the mean of the loud ones:

        C_s = (1 - s) C + s diag(C),    C = X^T X / tokens

    Args:
        second_moment: ``X^T X`` of the inputs X (tokens, in), in x in.
        tokens: how many inputs it is of.
        shrinkage: ``s``, from 0 to 1.

    >>> Metric(torch.tensor([[4.0, 2.0], [2.0, 4.0]]), tokens=2, shrinkage=0.5).shrunk()
    tensor([[2.0000, 0.5000],
            [0.5000, 2.0000]], dtype=torch.float64)

    Raises:
        FitError: the moment is not square, symmetric and finite, is all zero, has a negative
            variance, or the shrinkage is outside [0, 1] or the tokens below 1.
    """

    second_moment: Tensor
    tokens: int
    shrinkage: float

    def __post_init__(self) -> None:
        check_moment(self.second_moment)
        if self.tokens < 1 or not 0 <= self.shrinkage <= 1:
            raise FitError(
                f"A metric of {self.tokens} tokens with shrinkage {self.shrinkage} came; "
                "it needs at least 1 token and a shrinkage in [0, 1]."
            )

    def shrunk(self) -> Float[Tensor, "inp inp"]:
        """``C_s`` in float64."""
        moment = self.second_moment.to(torch.float64) / self.tokens
        variances = moment.diagonal().clone()
        moment *= 1 - self.shrinkage
        moment.diagonal().copy_(variances)
        return moment


@dataclass(frozen=True, eq=False)
class Kronecker:
    """A metric that is a product, ``C = channels x kernel``, over columns (in, k) row-major.

    For the patches of a convolution whose full second moment would be too large. It is never
    formed.

    Args:
        channels: second moment of the channels (in x in), or a `Metric` of them.
        kernel: second moment of the taps (k x k), all kernel modes as one.

    >>> from bondwise import fit, lowrank
    >>> metric = Kronecker(torch.diag(torch.tensor([1.0, 4.0])), torch.eye(3))
    >>> fit(torch.eye(6), lowrank(6, 6, 3), metric).error     # of 1 and 4, the 1 is lost
    0.447...

    Raises:
        FitError: a factor is no second moment.
    """

    channels: Metric | Tensor
    kernel: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.channels, Metric):
            check_moment(self.channels)
        check_moment(self.kernel)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many channels, how many taps."""
        moment = self.channels
        moment = moment.second_moment if isinstance(moment, Metric) else moment
        return len(moment), len(self.kernel)


DEPENDENCE = 4  # tokens of a text that tell as much as one independent token


class Moments:
    """Accumulates ``X^T X`` and the token count over batches of inputs.

    The sum is kept in float32 or better whatever the inputs are, on the device of the first of them
    unless one is given.

    >>> moments = Moments(3)
    >>> moments.add(torch.ones(2, 5, 3, dtype=torch.bfloat16))     # any leading dimensions
    >>> moments.tokens, moments.metric().shrinkage
    (10, 0.5454545454545454)
    """

    def __init__(
        self,
        size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise DataError(
                f"Moments in {dtype} came; they are summed in torch.float32 or torch.float64."
            )
        self.size = size
        self.tokens = 0
        self.dtype = dtype
        self._sum = None if device is None else torch.zeros(size, size, device=device, dtype=dtype)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Count inputs of shape (*any, size).

        Raises:
            DataError: the last dimension is not ``size``, or a value is NaN or infinite.
        """
        if x.ndim == 0 or x.shape[-1] != self.size:
            raise DataError(
                f"Inputs of shape {tuple(x.shape)} came; the last dimension must be {self.size}."
            )
        if not torch.isfinite(x).all():
            raise DataError("Inputs with NaN or infinity came; clean the data or the model first.")
        if self._sum is None:
            self._sum = torch.zeros(self.size, self.size, device=x.device, dtype=self.dtype)
        rows = x.detach().reshape(-1, self.size).to(self._sum.device, self.dtype)
        self._sum.addmm_(rows.T, rows)
        self.tokens += len(rows)

    @property
    def empty(self) -> bool:
        """Whether there is no metric to be had: nothing was counted, or nothing but zeros."""
        return self._sum is None or not self._sum.any()

    def metric(self, shrinkage: float | None = None) -> Metric:
        """The metric of what was counted; by default shrunk by ``size / (size + tokens)``.

        The default is a half where there are as many tokens as inputs, and vanishes with many
        tokens.

        Raises:
            DataError: no input was counted, or all of them were zero.
        """
        if self._sum is None or self.tokens == 0:
            raise DataError("No inputs were counted; call add(x) with at least one token first.")
        if not self._sum.any():
            raise DataError(
                f"All {self.tokens} inputs were zero; a metric needs inputs that are not."
            )
        if shrinkage is None:
            shrinkage = self.size / (self.size + self.tokens / DEPENDENCE)
        return Metric(self._sum.clone(), self.tokens, shrinkage)


@torch.no_grad()
def held_out_shrinkage(
    weight: Float[Tensor, "out inp"],
    fitting: Metric,
    held_out: Metric,
    rank: int,
    candidates: Sequence[float],
) -> Metric:
    """``fitting`` with the shrinkage whose best low rank has the least error in ``held_out``.

    One closed form per candidate, in the weight's dtype; among equals the larger shrinkage wins.

    >>> fitting = Metric(torch.tensor([[1.0, 0.9], [0.9, 1.0]]), tokens=1, shrinkage=0.0)
    >>> held_out = Metric(torch.eye(2), tokens=1, shrinkage=0.0)  # the correlation was chance
    >>> W = torch.tensor([[1.0, 0.0], [0.0, 0.9]])
    >>> held_out_shrinkage(W, fitting, held_out, rank=1, candidates=(0.0, 0.5, 1.0)).shrinkage
    1.0

    Raises:
        FitError: a metric is not one over the weight's inputs.
    """
    inp = weight.shape[1]
    unseen = second_moment(held_out, inp)
    errors: dict[float, float] = {}
    for shrinkage in candidates:
        trial = replace(fitting, shrinkage=shrinkage)
        cut = whitened_split(weight, second_moment(trial, inp).to(weight), rank)
        off = (weight - cut.left.to(weight) @ cut.right.to(weight)).to(unseen)
        errors[shrinkage] = metric_norm(off, unseen)
    return replace(fitting, shrinkage=min(errors, key=lambda s: (errors[s], -s)))


def second_moment(metric: Metric | Tensor, size: int) -> Float[Tensor, "inp inp"]:
    """``C`` in float64, its largest variance made 1: a `Metric` shrunk, a plain tensor as given.

    Raises:
        FitError: not a metric over ``size`` inputs.
    """
    moment = metric.second_moment if isinstance(metric, Metric) else metric
    if moment.ndim == 2 and moment.shape[0] == moment.shape[1] != size:
        raise FitError(
            f"A metric over {moment.shape[0]} inputs came for a weight with {size} columns; "
            f"give X^T X of shape ({size}, {size})."
        )
    if not isinstance(metric, Metric):
        check_moment(moment)
    shrunk = metric.shrunk() if isinstance(metric, Metric) else moment.detach().to(torch.float64)
    unit = shrunk / shrunk.diagonal().max()  # the scale cancels, and no product can overflow
    return _semidefinite((unit + unit.T) / 2)


def moment_of(metric: Metric | Kronecker | Tensor, size: int) -> Moment:
    """``C`` as an operator, float64, its largest variance 1.

    Raises:
        FitError: not a metric over ``size`` inputs.
    """
    if not isinstance(metric, Kronecker):
        return Moment.of(second_moment(metric, size))
    channels, kernel = metric.sizes
    if channels * kernel != size:
        raise FitError(
            f"A metric of {channels} channels x {kernel} taps came for a weight with {size} "
            f"columns; give one whose product is {size}."
        )
    return Moment.of(second_moment(metric.channels, channels), second_moment(metric.kernel, kernel))


def check_moment(moment: Tensor) -> None:
    """Refuse what cannot be a second moment, by the checks that cost next to nothing.

    Raises:
        FitError: not square, not finite, not symmetric, all zero, or with a negative variance.
    """
    shape = tuple(moment.shape)
    if moment.ndim != 2 or shape[0] != shape[1]:
        raise FitError(f"A metric of shape {shape} came; it must be square, X^T X of the inputs.")
    if not moment.is_floating_point():
        raise FitError(f"A metric of {moment.dtype} came; give it in float32 or float64.")
    if not torch.isfinite(moment).all():
        raise FitError("A metric with NaN or infinity came; give X^T X of finite inputs.")
    largest = moment.abs().max()
    if largest == 0:
        raise FitError("A metric of zeros came; give X^T X of inputs that are not all zero.")
    if (moment - moment.T).abs().max() > _rounding(moment) * largest:
        raise FitError("A metric that is not symmetric came; give X^T X of the inputs.")
    if moment.diagonal().min() < -_rounding(moment) * largest or moment.diagonal().max() <= 0:
        raise FitError("A metric with a negative variance came; give X^T X of the inputs.")


def _semidefinite(moment: Tensor) -> Tensor:
    # the jitter, relative to the largest variance, covers sums that were rounded in float32: where
    # inputs are alike the largest eigenvalue is as many times the variance as there are of them
    size = 1e-5 + len(moment) * torch.finfo(torch.float32).eps
    jitter = size * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    if torch.linalg.cholesky_ex(moment + jitter).info:
        raise FitError(
            "A metric with a negative eigenvalue came; give X^T X of the inputs, "
            "which is positive semidefinite."
        )
    return moment


def _rounding(moment: Tensor) -> float:
    """How far rounding may take a second moment from being one, relative to its largest entry."""
    return max(1e-5, 4 * torch.finfo(moment.dtype).eps)
