"""Pretraining's images: damaged files, photographs of phones, rows without an image, bad ones in a row, signals."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from training.curate_humans import upright
from training.pretrain_data import BadImageError, CropOptions, crop_image, open_image

OPTIONS = CropOptions((64, 48))


def picture(index: int, height: int = 90, width: int = 76) -> Image.Image:
    rng = np.random.default_rng(index)
    return Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).resize((width, height), 3)


def encoded(kind: str, frames: int = 1, **options) -> bytes:
    file = io.BytesIO()
    first, *others = [picture(index) for index in range(frames)]
    first.save(file, kind, **options, **({"save_all": True, "append_images": others} if others else {}))
    return file.getvalue()


def used(content: bytes) -> np.ndarray:
    return crop_image(open_image(content, "x", OPTIONS), "x", OPTIONS, np.random.default_rng(0))


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP", "MPO"])
def test_files_cut_anywhere_are_bad_images(kind, frames):
    """What Pillow makes of them is a BadImageError, whatever it raises itself, in training and in curation."""
    content = encoded(kind, frames)
    reasons = set()
    for cut in np.linspace(1, len(content) - 1, 60).astype(int).tolist():
        for use in (used, lambda cut_off: upright(cut_off, "x", OPTIONS)):
            try:
                use(content[:cut])
            except BadImageError as error:
                reasons.add(error.reason)
    assert "unreadable" in reasons and reasons <= {"unreadable", "animated"}


@pytest.mark.parametrize("error", [IndexError, TypeError, SyntaxError, OSError, EOFError])
def test_errors_of_the_count_of_frames(error, monkeypatch):
    """Of a damaged GIF the frames cannot be counted: the file is opened, and the error comes later."""
    from PIL.GifImagePlugin import GifImageFile

    def broken(self):
        raise error("at byte 7")

    monkeypatch.setattr(GifImageFile, "n_frames", property(broken))
    with pytest.raises(BadImageError, match=rf"x: unreadable \({error.__name__}: at byte 7"):
        used(encoded("GIF"))


def test_the_first_frame_of_a_phones_photograph_is_used():
    """MPO: a JPEG with further JPEGs behind it, as phones write for depth, gain maps and bursts."""
    content, plain = encoded("MPO", 2, quality=90), encoded("JPEG", quality=90)
    assert Image.open(io.BytesIO(content)).n_frames == 2
    assert np.array_equal(used(content), used(plain))
    assert np.array_equal(used(content[:-200]), used(plain))  # what is behind the photograph does not matter
    fast = CropOptions((64, 48), fast_decode=True)
    image = open_image(content, "x", fast)
    assert crop_image(image, "x", fast, np.random.default_rng(0)).shape == (64, 48, 3)
    assert np.array_equal(upright(content, "x", OPTIONS), upright(plain, "x", OPTIONS))
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        with pytest.raises(BadImageError, match="x: animated .3 frames"):
            open_image(encoded(kind, 3), "x", OPTIONS)
        assert used(encoded(kind)).shape == (64, 48, 3)
