"""What pictures of a kind have in common: their mean, their colours, and how strong each wave is."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from leakmap.attacker.matching.context import SearchContext
from leakmap.attacker.matching.decoders import Free
from leakmap.attacker.matching.priors import Prior
from leakmap.errors import NotGranted
from leakmap.observation.observation import Observation

WEAKEST = 1e-3
"""Strength of a wave, of the strongest one, below which it is raised to this: a wave that no public picture has must
stay within reach."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The statistics of public pictures, as an invertible linear map from white numbers to pictures.

    ``x = mean + colours . IDCT(strength * z)``: of public pictures, every entry of z has mean 0 and mean square 1.

    Args:
        mean: ``(C, H, W)`` mean picture, normalized.
        colours: ``(C, C)`` principal components of the colours of pixels, in columns.
        strength: ``(C, H, W)`` root mean square of each coefficient of the cosine transform, for each component.
        down: ``(H, H)`` orthonormal cosine transform of a column.
        across: ``(W, W)`` that of a row.
    """

    mean: Tensor
    colours: Tensor
    strength: Tensor
    down: Tensor
    across: Tensor

    def pictures(self, z: Tensor) -> Tensor:
        """``(N, C, H, W)`` white numbers -> normalized pictures."""
        waves = self.down.T @ (self.strength * z) @ self.across
        return self.mean + torch.einsum("ck,nkhw->nchw", self.colours, waves)

    def white(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` normalized pictures -> their white numbers."""
        components = torch.einsum("ck,nchw->nkhw", self.colours, x - self.mean)
        return self.down @ components @ self.across.T / self.strength


def spectrum_of(pictures: Tensor) -> Spectrum:
    """Measures the statistics of pictures.

    Args:
        pictures: ``(P, C, H, W)``, normalized.
    """
    channels, height, width = pictures.shape[1:]
    x = pictures.double()
    mean = x.mean(0)
    apart = x - mean
    colours = torch.linalg.eigh(torch.einsum("nchw,ndhw->cd", apart, apart)).eigenvectors
    down, across = cosines(height).to(x), cosines(width).to(x)
    waves = down @ torch.einsum("ck,nchw->nkhw", colours, apart) @ across.T
    strength = waves.square().mean(0).sqrt()
    strongest = strength.max().clamp(min=1e-6)
    strength = strength.clamp(min=WEAKEST * float(strongest))
    assert strength.shape == (channels, height, width)
    return Spectrum(*(tensor.to(pictures) for tensor in (mean, colours, strength, down, across)))


def cosines(size: int) -> Tensor:
    """``(size, size)`` orthonormal cosine transform (DCT-II); float64."""
    place = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi / size * (place + 0.5) * place[:, None])
    waves[0] /= math.sqrt(2)
    return waves * math.sqrt(2 / size)


def public_spectrum(observation: Observation) -> Spectrum:
    """That of the public pictures which an Observation grants.

    Raises:
        NotGranted: it grants none.
    """
    public = observation.public
    if public is None:
        raise NotGranted(
            "A search in a whitened basis measures the spectrum of public pictures, and none are granted; grant some "
            "(--public N) or search pixels (basis=pixels)."
        )
    network = observation.network
    return spectrum_of(network.task.normalize(public.pictures).to(network.device, network.dtype))


@dataclass(frozen=True)
class Whitened:
    """White numbers of a picture, scaled by what public pictures have of each wave.

    A step of the same size in every one of them changes a picture as pictures differ: much in its layout, little in
    its grain.
    """

    needs = frozenset({"public"})

    def __call__(self, context: SearchContext, start: Tensor, before: Free | None = None) -> Free:
        """``(N, C, H, W)`` free values."""
        spectrum = public_spectrum(context.observation)
        low, high = context.observation.network.task.bounds(start)
        z = spectrum.white(start.clamp(low, high)).detach().requires_grad_()

        def project() -> None:
            # The map is invertible, so that what is clamped in pictures is clamped exactly.
            with torch.no_grad():
                z.copy_(spectrum.white(spectrum.pictures(z).clamp(low, high)))

        return Free([z], lambda: spectrum.pictures(z), project)


@dataclass(frozen=True)
class Likely:
    """Pictures are normal ones with the mean and the spectrum of public pictures: the mean square of white numbers.

    Args:
        weight: Of the term.
    """

    weight: float

    needs = frozenset({"public"})

    def __call__(self, context: SearchContext) -> Prior:
        """Measures public pictures."""
        spectrum = public_spectrum(context.observation)
        return lambda x: self.weight * spectrum.white(x).square().mean()
