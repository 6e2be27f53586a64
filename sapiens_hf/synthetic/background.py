"""What stands behind the people: a room, a street or field, a studio, or out-of-focus shapes. All procedural."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .camera import Camera, lengths
from .noise import image_noise, smoothstep
from .scene import Light
from .wardrobe import to_linear

MAX_SIDE_PX = 384  # larger backgrounds are computed at this size and enlarged: they are out of focus anyway
KINDS = {"room": 0.4, "outdoors": 0.3, "studio": 0.1, "shapes": 0.2}
Blocked = Callable[[np.ndarray], np.ndarray]


def draw_background(rng: np.random.Generator, camera: Camera, light: Light, blocked: Blocked) -> np.ndarray:
    """Linear colours (height, width, 3) float32.

    Args:
        blocked: tells for world points (num, 3) whether a person keeps the main lamp's light from them.
    """
    shrink = min(1.0, MAX_SIDE_PX / max(camera.height, camera.width))
    height, width = round(camera.height * shrink), round(camera.width * shrink)
    small = camera.crop((camera.width - 1) / 2, (camera.height - 1) / 2, camera.width, height, width)
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    draw = {"room": _room, "outdoors": _outdoors, "studio": _studio, "shapes": _shapes}[kind]
    picture = draw(rng, small, light, blocked).astype(np.float32)
    blur = (
        rng.choice([0.0, rng.uniform(0.3, 1.2), rng.uniform(1.2, 4.5)], p=[0.35, 0.4, 0.25]) * max(height, width) / 256
    )
    picture = _resized(_blurred(picture, blur), camera.height, camera.width)
    return picture.clip(0, None)


def _blurred(picture: np.ndarray, radius_px: float) -> np.ndarray:
    """Gaussian blur; through 8-bit images in gamma space, which Pillow blurs fast."""
    if radius_px <= 0:
        return picture
    codes = Image.fromarray((picture.clip(0, 1) ** (1 / 2.2) * 255).astype(np.uint8))
    return to_linear(np.asarray(codes.filter(ImageFilter.GaussianBlur(float(radius_px)))))


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    if picture.shape[:2] == (height, width):
        return picture
    size, how = (width, height), Image.Resampling.BILINEAR
    channels = [Image.fromarray(np.ascontiguousarray(picture[..., c], dtype=np.float32)) for c in range(3)]
    return np.stack([np.asarray(channel.resize(size, how)) for channel in channels], axis=-1)


def _paint(rng: np.random.Generator, low: float = 60, high: float = 235, spread: float = 22) -> np.ndarray:
    """A muted paint, linear."""
    return to_linear((rng.uniform(low, high) + rng.normal(0, spread, size=3)).clip(8, 250))


@cache
def _noise_bank() -> np.ndarray:
    """Noise that surfaces share, (num, side, side); the same in every process."""
    rng = np.random.default_rng(0)
    return np.stack([image_noise(rng, 256, 256, cells, 6) for cells in (3, 4, 5, 6, 8, 10, 12, 16)])


def _texture(rng: np.random.Generator, kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A surface's pattern at surface coordinates in metres: (num, 3) linear."""
    noise = _noise_bank()[rng.integers(len(_noise_bank()))]
    size = len(noise)
    period = rng.uniform(1.5, 4)

    def look_up(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return noise[(y * (size / period)).astype(np.int32) % size, (x * (size / period)).astype(np.int32) % size]

    first, second = _paint(rng), _paint(rng)
    grain = look_up(u, v)
    if kind == "planks":
        board = rng.uniform(0.08, 0.22)
        row = np.floor(v / board)
        shade = 0.75 + 0.5 * (np.sin(row * 12.9898) * 43758.5453 % 1)
        gap = (v / board % 1 < 0.05) * 0.5
        return first * (shade * (0.75 + 0.5 * look_up(0.15 * u, 3 * v)) * (1 - gap))[:, None]
    if kind == "tiles":
        side = rng.uniform(0.2, 0.8)
        odd = (np.floor(u / side) + np.floor(v / side)) % 2
        gap = (np.minimum(u / side % 1, v / side % 1) < 0.03) * 0.4
        mixed = first + (second - first) * odd[:, None] * rng.choice([0.1, 1.0])
        return mixed * ((0.8 + 0.4 * grain) * (1 - gap))[:, None]
    if kind == "bricks":
        h, w = 0.09, 0.24
        row = np.floor(v / h)
        shift = u / w + 0.5 * (row % 2)
        gap = (v / h % 1 < 0.12) | (shift % 1 < 0.06)
        shade = 0.7 + 0.6 * (np.sin((row * 7 + np.floor(shift)) * 78.233) * 43758.5453 % 1)
        return np.where(gap[:, None], second, first * shade[:, None]) * (0.8 + 0.4 * grain)[:, None]
    if kind == "stripes":
        band = (np.sin(u * rng.uniform(8, 40)) > 0).astype(np.float32)
        return (first + (second - first) * 0.5 * band[:, None]) * (0.85 + 0.3 * grain)[:, None]
    return (first + (second - first) * smoothstep(0.3, 0.7, grain)[:, None] * rng.uniform(0.1, 0.9)) * (
        0.8 + 0.4 * grain
    )[:, None]


def _lit(color: np.ndarray, normal: np.ndarray, light: Light, shade: np.ndarray | float = 1.0) -> np.ndarray:
    facing = max(float(normal @ light.to_key), 0.0)
    ambient = light.ground + (light.sky - light.ground) * float(0.5 + 0.5 * normal[2])
    return color * (ambient + light.key * facing * np.asarray(shade)[..., None])


def _lit_ground(color: np.ndarray, points: np.ndarray, light: Light, blocked: Blocked) -> np.ndarray:
    return _lit(color, np.array([0.0, 0, 1]), light, 1.0 - blocked(points))


def _directions(camera: Camera) -> np.ndarray:
    y, x = np.mgrid[: camera.height, : camera.width]
    return (camera.rays(np.stack([x, y], axis=-1).reshape(-1, 2)) @ camera.rotation).astype(np.float32)


def _room(rng: np.random.Generator, camera: Camera, light: Light, blocked: Blocked) -> np.ndarray:
    """Floor, walls with things on them, ceiling; the people are well inside."""
    directions = _directions(camera)
    high = max(camera.position[2] + 0.4, rng.uniform(2.3, 3.6))
    near = np.minimum(camera.position[:2] - 1.0, -rng.uniform(2.0, 4.5, size=2))
    far = np.maximum(camera.position[:2] + 1.0, rng.uniform(2.2, 6.0, size=2))
    low, top = np.array([*near, 0.0]), np.array([*far, high])
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(directions > 0, (top - camera.position) / directions, (low - camera.position) / directions)
    distance[~np.isfinite(distance)] = np.inf
    axis = distance.argmin(1)
    points = camera.position.astype(np.float32) + directions * distance.min(1)[:, None]
    color = np.zeros((len(points), 3), dtype=np.float32)
    wall = str(rng.choice(["plaster", "bricks", "stripes", "tiles"], p=[0.6, 0.15, 0.15, 0.1]))
    for index, (u, v) in enumerate(((1, 2), (0, 2), (0, 1))):
        for positive in (False, True):
            here = (axis == index) & ((directions[:, index] > 0) == positive)
            if not here.any():
                continue
            normal = np.zeros(3)
            normal[index] = -1.0 if positive else 1.0
            floor = index == 2 and not positive
            kind = str(rng.choice(["planks", "tiles", "plaster"])) if floor else ("plaster" if index == 2 else wall)
            paint = _texture(rng, kind, points[here, u], points[here, v])
            if index != 2:
                paint = _hang_things(rng, paint, points[here, u], points[here, v])
            color[here] = _lit_ground(paint, points[here], light, blocked) if floor else _lit(paint, normal, light)
    return color.reshape(camera.height, camera.width, 3)


def _hang_things(rng: np.random.Generator, paint: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Pictures, windows, doors and shelves: rectangles on a wall."""
    for _ in range(rng.integers(0, 9)):
        x, y = rng.uniform(u.min() - 0.5, u.max() + 0.5), rng.uniform(0.2, 2.4)
        w, h = rng.uniform(0.15, 1.4), rng.uniform(0.12, 1.3)
        inside = (np.abs(u - x) < w / 2) & (np.abs(v - y) < h / 2)
        frame = inside & ((np.abs(u - x) > w / 2 - 0.04) | (np.abs(v - y) > h / 2 - 0.04))
        if not inside.any():
            continue
        paint[inside] = _texture(
            rng, str(rng.choice(["plaster", "stripes", "tiles", "planks"])), 3 * u[inside], 3 * v[inside]
        )
        paint[inside] *= rng.choice([0.5, 1.0, 2.2], p=[0.35, 0.5, 0.15])
        paint[frame] = _paint(rng)
    return paint


def _outdoors(rng: np.random.Generator, camera: Camera, light: Light, blocked: Blocked) -> np.ndarray:
    """Ground to the horizon, a skyline of houses or trees, sky with clouds."""
    directions = _directions(camera)
    directions = directions / lengths(directions)
    azimuth, elevation = np.arctan2(directions[:, 0], directions[:, 1]), np.arcsin(directions[:, 2].clip(-1, 1))
    height, width = camera.height, camera.width
    sky_high, sky_low = to_linear([70, 120, 190]), to_linear([205, 215, 225])
    gray = rng.random()
    sky_high, sky_low = (gray * color.mean() + (1 - gray) * color for color in (sky_high, sky_low))
    blend = smoothstep(0.0, 0.6, elevation)[:, None]
    clouds = smoothstep(0.45, 0.75, image_noise(rng, height, width, rng.uniform(2, 7), 4)).reshape(-1, 1)
    color = (sky_low + (sky_high - sky_low) * blend) * (1 - 0.6 * clouds) + 0.6 * clouds
    color = color * rng.uniform(0.8, 1.5)
    for layer in range(rng.integers(1, 3)):
        count = 256
        profile = np.repeat(rng.uniform(0.02, 0.4 - 0.08 * layer, size=count), rng.integers(3, 18))
        if rng.random() < 0.5:  # trees: rough tops
            profile = image_noise(rng, 2, 2048, rng.uniform(20, 90), 5)[0] * rng.uniform(0.1, 0.5)
        top = profile[((azimuth / (2 * np.pi) + 0.5) * 2048).astype(np.int64) % len(profile)]
        below = elevation < top
        block = ((azimuth / (2 * np.pi) + 0.5) * 2048 // rng.integers(6, 24)).astype(np.int64) % 64
        shades = np.take(
            to_linear((rng.uniform(40, 190, (64, 1)) + rng.normal(0, 20, (64, 3))).clip(8, 250)), block[below], axis=0
        )
        cells = (np.sin(azimuth[below] * rng.uniform(150, 400)) > 0.2) & (
            np.sin(elevation[below] * rng.uniform(120, 300)) > 0
        )
        rough = image_noise(rng, height, width, rng.uniform(20, 70), 3).reshape(-1)[below]
        color[below] = shades * (0.5 + rough)[:, None] * (1 - 0.4 * cells * (rng.random() < 0.6))[:, None] * light.sky
    ground = directions[:, 2] < -1e-3
    distance = np.float32(camera.position[2]) / -directions[ground, 2]
    points = camera.position.astype(np.float32) + directions[ground] * distance[:, None]
    kind = str(rng.choice(["plaster", "tiles", "planks"], p=[0.6, 0.3, 0.1]))
    paint = _texture(rng, kind, points[:, 0], points[:, 1])
    if rng.random() < 0.35:  # grass
        paint = paint.mean(1, keepdims=True) * to_linear([120, 150, 80]) * 2.6
    haze = np.exp(-distance / 30)[:, None]
    color[ground] = _lit_ground(paint, points, light, blocked) * haze + (1 - haze) * sky_low * light.sky
    return color.reshape(height, width, 3)


def _studio(rng: np.random.Generator, camera: Camera, light: Light, blocked: Blocked) -> np.ndarray:
    """A seamless backdrop that the ground runs into."""
    directions = _directions(camera)
    paint = _paint(rng, 20, 245, 20)
    y, x = np.mgrid[: camera.height, : camera.width] / max(camera.height, camera.width)
    center = rng.uniform(0.2, 0.8, size=2)
    fall = np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / rng.uniform(0.15, 1.5)).reshape(-1, 1)
    color = paint * (0.45 + 0.75 * fall) * (light.sky + 0.3 * light.key)
    ground = directions[:, 2] < -1e-3
    distance = np.float32(camera.position[2]) / -directions[ground, 2]
    points = camera.position.astype(np.float32) + directions[ground] * distance[:, None]
    color[ground] *= (1 - 0.55 * blocked(points) * (distance < 25))[:, None]
    return color.reshape(camera.height, camera.width, 3)


def _shapes(rng: np.random.Generator, camera: Camera, light: Light, blocked: Blocked) -> np.ndarray:
    """Out-of-focus patches of colour over octaves of noise; no ground, so nothing is shaded by people."""
    height, width = camera.height, camera.width
    canvas = Image.new("RGB", (width, height), tuple(rng.integers(20, 235, size=3).tolist()))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(4, 40)):
        x, y = rng.uniform(-0.1, 1.1) * width, rng.uniform(-0.1, 1.1) * height
        w, h = rng.uniform(0.02, 0.6, size=2) * max(height, width) * rng.choice([0.3, 1.0])
        color = tuple(rng.integers(0, 256, size=3).tolist())
        corners = [
            (x + w * np.cos(a), y + h * np.sin(a)) for a in np.sort(rng.uniform(0, 6.28, size=rng.integers(3, 7)))
        ]
        shape = rng.integers(0, 3)
        if shape == 0:
            draw.ellipse((x - w / 2, y - h / 2, x + w / 2, y + h / 2), fill=color)
        elif shape == 1:
            draw.rectangle((x - w / 2, y - h / 2, x + w / 2, y + h / 2), fill=color)
        else:
            draw.polygon(corners, fill=color)
    picture = to_linear(np.asarray(canvas))
    tint = np.stack([image_noise(rng, height, width, rng.uniform(2, 20), 6) for _ in range(3)], axis=-1)
    amount = rng.uniform(0.2, 1.2)
    return picture * (1 - amount / 2 + amount * tint) * light.sky * 1.6
