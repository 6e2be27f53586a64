"""Pictures and labels of a scene, from one set of rays: what a pixel shows is what its labels say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from .. import labels as label_sets
from .background import draw_background
from .body import GROUPS, Body, load_body
from .camera import Camera, lengths
from .noise import SpaceNoise
from .raycast import Hits, RayCaster
from .scene import Light, Person, stand
from .wardrobe import (
    MATERIALS,
    eye_albedo,
    face_paint,
    hair_albedo,
    materials,
    on_nose,
    skin_albedo,
    softened_parts,
    thickness,
    to_linear,
    upper_lip,
)

_M = {name: index for index, name in enumerate(MATERIALS)}
_G = {name: index for index, name in enumerate(GROUPS)}
# How deep under the skin a point may lie and still be seen, metres on an adult, and the groups whose skin covers it.
_COVER: dict[str, tuple[float, tuple[str, ...]]] = {
    "nose": (0.03, ("head",)),
    "eye": (0.03, ("head",)),
    "ear": (0.045, ("head",)),
    "shoulder": (0.13, ("torso", "upper_arm")),
    "elbow": (0.09, ("upper_arm", "lower_arm")),
    "wrist": (0.06, ("lower_arm", "hand")),
    "hand_root": (0.06, ("lower_arm", "hand")),
    "hip": (0.19, ("torso", "thigh")),
    "knee": (0.12, ("thigh", "shin")),
    "ankle": (0.10, ("shin", "foot")),
    "big_toe": (0.05, ("foot",)),
    "small_toe": (0.05, ("foot",)),
    "heel": (0.06, ("foot",)),
}
_FINGER_COVER = (0.025, ("hand",))
_FACE_COVER = (0.012, ("head",))
_ADULT_M = 1.7
_LIP_COLOR = np.array([150, 60, 62])
_GLOSS = {
    "skin": (0.05, 22),
    "hair": (0.05, 26),
    "eye": (0.9, 220),
    "lip": (0.16, 40),
    "tongue": (0.2, 40),
    "shoe": (0.12, 40),
}


@dataclass
class Posed:
    """One person as the camera sees it: camera axes (x right, y down, z forwards), metres.

    Attributes:
        faces: numbers of the faces that can be seen, `used` of their vertices, `box` their (left, top, right, bottom).
    """

    person: Person
    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    used: np.ndarray
    box: tuple[float, float, float, float]
    points: np.ndarray
    stature_m: float


@dataclass
class Pixels:
    """The pixels that show people, one row each."""

    index: np.ndarray
    rays: np.ndarray
    hits: Hits
    canonical: np.ndarray
    group: np.ndarray
    material: np.ndarray
    normal: np.ndarray


def pose_people(people: list[Person]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Dress, pose and stand people, each at the origin: world vertices and joint points per person."""
    body = load_body()
    vertices, joints = body.pose([person.shape for person in people], np.stack([person.pose for person in people]))
    result = []
    for person, own, points in zip(people, vertices, joints, strict=True):
        noise = SpaceNoise(np.random.default_rng(person.noise_seed))
        material = materials(person.outfit, body.canonical, body.vertex_group, body.ear_vertices)
        offset = body.smooth(thickness(person.outfit, body, material, noise))
        dressed = own
        for part, rounds in softened_parts(person.outfit).items():
            dressed = body.soften(dressed, part, rounds)
        dressed = dressed + offset[:, None] * body.vertex_normals(body.face_normals(dressed))
        result.append(stand(dressed, points, person))
    return result


def see(person: Person, vertices: np.ndarray, points: np.ndarray, camera: Camera) -> Posed:
    """Bring a standing person into camera axes and keep the faces that the camera can see.

    Only faces turned to the camera can be met first, and building Embree's tree over the others costs time. They still
    throw most of their shadows: a body that blocks light does so on the way in and on the way out.
    """
    body = load_body()
    stature = float(np.ptp(vertices[:, 2]))
    seen = camera.to_camera(vertices).astype(np.float32)
    flat = body.face_normals(seen)
    normals = body.vertex_normals(flat)
    facing = np.einsum("fc,fc->f", flat, np.take(seen, body.faces[:, 0], axis=0)) < 0
    pixels = camera.to_pixels(seen)
    x, y = pixels.T
    # One bit for each side of the picture that a vertex is beyond; a face is away when its corners share one. A margin
    # of a fifth of the picture keeps what throws shadows from just outside.
    beyond = (x < -0.2 * camera.width) + 2 * (x > 1.2 * camera.width) + 4 * (y < -0.2 * camera.height)
    beyond = (beyond + 8 * (y > 1.2 * camera.height)).astype(np.uint8)
    beyond[np.isnan(x)] = 16
    a, b, c = np.take(beyond, body.faces).T
    kept = facing & ((a & b & c) == 0) & ((a | b | c) < 16)
    faces = np.flatnonzero(kept)
    used = np.zeros(len(seen), dtype=bool)
    used[np.take(body.faces, faces, axis=0)] = True
    x, y = x[used], y[used]
    box = (x.min(), y.min(), x.max(), y.max()) if len(faces) else (0.0, 0.0, 0.0, 0.0)
    return Posed(person, seen, normals, faces, np.flatnonzero(used), box, camera.to_camera(points), stature)


@dataclass(frozen=True)
class View:
    """Everything the rays of one camera found."""

    camera: Camera
    people: list[Posed]
    caster: RayCaster
    pixels: Pixels


def trace(people: list[Posed], camera: Camera) -> View | None:
    """Cast one ray through the centre of every pixel that may show a person; None when nobody is in view."""
    if not any(len(posed.faces) for posed in people):
        return None
    body = load_body()
    caster = RayCaster([_compact(body, posed) for posed in people])
    index = _candidate_pixels(people, camera)
    rays = camera.rays(np.stack([index % camera.width, index // camera.width], axis=1))
    hits = caster.cast(np.zeros(3), rays)
    hit = np.flatnonzero(hits.mesh >= 0)
    index, rays = index[hit], rays[hit]
    hits = Hits(hits.mesh[hit], hits.face[hit], hits.weights[hit], hits.distance[hit])
    faces = _whole_faces(people, hits)
    corners = np.take(body.faces, faces, axis=0)
    weights = hits.weights.astype(np.float32)
    canonical = _blend(weights, body.canonical, corners)
    normal = np.empty((len(hit), 3), dtype=np.float32)
    material = np.empty(len(hit), dtype=np.uint8)
    group = body.group_at(faces, weights)
    for number, posed in enumerate(people):
        own = hits.mesh == number
        normal[own] = _blend(weights[own], posed.normals, corners[own])
        material[own] = _materials_at(body, posed.person, canonical[own], group[own], faces[own], weights[own])
    normal = _facing_unit(normal, people, corners, hits.mesh, rays)
    return View(camera, people, caster, Pixels(index, rays, hits, canonical, group, material, normal))


def _blend(weights: np.ndarray, values: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Values (num, 3) at points given by barycentric weights (num, 3) of vertices (num, 3)."""
    total = weights[:, :1] * np.take(values, corners[:, 0], axis=0)
    for corner in (1, 2):
        total += weights[:, corner, None] * np.take(values, corners[:, corner], axis=0)
    return total


def _compact(body: Body, posed: Posed) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of what can be seen: Embree's copy of the vertices is what building it costs."""
    number = np.zeros(len(posed.vertices), dtype=np.int64)
    number[posed.used] = np.arange(len(posed.used))
    return posed.vertices[posed.used], np.take(number, np.take(body.faces, posed.faces, axis=0))


def _candidate_pixels(people: list[Posed], camera: Camera) -> np.ndarray:
    """Flat numbers of the pixels inside any person's projected box."""
    inside = np.zeros((camera.height, camera.width), dtype=bool)
    for posed in people:
        if len(posed.faces):
            left, top = (max(int(np.floor(value)), 0) for value in posed.box[:2])
            right, bottom = (max(int(np.ceil(value)) + 1, 0) for value in posed.box[2:])
            inside[top:bottom, left:right] = True
    return np.flatnonzero(inside)


def _whole_faces(people: list[Posed], hits: Hits) -> np.ndarray:
    """Face numbers of the whole body from those of the faces that were kept."""
    starts = np.cumsum([0, *(len(posed.faces) for posed in people)])
    return np.concatenate([posed.faces for posed in people])[hits.face + starts[hits.mesh]]


def _facing_unit(
    normal: np.ndarray, people: list[Posed], corners: np.ndarray, mesh: np.ndarray, rays: np.ndarray
) -> np.ndarray:
    """Unit length, and the face's own normal where the interpolated one looks away from the camera (at outlines)."""
    normal = normal / np.maximum(lengths(normal), 1e-12)
    away = np.flatnonzero(np.einsum("nc,nc->n", normal, rays) >= 0)
    for number, posed in enumerate(people):
        own = away[mesh[away] == number]
        a, b, c = (posed.vertices[corners[own, k]] for k in range(3))
        flat = np.cross(b - a, c - a)
        normal[own] = flat / np.maximum(lengths(flat), 1e-30)
    return normal.astype(np.float32)


def _materials_at(
    body: Body, person: Person, points: np.ndarray, group: np.ndarray, faces: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    material = materials(person.outfit, points, group, body.ear_faces[faces])
    kind = body.face_kind[faces]
    head = np.flatnonzero((group == _G["head"]) & (kind == 0) & (material == _M["skin"]))
    material[head[body.on_lips(faces[head], weights[head])]] = _M["lip"]
    for number, name in ((1, "eye"), (2, "cavity"), (3, "tongue")):
        material[kind == number] = _M[name]
    return material


@cache
def _class_table() -> np.ndarray:
    """(num_materials, num_groups) Goliath class of each material on each group."""
    classes = label_sets.class_set("goliath28")
    table = np.zeros((len(MATERIALS), len(GROUPS)), dtype=np.uint8)
    fixed = {
        "hair": "Hair",
        "upper": "Upper_Clothing",
        "lower": "Lower_Clothing",
        "apparel": "Apparel",
        "tongue": "Tongue",
    }
    fixed |= dict.fromkeys(("eye", "cavity", "lip"), "Face_Neck")
    skin = {"upper_arm": "Upper_Arm", "lower_arm": "Lower_Arm", "hand": "Hand", "thigh": "Upper_Leg"}
    skin |= {"shin": "Lower_Leg", "foot": "Foot"}
    for material, row in _M.items():
        for group, column in _G.items():
            side, _, part = group.partition("_")
            if material in fixed:
                name = fixed[material]
            elif part == "":
                name = "Torso" if group == "torso" else "Face_Neck"
            elif material == "skin":
                name = f"{side.title()}_{skin[part]}"
            else:  # socks and shoes are on shins and feet only
                name = f"{side.title()}_{material.title()}"
                if part not in ("shin", "foot"):
                    continue
            table[row, column] = classes.index(name)
    return table


def label(view: View) -> dict[str, np.ndarray]:
    """Dense labels of a view; see `SyntheticHumans` for what each entry holds."""
    camera, pixels = view.camera, view.pixels
    size = camera.height * camera.width
    classes = label_sets.class_set("goliath28")
    parts = _class_table()[pixels.material, pixels.group]
    lips = pixels.material == _M["lip"]
    upper = upper_lip(pixels.canonical[lips])
    parts[lips] = np.where(upper, classes.index("Upper_Lip"), classes.index("Lower_Lip"))
    segmentation, person = np.zeros(size, dtype=np.uint8), np.full(size, -1, dtype=np.int8)
    depth, normals = np.zeros(size, dtype=np.float32), np.zeros((size, 3), dtype=np.float32)
    segmentation[pixels.index], person[pixels.index] = parts, pixels.hits.mesh
    depth[pixels.index] = pixels.hits.distance
    normals[pixels.index] = pixels.normal * np.array([1, -1, -1], dtype=np.float32)
    shape = (camera.height, camera.width)
    return {
        "segmentation": segmentation.reshape(shape),
        "instances": person.reshape(shape),
        "depth": depth.reshape(shape),
        "normals": normals.reshape(*shape, 3),
        "mask": (person >= 0).reshape(shape),
    }


def label_faces(view: View) -> np.ndarray:
    """FaceSynthetics-19 classes (height, width) uint8. Bare skin anywhere is Skin; nobody wears glasses or masks."""
    pixels = view.pixels
    classes = {name: number for number, name in enumerate(label_sets.class_set("face_synthetics19").names)}
    result = np.full(len(pixels.index), classes["Clothing"], dtype=np.uint8)
    x = pixels.canonical[:, 0]
    head = pixels.group == _G["head"]
    skin = pixels.material == _M["skin"]
    result[skin] = classes["Skin"]
    result[skin & (pixels.group == _G["neck"])] = classes["Neck"]
    result[head & (pixels.material == _M["apparel"])] = classes["Headwear"]
    for material, name in (("hair", "Hair"), ("cavity", "Mouth_interior"), ("tongue", "Mouth_interior")):
        result[pixels.material == _M[material]] = classes[name]
    lips = pixels.material == _M["lip"]
    result[lips] = np.where(upper_lip(pixels.canonical[lips]), classes["Top_lip"], classes["Bottom_lip"])
    ears = load_body().ear_faces[_whole_faces(view.people, pixels.hits)]
    for side, own in (("Left", x > 0), ("Right", x <= 0)):
        result[own & (pixels.material == _M["eye"])] = classes[f"{side}_eye"]
        result[own & skin & head & ears] = classes[f"{side}_ear"]
    for number, posed in enumerate(view.people):
        face = np.flatnonzero((pixels.hits.mesh == number) & head & skin)
        points = pixels.canonical[face]
        brow, beard = face_paint(posed.person.outfit, points)
        result[face[on_nose(points)]] = classes["Nose"]
        result[face[beard > 0.5]] = classes["Beard"]
        brows = np.where(points[:, 0] > 0, classes["Left_brow"], classes["Right_brow"])
        result[face[brow > 0.5]] = brows[brow > 0.5]
    whole = np.zeros(view.camera.height * view.camera.width, dtype=np.uint8)
    whole[pixels.index] = result
    return whole.reshape(view.camera.height, view.camera.width)


def visible_points(view: View) -> np.ndarray:
    """(num_people, num_joints, 3) pixels x, y and visibility: 2 seen, 1 hidden by something, 0 outside the picture.

    A point is seen when the first thing on its ray is the skin or cloth over it: the same person's, of the limb around
    the point, and no farther in front of it than that limb is thick.
    """
    camera, body = view.camera, load_body()
    points = np.stack([posed.points for posed in view.people])
    z = points[..., 2]
    pixels = camera.to_pixels(points)
    # Not a number is not inside. Between the centres of the outer pixels: what other tools call inside, too.
    inside = ((pixels >= 0) & (pixels <= np.array([camera.width - 1, camera.height - 1]))).all(-1)
    owner, joint = np.nonzero(inside)
    rays = points[owner, joint] / z[owner, joint][:, None]
    hits = view.caster.cast(np.zeros(3), rays)
    group = np.zeros(len(owner), dtype=np.int64)
    hit = np.flatnonzero(hits.mesh >= 0)
    found = Hits(hits.mesh[hit], hits.face[hit], hits.weights[hit], hits.distance[hit])
    group[hit] = body.group_at(_whole_faces(view.people, found), found.weights.astype(np.float32))
    reach, covers = _cover_table(body.joint_names)
    stature = np.array([posed.stature_m for posed in view.people])
    gap = z[owner, joint] - hits.distance
    own = (
        (hits.mesh == owner) & covers[joint, group] & (gap < reach[joint] * np.maximum(stature[owner] / _ADULT_M, 0.5))
    )
    seen = (hits.mesh < 0) | (gap < 1e-3) | own
    result = np.zeros((*inside.shape, 3))
    result[owner, joint, :2] = pixels[owner, joint]
    result[owner, joint, 2] = np.where(seen, 2, 1)
    return result


@cache
def _cover_table(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`_COVER` for each joint: reach (num_joints,) and allowed groups (num_joints, num_groups)."""
    reach, covers = np.zeros(len(names)), np.zeros((len(names), len(GROUPS)), dtype=bool)
    for row, name in enumerate(names):
        side, _, rest = name.partition("_")
        default = _FACE_COVER if name.startswith("face-") else _FINGER_COVER
        reach[row], groups = _COVER.get(rest or name, default)
        for group in groups:
            covers[row, _G[group] if group in _G else _G[f"{side}_{group}"]] = True
    return reach, covers


def shade(view: View, light: Light, rng: np.random.Generator) -> np.ndarray:
    """The picture (height, width, 3) uint8: people over their background, lens blur, sensor noise."""
    camera, pixels = view.camera, view.pixels
    to_key = camera.rotation @ light.to_key

    def blocked(world: np.ndarray) -> np.ndarray:
        origins = camera.to_camera(world)
        return view.caster.blocked(origins, np.broadcast_to(to_key, origins.shape))

    picture = draw_background(rng, camera, light, blocked).reshape(-1, 3)
    if len(pixels.index):
        picture[pixels.index] = _lit_people(view, light, to_key, rng)
    picture = picture.reshape(camera.height, camera.width, 3)
    picture *= np.float32(np.exp(rng.normal(0.05, 0.18)))  # exposure
    codes = 255 * (picture / (1 + 0.18 * picture)).clip(0, 1) ** np.float32(1 / 2.2)
    scale = max(camera.height, camera.width) / 256
    image = Image.fromarray(codes.astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.35, 0.75) * max(scale, 1) ** 0.5)))
    noisy = np.asarray(image, dtype=np.float32)
    grain = rng.standard_normal((camera.height, camera.width, 3), dtype=np.float32)
    noisy = noisy + np.float32(rng.uniform(0.5, 5.0)) * grain
    return (noisy + 0.5).clip(0, 255).astype(np.uint8)


def _lit_people(view: View, light: Light, to_key: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    camera, pixels = view.camera, view.pixels
    albedo, gloss, power = _albedo(view)
    normal = pixels.normal
    toward_eye = (-pixels.rays / lengths(pixels.rays)).astype(np.float32)
    jitter = rng.standard_normal(normal.shape, dtype=np.float32) * np.float32(light.softness)
    lamp = to_key.astype(np.float32) + jitter
    points = pixels.rays * pixels.hits.distance[:, None] + 0.004 * normal
    facing = normal @ to_key.astype(np.float32)
    lit = facing > 0
    lit[lit] = ~view.caster.blocked(points[lit], lamp[lit])
    around = rng.standard_normal(normal.shape, dtype=np.float32)
    around = normal + around / lengths(around)
    open_sky = np.float32(1.0) - np.float32(0.55) * view.caster.blocked(points, around)
    lit, open_sky = _averaged(np.stack([lit, open_sky]), pixels.index, camera)
    up = normal @ camera.rotation[:, 2].astype(np.float32)
    ambient = (light.ground + (light.sky - light.ground) * (0.5 + 0.5 * up)[:, None]) * open_sky[:, None]
    skin = ((pixels.material == _M["skin"]) | (pixels.material == _M["lip"])).astype(np.float32)
    # Light seeps through skin: its terminator is soft and red.
    wrap = skin[:, None] * np.array([0.22, 0.1, 0.06], dtype=np.float32)
    direct = ((facing[:, None] + wrap) / (1 + wrap)).clip(0, None) * (0.12 * skin + (1 - 0.12 * skin) * lit)[:, None]
    half = toward_eye + to_key.astype(np.float32)
    half /= lengths(half)
    shine = gloss * np.einsum("nc,nc->n", normal, half).clip(0, None) ** power * lit
    rim = (1 - np.einsum("nc,nc->n", normal, toward_eye).clip(0, 1)) ** 4 * 0.15 * open_sky
    return albedo * (ambient + light.key * direct) + light.key * shine[:, None] + light.sky * (albedo * rim[:, None])


def _averaged(values: np.ndarray, index: np.ndarray, camera: Camera) -> np.ndarray:
    """Means (num_fields, num) over the people's pixels in 5 x 5 windows: one random ray each becomes soft shade."""
    total = np.zeros((len(values) + 1, camera.height + 6, camera.width + 6))
    rows, columns = index // camera.width + 3, index % camera.width + 3
    total[:-1, rows, columns], total[-1, rows, columns] = values, 1
    total = total.cumsum(1).cumsum(2)
    above, left, below, right = rows - 3, columns - 3, rows + 2, columns + 2
    sums = total[:, below, right] - total[:, above, right] - total[:, below, left] + total[:, above, left]
    return (sums[:-1] / sums[-1]).astype(np.float32)


def _albedo(view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours (num, 3), gloss (num,) and its sharpness (num,) of the people's pixels."""
    pixels = view.pixels
    color = np.zeros((len(pixels.index), 3), dtype=np.float32)
    gloss, power = np.full(len(color), 0.03, dtype=np.float32), np.full(len(color), 20.0, dtype=np.float32)
    for number, posed in enumerate(view.people):
        outfit = posed.person.outfit
        noise = SpaceNoise(np.random.default_rng(posed.person.noise_seed))
        for name, code in _M.items():
            here = np.flatnonzero((pixels.hits.mesh == number) & (pixels.material == code))
            if not len(here):
                continue
            points = pixels.canonical[here]
            if name in ("upper", "lower", "sock", "shoe", "apparel"):
                fabric = getattr(outfit, name)
                color[here] = fabric.albedo(points, noise)
                gloss[here] = fabric.gloss
            elif name == "hair":
                color[here] = hair_albedo(outfit, points, noise)
            elif name == "eye":
                color[here] = eye_albedo(outfit, points)
            elif name == "cavity":
                color[here] = np.float32([0.05, 0.015, 0.012])
            else:
                head = pixels.group[here] == _G["head"]
                color[here] = skin_albedo(outfit, points, head, noise)
                if name != "skin":
                    color[here] = 0.55 * color[here] + 0.45 * to_linear(_LIP_COLOR) * (0.3 + outfit.skin.mean())
            if name in _GLOSS:
                gloss[here], power[here] = _GLOSS[name]
    return color, gloss, power
