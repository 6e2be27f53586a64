# Copyright 2026 The sapiens_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and limitations under the License.
"""Both image processors: the original's numbers, every kind of image, targets, and what they refuse."""

import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sapiens_hf import SapiensImageProcessor, SapiensImageProcessorPil
from sapiens_hf.heatmaps_sapiens import boxes_to_crops, encode_heatmaps, sample_crops
from sapiens_hf.resampling_sapiens import LevelTransform, nearest_index, sample_grid, stretch_taps

GOLDEN = Path(__file__).parent / "golden"
BACKENDS = {"torchvision": SapiensImageProcessor, "pil": SapiensImageProcessorPil}
MEAN = np.array([123.675, 116.28, 103.53])[:, None, None]
STD = np.array([58.395, 57.12, 57.375])[:, None, None]
SMALL = {"height": 64, "width": 48}
# Crops against OpenCV 4.10, which rounds source positions to 1/32 pixel (measured: 4, 0.046, 0.23 %).
CROP_MAX, CROP_MEAN, CROP_SHARE_ABOVE_1 = 4, 0.06, 0.005


@pytest.fixture(params=BACKENDS)
def processor_class(request):
    return BACKENDS[request.param]


@pytest.fixture
def processor(processor_class):
    return processor_class(size=SMALL)


def golden(name):
    with np.load(GOLDEN / f"preprocess_{name}.npz") as file:
        return {key: file[key] for key in file.files}


def levels(pixel_values):
    """Model input -> grey levels."""
    return np.asarray(pixel_values, dtype=np.float64) * STD + MEAN


def photo(height=57, width=83, seed=0):
    """Smooth colours with an edge, uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    waves = [120 + 80 * np.sin((3 + seed + c) * x / width) + 50 * np.cos((2 + c) * y / height) for c in range(3)]
    image = np.stack(waves, axis=-1)
    image[height // 3 : height // 2, width // 4 : width // 2] = (10, 200, 90)
    return image.clip(0, 255).astype(np.uint8)


def call(processor, image, **kwargs):
    return processor(image, return_tensors="pt", **kwargs)["pixel_values"]


def bilinear(image, x, y):
    """Reference: image (H, W, C) at all (x, y), black outside; every corner on its own, in float64."""
    height, width = image.shape[:2]
    out = np.zeros((len(y), len(x), image.shape[2]))
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    for dy in (0, 1):
        for dx in (0, 1):
            xi, yi = x0 + dx, y0 + dy
            weight = (1 - abs(y - yi))[:, None] * (1 - abs(x - xi))[None]
            inside = ((yi >= 0) & (yi < height))[:, None] & ((xi >= 0) & (xi < width))[None]
            corner = image[yi.clip(0, height - 1)][:, xi.clip(0, width - 1)]
            out += (weight * inside)[..., None] * corner
    return out


def assert_same_levels(got, want):
    """Equal up to rounding of exact halves, which single and double precision may see differently."""
    difference = np.abs(got - np.round(want))
    assert difference.max() < 1.001 and (difference > 0.5).mean() < 2e-3
    near_half = np.abs(np.abs(want - np.floor(want)) - 0.5) < 1e-3
    assert not ((difference > 0.5) & ~near_half).any()


# The original's numbers.
def test_crops_of_the_original(processor_class):
    g = golden("crops")
    boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in g["boxes_image0_xyxy"].tolist()]
    height, width = g["image1_rgb"].shape[:2]
    pixels = processor_class(size={"height": 128, "width": 96})(
        [g["image0_rgb"], g["image1_rgb"]], boxes=[boxes, [[0, 0, width, height]]], return_tensors="pt"
    )["pixel_values"]
    got, want = levels(pixels), g["crops_u8_rgb"].astype(float)
    assert got.shape == want.shape == (5, 3, 128, 96)
    assert np.abs(got - np.round(got)).max() < 1e-4, "crops are whole grey levels before normalisation"
    difference = np.abs(got - want)
    assert difference.max() < CROP_MAX + 0.01 and difference.mean() < CROP_MEAN
    assert (difference > 1.01).mean() < CROP_SHARE_ABOVE_1


def test_full_size_crop_of_the_original(processor_class):
    g = golden("crops")
    (cx, cy), (width, height) = g["full_center"][0].tolist(), (g["full_scale"][0] / 1.25).tolist()
    pixels = call(processor_class(), g["image0_rgb"], boxes=[[[cx - width / 2, cy - height / 2, width, height]]])
    assert tuple(pixels.shape) == (1, 3, 1024, 768)
    difference = np.abs(levels(pixels[0])[:, ::11, ::11] - g["full_crop_u8_rgb_sub11"].transpose(2, 0, 1))
    assert difference.max() < CROP_MAX + 0.01 and difference.mean() < 0.08


def test_resize_of_the_original(processor_class):
    g = golden("resize")
    small = levels(call(processor_class(size={"height": 128, "width": 96}), g["image_rgb"])[0])
    full = levels(call(processor_class(), g["image_rgb"])[0])
    assert full.shape == (3, 1024, 768)
    for got, want in (
        (small, g["resized_u8_rgb"]),
        (full[:, ::11, ::11], g["full_resized_u8_rgb_sub11"].transpose(2, 0, 1)),
    ):
        assert np.abs(got - np.round(got)).max() < 1e-4
        difference = np.abs(got - want)
        assert difference.max() < 1.01 and difference.mean() < 0.2


# The sampling.
@pytest.mark.parametrize("shape", [(57, 83), (300, 41), (9, 500)])
def test_stretch_is_rounded_bilinear(processor, shape):
    image = photo(*shape)
    x = ((np.arange(48) + 0.5) * shape[1] / 48 - 0.5).clip(0, shape[1] - 1)
    y = ((np.arange(64) + 0.5) * shape[0] / 64 - 0.5).clip(0, shape[0] - 1)
    assert_same_levels(levels(call(processor, image)[0]), bilinear(image, x, y).transpose(2, 0, 1))


@pytest.mark.parametrize(
    "box", [[20, 10, 30, 25], [-15.5, -4.25, 40, 60], [70, 45, 30, 30], [0, 0, 83, 57], [30.2, 20.7, 3, 2]]
)
def test_crop_is_rounded_bilinear_on_black(processor, box):
    image = photo()
    centers, scales = boxes_to_crops(torch.tensor([box], dtype=torch.float64), (64, 48))
    (cx, cy), (width, height) = centers[0].tolist(), scales[0].tolist()
    x = np.arange(48) * width / 47 + cx - width / 2
    y = np.arange(64) * height / 63 + cy - height / 2
    assert_same_levels(levels(call(processor, image, boxes=[[box]])[0]), bilinear(image, x, y).transpose(2, 0, 1))


def test_layouts_give_the_same_numbers(processor):
    image = photo()
    boxes = [[[20, 10, 30, 25], [40, 5, 30, 50]]]
    same = [
        Image.fromarray(image),
        image.transpose(2, 0, 1),
        torch.from_numpy(image),
        torch.from_numpy(image.transpose(2, 0, 1).copy()),
        np.ascontiguousarray(image[..., ::-1])[..., ::-1],  # negative strides
        image.astype(np.int64),
        image.astype(np.float32),
        image.astype(np.float64),
        torch.from_numpy(image).to(torch.bfloat16).to(torch.float16) * 0 + torch.from_numpy(image).half(),
    ]
    read_only = image.copy()
    read_only.flags.writeable = False
    for other in (*same, read_only):
        for kwargs in ({}, {"boxes": boxes}):
            assert torch.equal(call(processor, other, **kwargs), call(processor, image, **kwargs))


def test_both_backends_are_equal():
    images = [photo(), Image.fromarray(photo(31, 20, 1)), torch.from_numpy(photo(150, 90, 2))]
    boxes = [[[5, 6, 20, 30]], [], [[-3, 4, 50, 99], [10, 10, 70, 20]]]
    first, second = (cls(size=SMALL) for cls in BACKENDS.values())
    assert torch.equal(call(first, images), call(second, images))
    assert torch.equal(call(first, images, boxes=boxes), call(second, images, boxes=boxes))


def test_any_number_of_people(processor):
    images = [photo(), photo(40, 30, 1), photo(33, 64, 2)]
    boxes = [[[5, 6, 20, 30], [30, 4, 25, 50]], [], [[2, 2, 20, 30]]]
    pixels = call(processor, images, boxes=boxes)
    assert tuple(pixels.shape) == (3, 3, 64, 48)
    assert torch.equal(pixels[:2], call(processor, images[0], boxes=boxes[:1]))
    assert torch.equal(pixels[2:], call(processor, images[2], boxes=boxes[2:]))
    for empty in ([[], [], []], [np.zeros((0, 4)), torch.zeros(0, 4), []]):
        assert tuple(call(processor, images, boxes=empty).shape) == (0, 3, 64, 48)


def test_sample_crops_levels_and_memory():
    image = torch.from_numpy(photo(200, 300)).permute(2, 0, 1)
    centers, scales = boxes_to_crops(torch.tensor([[10.0, 20, 40, 70], [-30, -30, 500, 500]]), (96, 72))
    crops = sample_crops(image, centers, scales, (96, 72))
    assert tuple(crops.shape) == (2, 3, 96, 72) and crops.dtype == torch.float32
    assert torch.equal(crops, crops.round()) and 0 <= crops.min() and crops.max() <= 255
    assert torch.equal(crops, sample_crops(image.contiguous(), centers, scales, (96, 72))), "planes as pixels"
    out = torch.full_like(crops, -7)
    assert sample_crops(image, centers, scales, (96, 72), out=out) is out and torch.equal(out, crops)
    exact = sample_crops(image.float(), centers, scales, (96, 72), LevelTransform(round_levels=False))
    assert not torch.equal(exact, exact.round()) and (exact - crops).abs().max() <= 0.5 + 1e-4
    bright = sample_crops(image.float() * 2, centers, scales, (96, 72))
    assert bright.max() == 255, "levels are clamped"
    assert sample_crops(image, centers[:0], scales[:0], (96, 72)).shape == (0, 3, 96, 72)


@pytest.mark.parametrize("values_per_block", [1, 3 * 48 * 7, 1 << 30])
def test_blocks_do_not_change_numbers(monkeypatch, values_per_block):
    image = photo(400, 90)  # 64 rows out of 400: most rows are skipped

    def stretched():
        out = torch.empty(3, 64, 48)
        sample_grid(
            torch.from_numpy(image).permute(2, 0, 1),
            stretch_taps(64, 400),
            stretch_taps(48, 90),
            LevelTransform(),
            out,
        )
        return out

    expected = stretched()
    monkeypatch.setattr("sapiens_hf.resampling_sapiens.VALUES_PER_BLOCK", values_per_block)
    assert torch.equal(stretched(), expected)


def test_nearest_index_is_that_of_opencv():
    assert nearest_index(4, 10).tolist() == [0, 2, 5, 7] and nearest_index(5, 3).tolist() == [0, 0, 1, 1, 2]


# Kinds of images.
def pil_images():
    """name -> (PIL image, what a person sees as RGB array)."""
    rgb = photo()
    image = Image.fromarray(rgb)
    grey = np.array(image.convert("L"))
    alpha = Image.fromarray((np.arange(57 * 83) % 256).astype(np.uint8).reshape(57, 83))
    rgba = image.copy()
    rgba.putalpha(alpha)
    la = Image.fromarray(grey)
    la.putalpha(alpha)
    palette = image.quantize(17)
    transparent = palette.copy()
    transparent.info["transparency"] = bytes(range(0, 170, 10))
    index_transparent = palette.copy()
    index_transparent.info["transparency"] = 3
    seen_palette = np.array(palette.convert("RGB"))
    pa = palette.convert("PA")
    cmyk = image.convert("CMYK")
    bits = image.convert("1")
    deep = grey.astype(np.uint16) * 257
    grey3 = np.repeat(grey[..., None], 3, axis=-1)
    return {
        "RGB": (image, rgb),
        "L": (Image.fromarray(grey), grey3),
        "RGBA": (rgba, rgb),
        "LA": (la, grey3),
        "P": (palette, seen_palette),
        "P transparent": (transparent, seen_palette),
        "P transparent index": (index_transparent, seen_palette),
        "PA": (pa, np.array(pa.convert("RGBA"))[..., :3]),
        "RGBa": (image.convert("RGBA").convert("RGBa"), rgb),
        "La": (Image.fromarray(grey).convert("LA").convert("La"), grey3),
        "CMYK": (cmyk, np.array(cmyk.convert("RGB"))),
        "YCbCr": (image.convert("YCbCr"), np.array(image.convert("YCbCr").convert("RGB"))),
        "HSV": (image.convert("HSV"), np.array(image.convert("HSV").convert("RGB"))),
        "1": (bits, np.repeat(np.array(bits, dtype=np.uint8)[..., None] * 255, 3, axis=-1)),
        "I;16": (Image.fromarray(deep), grey3),
        "I;16B": (Image.frombytes("I;16B", (83, 57), deep.astype(">u2").tobytes()), grey3),
        "I of 16 bit": (Image.fromarray(deep.astype(np.int32)), grey3),
        "I of 8 bit": (Image.fromarray(grey.astype(np.int32)), grey3),
        "F": (Image.fromarray(grey.astype(np.float32)), grey3),
    }


@pytest.mark.parametrize("name", pil_images())
def test_pil_modes(processor, name, recwarn):
    image, seen = pil_images()[name]
    before = image.copy()
    assert torch.equal(call(processor, image), call(processor, seen))
    assert image.mode == before.mode and image.tobytes() == before.tobytes(), "the caller's image is left alone"
    assert not recwarn.list


def test_array_kinds(processor):
    rgb, grey = photo(), photo()[..., 1]
    grey3 = np.repeat(grey[..., None], 3, axis=-1)
    want, want_grey = call(processor, rgb), call(processor, grey3)
    alpha = np.concatenate([rgb, grey[..., None]], axis=-1)
    assert torch.equal(call(processor, alpha), want)
    assert torch.equal(call(processor, alpha.transpose(2, 0, 1)), want)
    for array in (grey, grey[None], grey[..., None], torch.from_numpy(grey)):
        assert torch.equal(call(processor, array), want_grey)
    assert torch.equal(call(processor, rgb.astype(np.uint16) * 257), want)
    assert torch.equal(call(processor, (rgb.astype(np.uint16) * 257).astype(">u2")), want)
    bits = grey > 100
    assert torch.equal(call(processor, bits), call(processor, (bits * 255).astype(np.uint8)))
    assert torch.equal(call(processor, np.stack([rgb, rgb])), torch.cat([want, want]))
    assert torch.equal(call(processor, [[rgb], [rgb, grey]]), torch.cat([want, want, want_grey])), "nested lists"


def test_ambiguous_shape_follows_input_data_format(processor):
    image = photo(3, 40)  # (3, 40, 3): rows or channels?
    last = call(processor, image, input_data_format="channels_last")
    first = call(processor, image, input_data_format="channels_first")
    assert torch.equal(first, call(processor, image)) and not torch.equal(first, last)


def test_floats_from_0_to_1(processor, caplog):
    image = photo()
    scaled = (image / 255).astype(np.float32)
    with caplog.at_level("WARNING"):
        unscaled = call(processor, scaled, do_rescale=False)
    assert (unscaled - call(processor, image)).abs().max() < 0.5 / 255 / 0.22 + 1e-4, (
        "equal but for the rounding to levels"
    )
    assert (call(processor, image, do_rescale=True) - unscaled).abs().max() > 0, (
        "floats that are no levels are not rounded"
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(processor, orientation, tmp_path):
    seen = photo()
    stored = {
        1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1], 5: seen.transpose(1, 0, 2),
        6: np.rot90(seen), 7: seen[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(seen, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    want = call(processor, seen)
    boxes = [[[30, 10, 40, 44]]]  # inside the turned picture only
    with Image.open(tmp_path / "turned.png") as image:
        assert torch.equal(call(processor, image), want)
        assert torch.equal(call(processor, image, boxes=boxes), call(processor, seen, boxes=boxes))
    assert torch.equal(call(processor, tmp_path / "turned.png"), want)


def test_files(processor, tmp_path):
    image = photo()
    want = call(processor, image)
    Image.fromarray(image).save(tmp_path / "photo.png")
    data = (tmp_path / "photo.png").read_bytes()
    url = "data:image/png;base64," + __import__("base64").b64encode(data).decode()
    for source in (tmp_path / "photo.png", str(tmp_path / "photo.png"), data, bytearray(data), url):
        assert torch.equal(call(processor, source), want)
    frames = [Image.fromarray(photo(seed=seed)).quantize(32) for seed in (0, 1)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    first = np.array(Image.open(tmp_path / "moving.gif").convert("RGB"))
    assert torch.equal(call(processor, tmp_path / "moving.gif"), call(processor, first)), (
        "an animation is its first frame"
    )
    deep = Image.fromarray(image[..., 0].astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    assert torch.equal(call(processor, tmp_path / "deep.png"), call(processor, image[..., 0]))


# Options.
def test_options(processor, processor_class):
    image = photo()
    whole = torch.from_numpy(levels(call(processor, image))).round().float()
    assert torch.equal(call(processor, image, do_rescale=False, do_normalize=False), whole)
    torch.testing.assert_close(call(processor, image, do_normalize=False), whole / 255)
    torch.testing.assert_close(call(processor, image, image_mean=0.5, image_std=[0.25, 0.5, 1.0]),
                               (whole / 255 - 0.5) / torch.tensor([0.25, 0.5, 1.0]).view(3, 1, 1))  # fmt: skip
    original = {"image_mean": MEAN.flatten().tolist(), "image_std": STD.flatten().tolist()}
    torch.testing.assert_close(call(processor, image, do_rescale=False, **original), call(processor, image))
    unresized = call(processor, [image, photo(seed=3)], do_resize=False)
    assert tuple(unresized.shape) == (2, 3, 57, 83)
    assert np.abs(levels(unresized[0]) - image.transpose(2, 0, 1)).max() < 1e-4
    assert tuple(call(processor, image, do_resize=False, boxes=[[[5, 6, 20, 30]]]).shape) == (1, 3, 64, 48)
    assert tuple(call(processor, image, size={"height": 80, "width": 32}).shape) == (1, 3, 80, 32)
    assert tuple(call(processor_class(size=[80, 32]), image).shape) == (1, 3, 80, 32)
    alpha = np.concatenate([image, image[..., :1]], axis=-1)
    four = call(processor, alpha, do_convert_rgb=False, image_mean=[0.0] * 4, image_std=[1.0] * 4)
    assert tuple(four.shape) == (1, 4, 64, 48) and torch.equal(four[0, 3], four[0, 0])
    grey = call(processor, Image.fromarray(image[..., 0]), do_convert_rgb=False, do_normalize=False)
    assert tuple(grey.shape) == (1, 1, 64, 48)
    assert torch.equal(call(processor, image, resample=2, device="cpu"), call(processor, image))


def test_other_devices():
    """PyTorch's "meta" device computes shapes only, and like any other device refuses to mix with the CPU."""
    boxes = [[[5, 6, 20, 30], [30, 4, 25, 50]]]
    processor, without = SapiensImageProcessor(size=SMALL), SapiensImageProcessorPil(size=SMALL)
    labels = {"segmentation_maps": np.zeros((57, 83), np.uint8)}
    people = {"boxes": boxes, "keypoints": np.ones((1, 2, 17, 3))}
    for image, kwargs in ((photo(), {"device": "meta"}), (torch.from_numpy(photo()).to("meta"), {})):
        for targets, count in ((labels, 1), (people, 2)):
            result = processor(image, **targets, **kwargs, return_tensors="pt")
            assert tuple(result["pixel_values"].shape) == (count, 3, 64, 48)
            assert {value.device.type for value in result.values()} == {"meta"}
    assert call(without, photo(), device="meta").device.type == "cpu", "the PIL backend has no device"
    assert torch.equal(call(without, photo(), device="meta"), call(processor, photo()))
    tall = torch.empty(3, 500, 83, dtype=torch.uint8, device="meta")
    centers, scales = boxes_to_crops(torch.tensor([[0.0, 0, 80, 500]]), (64, 48))
    assert sample_crops(tall, centers, scales, (64, 48)).device.type == "meta", "rows picked one by one"


def test_returned_types():
    images = [photo(), photo(40, 30)]
    maps = [np.ones((57, 83), np.uint8), np.zeros((40, 30), np.uint8)]
    for cls, listed in ((SapiensImageProcessor, torch.Tensor), (SapiensImageProcessorPil, np.ndarray)):
        processor = cls(size=SMALL)
        plain, arrays, tensors = (
            processor(images, segmentation_maps=maps, return_tensors=kind) for kind in (None, "np", "pt")
        )
        for name in ("pixel_values", "labels"):
            assert isinstance(plain[name], list) and all(isinstance(value, listed) for value in plain[name])
            assert isinstance(arrays[name], np.ndarray) and isinstance(tensors[name], torch.Tensor)
            assert np.array_equal(arrays[name], tensors[name].numpy())
            assert np.array_equal(np.stack([np.asarray(value) for value in plain[name]]), arrays[name])


def test_save_and_load(processor_class, tmp_path):
    processor = processor_class(size=SMALL, keypoint_heatmap_sigma=2.0)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "SapiensImageProcessor" and saved["size"] == SMALL
    assert saved["resample"] == 2 and saved["do_resize"] is saved["do_rescale"] is saved["do_normalize"] is True
    assert saved["do_convert_rgb"] is True and saved["rescale_factor"] == 1 / 255 and not saved.get("do_pad")
    assert saved["image_mean"] == [0.485, 0.456, 0.406] and saved["image_std"] == [0.229, 0.224, 0.225]
    assert saved["keypoint_heatmap_sigma"] == 2.0 and saved["keypoint_heatmap_downscale_factor"] == 4
    for other in BACKENDS.values():
        again = other.from_pretrained(tmp_path)
        assert again.to_dict() == processor.to_dict()
        assert torch.equal(call(again, photo()), call(processor, photo()))


def test_without_torchvision(tmp_path):
    np.save(tmp_path / "image.npy", photo())
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import numpy as np\n"
        "from sapiens_hf.image_processing_pil_sapiens import SapiensImageProcessorPil\n"
        f"pixels = SapiensImageProcessorPil(size={SMALL})(np.load(sys.argv[1]), return_tensors='np')['pixel_values']\n"
        "np.save(sys.argv[2], pixels)\n"
        "import sapiens_hf\n"
        "assert sapiens_hf.SapiensImageProcessor is SapiensImageProcessorPil\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "image.npy"), str(tmp_path / "pixels.npy")]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "pixels.npy"), call(SapiensImageProcessor(size=SMALL), photo()).numpy())


def test_compiled_torchvision_processor():
    torch.compiler.reset()
    processor = SapiensImageProcessor(size=SMALL)
    image = torch.from_numpy(photo().transpose(2, 0, 1).copy())
    compiled = torch.compile(processor, backend="eager")
    torch.testing.assert_close(call(compiled, image), call(processor, image))


# Targets.
def test_keypoint_targets_of_the_original(processor_class):
    g = golden("targets")
    size = np.array([768, 1024])
    rows = np.concatenate([g["keypoints"] * size / (size - 1), g["visible"][:, None]], axis=1)
    box = [768 / 2 - 768 / 2.5, 1024 / 2 - 1024 / 2.5, 768 / 1.25, 1024 / 1.25]  # its region is the image itself
    result = processor_class()(
        np.zeros((1024, 768, 3), np.uint8), boxes=[[box]], keypoints=[[rows.tolist()]], return_tensors="pt"
    )
    assert tuple(result["labels"].shape) == (1, 5, 256, 192)
    np.testing.assert_allclose(result["labels"][0, :, ::4, ::4], g["heatmaps_sub4"], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(result["keypoint_weights"], g["weights"])


def test_keypoint_targets_follow_their_boxes(processor):
    images = [photo(), photo(40, 30), photo(70, 50)]
    boxes = [[[20, 10, 30, 40]], [], [[5, 5, 30, 60], [1, 2, 3, 4]]]
    rows = np.array([[30.0, 20, 2], [45, 44, 1], [np.nan, np.inf, 0], [20, 30, 0.25]])
    keypoints = [[rows], [], torch.from_numpy(np.stack([np.nan_to_num(rows), np.nan_to_num(rows)]))]
    result = processor(images, boxes=boxes, keypoints=keypoints, return_tensors="pt")
    assert tuple(result["labels"].shape) == (3, 4, 16, 12) and result["labels"].dtype == torch.float32
    assert tuple(result["keypoint_weights"].shape) == (3, 4)
    assert result["keypoint_weights"][0].tolist() == [1, 1, 0, 1], "any visibility above 0 counts"
    centers, scales = boxes_to_crops(torch.tensor([boxes[0][0]], dtype=torch.float64), (64, 48))
    (cx, cy), (width, height) = centers[0].tolist(), scales[0].tolist()
    in_crop = (rows[:2, :2] - [cx - width / 2, cy - height / 2]) * [47 / width, 63 / height]
    want, _ = encode_heatmaps(torch.tensor(in_crop)[None].float(), torch.ones(1, 2), (64, 48), (16, 12), 6.0)
    torch.testing.assert_close(result["labels"][0, :2], want[0])
    narrow = processor(images, boxes=boxes, keypoints=keypoints, keypoint_heatmap_sigma=2.0, return_tensors="pt")
    assert narrow["labels"].sum() < result["labels"].sum()
    fine = processor(
        images, boxes=boxes, keypoints=keypoints, keypoint_heatmap_downscale_factor=2, return_tensors="pt"
    )
    assert tuple(fine["labels"].shape) == (3, 4, 32, 24)
    nobody = processor(images, boxes=[[], [], []], keypoints=[[], [], []], return_tensors="pt")
    assert tuple(nobody["labels"].shape) == (0, 0, 16, 12) and tuple(nobody["keypoint_weights"].shape) == (0, 0)


def test_segmentation_labels_by_nearest_neighbour(processor):
    images = [photo(), photo(128, 96)]
    first = np.arange(57 * 83).reshape(57, 83) % 29
    second = (np.arange(128)[:, None] + np.arange(96)[None]) % 7
    second[:5] = 255
    labels = processor(images, segmentation_maps=[first, second], return_tensors="pt")["labels"]
    assert labels.dtype == torch.int64 and tuple(labels.shape) == (2, 64, 48)
    assert torch.equal(labels[1], torch.from_numpy(second[::2, ::2]))
    rows, columns = np.arange(64) * 57 // 64, np.arange(48) * 83 // 48
    assert torch.equal(labels[0], torch.from_numpy(first[rows][:, columns]))
    unresized = processor(images[1], segmentation_maps=second, do_resize=False, return_tensors="pt")["labels"]
    assert torch.equal(unresized[0], torch.from_numpy(second))


def test_segmentation_map_kinds(processor, tmp_path):
    image = photo()
    labels = (np.arange(57 * 83).reshape(57, 83) % 23).astype(np.uint8)
    want = processor(image, segmentation_maps=labels, return_tensors="pt")["labels"]
    palette = Image.fromarray(labels, mode="P")
    palette.putpalette([v for i in range(23) for v in (i, 255 - i, 3 * i)])
    palette.save(tmp_path / "labels.png")
    kinds = [
        [labels], [labels[None]], [labels[..., None]], labels[None], torch.from_numpy(labels), Image.fromarray(labels),
        palette, tmp_path / "labels.png", (tmp_path / "labels.png").read_bytes(), labels.astype(np.float64),
        labels.astype(np.uint16), [Image.fromarray(labels.astype(np.uint16))], labels.astype(">i4"),
    ]  # fmt: skip
    for kind in kinds:
        assert torch.equal(processor(image, segmentation_maps=kind, return_tensors="pt")["labels"], want)


def test_depth_targets(processor_class):
    g = golden("targets")
    processor = processor_class(size={"height": 128, "width": 96})
    image = photo(128, 96)
    labels = processor(image, depth_maps=g["depth_raw"], masks=g["depth_mask"], return_tensors="pt")["labels"]
    np.testing.assert_allclose(labels, g["depth_target"], rtol=0, atol=1e-6)

    depth = np.zeros((256, 96), np.float32)  # every other row is looked at
    depth[::2][10:30, 5:15] = np.linspace(2, 4, 200).reshape(20, 10)
    depth[1::2] = 77
    depth[0, 0], depth[2, 2] = np.nan, np.inf
    labels = processor(photo(256, 96), depth_maps=[depth], return_tensors="pt")["labels"][0]
    inside = labels[10:30, 5:15]
    assert inside.min() == 0 and inside.max() == 1, "over the view that the network sees"
    np.testing.assert_allclose(inside, np.linspace(0, 1, 200).reshape(20, 10), atol=1e-6)
    labels[10:30, 5:15] = -1
    assert (labels == -1).all()

    mask = np.zeros((256, 96), bool)
    assert (processor(photo(256, 96), depth_maps=depth, masks=mask, return_tensors="pt")["labels"] == -1).all()
    mask[40:44, 20:40] = True
    flat = processor(photo(256, 96), depth_maps=np.full((256, 96), 3, np.uint16), masks=mask, return_tensors="pt")
    assert sorted(flat["labels"].unique().tolist()) == [-1, 3], "a flat person has no range to divide by"


def test_normal_targets(processor_class):
    g = golden("targets")
    processor = processor_class(size={"height": 128, "width": 96})
    image = photo(128, 96)
    normals = g["normal_quarter"].repeat(4, axis=1).repeat(4, axis=2)
    want = np.where(g["normal_mask"][..., None] > 0, normals, -1000).transpose(0, 3, 1, 2)
    for given in (normals, list(normals), list(normals.transpose(0, 3, 1, 2)), normals[0], torch.from_numpy(normals)):
        labels = processor(image, normal_maps=given, masks=g["normal_mask"], return_tensors="pt")["labels"]
        assert tuple(labels.shape) == (1, 3, 128, 96)
        np.testing.assert_allclose(labels, want, rtol=0, atol=1e-6)
    holed = normals[0].copy()
    holed[20:30, 40:60] = 0
    labels = processor(image, normal_maps=[holed], return_tensors="pt")["labels"][0]
    assert (labels[:, 20:30, 40:60] == -1000).all() and (labels[:, 40:, :] > -2).all(), (
        "no mask: zero vectors are background"
    )
    half = processor_class(size=SMALL)(image, normal_maps=[holed], return_tensors="pt")["labels"][0]
    assert torch.equal(half, labels[:, ::2, ::2])


# Bad input.
GOOD = photo()
BOX = [[[20, 10, 30, 25]]]
PERSON = [[30.0, 20, 2], [45, 44, 1]]


def with_value(value):
    image = GOOD.astype(np.float32)
    image[3, 4, 1] = value
    return image


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images is empty"),
        ([[]], "images is empty"),
        (np.zeros((0, 20, 30, 3), np.uint8), "images is empty"),
        ([GOOD, np.zeros((0, 30, 3), np.uint8)], r"images\[1\] has shape \(0, 30, 3\): no pixels"),
        ([GOOD, Image.new("RGB", (0, 30))], r"images\[1\] has 0 x 30 pixels"),
        ([GOOD, with_value(np.nan)], r"images\[1\] has 1 NaN or infinite"),
        (torch.from_numpy(with_value(np.inf)), r"images\[0\] has 1 NaN or infinite"),
        (np.zeros((20, 30, 2), np.uint8), r"images\[0\] has shape \(20, 30, 2\): neither its first nor"),
        (
            np.zeros((5, 20, 10), np.uint8),
            r"\(5, 20, 10\): neither its first nor its last dimension is 1 .* 3 ",
        ),
        (np.zeros((1, 2, 20, 30, 3), np.uint8), r"images\[0\] has shape \(1, 2, 20, 30, 3\)"),
        (np.zeros(30, np.uint8), r"images\[0\] has shape \(30,\)"),
        (GOOD.astype(np.int32) - 1 - GOOD.max(), r"images\[0\] has integer values -\d+..-1"),
        (GOOD.astype(np.int64) * 4, r"images\[0\] has integer values \d+..\d+; expected 0..255"),
        (Image.fromarray(GOOD[..., 0].astype(np.int32) * 1000), r"images\[0\] \(PIL mode I\) has values"),
        (GOOD.astype(np.complex64), r"images\[0\] is an array of torch.complex64"),
        (np.array([["a"]]), r"images\[0\] is an array of <U1"),
        (None, r"images\[0\] is NoneType; expected a PIL image"),
        ([GOOD, 7], r"images\[1\] is int"),
        ({"image": GOOD}, r"images\[0\] is dict"),
        ("no/such/file.png", r"images\[0\]: there is no file 'no/such/file.png'"),
        (b"these are not the bytes of an image", r"images\[0\]: 35 bytes cannot be read as an image"),
        ("data:image/png;base64,AAAA", r"images\[0\]: 'data:image.* cannot be read"),
    ],
)
def test_bad_images(processor, images, message):
    with pytest.raises(ValueError, match=message):
        processor(images, return_tensors="pt")


def test_broken_files(processor, tmp_path):
    buffer = BytesIO()
    Image.fromarray(GOOD).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match=r"images\[1\] cannot be read .*complete"):
        processor([GOOD, tmp_path / "cut.png"])
    with pytest.raises(ValueError, match=r"images\[0\]: '.*text.jpg' cannot be read as an image"):
        processor(str(tmp_path / "text.jpg"))
    with pytest.raises(ValueError, match=r"images\[0\]: .* cannot be read"):
        processor(tmp_path)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"boxes": [BOX[0], []]}, "2 entries for 1 images"),
        ({"boxes": [20, 10, 30, 25]}, "nested per image"),
        ({"boxes": [[[20, 10, 0, 25]]]}, r"boxes\[0\]\[0\] = .* zero or negative size"),
        ({"boxes": [[[20, 10, 30, 25], [5, 5, 3, -2]]]}, r"boxes\[0\]\[1\]"),
        ({"boxes": [[[20, float("nan"), 30, 25]]]}, "NaN"),
        ({"boxes": [[[200, 10, 30, 25]]]}, "wholly outside its image of 83 x 57"),
        ({"boxes": [[[60, 40, 80, 55]]]}, r"corners \(x1, y1, x2, y2\)"),
        ({"keypoints": [[PERSON]]}, "keypoints were given without boxes"),
        ({"boxes": BOX, "keypoints": [[PERSON], [PERSON]]}, "keypoints has 2 entries for 1 images"),
        ({"boxes": BOX, "keypoints": 3}, "keypoints has 3 entries"),
        ({"boxes": BOX, "keypoints": [[PERSON, PERSON]]}, r"keypoints\[0\] has 2 people, but boxes\[0\] has 1"),
        ({"boxes": BOX, "keypoints": [[]]}, r"keypoints\[0\] has 0 people, but boxes\[0\] has 1"),
        ({"boxes": BOX, "keypoints": [torch.tensor(1.0)]}, r"keypoints\[0\] has shape \(\), expected"),
        ({"boxes": BOX, "keypoints": [[[[1, 2], [3, 4]]]]}, r"keypoints\[0\]\[0\] has shape \(2, 2\)"),
        ({"boxes": BOX, "keypoints": [[[1, 2, 2]]]}, r"keypoints\[0\]\[0\] has shape \(3,\)"),
        ({"boxes": BOX, "keypoints": [torch.ones(1, 2, 4)]}, r"keypoints\[0\] has shape \(1, 2, 4\)"),
        ({"boxes": BOX, "keypoints": [[["left eye"]]]}, r"keypoints\[0\] cannot be read"),
        (
            {"boxes": BOX, "keypoints": [[[[1, 2, 2], [1, float("nan"), 2]]]]},
            r"keypoints\[0\]\[0\]\[1\] = \[1.0, nan, 2.0\] has NaN or infinite .* visibility 0",
        ),
        ({"boxes": BOX, "keypoints": [[[[1, 2, float("nan")]]]]}, r"keypoints\[0\]\[0\]\[0\] = \[1.0, 2.0, nan\] has"),
        (
            {"boxes": [BOX[0] * 2], "keypoints": [[PERSON, PERSON[:1]]]},
            r"keypoints\[0\]\[1\] has 1 keypoints and keypoints\[0\]\[0\] has 2; .* same number",
        ),
        ({"boxes": BOX, "keypoints": [[PERSON]], "keypoint_heatmap_downscale_factor": 5}, "does not divide"),
        ({"boxes": BOX, "segmentation_maps": GOOD[..., 0]}, "segmentation_maps were given with boxes"),
        ({"segmentation_maps": [GOOD[..., 0]] * 2}, "segmentation_maps has 2 entries for 1 images"),
        (
            {"segmentation_maps": GOOD[:-1, :, 0]},
            r"segmentation_maps\[0\] is 56 x 83 pixels .* images\[0\] is 57 x 83",
        ),
        ({"segmentation_maps": [GOOD]}, r"segmentation_maps\[0\] has shape \(57, 83, 3\); expected \(height, width\)"),
        ({"segmentation_maps": [np.zeros((0, 5))]}, r"segmentation_maps\[0\] has shape \(0, 5\): no pixels"),
        ({"segmentation_maps": [3]}, r"segmentation_maps\[0\] is int"),
        ({"segmentation_maps": np.full((57, 83), 256)}, r"segmentation_maps\[0\] has label 256"),
        ({"segmentation_maps": np.full((57, 83), -1)}, "has label -1"),
        ({"segmentation_maps": np.full((57, 83), 0.5)}, "floats that are not whole"),
        ({"segmentation_maps": np.full((57, 83), np.nan)}, "floats that are not whole"),
        ({"segmentation_maps": np.full((57, 83), np.inf)}, "has label"),
        (
            {"segmentation_maps": GOOD[..., 0], "depth_maps": GOOD[..., 0]},
            "segmentation_maps and depth_maps were given",
        ),
        ({"masks": GOOD[..., 0]}, "masks were given without"),
        ({"depth_maps": GOOD[..., 0], "masks": [GOOD[..., 0]] * 3}, "masks has 3 entries for 1 images"),
        ({"depth_maps": np.full((57, 83), np.nan), "masks": np.ones((57, 83))}, r"depth_maps\[0\] has 3072 NaN"),
        ({"normal_maps": np.zeros((57, 83))}, r"normal_maps has 57 entries|normal_maps\[0\] has shape"),
        (
            {"normal_maps": [np.zeros((57, 83))]},
            r"normal_maps\[0\] has shape \(57, 83\); expected \(height, width, 3\)",
        ),
        ({"normal_maps": [GOOD]}, r"normal_maps\[0\] holds torch.uint8; expected floats"),
        ({"normal_maps": [with_value(np.nan) * 0 + np.nan]}, r"normal_maps\[0\] has \d+ NaN"),
        ({"do_center_crop": True, "crop_size": {"height": 8, "width": 6}}, "do_center_crop=True"),
        ({"do_pad": True}, "do_pad=True"),
        ({"resample": 3}, "resample=.*bilinearly"),
        ({"size": {"shortest_edge": 64}}, "size is .*height"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 values for images of 3 channels"),
    ],
)
def test_bad_arguments(processor, kwargs, message):
    with pytest.raises(ValueError, match=message):
        processor(GOOD, return_tensors="pt", **kwargs)


def test_bad_batches(processor):
    people = [np.zeros((1, 4, 3)), np.zeros((1, 5, 3))]
    message = r"keypoints\[2\]\[0\] has 5 keypoints and keypoints\[0\]\[0\] has 4; .* same number"
    with pytest.raises(ValueError, match=message):
        processor([GOOD] * 3, boxes=[BOX[0], [], BOX[0]], keypoints=[people[0], [], people[1]])
    rows = np.ones((2, 4, 3))
    rows[1, 3, 0] = np.inf
    with pytest.raises(ValueError, match=r"keypoints\[2\]\[1\]\[3\] = \[inf, 1.0, 1.0\] has"):
        processor([GOOD] * 3, boxes=[BOX[0], [], BOX[0] * 2], keypoints=[people[0], [], rows])
    with pytest.raises(ValueError, match=r"images\[0\] has shape \(20, 30, 3\), that is 20 channels"):
        processor(np.zeros((20, 30, 3), np.uint8), input_data_format="channels_first")
    with pytest.raises(ValueError, match=r"images\[1\] is 40 x 30 pixels .* one size"):
        processor([GOOD, photo(40, 30)], do_resize=False)
    with pytest.raises(ValueError, match=r"images\[1\] has 1 channels and images\[0\] has 3"):
        processor([GOOD, GOOD[..., 0]], do_convert_rgb=False)
    with pytest.raises(ValueError, match=r"segmentation_maps\[1\]"):
        processor([GOOD, GOOD], segmentation_maps=[GOOD[..., 0], GOOD[:, 1:, 0]])


def test_floats_that_look_scaled_are_pointed_out(processor, monkeypatch):
    said = []
    monkeypatch.setattr("sapiens_hf.image_loading_sapiens.logger.warning_once", said.append)
    call(processor, GOOD.astype(np.float32))
    call(processor, GOOD.astype(np.float32) / 255, do_rescale=False)
    assert not said
    call(processor, GOOD.astype(np.float32) / 255)
    assert len(said) == 1 and "do_rescale=False" in said[0]
