"""The Sapiens networks and losses in plain torch, written from their description and slow on purpose.

The tests hold the package against these functions. Nothing here comes from the package: norms, attention, patches and
losses are spelled out, loops run over heads, samples and keypoints, and tensors bear the original's names.

`GOLDEN` lists the narrow networks whose outputs the original code computed (tests/golden/model_*.npz). Their weights
are not stored: the original's were drawn from a seeded generator, and `golden_state` draws them again.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]

# ImageNet constants on grey levels, RGB
MEAN = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
STD = torch.tensor([58.395, 57.12, 57.375])[:, None, None]


def normalise(levels: np.ndarray) -> Tensor:
    """Grey levels (..., 3, height, width), RGB -> network input."""
    return (torch.from_numpy(np.asarray(levels)).float() - MEAN) / STD


@dataclass(frozen=True)
class Net:
    """Dimensions of a network. `last_scale` and `last_bias` only shape the random weights of the goldens."""

    task: str
    width: int
    layers: int
    heads: int
    hidden: int
    outputs: int = 0
    deconv: tuple[int, ...] = ()
    conv: tuple[int, ...] = ()
    padding: int = 0
    image_size: tuple[int, int] = (128, 96)
    seed: int = 0
    last_scale: float = 1.0
    last_bias: float = 0.0
    decoder: dict[str, int] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // 16, self.image_size[1] // 16

    @property
    def has_token(self) -> bool:
        return self.task in ("pretraining", "encoder")

    @property
    def head_names(self) -> tuple[str, str]:
        """Prefix of the head and name of its last convolution."""
        return ("head", "final_layer") if self.task == "pose" else ("decode_head", "conv_seg")


GOLDEN = {
    "pretrain": Net(
        "pretraining",
        *(64, 2, 4, 256),
        image_size=(128, 128),
        seed=1235,
        last_scale=0.5,
        decoder=dict(width=32, layers=2, heads=4, hidden=128),
    ),
    "pose17": Net("pose", 56, 3, 4, 224, 17, (32, 24), (28, 20), 2, seed=1251, last_scale=0.6, last_bias=0.25),
    "pose133": Net("pose", 48, 2, 3, 192, 133, (24, 32), (20, 28), 2, seed=1367, last_scale=0.6, last_bias=0.25),
    "pose308": Net("pose", 64, 2, 4, 256, 308, (24, 24), (20, 28), 2, seed=1542, last_scale=0.6, last_bias=0.25),
    "seg": Net("segmentation", 64, 3, 4, 256, 28, (32, 24, 28), (20, 28, 24), seed=1734, last_scale=2.0),
    "depth": Net("depth", 48, 2, 3, 192, 1, (24, 20, 16, 12), (16, 12), seed=1834, last_scale=0.2, last_bias=0.55),
    "normal": Net("normal", 48, 2, 4, 192, 3, (32, 24, 20), (20, 16, 24), 2, seed=1934, last_scale=1.5),
}


# ------------------------------------------------------------------------------------------------------------- weights
def _block_shapes(prefix: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes = {"ln1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width), "ln2": (width,)}
    shapes |= {"ffn.layers.0.0": (hidden, width), "ffn.layers.1": (width, hidden)}
    return {
        f"{prefix}.{name}.{part}": shape if part == "weight" else shape[:1]
        for name, shape in shapes.items()
        for part in ("weight", "bias")
    }


def state_shapes(net: Net) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, in the order in which the original saves them."""
    width, positions = net.width, net.grid[0] * net.grid[1] + net.has_token
    shapes: dict[str, tuple[int, ...]] = {"backbone.cls_token": (1, 1, width)} if net.has_token else {}
    shapes["backbone.pos_embed"] = (1, positions, width)
    shapes["backbone.patch_embed.projection.weight"] = (width, 3, 16, 16)
    shapes["backbone.patch_embed.projection.bias"] = (width,)
    for i in range(net.layers):
        shapes |= _block_shapes(f"backbone.layers.{i}", width, net.hidden)
    shapes |= {"backbone.ln1.weight": (width,), "backbone.ln1.bias": (width,)}
    if net.decoder:
        wide = net.decoder["width"]
        shapes |= {"neck.mask_token": (1, 1, wide), "neck.decoder_pos_embed": (1, positions, wide)}
        shapes |= {"neck.decoder_embed.weight": (wide, width), "neck.decoder_embed.bias": (wide,)}
        for i in range(net.decoder["layers"]):
            shapes |= _block_shapes(f"neck.decoder_blocks.{i}", wide, net.decoder["hidden"])
        shapes |= {"neck.ln1.weight": (wide,), "neck.ln1.bias": (wide,)}
        shapes |= {"neck.decoder_pred.weight": (768, wide), "neck.decoder_pred.bias": (768,)}
    if net.outputs:
        head, last = net.head_names
        widths = [width, *net.deconv, *net.conv]
        hidden = {f"{head}.deconv_layers.{3 * i}.weight": (widths[i], out, 4, 4) for i, out in enumerate(net.deconv)}
        for i, out in enumerate(net.conv):
            hidden[f"{head}.conv_layers.{3 * i}.weight"] = (out, widths[len(net.deconv) + i], 1, 1)
            hidden[f"{head}.conv_layers.{3 * i}.bias"] = (out,)
        final = {f"{head}.{last}.weight": (net.outputs, widths[-1], 1, 1), f"{head}.{last}.bias": (net.outputs,)}
        shapes |= (hidden | final) if net.task == "pose" else (final | hidden)
    return shapes


def golden_state(net: Net) -> State:
    """Random tensors under the original's names, lively enough that every one of them shows in the output."""
    generator = torch.Generator().manual_seed(net.seed)
    state = {}
    for name, shape in state_shapes(net).items():
        values = torch.randn(shape, generator=generator)
        is_vector, kind = len(shape) == 1, name.rsplit(".", 1)[-1]
        if is_vector:
            values = values * 0.25 + 1.0 if kind == "weight" else values * 0.15
        elif "token" in kind:
            values = values * 0.4
        elif "pos_embed" in kind:
            values = values * 0.3
        else:
            fan_in = shape[0] * 4 if "deconv_layers" in name else math.prod(shape[1:])
            values = values * (1.1 / fan_in**0.5)
        if name.rsplit(".", 1)[0].endswith(("final_layer", "conv_seg", "decoder_pred")):
            values = values + net.last_bias if is_vector else values * net.last_scale
        if net.has_token and kind in ("pos_embed", "decoder_pos_embed"):
            values = sincos_table(net.grid, shape[-1], with_token=True)
        state[name] = values
    return state


def to_ours(state: State, net: Net) -> State:
    """The same tensors under the names of the package."""
    renamed = {}
    for name, tensor in state.items():
        prefix, rest = name.split(".", 1)
        part = rest.rsplit(".", 1)[-1]
        words = rest.split(".")
        inner = {"backbone": "model." if net.outputs or net.decoder else "", "neck": "decoder."}.get(prefix, "head.")
        if words[0] in ("layers", "decoder_blocks"):
            block = inner + ("encoder." if prefix == "backbone" else "") + f"layers.{words[1]}."
            what = ".".join(words[2:-1])
            if what == "attn.qkv":
                for letter, third in zip("qkv", tensor.chunk(3)):
                    renamed[f"{block}attention.{letter}_proj.{part}"] = third
                continue
            ours = {"ln1": "layernorm_before", "ln2": "layernorm_after", "attn.proj": "attention.o_proj"}
            ours |= {"ffn.layers.0.0": "mlp.fc1", "ffn.layers.1": "mlp.fc2"}
            renamed[f"{block}{ours[what]}.{part}"] = tensor
        elif words[0] in ("deconv_layers", "conv_layers"):
            renamed[f"{inner}{words[0]}.{int(words[1]) // 3}.convolution.{part}"] = tensor
        else:
            ours = {
                "cls_token": "embeddings.cls_token",
                "pos_embed": "embeddings.position_embeddings",
                "patch_embed.projection": "embeddings.patch_embeddings.projection",
                "ln1": "layernorm",
                "mask_token": "mask_token",
                "decoder_pos_embed": "position_embeddings",
                "decoder_embed": "embed",
                "decoder_pred": "predictor",
                "final_layer": "final_conv",
                "conv_seg": "final_conv",
            }
            renamed[inner + (ours[rest] if rest in ours else f"{ours[rest.rsplit('.', 1)[0]]}.{part}")] = tensor
    return renamed


# ------------------------------------------------------------------------------------------------------------- network
def sincos_table(grid: tuple[int, int], width: int, with_token: bool) -> Tensor:
    """Channel by channel: the first half encodes the row, the second the column; sines, then cosines."""
    quarter = width // 4
    table = torch.zeros(grid[0] * grid[1], width)
    for row in range(grid[0]):
        for column in range(grid[1]):
            for k in range(quarter):
                speed = 10000.0 ** (-k / quarter)
                at = table[row * grid[1] + column]
                at[k], at[quarter + k] = math.sin(row * speed), math.cos(row * speed)
                at[2 * quarter + k], at[3 * quarter + k] = math.sin(column * speed), math.cos(column * speed)
    return torch.cat([torch.zeros(int(with_token), width), table])[None]


def layer_norm(x: Tensor, state: State, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return centred / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def block(x: Tensor, state: State, name: str, heads: int) -> Tensor:
    """One transformer block on (B, N, C)."""
    width = x.shape[-1]
    depth = width // heads
    qkv = linear(layer_norm(x, state, f"{name}.ln1"), state, f"{name}.attn.qkv")
    outputs = []
    for head in range(heads):
        query, key, value = (qkv[..., third * width + head * depth :][..., :depth] for third in range(3))
        scores = torch.einsum("bid,bjd->bij", query, key) / depth**0.5
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        outputs.append(weights / weights.sum(-1, keepdim=True) @ value)
    x = x + linear(torch.cat(outputs, -1), state, f"{name}.attn.proj")
    hidden = linear(layer_norm(x, state, f"{name}.ln2"), state, f"{name}.ffn.layers.0.0")
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    return x + linear(hidden, state, f"{name}.ffn.layers.1")


def patch_tokens(pixels: Tensor, state: State, padding: int) -> Tensor:
    """(B, 3, H, W) -> (B, N, C): a window of 16 x 16 per patch, moved up and left by `padding`."""
    rows, columns = pixels.shape[2] // 16, pixels.shape[3] // 16
    padded = F.pad(pixels, (padding,) * 4)
    weight, bias = (state[f"backbone.patch_embed.projection.{part}"] for part in ("weight", "bias"))
    windows = [padded[:, :, 16 * r :, 16 * c :][:, :, :16, :16] for r in range(rows) for c in range(columns)]
    return torch.stack([window.flatten(1) @ weight.flatten(1).T + bias for window in windows], 1)


def position_table(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], has_token: bool) -> Tensor:
    if grid == new_grid:
        return table
    patches = table[:, int(has_token) :]
    maps = patches.transpose(1, 2).reshape(1, -1, *grid)
    maps = F.interpolate(maps, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:, : int(has_token)], maps.flatten(2).transpose(1, 2)], 1)


def encode(net: Net, state: State, pixels: Tensor, kept: Tensor | None = None) -> list[Tensor]:
    """Tokens before each block and after the last one, and last the normalised ones."""
    grid = pixels.shape[2] // 16, pixels.shape[3] // 16
    positions = position_table(state["backbone.pos_embed"], net.grid, grid, net.has_token)
    x = patch_tokens(pixels, state, net.padding) + positions[:, int(net.has_token) :]
    if kept is not None:
        x = torch.stack([sample[index] for sample, index in zip(x, kept)])
    if net.has_token:
        token = state["backbone.cls_token"] + positions[:, :1]
        x = torch.cat([token.repeat(len(x), 1, 1), x], 1)
    stages = [x]
    for i in range(net.layers):
        stages.append(block(stages[-1], state, f"backbone.layers.{i}", net.heads))
    return [*stages, layer_norm(stages[-1], state, "backbone.ln1")]


def feature_map(net: Net, tokens: Tensor, pixels: Tensor) -> Tensor:
    patches = tokens[:, int(net.has_token) :]
    rows, columns = pixels.shape[2] // 16, pixels.shape[3] // 16
    return patches.reshape(len(tokens), rows, columns, -1).permute(0, 3, 1, 2)


def head(net: Net, state: State, maps: Tensor) -> Tensor:
    prefix, last = net.head_names
    for kind, count in (("deconv", len(net.deconv)), ("conv", len(net.conv))):
        for i in range(count):
            name = f"{prefix}.{kind}_layers.{3 * i}"
            if kind == "deconv":
                maps = F.conv_transpose2d(maps, state[f"{name}.weight"], stride=2, padding=1)
            else:
                weight, bias = state[f"{name}.weight"][..., 0, 0], state[f"{name}.bias"]
                maps = torch.einsum("bihw,oi->bohw", maps, weight) + bias[:, None, None]
            centred = maps - maps.mean((2, 3), keepdim=True)
            maps = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
            maps = maps / (1 + (-maps).exp())
    weight, bias = state[f"{prefix}.{last}.weight"][..., 0, 0], state[f"{prefix}.{last}.bias"]
    return torch.einsum("bihw,oi->bohw", maps, weight) + bias[:, None, None]


def forward(net: Net, state: State, pixels: Tensor) -> Tensor:
    """Raw maps of a dense network."""
    return head(net, state, feature_map(net, encode(net, state, pixels)[-1], pixels))


def mask_patches(noise: Tensor, ratio: float = 0.75) -> tuple[Tensor, Tensor]:
    """Indices of the seen patches in the order of their noise, and the mask (1 = hidden)."""
    count = int(noise.shape[1] * (1 - ratio))
    kept = noise.argsort(1)[:, :count]
    mask = torch.ones_like(noise)
    for row, seen in zip(mask, kept):
        row[seen] = 0
    return kept, mask


def reconstruct(net: Net, state: State, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted patches (B, N, 768), mask (B, N) and the encoder's tokens of a masked autoencoder."""
    kept, mask = mask_patches(noise)
    latent = encode(net, state, pixels, kept)[-1]
    seen = linear(latent, state, "neck.decoder_embed")
    full = state["neck.mask_token"].repeat(len(pixels), noise.shape[1], 1)
    for sample, index, tokens in zip(full, kept, seen):
        sample[index] = tokens[1:]
    x = torch.cat([seen[:, :1], full], 1) + state["neck.decoder_pos_embed"]
    for i in range(net.decoder["layers"]):
        x = block(x, state, f"neck.decoder_blocks.{i}", net.decoder["heads"])
    x = linear(layer_norm(x, state, "neck.ln1"), state, "neck.decoder_pred")
    return x[:, 1:], mask, latent


def patches_of(pixels: Tensor, patch: int = 16) -> Tensor:
    """(B, 3, H, W) -> (B, N, patch * patch * 3), channel last inside a patch."""
    rows, columns = pixels.shape[2] // patch, pixels.shape[3] // patch
    windows = [
        pixels[:, :, patch * r : patch * (r + 1), patch * c : patch * (c + 1)].permute(0, 2, 3, 1).flatten(1)
        for r in range(rows)
        for c in range(columns)
    ]
    return torch.stack(windows, 1)


# -------------------------------------------------------------------------------------------------------------- losses
def heatmap_loss(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    total = 0.0
    for b in range(predicted.shape[0]):
        for k in range(predicted.shape[1]):
            total = total + weights[b, k] * (predicted[b, k] - target[b, k]).square().sum()
    return total / predicted.numel()


def hardest_heatmap_loss(predicted: Tensor, target: Tensor, weights: Tensor, top_k: int) -> Tensor:
    samples = []
    for b in range(predicted.shape[0]):
        errors = [
            (weights[b, k] * predicted[b, k] - weights[b, k] * target[b, k]).square().mean()
            for k in range(predicted.shape[1])
        ]
        samples.append(sum(sorted(errors, reverse=True)[:top_k]) / top_k)
    return sum(samples) / len(samples)


def segmentation_loss(logits: Tensor, labels: Tensor, class_weights: list[float], ignored: int = 255) -> Tensor:
    logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    logs = logits - logits.logsumexp(1, keepdim=True)
    total = 0.0
    for c, weight in enumerate(class_weights):
        total = total - weight * logs[:, c][(labels == c) & (labels != ignored)].sum()
    return total / labels.numel()


def depth_loss(predicted: Tensor, target: Tensor) -> Tensor:
    samples = []
    for p, t in zip(predicted, target):
        valid = t > 1e-6
        if not valid.any():
            samples.append(p.sum() * 0)
            continue
        d = t[valid].log() - p[valid].clamp(min=1e-6).log()
        samples.append((d.square().mean() - 0.5 * d.mean() ** 2).sqrt())
    return sum(samples) / len(samples)


def normal_losses(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and L1 terms."""
    predicted = F.interpolate(predicted, size=target.shape[2:], mode="bilinear", align_corners=False)
    valid = target[:, 0] > -100
    p, t = (x.permute(0, 2, 3, 1)[valid] for x in (predicted, target))  # (M, 3)
    lengths = [x.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-6) for x in (p, t)]
    cosine = (1 - (p / lengths[0] * t / lengths[1]).sum(-1)).mean()
    return cosine, (p - t).abs().sum() / len(p)


def reconstruction_loss(predicted: Tensor, patches: Tensor, mask: Tensor, normalised: bool) -> Tensor:
    total, count = 0.0, 0
    for p, t, hidden in zip(predicted.flatten(0, 1), patches.flatten(0, 1), mask.flatten()):
        if hidden:
            if normalised:
                t = (t - t.mean()) / (t.var(unbiased=True) + 1e-6).sqrt()
            total, count = total + (p - t).square().mean(), count + 1
    return total / count
