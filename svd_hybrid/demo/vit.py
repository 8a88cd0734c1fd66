"""A small vision transformer in plain torch, with tensor names as in Hugging Face checkpoints.

What goes in: images (n, 1, size, size) float32 in [0, 1]. What comes out: one feature vector per
image, (n, width) float32. The encoder holds the tensor kinds merging has to deal with: 2-D weights,
biases, LayerNorms, a 4-D patch convolution, a class token and a position embedding. There is no
classifier here: the heads are frozen and live beside the family (`svd_hybrid.demo.train`).

Promised: building a model draws no random number. Left to others: training and data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)
from torch import Generator, Tensor, nn

MODEL_TYPE: Final = "svdh-demo-vit"


@dataclass(frozen=True, slots=True)
class ViTConfig:
    """Everything that is needed to build the encoder.

    Attributes:
        image_size: pixels per side.
        patch_size: pixels per side of a patch; divides `image_size`.
        channels: image channels.
        width: features per token; a multiple of `heads`.
        layers: transformer blocks.
        heads: attention heads.
        mlp_ratio: hidden features of a block's MLP over `width`.
    """

    image_size: int = 16
    patch_size: int = 4
    channels: int = 1
    width: int = 96
    layers: int = 4
    heads: int = 4
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"ViTConfig.{name} is {value!r}; pass a whole number >= 1")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"ViTConfig.patch_size is {self.patch_size}, which does not divide "
                f"image_size {self.image_size}; pass a divisor"
            )
        if self.width % self.heads:
            raise ValueError(
                f"ViTConfig.heads is {self.heads}, which does not divide "
                f"width {self.width}; pass a divisor"
            )

    def as_json(self) -> dict[str, Any]:
        """The contents of a checkpoint's config.json."""
        return {"model_type": MODEL_TYPE, **asdict(self)}

    @classmethod
    def from_json(cls, document: Any, *, where: str = "config.json") -> ViTConfig:
        """The config a config.json describes.

        Args:
            document: the parsed file, of any JSON type.
            where: its path, for the error message.

        Raises:
            ValueError: another model type, an unknown or missing field, or a bad value.
        """
        found = document.get("model_type") if isinstance(document, dict) else None
        if found != MODEL_TYPE:
            raise ValueError(
                f"{where}: model_type is {found!r}, not {MODEL_TYPE!r}; "
                "pass a family written by `svdh demo`"
            )
        known = {field.name for field in fields(cls)}
        given = {key: value for key, value in document.items() if key != "model_type"}
        if given.keys() != known:
            odd = sorted(given.keys() ^ known)
            raise ValueError(f"{where}: missing or unknown fields {odd}; write the family again")
        return cls(**given)


class Attention(nn.Module):
    """Multi-head attention of some tokens to all of them.

    The keys have no bias: it would add the same amount to every score of a query, which softmax
    cancels, so it would learn nothing but rounding noise.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """What the queries (n, q, width) gather from the tokens (n, t, width): (n, q, width)."""

        def split(y: Tensor) -> Tensor:
            return y.view(len(y), y.shape[1], self.heads, -1).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.q_proj(queries)), split(self.k_proj(tokens)), split(self.v_proj(tokens))
        )
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two linear maps with a (tanh) GELU between: (n, tokens, width) to the same shape."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_ratio * config.width)
        self.fc2 = nn.Linear(config.mlp_ratio * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """The transformed tokens."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.layernorm_after = nn.LayerNorm(config.width)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, keep: int) -> Tensor:
        """The first `keep` of the block's output tokens: (n, t, width) to (n, keep, width)."""
        normed = self.layernorm_before(x)
        x = x[:, :keep] + self.attention(normed[:, :keep], normed)
        out: Tensor = x + self.mlp(self.layernorm_after(x))
        return out


class Embeddings(nn.Module):
    """Patches, a class token in front, and positions: images to (n, tokens, width)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.position_embeddings = nn.Parameter(torch.empty(1, tokens, config.width))
        self.patch_embedding = nn.Conv2d(
            config.channels, config.width, config.patch_size, stride=config.patch_size
        )

    def forward(self, images: Tensor) -> Tensor:
        """The tokens of the images."""
        patches = self.patch_embedding(2.0 * images - 1.0).flatten(2).transpose(1, 2)
        front = self.cls_token.expand(len(images), -1, -1)
        return torch.cat([front, patches], dim=1) + self.position_embeddings


class Encoder(nn.Module):
    """The blocks, one after another, under the name `layer`."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Block(config) for _ in range(config.layers)])

    def forward(self, x: Tensor) -> Tensor:
        """The class token (n, width) after the last block, which computes no other."""
        last = len(self.layer) - 1
        for index, block in enumerate(self.layer):
            x = block(x, 1 if index == last else x.shape[1])
        return x[:, 0]


class ViT(nn.Module):
    """Images (n, channels, size, size) in [0, 1] to features (n, width)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.width)

    def forward(self, images: Tensor) -> Tensor:
        """The class token's feature after the last LayerNorm."""
        out: Tensor = self.layernorm(self.encoder(self.embeddings(images)))
        return out


def expected_shapes(config: ViTConfig) -> dict[str, torch.Size]:
    """Tensor name to shape of the encoder's state dict, in its order."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in ViT(config).state_dict().items()}


def initial_state(config: ViTConfig, rng: Generator) -> dict[str, Tensor]:
    """A fresh float32 state dict: unit LayerNorms, zero biases, the rest normal.

    Weights have standard deviation 1/sqrt(inputs), the class token and the positions 0.02.
    """
    state: dict[str, Tensor] = {}
    for name, shape in expected_shapes(config).items():
        if name.endswith("bias"):
            state[name] = torch.zeros(shape)
        elif "layernorm" in name:
            state[name] = torch.ones(shape)
        else:
            deviation = shape[1:].numel() ** -0.5 if name.endswith("weight") else 0.02
            state[name] = torch.randn(shape, generator=rng) * deviation
    return state


def build(config: ViTConfig, state: Mapping[str, Tensor], *, where: str = "state dict") -> ViT:
    """The encoder with a float32 copy of the given weights.

    Args:
        config: the architecture.
        state: tensor name to weights, any float dtype.
        where: where the weights come from, for the error message.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    expected = expected_shapes(config)
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unknown {name}" for name in state if name not in expected]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        raise ValueError(
            f"{where}: these weights do not fit the demo model: {'; '.join(problems)}; "
            "pass the encoder's own tensors"
        )
    with torch.device("meta"):
        model = ViT(config)
    copies = {name: state[name].detach().float().cpu().clone() for name in expected}
    model.load_state_dict(copies, assign=True)
    return model
