"""The body: anny's mesh, posed; and what the mesh knows about itself (parts, canonical coordinates, keypoints).

Axes of the world, in metres: x to the left of a person who faces the viewer's way of `y = -1`, y backwards, z up.
So a person at rest looks along -y and has the left hand at positive x.

`canonical` below is the body of average parameters at rest. Clothes, hair and paint are described in its coordinates,
which is why they stay on the same place of every body and in every pose.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .camera import lengths
from .landmarks import face_anchors
from .poses import FINGERS, SIDES, joint_rotations
from .raycast import missing_extra

PHENOTYPES = ("gender", "age", "muscle", "weight", "height", "proportions", "cupsize", "firmness")
ANCESTRIES = ("african", "asian", "caucasian")
FACIAL_ACTIONS = (
    *("jawOpen", "tongueOut", "mouthSmileLeft", "mouthSmileRight"),
    *("eyeBlinkLeft", "eyeBlinkRight", "browInnerUp", "mouthPucker"),
)
GROUPS = (
    *("torso", "head", "neck"),
    *(f"{side}_{part}" for side in SIDES for part in ("upper_arm", "lower_arm", "hand", "thigh", "shin", "foot")),
)
_GROUP_OF_BONE = {
    "upperarm": "upper_arm",
    "lowerarm": "lower_arm",
    "wrist": "hand",
    "metacarpal": "hand",
    "finger": "hand",
    "upperleg": "thigh",
    "lowerleg": "shin",
    "foot": "foot",
    "toe": "foot",
}
# WholeBody names the thumb's and the fingers' four points 1 to 4, from the palm to the tip.
_FINGER_NAMES = dict(
    zip(FINGERS, ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger"), strict=True)
)


@dataclass(frozen=True)
class Shape:
    """One person's build: anny's parameters, all in [0, 1]; see its documentation for their meaning."""

    values: dict[str, float]
    facial: dict[str, float]


class Body:
    """anny's model with the tables this package derives from it. Made once per process by `load_body`.

    Attributes:
        faces (num_faces, 3): vertex numbers.
        canonical (num_vertices, 3): rest positions of the average body, metres.
        group_scores (num_vertices, num_groups): how much of each vertex belongs to each of `GROUPS`; rows sum to 1.
        head (num_head_vertices,): numbers of the head's vertices.
        face_kind (num_faces,): 0 skin, 1 eyeball, 2 mouth cavity, 3 tongue.
    """

    def __init__(self) -> None:
        import torch

        try:
            with _without_compiler():
                import anny
            from anny.paths import get_anny_root_dir
        except ImportError as error:
            raise missing_extra(error.name or "anny") from error

        # "lbs" keeps anny from compiling its Warp kernels; float32 and 64 instead of 318 directions of shape (within
        # 2 mm of the full model; the labels are those of the mesh that is drawn) halve the time of a forward twice.
        self.model: Any = anny.Anny(
            phenotypes="all",
            facial_actions=list(FACIAL_ACTIONS),
            skinning_method="lbs",
            phenotype_blendshapes=64,
        ).to(torch.float32)
        self.data = Path(get_anny_root_dir()) / "data"
        rest = self._forward(None, {}, {})
        self.faces = self.model.faces.numpy().astype(np.int32)
        self.canonical = rest["rest_vertices"][0].numpy().astype(np.float32)
        self.bones = {name: index for index, name in enumerate(self.model.bone_labels)}
        self.bone_heads = rest["rest_bone_heads"][0].numpy().astype(np.float64)
        self.face_uv = self.model.texture_coordinates.numpy()[self.model.face_texture_coordinate_indices.numpy()]
        self.face_uv = self.face_uv.astype(np.float32)
        self.group_scores = self._group_scores()
        self.vertex_group = self.group_scores.argmax(1)
        regressor = anny.KeypointsRegressor.coco(self.model)
        self._regressed = tuple(regressor.labels)
        weights = regressor.regression_weights.numpy().astype(np.float32)
        self._regressed_from = np.flatnonzero(weights.any(0))
        self._regression = weights[:, self._regressed_from]
        self.face_kind, face_is_head = self._read_part_map()
        self._give_head_and_extremities_their_mapped_group(face_is_head)
        self.head = np.flatnonzero(self.vertex_group == GROUPS.index("head"))
        self._face_group = self.vertex_group[self.faces[:, 0]]
        self._face_is_mixed = (self.vertex_group[self.faces] != self._face_group[:, None]).any(1)
        self._tips = self._fingertips()
        self._face_names, self._face_corners, self._face_weights = face_anchors(self.canonical, self.faces)
        self.ear_vertices = np.zeros(len(self.canonical), dtype=bool)
        self.ear_vertices[self.faces[self.ear_faces]] = True
        self._edges = _directed_edges(self.faces, np.arange(len(self.canonical)))
        torso = (self.vertex_group == GROUPS.index("torso")) & (self.canonical[:, 2] > 0)
        self._soft_parts = {}
        for name, chosen in (("toes", self._dominant_bone("toe")), ("ears", self.ear_vertices), ("torso", torso)):
            vertices = np.flatnonzero(chosen)
            self._soft_parts[name] = (vertices, _directed_edges(self.faces, vertices))
        self._corners = [np.ascontiguousarray(self.faces[:, corner]) for corner in range(3)]
        # Sorted by vertex, the three corners of all faces.
        order = np.argsort(self.faces.ravel(), kind="stable")
        starts = np.searchsorted(self.faces.ravel()[order], np.arange(len(self.canonical)))
        self._corner_faces, self._corner_starts = (order // 3).astype(np.int32), starts.astype(np.int32)

    def _forward(self, pose: Any, phenotypes: dict[str, Any], facial: dict[str, Any]) -> dict[str, Any]:
        import torch

        with torch.no_grad():
            return self.model(pose_parameters=pose, phenotype_kwargs=phenotypes, facial_actions=facial)

    def _group_scores(self) -> np.ndarray:
        """Skinning weights summed over the bones of each group."""
        group_of_bone = np.zeros(len(self.bones), dtype=np.int64)
        for name, index in self.bones.items():
            stem = name.split(".")[0].rstrip("0123456789-")
            if name.startswith("neck"):
                group = "neck"
            elif stem in ("head", "eye"):
                group = "head"
            elif stem in _GROUP_OF_BONE:
                group = f"{'left' if name.endswith('.L') else 'right'}_{_GROUP_OF_BONE[stem]}"
            else:
                group = "torso"
            group_of_bone[index] = GROUPS.index(group)
        weights = self.model.vertex_bone_weights.numpy()
        bones = self.model.vertex_bone_indices.numpy()
        scores = np.zeros((len(weights), len(GROUPS)), dtype=np.float32)
        np.add.at(scores, (np.arange(len(weights))[:, None], group_of_bone[bones]), weights)
        return scores / scores.sum(1, keepdims=True)

    def _read_part_map(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Kinds of faces, and the faces of each extremity, from anny's part map in texture space."""
        import yaml
        from PIL import Image

        folder = self.data / "segmentation"
        colors = yaml.safe_load((folder / "body_parts_segmentation.yaml").read_text(encoding="utf-8"))["colors"]
        with Image.open(folder / "body_parts_segmentation.png") as image:
            parts = np.asarray(image.convert("RGB"))
        at = parts[_texels(self.face_uv.mean(1), parts.shape)]
        faces = {name: (at == np.asarray(color)).all(-1) for name, color in colors.items()}
        kind = np.zeros(len(self.faces), dtype=np.uint8)
        kind[faces["eye_front.L"] | faces["eye_back.L"] | faces["eye_front.R"] | faces["eye_back.R"]] = 1
        kind[faces["mouth_cavity"]] = 2
        kind[faces["tongue"]] = 3
        return kind, faces

    def _give_head_and_extremities_their_mapped_group(self, mapped: dict[str, np.ndarray]) -> None:
        """The map knows where face, hand and foot end; skinning weights smear over those borders."""
        names = {
            "left_hand": "hand.L",
            "right_hand": "hand.R",
            "left_foot": "foot.L",
            "right_foot": "foot.R",
            "head": "head",
        }
        for group, name in names.items():
            inside = np.zeros(len(self.canonical), dtype=bool)
            inside[self.faces[mapped[name]]] = True
            column = GROUPS.index(group)
            moved = inside & (self.vertex_group != column)
            self.group_scores[moved] = 0
            self.group_scores[moved, column] = 1
        self.vertex_group = self.group_scores.argmax(1)

    def _fingertips(self) -> dict[str, np.ndarray]:
        """For each finger the vertices at its end: within 2 mm of the farthest along the last bone."""
        tips = {}
        for side, letter in zip(SIDES, "LR", strict=True):
            for finger, number in zip(FINGERS, range(1, 6), strict=True):
                last = self.bones[f"finger{number}-3.{letter}"]
                direction = self.bone_heads[last] - self.bone_heads[self.bones[f"finger{number}-2.{letter}"]]
                vertices = np.flatnonzero(self._dominant_bone(f"finger{number}-3.{letter}"))
                along = self.canonical[vertices] @ (direction / np.linalg.norm(direction))
                tips[f"{side}_{_FINGER_NAMES[finger]}4"] = vertices[along > along.max() - 2e-3]
        return tips

    def _dominant_bone(self, prefix: str) -> np.ndarray:
        """(num_vertices,) whether the bone that moves a vertex most is one of those whose names start so."""
        chosen = np.array([name.startswith(prefix) for name in self.model.bone_labels])
        weights, bones = self.model.vertex_bone_weights.numpy(), self.model.vertex_bone_indices.numpy()
        return chosen[np.take_along_axis(bones, weights.argmax(1)[:, None], 1)[:, 0]]

    def smooth(self, values: np.ndarray, rounds: int = 2) -> np.ndarray:
        """Average values (num_vertices,) with those of the neighbouring vertices."""
        edges, starts, count = self._edges
        values = values.astype(np.float32).reshape(-1, 1)  # not [:, None]: torch is slow with the strides of that
        for _ in range(rounds):
            values = 0.5 * values + 0.5 * _segment_sums(values, edges, starts) / count
        return values[:, 0]

    def soften(self, vertices: np.ndarray, part: str, rounds: int) -> np.ndarray:
        """A copy of vertices (num_vertices, 3) with a part smoothed, as it is under cloth, hair or in a shoe.

        Args:
            part: "toes", "ears" or "torso".
        """
        vertices = vertices.copy()
        moved, (edges, starts, count) = self._soft_parts[part]
        for _ in range(rounds):
            mean = _segment_sums(vertices, edges, starts) / count
            vertices[moved] = 0.2 * vertices[moved] + 0.8 * mean
        return vertices

    @cached_property
    def lips(self) -> np.ndarray:
        """(height, width) uint8 map in texture space, 255 on the lips."""
        return self._texture("mpfb_lips.jpg")

    def group_at(self, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Body group of points on faces (num,) with barycentric weights (num, 3): the largest interpolated score."""
        group = np.take(self._face_group, faces)
        mixed = np.flatnonzero(np.take(self._face_is_mixed, faces))
        scores = np.take(self.group_scores, np.take(self.faces, faces[mixed], axis=0), axis=0)
        group[mixed] = np.einsum("nk,nkg->ng", weights[mixed], scores).argmax(1)
        return group

    def on_lips(self, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Whether points on faces (num,) with barycentric weights (num, 3) are on the lips."""
        return self.lips[_texels(np.einsum("nk,nkc->nc", weights, self.face_uv[faces]), self.lips.shape)] > 127

    @cached_property
    def ear_faces(self) -> np.ndarray:
        """(num_faces,) whether a face is part of an ear."""
        texture = self._texture("mpfb_ears.jpg")
        return texture[_texels(self.face_uv.mean(1), texture.shape)] > 127

    def _texture(self, name: str) -> np.ndarray:
        from PIL import Image

        with Image.open(self.data / "mpfb2" / "textures" / name) as image:
            return np.asarray(image.convert("L"))

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the points that `pose` returns: those of the WholeBody set that the body knows exactly."""
        hands = [f"{side}_hand_root" for side in SIDES]
        for side in SIDES:
            hands += [f"{side}_{name}{number}" for name in _FINGER_NAMES.values() for number in range(1, 5)]
        return (*self._regressed, *self._face_names, *hands)

    def pose(self, shapes: list[Shape], poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pose several people at once.

        Args:
            shapes: one per person.
            poses: (num_people, num_freedoms) degrees, the freedoms of `poses.FREEDOMS`.

        Returns:
            Vertices (num_people, num_vertices, 3) float32 with the pelvis near the origin, and the points
            (num_people, num_names, 3) float64 that `joint_names` names, both in metres.
        """
        output = self._posed(shapes, poses)
        vertices = output["vertices"].numpy().astype(np.float32)
        return vertices, self._joints(vertices, output["bone_poses"][..., :3, 3].numpy())

    def bone_points(self, shapes: list[Shape], poses: np.ndarray) -> np.ndarray:
        """Where the bones start, (num_people, num_bones, 3) metres; arguments as `pose`."""
        return self._posed(shapes, poses)["bone_poses"][..., :3, 3].numpy()

    def _posed(self, shapes: list[Shape], poses: np.ndarray) -> dict[str, Any]:
        import torch

        count = len(shapes)
        transforms = np.tile(np.eye(4, dtype=np.float32), (count, len(self.bones), 1, 1))
        for bone, rotation in joint_rotations(poses, self.bones, self.bone_heads).items():
            transforms[:, self.bones[bone], :3, :3] = rotation
        phenotypes = {name: [shape.values[name] for shape in shapes] for name in (*PHENOTYPES, *ANCESTRIES)}
        facial = {name: [shape.facial.get(name, 0.0) for shape in shapes] for name in FACIAL_ACTIONS}
        return self._forward(torch.from_numpy(transforms), phenotypes, facial)

    def _joints(self, vertices: np.ndarray, heads: np.ndarray) -> np.ndarray:
        points = {}
        regressed = self._regression @ vertices[:, self._regressed_from]
        for index, name in enumerate(self._regressed):
            points[name] = regressed[:, index]
        for side, letter in zip(SIDES, "LR", strict=True):
            points[f"{side}_hand_root"] = heads[:, self.bones[f"wrist.{letter}"]]
            for finger, number in zip(FINGERS, range(1, 6), strict=True):
                for joint in range(1, 4):
                    bone = self.bones[f"finger{number}-{joint}.{letter}"]
                    points[f"{side}_{_FINGER_NAMES[finger]}{joint}"] = heads[:, bone]
        on_face = np.einsum("kc,nkcd->nkd", self._face_weights, vertices[:, self._face_corners])
        for index, name in enumerate(self._face_names):
            points[name] = on_face[:, index]
        for name, tip in self._tips.items():
            points[name] = vertices[:, tip].mean(1)
        return np.stack([points[name] for name in self.joint_names], axis=1).astype(np.float64)

    def face_normals(self, vertices: np.ndarray) -> np.ndarray:
        """Normals (num_faces, 3) of float32 vertices, outwards, twice as long as the face is large."""
        columns = np.ascontiguousarray(vertices.T)
        a, b, c = (np.take(columns, corner, axis=1) for corner in self._corners)
        return _cross(b - a, c - a)

    def vertex_normals(self, face_normals: np.ndarray) -> np.ndarray:
        """Unit normals (num_vertices, 3), the mean of the adjacent faces weighted by their area."""
        sums = _segment_sums(face_normals, self._corner_faces, self._corner_starts)
        return sums / np.maximum(lengths(sums), 1e-12)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products (num, 3) of vectors given as (3, num); several times faster than `np.cross`."""
    result = np.empty((a.shape[1], 3), dtype=a.dtype)
    result[:, 0] = a[1] * b[2] - a[2] * b[1]
    result[:, 1] = a[2] * b[0] - a[0] * b[2]
    result[:, 2] = a[0] * b[1] - a[1] * b[0]
    return result


def _segment_sums(values: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums of rows of values (num_values, size) over the segments of `rows` that begin at `starts`.

    torch gathers and adds in one pass over the memory: four times as fast as numpy's `take` and `reduceat`.
    """
    import torch
    from torch.nn.functional import embedding_bag

    return embedding_bag(
        torch.from_numpy(rows), torch.from_numpy(values), torch.from_numpy(starts), mode="sum"
    ).numpy()


def _texels(uv: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of texture coordinates; v runs upwards."""
    rows = ((1 - uv[..., 1]) * shape[0]).astype(np.int64).clip(0, shape[0] - 1)
    return rows, (uv[..., 0] * shape[1]).astype(np.int64).clip(0, shape[1] - 1)


class _CompilerWhenNeeded:
    """Stands for `torch._dynamo`: marking a function for it changes nothing, anything else loads it."""

    def disable(self, function: Any) -> Any:
        return function

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("torch._dynamo"), name)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Let anny be imported without torch's compiler, which takes as long as torch itself and is not used here.

    Of anny's dependencies, roma marks two functions as not to be compiled. Where the compiler is loaded, it stays.
    """
    import torch

    if "torch._dynamo" in sys.modules:
        yield
        return
    stand_in: Any = _CompilerWhenNeeded()
    torch._dynamo = stand_in
    try:
        yield
    finally:
        if torch._dynamo is stand_in:
            del torch._dynamo  # torch loads its own at the first use


def _directed_edges(faces: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours of the sorted vertices `of`, one after the other; where each one's start; how many each has."""
    pairs = np.concatenate([faces[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2))])
    pairs = np.unique(pairs[np.isin(pairs[:, 0], of)], axis=0)
    starts = np.searchsorted(pairs[:, 0], of).astype(np.int32)
    return np.ascontiguousarray(pairs[:, 1]), starts, np.diff(starts, append=len(pairs))[:, None].astype(np.float32)


@cache
def load_body() -> Body:
    """The body model, made once per process. The first time on a machine anny builds its cache (a minute or two).

    Raises:
        ImportError: if anny is not installed; the message names the extra.
    """
    return Body()
