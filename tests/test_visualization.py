"""Pictures: the original's numbers, every accepted input, every refused one, and inputs that stay as they were."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sapiens_hf import visualization
from sapiens_hf.labels import class_set, convert_keypoints, keypoint_set, make_class_set
from sapiens_hf.visualization import draw_depth, draw_keypoints, draw_normals, draw_segmentation, side_by_side

GOLDEN = Path(__file__).parent / "golden" / "visualization.npz"
KINDS = {"numpy": np.asarray, "torch": torch.from_numpy}
HEIGHT, WIDTH = 150, 230
GREY = (128, 128, 128)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as data:
        return dict(data)


@pytest.fixture
def photo():
    return Image.new("RGB", (WIDTH, HEIGHT), GREY)


@pytest.fixture
def person():
    """Seventeen COCO points, far apart, with a box."""
    points = np.zeros((17, 2))
    grid = [(20 + 30 * column, 20 + 50 * row) for row in range(3) for column in range(7)]
    points[:] = grid[:17]
    return {
        "keypoints": points,
        "scores": np.full(17, 0.9),
        "labels": np.arange(17),
        "bbox": np.array([8.0, 8.0, 212.0, 132.0]),
    }


def pixels(picture):
    return np.asarray(picture).astype(int)


def changed(picture):
    """Where the picture differs from the grey photo."""
    return (pixels(picture) != 128).any(axis=-1)


def as_kind(person, kind):
    return {name: KINDS[kind](np.asarray(value)) for name, value in person.items()}


# The original's pictures


@pytest.mark.parametrize("kind", KINDS)
def test_segmentation_picture_is_the_originals(golden, kind):
    picture = draw_segmentation(KINDS[kind](golden["image"]), KINDS[kind](golden["label_map"]), legend=False)
    np.testing.assert_array_equal(np.asarray(picture), golden["segmentation_picture"])
    assert len(np.unique(golden["label_map"])) > 15


@pytest.mark.parametrize("kind", KINDS)
def test_depth_picture_is_the_originals(golden, kind):
    """The stored map is every second pixel of the original's; its nearest and farthest pixels make one more row."""
    depth, mask = (np.pad(golden[name], ((0, 1), (0, 0))) for name in ("depth", "depth_mask"))
    depth[-1, :2], mask[-1, :2] = golden["depth_range"], True
    picture = np.asarray(draw_depth(None, KINDS[kind](depth), KINDS[kind](mask)))
    np.testing.assert_array_equal(picture[:-1], golden["depth_picture"])
    assert 0.2 < golden["depth_mask"].mean() < 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_normals_picture_is_the_originals(golden, kind):
    picture = draw_normals(KINDS[kind](golden["normals"]))
    np.testing.assert_array_equal(np.asarray(picture), golden["normals_picture"])


# Keypoints


@pytest.mark.parametrize("kind", KINDS)
def test_points_and_links_have_their_colours(photo, person, kind):
    picture = pixels(draw_keypoints(photo, [as_kind(person, kind)], keypoint_set="coco"))
    coco = keypoint_set("coco")
    for point, color in zip(person["keypoints"].astype(int), coco.colors, strict=True):
        assert tuple(picture[point[1], point[0]]) == color
    alone = draw_keypoints(photo, [only(person, "left_elbow", "left_wrist")], "coco")
    # elbow and wrist are two columns apart, so the middle of their link is free of other points
    middle = person["keypoints"][[7, 9]].mean(axis=0).astype(int)
    link = pixels(alone)[middle[1], middle[0]]
    assert np.abs(link - coco.link_colors[coco.skeleton.index((7, 9))]).max() < 20


def only(person, *names):
    """The person as post-processing with keypoint_indices= returns it: some of the points, with their labels."""
    keep = keypoint_set("coco").indices(*names)
    return {name: value if name == "bbox" else value[keep] for name, value in person.items()}


def test_a_subset_draws_its_points_and_the_links_between_them(photo, person):
    subset = only(person, "left_elbow", "left_wrist", "nose")
    got = changed(draw_keypoints(photo, [subset], "coco", radius=4))
    hidden = dict(person, scores=np.where(np.isin(np.arange(17), subset["labels"]), 0.9, 0.0))
    np.testing.assert_array_equal(got, changed(draw_keypoints(photo, [hidden], radius=4)))
    for index, (x, y) in enumerate(person["keypoints"].astype(int)):
        if index not in (0, 7, 8, 9):  # 8 lies on the link from 7 to 9
            assert got[y, x] == (index in subset["labels"])
    no_link = changed(draw_keypoints(photo, [only(person, "left_elbow", "nose")], "coco", radius=4))
    assert no_link.sum() < 2 * 8 * 8 * 1.5
    with pytest.raises(ValueError, match=r"3 keypoints, part of a set: say which one with keypoint_set="):
        draw_keypoints(photo, [subset])


def test_only_scores_above_the_threshold_are_drawn(photo, person):
    person["scores"][:] = np.linspace(0, 0.8, 17)
    got = changed(draw_keypoints(photo, [person], threshold=person["scores"][9], thickness=0.1, radius=2))
    shown = [got[y, x] for x, y in person["keypoints"].astype(int)]
    assert shown[10:] == [True] * 7
    assert not any(shown[:10])


def test_points_that_are_missing_not_finite_or_far_away_are_left_out(photo, person):
    expected = draw_keypoints(photo, [only(person, "left_hip", "right_hip")], "coco", radius=3)
    person["keypoints"][:5] = np.nan
    person["keypoints"][5:9] = np.inf
    person["keypoints"][9:11] = 1e30
    person["keypoints"][13:] = (-5 * WIDTH, 20)
    np.testing.assert_array_equal(pixels(draw_keypoints(photo, [person], radius=3)), pixels(expected))
    converted = convert_keypoints(np.full((1, 17, 2), 50.0), person["scores"][None], to="coco_wholebody")
    corner = changed(draw_keypoints(photo, converted, threshold=0))[:20, :20]
    assert not corner.any()  # the 116 missing points stand at 0, 0 with score 0


def test_links_leave_the_picture_with_their_points(photo):
    points = np.zeros((17, 2))
    points[[7, 9]] = (100, 75), (WIDTH + 100, 75)
    scores = np.isin(np.arange(17), (7, 9)).astype(float)
    got = changed(draw_keypoints(photo, {"keypoints": points, "scores": scores}, radius=3))
    assert got[75, 100:].all()
    assert not got[:, :90].any()


@pytest.mark.parametrize(
    "nobody", [[], np.zeros((0, 17, 2)), torch.zeros(0, 308, 3), [{"keypoints": [], "scores": []}]]
)
def test_nobody_leaves_the_photo_alone(photo, nobody):
    picture = draw_keypoints(photo, nobody, draw_boxes=True)
    assert picture is not photo
    np.testing.assert_array_equal(pixels(picture), pixels(photo))


def test_all_forms_of_people_give_the_same_picture(photo, person):
    expected = pixels(draw_keypoints(photo, [person]))
    points, scores = person["keypoints"], person["scores"]
    with_scores = np.concatenate([points, scores[:, None]], axis=1)
    names = keypoint_set("coco").names
    entries = [
        {"label": name, "score": score, "x": x, "y": y}
        for name, score, (x, y) in zip(names, scores.tolist(), points.tolist(), strict=True)
    ]
    box = {"xmin": 1, "ymin": 2, "xmax": 30, "ymax": 40}
    forms = {
        "one person": person,
        "tensors": as_kind(person, "torch"),
        "points": points,
        "points of people": points[None],
        "points with scores": with_scores,
        "people with scores": torch.from_numpy(with_scores)[None],
        "list of arrays": [with_scores],
        "half precision": torch.from_numpy(with_scores).to(torch.bfloat16)[None],  # these coordinates fit
        "converted": convert_keypoints(points[None], scores[None], to="coco"),
        "converted, one person": convert_keypoints(points, to="coco"),
        "pipeline": [{"score": 0.9, "box": box, "keypoints": entries[::-1]}],
        "no labels": [{"keypoints": points.tolist(), "scores": scores.tolist()}],
    }
    for form, people in forms.items():
        np.testing.assert_array_equal(pixels(draw_keypoints(photo, people)), expected, err_msg=form)


@pytest.mark.parametrize("key", ["bbox", "box"])
def test_boxes_are_drawn_on_demand_each_person_in_another_colour(photo, key):
    boxes = [(10, 20, 90, 120), (110, 30, 200, 140)]
    people = [{"keypoints": [], "bbox": box} for box in boxes]
    if key == "box":
        people = [{"keypoints": [], "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box))} for box in boxes]
    assert not changed(draw_keypoints(photo, people)).any()
    picture = pixels(draw_keypoints(photo, people, draw_boxes=True))
    for (left, top, right, bottom), color in zip(boxes, visualization.BOX_COLORS, strict=False):
        for x, y in ((left, 60), (right, 60), ((left + right) // 2, top), ((left + right) // 2, bottom)):
            assert tuple(picture[y, x]) == color
        assert tuple(picture[60, left + 20]) == GREY
    without = draw_keypoints(photo, [{"keypoints": []}], draw_boxes=True)
    assert not changed(without).any()


def test_sizes_follow_the_picture_and_the_person(person):
    def disc(scale, spread=1.0, **options):
        photo = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), GREY)
        points = person["keypoints"] * scale * spread
        people = dict(person, keypoints=points, scores=np.arange(17) == 16)
        if spread == 1.0:
            return changed(draw_keypoints(photo, people, **options)).sum()
        return changed(draw_keypoints(photo, dict(people, scores=np.ones(17)), **options)).sum()

    assert 3.5 < np.sqrt(disc(12) / disc(3)) < 4.2  # four times the side, about four times the radius
    assert disc(12, 0.1) < 0.05 * disc(12, 0.999)
    assert 60 < disc(3, radius=4) < 90


@pytest.mark.parametrize("radius", [0.4, 3.0, 60.0])
def test_strokes_cover_what_lies_within_their_outline(radius):
    """Against every pixel's distance: to the line's nearer end, or straight onto it between its ends."""
    ends = np.random.default_rng(3).uniform(-90, 320, (12, 2, 2))
    ends[0, :, 0], ends[1, :, 1], ends[2, 1] = 100.5, 70.25, ends[2, 0]  # upright, level, a point
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for start, end in ends:
        canvas = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        visualization._stroke(canvas, start, end, radius, (255, 100, 0), 0.8)
        to_pixels = np.stack([columns, rows], axis=-1) - start
        length = max(np.hypot(*(end - start)), 1e-9)
        direction = (end - start) / length
        along = to_pixels @ direction
        aside = np.abs(to_pixels[..., 0] * direction[1] - to_pixels[..., 1] * direction[0])
        ends_only = np.minimum(
            np.hypot(columns - start[0], rows - start[1]), np.hypot(columns - end[0], rows - end[1])
        )
        distance = np.where((along > 0) & (along < length), aside, ends_only)
        cover = 0.8 * (radius + 0.5 - distance).clip(0, 1)
        np.testing.assert_allclose(canvas[..., 0], 255 * cover, atol=0.51)
        np.testing.assert_allclose(canvas[..., 1], 100 * cover, atol=0.51)
        assert not canvas[..., 2].any()


def test_faces_and_hands_get_smaller_points(photo):
    goliath = keypoint_set("goliath")

    def area(name):
        points, scores = np.full((308, 2), 70.0), np.zeros(308)
        scores[goliath.index(name)] = 1
        return changed(draw_keypoints(photo, {"keypoints": points, "scores": scores}, radius=10)).sum()

    assert area("center_of_glabella") < area("left_thumb4") < area("neck") < area("left_wrist")


@pytest.mark.parametrize(
    ("people", "options", "message"),
    [
        (np.zeros((1, 18, 2)), {}, r"18 keypoints, part of a set"),
        (np.zeros((1, 17, 2)), {"keypoint_set": 133}, r"17 keypoints without labels, but coco_wholebody has 133"),
        (np.zeros((17, 2)), {"keypoint_set": "cocoo"}, r"'cocoo'\. Did you mean 'coco'"),
        (np.zeros((2, 1, 17, 2)), {}, r"people have shape \(2, 1, 17, 2\)"),
        (np.zeros((1, 17, 4)), {}, r"keypoints have shape \(17, 4\), expected \(K, 2\)"),
        (
            {"keypoints": np.zeros((17, 2)), "scores": np.zeros(16)},
            {},
            r"shape \(17, 2\), scores \(16,\) and labels \(17,",
        ),
        (
            {"keypoints": np.zeros((2, 2)), "labels": [3, 17]},
            {"keypoint_set": 17},
            r"run from 3 to 17, but coco has 17",
        ),
        (
            {"keypoints": np.zeros((2, 2)), "labels": [-1, 3]},
            {"keypoint_set": 17},
            r"run from -1 to 3, but coco has 17",
        ),
        ({"points": np.zeros((17, 2))}, {}, r"entries \['points'\], expected 'keypoints'"),
        ([{"keypoints": [{"label": "nosee", "score": 1, "x": 3, "y": 4}]}], {"keypoint_set": 17}, r"mean 'nose'"),
    ],
)
def test_wrong_people_are_named(photo, people, options, message):
    with pytest.raises(ValueError, match=message):
        draw_keypoints(photo, people, **options)


# Images


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_depth_and_layout_are_read_alike(kind):
    colors = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    colors[0, 0] = 255
    unit = colors.astype(np.float32) / 255
    forms = [colors, colors.astype(np.uint16) * 257, unit, unit.astype(np.float64), colors.astype(np.float32)]
    forms += [np.ascontiguousarray(form.transpose(2, 0, 1)) for form in forms]
    for form in forms:
        np.testing.assert_array_equal(np.asarray(draw_keypoints(KINDS[kind](form), [])), colors)
    np.testing.assert_array_equal(np.asarray(draw_keypoints(Image.fromarray(colors), [])), colors)
    grey = draw_keypoints(KINDS[kind](colors[..., 0].copy()), [])
    np.testing.assert_array_equal(np.asarray(grey), colors[..., [0, 0, 0]])


def test_rotated_photos_are_drawn_upright(tmp_path):
    colors = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    colors[:30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colors).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as photo:
        picture = draw_keypoints(photo, [])
    assert picture.size == (HEIGHT, WIDTH)
    assert pixels(picture)[:, -30:].min() == 255


def test_nothing_that_is_passed_in_changes(photo, person):
    image = np.asarray(photo).copy()
    labels = np.full((HEIGHT, WIDTH), 3)
    depth = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    normals = np.full((3, HEIGHT, WIDTH), 0.5)
    arrays = [image, labels, depth, normals, *person.values()]
    before = [array.copy() for array in arrays]
    pictures = [
        draw_keypoints(image, [person], draw_boxes=True),
        draw_segmentation(image, labels),
        draw_depth(image, depth),
        draw_normals(normals),
        side_by_side([image, image]),
    ]
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert all(picture.mode == "RGB" for picture in pictures)


# Segmentation


@pytest.mark.parametrize("opacity", [0, 0.25, 1])
def test_opacity_mixes_photo_and_colour(photo, opacity):
    label_map = np.full((HEIGHT, WIDTH), 9, dtype=np.uint8)
    label_map[:40] = 255
    picture = pixels(draw_segmentation(photo, label_map, "lip", opacity, legend=False))
    expected = (128 * (1 - opacity) + np.array(class_set("lip").colors[9]) * opacity).astype(int)
    assert (picture[40:] == expected).all()
    assert (picture[:40] == 128).all()  # ignored


@pytest.mark.parametrize("form", ["uint8", "int64", "int32", "float32", "PIL", "torch", "bfloat16"])
def test_label_maps_of_every_kind(photo, form):
    labels = np.random.default_rng(1).integers(0, 19, (HEIGHT, WIDTH)).astype(np.uint8)
    expected = pixels(draw_segmentation(photo, labels, "face"))
    special = {"PIL": lambda: Image.fromarray(labels), "torch": lambda: torch.from_numpy(labels).long()}
    special["bfloat16"] = lambda: torch.from_numpy(labels).to(torch.bfloat16)
    given = special[form]() if form in special else labels.astype(form)
    np.testing.assert_array_equal(pixels(draw_segmentation(photo, given, 19)), expected)


def test_legend_lists_what_is_there_without_overlap():
    size = (640, 410)
    photo, classes = Image.new("RGB", size, GREY), class_set("goliath28")
    labels = np.arange(size[1])[:, None] * 28 // size[1] + np.zeros(size[0], int)
    full = draw_segmentation(photo, labels)
    assert full.width == size[0]
    np.testing.assert_array_equal(pixels(full)[: size[1]], pixels(draw_segmentation(photo, labels, legend=False)))
    strip = pixels(full)[size[1] :]
    for color in classes.colors:
        assert (strip == color).all(axis=-1).sum() > 30
    # Left of every column of colour squares there is blank paper from top to bottom: no name runs into it.
    squares = (strip[..., None, :] == np.array(classes.colors)).all(axis=-1).any(axis=(0, -1))
    starts = [x for x in range(3, size[0]) if squares[x] and not squares[x - 3 : x].any()]
    assert len(starts) >= 3
    for start in starts:
        assert (strip[:, start - 5 : start - 2] == 255).all()

    few = draw_segmentation(photo, np.where(labels < 2, labels, 255))
    assert few.height < full.height
    few_strip = pixels(few)[size[1] :]
    for index, color in enumerate(classes.colors):
        assert (few_strip == color).all(axis=-1).any() == (index < 2)


def test_legend_of_a_small_picture_widens_it():
    labels = np.arange(48)[:, None] % 28 + np.zeros(31, int)
    picture = draw_segmentation(np.full((48, 31, 3), 128, np.uint8), labels)
    assert picture.width > 100
    assert picture.height > 48 + 28 * 11
    assert (pixels(picture)[:48, 31:] == 255).all()


def test_without_a_class_there_is_no_legend(photo):
    picture = draw_segmentation(photo, np.full((HEIGHT, WIDTH), 255))
    np.testing.assert_array_equal(pixels(picture), pixels(photo))


@pytest.mark.parametrize(
    ("label_map", "options", "message"),
    [
        (
            np.zeros((WIDTH, HEIGHT), int),
            {},
            rf"label_map is {WIDTH} x {HEIGHT} pixels.*picture.*is {HEIGHT} x {WIDTH}",
        ),
        (np.zeros((4, 3, HEIGHT, WIDTH), int), {}, r"label_map has shape \(4, 3, 150, 230\)"),
        (np.full((HEIGHT, WIDTH), 20), {"class_set": "cihp"}, r"the label 20, but cihp20 has the labels 0 to 19"),
        (np.full((HEIGHT, WIDTH), 0.5), {}, r"type float64"),
        (np.full((HEIGHT, WIDTH), np.nan), {}, r"type float64"),
        (np.zeros((HEIGHT, WIDTH), int), {"opacity": 1.5}, r"opacity is 1\.5, expected a number from 0 to 1"),
        (np.zeros((HEIGHT, WIDTH), int), {"opacity": float("nan")}, r"opacity is nan"),
        (np.zeros((HEIGHT, WIDTH), int), {"class_set": "goliat"}, r"'goliat'\. Did you mean 'goliath28'"),
    ],
)
def test_wrong_segmentations_are_named(photo, label_map, options, message):
    with pytest.raises(ValueError, match=message):
        draw_segmentation(photo, label_map, **options)


def test_a_class_set_of_ones_own_may_ignore_a_negative_label(photo):
    own = type(class_set(19))(**{**vars(class_set(19)), "ignore_index": -100})
    labels = np.full((HEIGHT, WIDTH), -100)
    labels[:10] = 13
    picture = pixels(draw_segmentation(photo, labels, own, opacity=1, legend=False))
    assert (picture[:10] == own.colors[13]).all()
    assert (picture[10:] == 128).all()


def test_more_classes_than_a_byte_holds(photo):
    many = make_class_set([f"class {k}" for k in range(300)], ignore_index=-1)
    labels = np.full((HEIGHT, WIDTH), 299, dtype=np.int32)
    labels[:10], labels[10:20] = -1, 255
    picture = pixels(draw_segmentation(photo, labels, many, opacity=1))
    assert (picture[:10, :WIDTH] == 128).all()
    assert (picture[10:20, :WIDTH] == many.colors[255]).all()
    assert (picture[20:HEIGHT, :WIDTH] == many.colors[299]).all()


# Depth


def test_inferno_has_the_known_ends():
    table = visualization._inferno()
    assert table.shape == (256, 3)
    assert table[0].tolist() == [0, 0, 4]
    assert table[128].tolist() == [188, 55, 84]
    assert table[255].tolist() == [252, 255, 164]
    assert (np.diff(table[::15].astype(int) @ [2126, 7152, 722]) > 0).all()  # brighter all the way


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "uint16", "int32", "uint8"])
def test_near_is_bright_within_the_persons_own_range(photo, kind, dtype):
    depth = np.zeros((HEIGHT, WIDTH), dtype=dtype)
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[20:120, 30:200] = True
    depth[20:120, 30:200] = np.linspace(10, 200, 100)[:, None]
    depth[130:] = 250  # farther and nearer things that are not the person
    picture = pixels(draw_depth(photo, KINDS[kind](depth), KINDS[kind](mask)))
    assert (picture[~mask] == 100).all()
    assert picture[20, 50].tolist() == [252, 255, 164]
    assert picture[119, 50].tolist() == [0, 0, 4]
    assert (np.diff(picture[20:120, 50].sum(axis=-1)) <= 0).all()


@pytest.mark.parametrize("mask", [np.zeros((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH)), "not finite"])
def test_no_person_gives_plain_grey(mask):
    depth = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    if isinstance(mask, str):
        depth, mask = np.full_like(depth, np.nan), None
    picture = draw_depth(None, depth, mask)
    assert picture.size == (WIDTH, HEIGHT)
    assert (pixels(picture) == 100).all()


def test_flat_and_broken_depth():
    depth = np.full((HEIGHT, WIDTH), 0.7)
    assert (pixels(draw_depth(None, depth)) == [252, 255, 164]).all()
    depth[5, 6], depth[7, 8], depth[9, 9] = np.nan, np.inf, 0.2
    picture = pixels(draw_depth(None, torch.from_numpy(depth)))
    assert picture[5, 6].tolist() == picture[7, 8].tolist() == [100, 100, 100]
    assert picture[9, 9].tolist() == [252, 255, 164]
    assert picture[0, 0].tolist() == [0, 0, 4]


@pytest.mark.parametrize(
    ("depth", "mask", "message"),
    [
        (np.zeros((2, HEIGHT, WIDTH)), None, r"depth has shape \(2, 150, 230\); expected \(height, width\)"),
        (np.zeros((WIDTH, HEIGHT)), None, r"depth is 230 x 150 pixels.*is 150 x 230"),
        (np.zeros((HEIGHT, WIDTH)), np.ones((HEIGHT, 2)), r"mask is 150 x 2 pixels.*is 150 x 230"),
        (np.zeros((0, WIDTH)), None, r"depth has shape \(0, 230\): no pixels"),
    ],
)
def test_wrong_depth_is_named(photo, depth, mask, message):
    with pytest.raises(ValueError, match=message):
        draw_depth(photo, depth, mask)


# Normals


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_normals_are_red_green_blue_in_x_y_z(dtype):
    normals = np.zeros((3, HEIGHT, WIDTH), dtype=dtype)
    normals[0, :50], normals[1, 50:100], normals[2, 100:] = 1, -1, 1
    picture = pixels(draw_normals(normals))
    assert picture[0, 0].tolist() == [255, 127, 127]
    assert picture[60, 5].tolist() == [127, 0, 127]
    assert picture[149, 200].tolist() == [127, 127, 255]


def test_masked_and_broken_normals_are_black():
    normals = np.zeros((3, HEIGHT, WIDTH))
    normals[2] = 1.5  # beyond unit length: clipped, not wrapped around
    normals[0, 3, 4], normals[1, 5, 6] = np.nan, np.inf
    mask = np.ones((HEIGHT, WIDTH), dtype=np.uint8) * 255
    mask[100:] = 0
    picture = pixels(draw_normals(torch.from_numpy(normals).bfloat16(), torch.from_numpy(mask)))
    assert not picture[100:].any()
    assert not picture[[3, 5], [4, 6]].any()
    assert picture[50, 50].tolist() == [127, 127, 255]
    assert not pixels(draw_normals(normals, mask * 0)).any()


@pytest.mark.parametrize(
    ("normals", "mask", "message"),
    [
        (np.zeros((HEIGHT, WIDTH)), None, r"normals has shape \(150, 230\)"),
        (np.zeros((2, 3, HEIGHT, WIDTH)), None, r"normals has shape \(2, 3, 150, 230\)"),
        (np.zeros((3, HEIGHT, WIDTH)), np.ones((WIDTH, HEIGHT)), r"mask is 230 x 150 pixels.*is 150 x 230"),
    ],
)
def test_wrong_normals_are_named(normals, mask, message):
    with pytest.raises(ValueError, match=message):
        draw_normals(normals, mask)


# Rows


def test_side_by_side_keeps_sizes_and_order():
    colors = [(200, 10, 10), (10, 200, 10), (10, 10, 200)]
    sizes = [(90, 60), (50, 110), (130, 40)]
    panels = [Image.new("RGB", size, color) for size, color in zip(sizes, colors, strict=True)]
    row = side_by_side(panels)
    picture = pixels(row)
    assert row.height == 110
    assert 270 < row.width < 290
    left = 0
    for (width, height), color in zip(sizes, colors, strict=True):
        found = (picture == color).all(axis=-1)
        assert found.sum() == width * height
        rows, columns = np.nonzero(found)
        assert rows.min() == 0
        assert columns.min() >= left
        left = columns.max() + 1
    assert (picture[50:, :90][10:] == 255).all()


def test_captions_stay_above_their_panels():
    panels = [Image.new("RGB", (120, 80), GREY), Image.new("RGB", (90, 70), GREY), Image.new("RGB", (100, 60), GREY)]
    plain, row = (
        pixels(side_by_side(panels)),
        pixels(side_by_side(panels, ["Photo", "a much too long caption " * 6, ""])),
    )
    header = row.shape[0] - plain.shape[0]
    assert 10 < header < 40
    np.testing.assert_array_equal(row[header:], plain)
    dark = (row[:header] < 128).any(axis=(0, -1))
    gap = (row.shape[1] - 310) // 2
    assert dark[30:90].any()
    assert not dark[:20].any()
    assert dark[120 + gap : 210 + gap].any()
    assert not dark[100 : 120 + gap].any()
    assert not dark[210 + gap :].any()


def test_a_caption_wider_than_any_letter_is_dropped():
    row = pixels(side_by_side([Image.new("RGB", (3, 40), GREY)], ["WWWW"]))
    assert row.shape[1] == 3
    assert (row[: row.shape[0] - 40] == 255).all()


def test_wrong_rows_are_named(photo):
    with pytest.raises(ValueError, match="no images"):
        side_by_side([])
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        side_by_side([photo, photo], ["one"])
