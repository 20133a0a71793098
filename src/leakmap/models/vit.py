"""A compact vision transformer with the knobs that decide whether attention leaks in closed form."""

import math

import torch
from torch import Tensor, nn

from leakmap.errors import BadSetting
from leakmap.models import models
from leakmap.models.blocks import Rate, Size
from leakmap.problem.task import Task


class Attention(nn.Module):
    """Multi-head self-attention, written with products so that it has second derivatives on every device."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        for matrix in (*self.qkv.weight.chunk(3), self.proj.weight):
            nn.init.xavier_uniform_(matrix)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, tokens, dim)`` -> the same shape."""
        count, tokens, dim = x.shape
        split = self.qkv(x).view(count, tokens, 3, self.heads, dim // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / math.sqrt(dim // self.heads)
        mixed = self.dropout(scores.softmax(dim=-1)) @ value
        return self.proj(mixed.transpose(1, 2).reshape(count, tokens, dim))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each with a LayerNorm in front or behind and perhaps a shortcut."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, prenorm: bool, skip: bool, dropout: float):
        super().__init__()
        inner = max(1, round(dim * mlp_ratio))
        self.prenorm, self.skip = prenorm, skip
        self.attention, self.norm1 = Attention(dim, heads, dropout), nn.LayerNorm(dim)
        perceptron = [nn.Linear(dim, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, dim), nn.Dropout(dropout)]
        self.mlp, self.norm2 = nn.Sequential(*perceptron), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, tokens, dim)`` -> the same shape."""
        for layer, norm in ((self.attention, self.norm1), (self.mlp, self.norm2)):
            out = layer(norm(x) if self.prenorm else x)
            out = x + out if self.skip else out
            x = out if self.prenorm else norm(out)
        return x


class VisionTransformer(nn.Module):
    """Patch embedding, class token, learned positions, blocks and a linear head."""

    def __init__(self, task: Task, patch: int, dim: int, class_token: bool, dropout: float, blocks: list[Block]):
        super().__init__()
        channels, height, width = task.shape
        tokens = (height // patch) * (width // patch) + class_token
        self.embedding = nn.Conv2d(channels, dim, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.02) if class_token else None
        self.position = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim) if blocks[0].prenorm else nn.Identity()
        self.head = nn.Linear(dim, task.classes)
        nn.init.normal_(self.embedding.weight, std=self.embedding.weight[0].numel() ** -0.5)
        nn.init.normal_(self.head.weight, std=dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` -> class scores ``(N, classes)``."""
        x = self.embedding(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        x = self.norm(self.blocks(self.dropout(x + self.position)))
        return self.head(x.mean(dim=1) if self.token is None else x[:, 0])


@models.add("vit", examples=("vit,dim=24,depth=2",))
def vit(
    task: Task,
    *,
    patch: Size | None = None,
    dim: Size = 192,
    depth: Size = 2,
    heads: Size = 3,
    mlp_ratio: float = 2.0,
    prenorm: bool = True,
    skip: bool = True,
    class_token: bool = True,
    dropout: Rate = 0.0,
) -> nn.Module:
    """A compact vision transformer with learned positions.

    Args:
        task: Gives the input shape and the classes.
        patch: Side of a square patch in pixels, a divisor of both sides of the picture; None takes the largest divisor
            that is at most a seventh of the shorter side.
        dim: Width of a token.
        depth: Number of blocks.
        heads: Attention heads, a divisor of ``dim``.
        mlp_ratio: Inner width of the perceptron over ``dim``.
        prenorm: Whether LayerNorm stands in front of attention and perceptron, as in Dosovitskiy et al. 2021,
            arXiv:2010.11929, or behind them.
        skip: Whether attention and perceptron have shortcuts. Without ``prenorm`` and ``skip`` the network is design
            (A) of Lu et al. 2022, arXiv:2112.14087, whose attention leaks its input in closed form.
        class_token: Whether a class token feeds the head; otherwise the mean of all tokens does.
        dropout: Rate behind the positions, on the attention weights and in the perceptron.

    Raises:
        BadSetting: ``patch`` does not divide the sides of the picture, or ``heads`` does not divide ``dim``.
    """
    height, width = task.shape[1:]
    side = patch or max(p for p in range(1, max(1, min(height, width) // 7) + 1) if height % p == width % p == 0)
    if height % side or width % side:
        raise BadSetting(f"patch is {side}, which does not divide a picture of {height}x{width} pixels.")
    if dim % heads:
        raise BadSetting(f"dim is {dim}, which {heads} heads do not divide; choose a multiple of {heads}.")
    blocks = [Block(dim, heads, mlp_ratio, prenorm, skip, dropout) for _ in range(depth)]
    return VisionTransformer(task, side, dim, class_token, dropout, blocks)
