"""Pictures without people, to compare with: procedural places, textures and shapes, and crops of package photos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sapiens_hf.synthetic.background import draw_background
from sapiens_hf.synthetic.body import load_body
from sapiens_hf.synthetic.noise import image_noise
from sapiens_hf.synthetic.render import pose_people
from sapiens_hf.synthetic.scene import sample_camera, sample_light, sample_person

from .checkpoints import whole_file

# Photographs that scikit-image carries and that show nobody (its astronaut and camera man do).
PHOTOS = ("brick", "cell", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field", "ihc", "moon")
PHOTOS += ("motorcycle_left", "page", "retina", "rocket", "text")


def generic_image(seed: int, index: int, size: tuple[int, int]) -> np.ndarray:
    """A picture (height, width, 3) uint8 that follows from seed and index.

    Half are places as behind synthetic people, but empty; a quarter textures and shapes, a quarter photographs.

    Raises:
        ImportError: if the packages of the `synthetic` or `demo` extra are missing.
    """
    rng = np.random.default_rng([seed, index, 7])
    kind = rng.choice(["place", "texture", "photo"], p=[0.5, 0.25, 0.25])
    return {"place": _place, "texture": _texture, "photo": _photo}[str(kind)](rng, *size)


def _place(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    vertices, _ = pose_people([sample_person(rng)])[0]  # the camera looks at somebody who is not drawn
    _, camera = sample_camera(rng, vertices, load_body().head, height, width)
    light = sample_light(rng, camera)
    linear = draw_background(rng, camera, light, lambda points: np.zeros(len(points), dtype=bool))
    return (linear.clip(0, 1) ** (1 / 2.2) * 255).round().astype(np.uint8)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    noise = image_noise(rng, height, width, float(rng.uniform(2, 16)), int(rng.integers(2, 6)))
    share = (noise - noise.min()) / max(float(np.ptp(noise)), 1e-6)
    low, high = rng.uniform(0, 255, (2, 3))
    picture = Image.fromarray((low + share[..., None] * (high - low)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(0, 8)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        half_width, half_height = rng.uniform(0.05, 0.4, 2) * (width, height)
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
        color = tuple(int(level) for level in rng.integers(0, 256, 3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=color)
    return np.asarray(picture)


def _photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    files = photo_files()
    with Image.open(files[rng.integers(len(files))]) as file:
        picture = file.convert("RGB")
    largest = min(picture.width / width, picture.height / height)
    scale = largest * rng.uniform(0.25, 1.0)
    crop_width, crop_height = max(int(width * scale), 1), max(int(height * scale), 1)
    left = rng.integers(picture.width - crop_width + 1)
    top = rng.integers(picture.height - crop_height + 1)
    crop = picture.crop((left, top, left + crop_width, top + crop_height))
    return np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC))


def photo_files() -> list[Path]:
    """The photographs that are installed.

    Raises:
        ImportError: if `scikit-image` is missing.
    """
    try:
        import skimage
    except ImportError as error:
        raise ImportError("Generic pictures need `scikit-image`: pip install sapiens_hf[demo].") from error
    folder = Path(skimage.__file__).parent / "data"
    return sorted(path for path in folder.iterdir() if path.stem in PHOTOS and path.suffix in (".png", ".jpg"))


def write_generic(indices: Iterable[int], folder: Path, seed: int, size: tuple[int, int]) -> None:
    """Write the pictures of these numbers as PNG; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in indices:
        path = folder / f"{index:06d}.png"
        if not path.is_file():
            with whole_file(path) as partial:
                Image.fromarray(generic_image(seed, index, size)).save(partial, format="PNG")
