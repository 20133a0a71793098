"""Where the patches of a few pictures lie, from the gradients of a vision transformer's positions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import floor_of_search
from leakmap.attacker.equations import facts_used, label_notes
from leakmap.attacker.gradients import mean_gradient
from leakmap.attacker.labels import told
from leakmap.attacker.patches import Patches, examined
from leakmap.attacker.protocol import CLOSED_FORM, free_to_fit, nothing_to_fit, nothing_to_restore
from leakmap.attacker.reconstruction import Reconstruction, Tick
from leakmap.errors import NotApplicable
from leakmap.local_rule import LocalRule
from leakmap.observation.observation import Observation
from leakmap.seeds import derive, generator

SAMPLE = 20_000
"""Public patches that the prior is taken of."""
FLOOR = 1e-4
"""Variance that every direction of a patch has, in squared deviations of the data: about rounding to 8 bits."""
FREE = 4096
"""Most unknowns of the equations that join patches at their borders."""


@attacks.add("patch_subspace")
@dataclass(frozen=True, kw_only=True)
class PatchSubspace:
    """Finds the affine subspace that holds the patches of every picture at a position, and the most likely point in it.

    With B pictures of N patches, the gradient of the embedding is ``dW = D^T X``, of rank B N if tokens and patches are
    as wide: every patch is a combination ``x = q R`` of its right singular vectors. The gradient of a position sums
    over the pictures, so that ``q . c_n`` is 1 for a patch at position n and 0 for any other, with
    ``c_n = A^+ dpos_n`` and ``dW = A R``. Of the B N numbers of a patch, (B - 1) N stay free. They are taken to be the
    most likely ones for patches that are normal, with mean and covariance of those of public pictures, and that
    continue across their borders.

    All pictures of a client lie in the same subspace, so the answer is one picture, which stands for each of them: at
    every position it is near the more ordinary patch. They are not told apart.

    Args:
        labels: ``auto``, or the name of a label rule.
        continuity: Whether patches are joined at their borders; else each is on its own.

    Applies: where patch_positions would read one example, and a token and a patch have at least as many values as there
    are patches in all pictures. A single picture is found exactly, as by patch_positions, which needs nothing public.

    Source: this project.
    """

    labels: str = "auto"
    continuity: bool = True

    needs = frozenset({"count", "public"})
    leaky_model = "vit,patch=8"
    cost = CLOSED_FORM
    blind = floor_of_search
    fits = ""
    fit_cost = free_to_fit
    fit = nothing_to_fit
    restored = nothing_to_restore

    def why_not(self, observation: Observation) -> str:
        """Why it does not apply, as far as that shows without running the network; empty if it may."""
        return "a single picture is read by patch_positions" if observation.count == 1 else ""

    def __call__(self, observation: Observation, seed: int, tick: Tick) -> Reconstruction:
        """Attacks.

        Raises:
            NotApplicable: no learned positions give patches away, or there are more patches than a token or a patch
                has values.
        """
        network, count, public = observation.network, observation.count, observation.public
        assert count is not None
        assert public is not None
        found = _readable(observation, count)
        gradient = mean_gradient(observation, (found.position, found.embedding))
        tokens, weight = found.of_tokens(gradient[found.position]), gradient[found.embedding].flatten(1)
        subspace = subspace_of(tokens, weight, count)
        tick(0.3)
        shown = network.task.normalize(public.pictures).flatten(1).double()
        prior = prior_of(shown[:, found.pixels].flatten(0, 1), seed)
        patches = subspace.most_likely(prior)
        if self.continuity and len(subspace.free):
            borders = borders_of(found.pixels, network.task.shape)
            patches = continued(subspace, prior, patches, borders, _jumps(shown, found.pixels, borders))
        labels = told(observation, self.labels, derive(seed, "labels"))
        picture = network.task.denormalize(found.picture(patches, network.task).to(network.dtype))
        tick(1.0)
        return Reconstruction(
            picture.repeat(count, 1, 1, 1),
            labels.y,
            math.nan,
            notes={
                "positions": found.position,
                "free directions of a patch": len(subspace.free),
                **label_notes(observation, labels),
            },
            used=facts_used(observation, labels) | {"public"},
        )


@dataclass(frozen=True, eq=False)
class Subspace:
    """Where the patches at each position lie.

    Args:
        base: ``(N, values)`` the point of each that is nearest to 0.
        free: ``(free, values)`` orthonormal directions, the same for all positions.
    """

    base: Tensor
    free: Tensor

    def most_likely(self, prior: "Prior") -> Tensor:
        """``(N, values)`` the point of each position that is most likely alone."""
        inside, pull = self._terms(prior)
        return self.base - torch.linalg.solve(inside, pull.T).T @ self.free

    def softest(self, prior: "Prior", number: int) -> tuple[Tensor, Tensor]:
        """``(k, values)`` orthonormal directions in which patches vary most, and their ``(k,)`` inverse variances."""
        values, vectors = torch.linalg.eigh(self._terms(prior)[0])
        return vectors[:, :number].T @ self.free, values[:number]

    def _terms(self, prior: "Prior") -> tuple[Tensor, Tensor]:
        return self.free @ prior.precision @ self.free.T, (self.base - prior.mean) @ prior.precision @ self.free.T


@dataclass(frozen=True, eq=False)
class Prior:
    """Normal distribution of patches.

    Args:
        mean: ``(values,)``.
        precision: ``(values, values)``.
    """

    mean: Tensor
    precision: Tensor


def subspace_of(tokens: Tensor, weight: Tensor, count: int) -> Subspace:
    """From gradients.

    Args:
        tokens: ``(N, width)`` of the positions, summed over pictures.
        weight: ``(width, values)`` of the embedding.
        count: Pictures, with ``count x N`` at most width and values.

    Raises:
        NotApplicable: the weight has a lower rank than the patches.
    """
    rank = count * len(tokens)
    left, strength, right = torch.linalg.svd(weight, full_matrices=False)
    left, strength, right = left[:, :rank], strength[:rank], right[:rank]
    if not strength[-1] > 0:
        raise NotApplicable(
            f"The gradient of the patch embedding has a rank below {rank}, that of the patches of {count} pictures: an "
            "update of zeros below a zero head, or other facts than the client's stand in the way."
        )
    sums = (left.T @ tokens.T) / strength[:, None]
    # q . c_n is 1 at the own position and 0 at the others: the shortest solution, and what stays free.
    shortest = torch.linalg.pinv(sums.T)
    free = torch.linalg.svd(sums.T, full_matrices=True)[2][len(tokens) :]
    return Subspace(shortest.T @ right, free @ right)


def prior_of(patches: Tensor, seed: int) -> Prior:
    """Of ``(M, values)`` public patches, normalized."""
    drawn = torch.randperm(len(patches), generator=generator(seed, "patches"))[:SAMPLE]
    some = patches[drawn.to(patches.device)]
    covariance = torch.cov(some.T) + FLOOR * torch.eye(some.shape[1]).to(some)
    return Prior(some.mean(0), torch.linalg.inv(covariance))


@dataclass(frozen=True, eq=False)
class Borders:
    """Neighbouring pixels of different patches, ``(M,)`` each.

    Args:
        patches: ``(2, M)`` the patch of either.
        values: ``(2, M)`` its place there.
    """

    patches: Tensor
    values: Tensor


def borders_of(pixels: Tensor, shape: tuple[int, int, int]) -> Borders:
    """All pairs, to the right and below.

    Args:
        pixels: ``(N, values)`` places of patches in the flattened picture.
        shape: ``(C, H, W)``.
    """
    owner = pixels.new_full((math.prod(shape),), -1)
    place = torch.zeros_like(owner)
    owner[pixels.flatten()] = torch.arange(len(pixels)).to(pixels).repeat_interleave(pixels.shape[1])
    place[pixels.flatten()] = torch.arange(pixels.shape[1]).to(pixels).repeat(len(pixels))
    grid = torch.arange(len(owner)).to(pixels).view(shape)
    pairs = [(grid[..., :-1], grid[..., 1:]), (grid[:, :-1], grid[:, 1:])]
    first, second = (torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1))
    apart = (owner[first] != owner[second]) & (owner[first] >= 0) & (owner[second] >= 0)
    ends = torch.stack([first[apart], second[apart]])
    return Borders(owner[ends], place[ends])


def _jumps(shown: Tensor, pixels: Tensor, borders: Borders) -> float:
    """Mean square of how much public pictures differ across borders."""
    first, second = pixels[borders.patches[0], borders.values[0]], pixels[borders.patches[1], borders.values[1]]
    return float((shown[:, first] - shown[:, second]).square().mean())


def continued(subspace: Subspace, prior: Prior, patches: Tensor, borders: Borders, jumps: float) -> Tensor:
    """The most likely patches of all positions together, if they differ little across their borders.

    Args:
        subspace: That of the patches.
        prior: Of each alone.
        patches: ``(N, values)`` the most likely ones alone.
        borders: Where they meet.
        jumps: Variance of differences there.
    """
    count = len(patches)
    # In further directions the prior says more than neighbours do.
    soft, stiff = subspace.softest(prior, max(1, FREE // count))
    size = len(soft)
    first, second = (soft[:, own].T for own in borders.values)
    gap = patches[borders.patches[0], borders.values[0]] - patches[borders.patches[1], borders.values[1]]
    matrix = torch.diag(stiff.repeat(count)).view(count, size, count, size)
    pull = torch.zeros(count, size).to(patches)
    rows = ((borders.patches[0], first), (borders.patches[1], -second))
    for one, own in rows:
        pull.index_add_(0, one, own * gap[:, None] / jumps)
        for other, its in rows:
            matrix.permute(0, 2, 1, 3).index_put_(
                (one, other), own[:, :, None] * its[:, None, :] / jumps, accumulate=True
            )
    moved = torch.linalg.solve(matrix.view(count * size, -1), -pull.flatten())
    return patches + moved.view(count, size) @ soft


def _readable(observation: Observation, count: int) -> Patches:
    network = observation.network
    # What is asked of one picture is asked here too, but for there being one.
    finding, found = examined(network, None, observation.rule or LocalRule(mode="eval"))
    if found is None:
        raise NotApplicable(f"'patch_subspace' does not apply to {network.model}: {finding}.")
    for name in (found.position, found.embedding):
        if name not in observation.update.tensors:
            raise NotApplicable(
                f"The closed form 'patch_subspace' needs the gradient of {name!r}, which is not shared."
            )
    width, values = found.of_tokens(observation.update.tensors[found.position]).shape[1], found.pixels.shape[1]
    if (needed := count * len(found.pixels)) > min(width, values):
        raise NotApplicable(
            f"{count} pictures have {needed} patches, which is more than a token has values ({width}) or a patch "
            f"({values}): the equations leave everything open."
        )
    return found
