"""What people wear: clothes, shoes, hair and apparel as regions of the canonical body, their thickness and colours.

A region is a rule over canonical coordinates (metres; the average body at rest, pelvis near the origin, see body.py)
and body groups. The same rule paints pixels, names their part, and lets the cloth stand off from the skin, so the
three cannot disagree. Heights that matter: soles -0.82, ankles -0.75, knees -0.35, crotch -0.02, waist 0.15, shoulders
0.51, chin 0.585, mouth 0.631, eyes 0.697, forehead's hairline 0.757, crown 0.807.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import numpy as np

from .body import GROUPS, Body
from .noise import SpaceNoise, smoothstep

MATERIALS = ("skin", "hair", "upper", "lower", "sock", "shoe", "apparel", "eye", "cavity", "lip", "tongue")
_M = {name: index for index, name in enumerate(MATERIALS)}
_G = {name: index for index, name in enumerate(GROUPS)}
_PARTS = ("upper_arm", "lower_arm", "hand", "thigh", "shin", "foot")
_PART_OF_GROUP = np.array([_PARTS.index(part) if (part := name.partition("_")[2]) else -1 for name in GROUPS])
_SHOULDER, _ELBOW, _WRIST = (
    np.array(p) for p in ((0.162, -0.017, 0.467), (0.329, -0.021, 0.279), (0.446, -0.179, 0.164))
)
_EYE = np.array([0.029, -0.119, 0.697])
_MOUTH_Z = 0.6305
# Side view of the hairline: height of the lowest hair at each y, from the forehead round the ear to the nape.
_HAIRLINE_Y = (-0.14, -0.125, -0.105, -0.085, -0.07, -0.05, -0.03, 0.0, 0.05)
_HAIRLINE_Z = (0.762, 0.757, 0.738, 0.712, 0.675, 0.660, 0.635, 0.612, 0.605)

SKIN_TONES = np.array(  # sRGB, from very light to very dark
    [
        *((242, 214, 196), (234, 198, 173), (224, 182, 152), (211, 163, 129), (195, 143, 106)),
        *((172, 120, 85), (146, 98, 67), (117, 76, 51), (88, 57, 40), (66, 43, 32)),
    ]
)
HAIR_COLORS = np.array(
    [
        *((18, 15, 14), (34, 25, 21), (58, 40, 29), (86, 58, 38), (120, 84, 52), (168, 128, 82), (205, 172, 122)),
        *((128, 58, 30), (150, 150, 150), (215, 214, 210)),
    ]
)
EYE_COLORS = np.array([(60, 38, 24), (88, 60, 36), (70, 90, 110), (96, 128, 150), (84, 104, 70), (30, 22, 18)])


_LINEAR = (np.arange(256, dtype=np.float32) / 255) ** np.float32(2.2)


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB 0-255 to linear light 0-1 (the plain power 2.2 that `render` inverts)."""
    if isinstance(srgb, np.ndarray) and srgb.dtype == np.uint8:
        return np.take(_LINEAR, srgb)
    return (np.asarray(srgb, dtype=np.float32) / 255) ** np.float32(2.2)


@dataclass(frozen=True)
class Fabric:
    """Two or three colours (linear) and how they alternate over the body."""

    pattern: str
    colors: np.ndarray
    scale: float
    phase: float
    gloss: float
    rough: float

    def albedo(self, points: np.ndarray, noise: SpaceNoise) -> np.ndarray:
        """Colours (num, 3) at canonical points (num, 3)."""
        x, y, z = points.T
        wave = 2 * np.pi / self.scale
        if self.pattern == "stripes":
            amount = (np.sin(z * wave + self.phase) > 0.1).astype(np.float32)
        elif self.pattern == "bars":
            amount = (np.sin((x + 0.35 * y) * wave + self.phase) > 0.55).astype(np.float32)
        elif self.pattern == "checks":
            amount = 0.5 * (np.sin(x * wave) > 0) + 0.5 * (np.sin(z * wave + self.phase) > 0)
        elif self.pattern == "dots":
            row = np.floor(z / self.scale)
            u = (x + y) / self.scale + 0.5 * (row % 2)
            amount = (((u % 1 - 0.5) ** 2 + ((z / self.scale) % 1 - 0.5) ** 2) < 0.06).astype(np.float32)
        elif self.pattern == "blotches":
            amount = smoothstep(0.47, 0.53, noise(points, 0.55 / self.scale, 2))
        elif self.pattern == "block":
            amount = (z + 0.1 * np.abs(x) > 0.28 + 0.1 * np.sin(self.phase)).astype(np.float32)
        elif self.pattern == "print":
            radius = np.hypot(x, z - 0.36) + 0.05 * noise(points, 28.0)
            amount = ((radius < 0.085 + 0.02 * np.sin(self.phase)) & (y < -0.02)).astype(np.float32)
            amount = amount * (0.4 + 0.6 * (noise(points, 70.0) > 0.45))
        else:
            amount = np.zeros(len(points), dtype=np.float32)
        color = self.colors[0] + (self.colors[1] - self.colors[0]) * amount[:, None].astype(np.float32)
        if self.rough > 0:  # yarn, washed denim, felt
            weave = noise(points, (240.0, 240.0, 520.0)) * 0.5 + noise(points, 22.0, 2) * 0.5
            color = color * (1 + self.rough * (weave - 0.5))[:, None]
        return color


PATTERNS = ("plain", "stripes", "bars", "checks", "dots", "blotches", "block", "print")


def _color(rng: np.random.Generator, low: float = 0.12, high: float = 0.95) -> np.ndarray:
    """A cloth colour, linear: mostly muted, sometimes vivid, sometimes grey."""
    saturation = rng.choice(
        [rng.uniform(0, 0.12), rng.uniform(0.15, 0.5), rng.uniform(0.5, 0.95)], p=[0.4, 0.35, 0.25]
    )
    return to_linear(255 * np.array(colorsys.hsv_to_rgb(rng.random(), saturation, rng.uniform(low, high))))


def _fabric(rng: np.random.Generator, patterns: tuple[float, ...], denim: float = 0.0) -> Fabric:
    if rng.random() < denim:
        base = to_linear(np.array([58, 74, 104]) * rng.uniform(0.5, 1.5))
        return Fabric("plain", np.stack([base, base]), 1.0, 0.0, 0.02, 0.9)
    weights = np.array(patterns)
    pattern = PATTERNS[rng.choice(len(PATTERNS), p=weights / weights.sum())]
    scale = {
        "checks": rng.uniform(0.03, 0.14),
        "stripes": rng.uniform(0.02, 0.12),
        "blotches": rng.uniform(0.02, 0.08),
    }
    return Fabric(
        pattern,
        np.stack([_color(rng, 0.06), _color(rng)]),
        scale.get(pattern, rng.uniform(0.02, 0.07)),
        rng.uniform(0, 6.28),
        float(rng.choice([0.01, 0.04, 0.15], p=[0.6, 0.3, 0.1])),
        rng.uniform(0.1, 0.5),
    )


@dataclass(frozen=True)
class Outfit:
    """Everything painted on one person. Lengths in canonical metres, sleeves in arm segments (1 elbow, 2 wrist)."""

    skin: np.ndarray
    hair_color: np.ndarray
    eye_color: np.ndarray
    hair_style: str
    hair_length_m: float
    beard: float
    upper: Fabric | None
    sleeve: float
    hem_z: float
    neckline: str
    neck_depth_m: float
    upper_loose_m: float
    tucked: bool
    lower: Fabric
    lower_hem_z: float
    waist_z: float
    lower_loose_m: float
    sock: Fabric | None
    sock_z: float
    shoe: Fabric | None
    shoe_z: float
    apparel: Fabric
    worn: frozenset[str] = field(default_factory=frozenset)
    """Pieces of apparel: cap, beanie, headband, scarf, belt, watch, gloves, tie, straps."""


def sample_outfit(rng: np.random.Generator, masculine: float, age: float) -> Outfit:
    """Clothes for one person. `masculine` in [0, 1], `age` as anny's (1/3 a child, 1 old)."""
    position = rng.uniform(0, len(SKIN_TONES) - 1)
    tone = np.array([np.interp(position, range(len(SKIN_TONES)), channel) for channel in SKIN_TONES.T])
    skin = to_linear(tone * rng.uniform(0.94, 1.06, size=3))
    gray = age > 0.85 and rng.random() < 0.65
    hair = (
        HAIR_COLORS[rng.choice([8, 9])]
        if gray
        else HAIR_COLORS[min(int(abs(rng.normal(0, 2.6 if position < 4 else 1.2))), 7)]
    )
    hair = to_linear(hair * rng.uniform(0.85, 1.15))
    if rng.random() < 0.03:  # dyed
        hair = _color(rng)
    styles = ("bald", "buzz", "short", "volume", "afro", "bob", "long", "bun")
    weights = np.array([0.10, 0.22, 0.4, 0.12, 0.05, 0.02, 0.06, 0.03]) * masculine
    weights += np.array([0.01, 0.03, 0.14, 0.12, 0.08, 0.2, 0.3, 0.12]) * (1 - masculine)
    style = str(rng.choice(styles, p=weights / weights.sum()))
    length = {
        "bald": 0.0,
        "buzz": 0.003,
        "short": 0.012,
        "volume": 0.028,
        "afro": 0.06,
        "bob": 0.024,
        "long": 0.02,
        "bun": 0.009,
    }
    worn = {
        piece
        for piece, chance in (
            *(("scarf", 0.05), ("belt", 0.2), ("watch", 0.14), ("gloves", 0.03), ("tie", 0.05), ("straps", 0.07)),
            *(("cap", 0.07), ("beanie", 0.06), ("headband", 0.03)),
        )
        if rng.random() < chance
    }
    bare = rng.random() < 0.06 * masculine
    sleeve = float(
        rng.choice(
            [0.0, rng.uniform(0.3, 0.75), rng.uniform(0.8, 1.6), rng.uniform(1.85, 1.98)], p=[0.12, 0.4, 0.1, 0.38]
        )
    )
    hem = float(
        rng.choice([rng.uniform(0.19, 0.27), rng.uniform(0.03, 0.12), rng.uniform(-0.1, 0.03)], p=[0.07, 0.73, 0.2])
    )
    lower_hem = float(
        rng.choice(
            [rng.uniform(-0.14, -0.08), rng.uniform(-0.36, -0.2), rng.uniform(-0.6, -0.45), rng.uniform(-0.76, -0.69)],
            p=[0.1, 0.24, 0.08, 0.58],
        )
    )
    feet = rng.choice(["bare", "socks", "shoes", "boots"], p=[0.12, 0.07, 0.66, 0.15])
    sock = feet == "socks" or (feet == "shoes" and rng.random() < 0.75)
    return Outfit(
        skin=skin,
        hair_color=hair,
        eye_color=to_linear(EYE_COLORS[rng.choice(len(EYE_COLORS))]),
        hair_style=style,
        hair_length_m=length[style] * rng.uniform(0.75, 1.3),
        beard=float(rng.uniform(0.25, 1.0) if rng.random() < 0.45 * masculine * (age > 0.55) else 0.0),
        upper=None if bare else _fabric(rng, (4, 1.4, 0.7, 1, 0.5, 0.8, 0.8, 1.2), denim=0.06),
        sleeve=sleeve,
        hem_z=hem,
        neckline=str(rng.choice(["crew", "v", "scoop", "high", "strap"], p=[0.5, 0.17, 0.12, 0.13, 0.08])),
        neck_depth_m=float(rng.uniform(0.04, 0.12)),
        upper_loose_m=float(rng.choice([rng.uniform(0.004, 0.008), rng.uniform(0.008, 0.026)], p=[0.35, 0.65])),
        tucked=bool(rng.random() < 0.25),
        lower=_fabric(rng, (8, 0.3, 0.5, 0.6, 0.1, 0.5, 0, 0), denim=0.3),
        lower_hem_z=lower_hem,
        waist_z=float(rng.uniform(0.08, 0.15)),
        lower_loose_m=float(rng.choice([rng.uniform(0.003, 0.007), rng.uniform(0.007, 0.026)], p=[0.35, 0.65])),
        sock=_fabric(rng, (6, 2, 0, 0, 0.5, 0, 0, 0)) if sock else None,
        sock_z=float(rng.uniform(-0.69, -0.42)),
        shoe=_fabric(rng, (7, 0, 0, 0, 0, 0.5, 0, 0)) if feet in ("shoes", "boots") else None,
        shoe_z=float(rng.uniform(-0.765, -0.73) if feet == "shoes" else rng.uniform(-0.68, -0.45)),
        apparel=_fabric(rng, (6, 1, 0, 1, 0.3, 0.3, 0, 0)),
        worn=frozenset(worn),
    )


def arm_position(points: np.ndarray) -> np.ndarray:
    """Where points (num, 3) lie along the arm: 0 shoulder, 1 elbow, 2 wrist."""
    mirrored = np.abs(points[:, :1]) * np.array([[1, 0, 0]]) + points * np.array([[0, 1, 1]])
    upper, lower = _ELBOW - _SHOULDER, _WRIST - _ELBOW
    first = (mirrored - _SHOULDER) @ upper / (upper @ upper)
    second = (mirrored - _ELBOW) @ lower / (lower @ lower)
    return np.where(second > 0, 1 + second.clip(0, None), first.clip(None, 1))


def hair_height(points: np.ndarray) -> np.ndarray:
    """Metres above the hairline of a short haircut (negative: no hair)."""
    return points[:, 2] - np.interp(points[:, 1], _HAIRLINE_Y, _HAIRLINE_Z)


def materials(outfit: Outfit, points: np.ndarray, group: np.ndarray, ear: np.ndarray) -> np.ndarray:
    """Which material covers each canonical point.

    Args:
        points: (num, 3) canonical coordinates.
        group: (num,) index into `GROUPS`.
        ear: (num,) whether the point is on an ear.

    Returns:
        (num,) uint8, index into `MATERIALS`: skin, hair, upper, lower, sock, shoe or apparel.
    """
    x, y, z = points.T
    side = np.abs(x)
    result = np.zeros(len(points), dtype=np.uint8)
    torso, head, neck = (group == _G[name] for name in ("torso", "head", "neck"))
    part = np.take(_PART_OF_GROUP, group)
    upper_arm, lower_arm, hand, thigh, shin, foot = (part == number for number in range(6))
    arm, leg = upper_arm | lower_arm, thigh | shin
    along = np.zeros(len(points), dtype=np.float32)
    along[arm] = arm_position(points[arm])

    if outfit.sock is not None:
        result[(foot | shin) & (z < outfit.sock_z)] = _M["sock"]
    lower = (torso | leg) & (z < outfit.waist_z) & (z > outfit.lower_hem_z)
    result[lower | (foot & (z > outfit.lower_hem_z))] = _M["lower"]
    if outfit.shoe is not None:
        result[foot & (z < outfit.shoe_z)] = _M["shoe"]
        if outfit.shoe_z > -0.7:
            result[shin & (z < outfit.shoe_z)] = _M["shoe"]
    if outfit.upper is not None:
        covered = (torso | thigh) & (z > outfit.hem_z) | (arm & (along < outfit.sleeve))
        front = y < -0.03 + 0.2 * (z - 0.5)
        if outfit.neckline == "v":
            covered &= ~(front & (z > 0.52 - outfit.neck_depth_m + 1.6 * side) & torso)
        elif outfit.neckline == "scoop":
            covered &= ~((np.hypot(side, 0.8 * (z - 0.535)) < outfit.neck_depth_m) & torso)
        elif outfit.neckline == "high":
            covered |= neck & (z < 0.55 + 0.25 * outfit.neck_depth_m)
        elif outfit.neckline == "strap" and outfit.sleeve == 0:
            covered &= (z < 0.44) | ((side > 0.05) & (side < 0.1))
        if outfit.tucked:
            covered &= ~lower
        result[covered] = _M["upper"]
    result = _cover_head(outfit, points, head, neck, torso, ear, result)
    worn = {
        "belt": torso & (np.abs(z - outfit.waist_z) < 0.016),
        "watch": lower_arm & (x > 0) & (np.abs(along - 1.9) < 0.06),
        "gloves": hand | (lower_arm & (along > 1.93)),
        "scarf": (neck & (z < 0.57)) | (torso & (np.hypot(side, y - 0.0) < 0.10) & (z > 0.495)),
        "tie": torso & (side < 0.018 + 0.04 * (0.5 - z)) & (y < 0) & (z > 0.22),
        "straps": torso & (side > 0.075) & (side < 0.115) & ((z > 0.3) | (y > 0)) & (z > 0.2),
    }
    for piece, where in worn.items():
        if piece in outfit.worn and (piece != "tie" or outfit.upper is not None):
            result[where] = _M["apparel"]
    return result


def _cover_head(
    outfit: Outfit,
    points: np.ndarray,
    head: np.ndarray,
    neck: np.ndarray,
    torso: np.ndarray,
    ear: np.ndarray,
    result: np.ndarray,
) -> np.ndarray:
    x, y, z = points.T
    side = np.abs(x)
    if outfit.hair_style != "bald":
        hair = head & (hair_height(points) > 0) & ~ear
        if outfit.hair_style in ("bob", "long"):
            curtain = (head | neck) & (y > -0.066 - 0.02 * (z - 0.65)) & (z > 0.55) & (hair_height(points) > -0.16)
            hair |= curtain & ((y > -0.02) | (side > 0.045))
        if outfit.hair_style == "long":
            hair |= (neck | torso) & (y > -0.01) & (z > 0.40) & (side < 0.1)
        result[hair] = _M["hair"]
    brim = z + 0.10 * (y + 0.05)
    if "cap" in outfit.worn:
        result[head & (brim > 0.742)] = _M["apparel"]
    if "beanie" in outfit.worn:
        result[head & (z + 0.32 * (y + 0.05) > 0.716)] = _M["apparel"]
    if "headband" in outfit.worn:
        result[head & (np.abs(brim - 0.748) < 0.013)] = _M["apparel"]
    return result


def softened_parts(outfit: Outfit) -> dict[str, int]:
    """Parts of the body whose details do not show through what covers them, and how much they are smoothed."""
    parts = {}
    if outfit.shoe is not None:
        parts["toes"] = 14
    elif outfit.sock is not None:
        parts["toes"] = 5
    if outfit.upper is not None:
        parts["torso"] = 2 + round(500 * outfit.upper_loose_m)
    if outfit.hair_style in ("bob", "long"):
        parts["ears"] = 16
    return parts


def thickness(outfit: Outfit, body: Body, material: np.ndarray, noise: SpaceNoise) -> np.ndarray:
    """How far each vertex stands off from the skin, metres (num_vertices,).

    Args:
        material: (num_vertices,) from `materials` at the canonical vertices.
    """
    points = body.canonical
    offset = np.zeros(len(points), dtype=np.float32)
    cloth = {
        "upper": outfit.upper_loose_m,
        "lower": outfit.lower_loose_m,
        "sock": 0.002,
        "shoe": 0.011,
        "apparel": 0.006,
    }
    for name, loose in cloth.items():
        here = material == _M[name]
        offset[here] = loose
        if name in ("upper", "lower"):
            offset[here] += 1.3 * loose * (noise(points[here], 16.0, 2) - 0.5)
    # Cloth hangs free below what carries it: wider at the waist, at the sleeve's end and at the trouser leg.
    shirt = material == _M["upper"]
    offset[shirt] *= 1 + 0.8 * smoothstep(0.4, 0.1, points[shirt, 2])
    legs = (material == _M["lower"]) & (points[:, 2] < -0.1)
    offset[legs] *= 1 + 0.9 * smoothstep(-0.1, -0.7, points[legs, 2])
    hair = np.flatnonzero(material == _M["hair"])
    points = points[hair]
    full = smoothstep(0.0, 0.035, hair_height(points))
    if outfit.hair_style in ("bob", "long"):
        full = np.maximum(full, 0.9)
    curls = 1 + 0.5 * (noise(points, 60.0, 2) - 0.5)
    offset[hair] = outfit.hair_length_m * full * curls
    if outfit.hair_style == "bun":
        bun = np.exp(-(((points - np.array([0, 0.075, 0.745], dtype=np.float32)) / 0.03) ** 2).sum(1))
        offset[hair] += 0.05 * bun
    if {"cap", "beanie"} & outfit.worn:
        on_head = (material == _M["apparel"]) & (body.canonical[:, 2] > 0.68)
        offset[on_head] = 0.012
    if "scarf" in outfit.worn:
        around = (body.canonical[:, 2] > 0.45) & (body.canonical[:, 2] < 0.6)
        offset[around & (material == _M["apparel"])] = 0.022
    return offset


def face_paint(outfit: Outfit, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of points (num, 3) of the head is eyebrow and how much is beard, both (num,) in [0, 1]."""
    x, y, z = points.T
    side = np.abs(x)
    arch = 0.7155 + 0.004 * np.sin((side - 0.012) / 0.036 * 2.6)
    brow = np.exp(-(((z - arch) / 0.0035) ** 2)) * smoothstep(0.008, 0.014, side) * smoothstep(0.056, 0.044, side)
    brow = brow * smoothstep(-0.06, -0.1, y)
    if outfit.beard == 0:
        return brow, np.zeros_like(brow)
    jaw = smoothstep(-0.03, -0.05, y) * smoothstep(0.655, 0.635, z + 0.25 * (0.05 - side).clip(0, None) - 0.012)
    around_lips = np.exp(-(((z - 0.631) / 0.008) ** 2) - (side / 0.022) ** 2)
    return brow, (jaw - around_lips).clip(0, 1)


def skin_albedo(outfit: Outfit, points: np.ndarray, head: np.ndarray, noise: SpaceNoise) -> np.ndarray:
    """Skin (num, 3): blotches, red cheeks and nose, painted eyebrows, beard."""
    color = outfit.skin * (1 + 0.16 * (noise(points, 14.0, 3) - 0.5))[:, None]
    x, y, z = points[head].T
    side = np.abs(x)
    cheeks = np.exp(-(((side - 0.038) / 0.018) ** 2) - ((z - 0.66) / 0.016) ** 2)
    red = (cheeks + np.exp(-((side / 0.012) ** 2) - ((z - 0.66) / 0.01) ** 2)) * smoothstep(-0.06, -0.1, y)
    face = color[head] * (1 + (0.35 * red)[:, None] * np.array([0.3, -0.35, -0.3], dtype=np.float32))
    brow, beard = face_paint(outfit, points[head])
    stubble = outfit.beard * beard * (0.55 + 0.45 * noise(points[head], 300.0))
    amount = (0.85 * np.maximum(brow, stubble))[:, None]
    color[head] = face * (1 - amount) + 0.8 * outfit.hair_color * amount
    return color


def on_nose(points: np.ndarray) -> np.ndarray:
    """Whether points (num, 3) of the head are on the nose: between its root, its wings and its base."""
    x, y, z = points.T
    half_width = np.interp(z, (0.650, 0.655, 0.668, 0.700), (0.010, 0.0185, 0.0165, 0.007), left=0.0, right=0.0)
    return (np.abs(x) < half_width) & (y < -0.115)


def hair_albedo(outfit: Outfit, points: np.ndarray, noise: SpaceNoise) -> np.ndarray:
    """Hair (num, 3): strands that run down from the crown."""
    around = np.arctan2(points[:, 0], points[:, 1] + 0.03)
    radius = np.hypot(points[:, 0], points[:, 1] + 0.03)
    strand = np.stack([np.cos(around), np.sin(around), 0.25 * (points[:, 2] + radius)], axis=1)
    curl = 22.0 if outfit.hair_style == "afro" else 60.0
    light = noise(strand.astype(np.float32), curl, 2) * 0.7 + noise(points, 140.0) * 0.3
    return outfit.hair_color * (0.45 + 1.1 * light)[:, None]


def eye_albedo(outfit: Outfit, points: np.ndarray) -> np.ndarray:
    """Eyes (num, 3): white, iris with a dark rim, pupil."""
    radius = np.hypot(np.abs(points[:, 0]) - _EYE[0] - 0.0006, points[:, 2] - _EYE[2])
    radius = np.where(points[:, 1] < _EYE[1], radius, 1.0)
    white = np.array([0.72, 0.69, 0.66], dtype=np.float32)
    iris = outfit.eye_color * (0.6 + 90 * (0.0062 - radius).clip(0, 0.006))[:, None]
    color = np.where((radius < 0.0062)[:, None], iris, white)
    return np.where((radius < 0.0026)[:, None], np.float32(0.01), color)


def upper_lip(points: np.ndarray) -> np.ndarray:
    """Whether points (num, 3) on the lips belong to the upper one: above the line between the mouth's corners."""
    return points[:, 2] > _MOUTH_Z
