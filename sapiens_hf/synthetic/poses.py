"""Poses within the limits of human joints: named freedoms in degrees, natural base poses, and the rotations they mean.

Zero is a person standing upright with the arms hanging down. All freedoms of the two sides are mirror images: positive
flexion goes forwards on both, positive abduction goes away from the body.
"""

from __future__ import annotations

import numpy as np

SIDES = ("left", "right")
FINGERS = ("thumb", "index", "middle", "ring", "pinky")

# name: (lower limit, upper limit, spread of the random variation), degrees. Limits follow the usual tables of joint
# motion (American Academy of Orthopaedic Surgeons), a little inside where neighbouring skin would intersect.
_CENTRE = {
    "spine_bend": (-20.0, 55.0, 6.0),
    "spine_side": (-25.0, 25.0, 5.0),
    "spine_twist": (-35.0, 35.0, 7.0),
    "neck_bend": (-40.0, 40.0, 10.0),
    "neck_side": (-30.0, 30.0, 6.0),
    "neck_twist": (-65.0, 65.0, 18.0),
}
_SIDED = {
    "shoulder_flexion": (-50.0, 170.0, 11.0),
    "shoulder_abduction": (4.0, 170.0, 9.0),
    "shoulder_twist": (-60.0, 70.0, 12.0),
    "elbow": (3.0, 140.0, 13.0),
    "forearm_twist": (-75.0, 75.0, 20.0),
    "wrist_flexion": (-55.0, 60.0, 12.0),
    "wrist_deviation": (-18.0, 25.0, 6.0),
    "hip_flexion": (-20.0, 110.0, 6.0),
    "hip_abduction": (-6.0, 45.0, 4.0),
    "hip_twist": (-30.0, 40.0, 7.0),
    "knee": (0.0, 140.0, 7.0),
    "ankle": (-35.0, 20.0, 5.0),
    "thumb_curl": (0.0, 60.0, 14.0),
    "index_curl": (-8.0, 85.0, 14.0),
    "middle_curl": (-8.0, 88.0, 14.0),
    "ring_curl": (-8.0, 88.0, 14.0),
    "pinky_curl": (-8.0, 88.0, 14.0),
    "finger_spread": (-4.0, 14.0, 4.0),
}
FREEDOMS = (*_CENTRE, *(f"{side}_{name}" for side in SIDES for name in _SIDED))
LIMITS = np.array(
    [row[:2] for row in _CENTRE.values()] + [row[:2] for _ in SIDES for row in _SIDED.values()], dtype=np.float64
)
SPREADS = np.array([row[2] for row in _CENTRE.values()] + [row[2] for _ in SIDES for row in _SIDED.values()])
_COLUMN = {name: index for index, name in enumerate(FREEDOMS)}

Angles = dict[str, float]
# Freedoms that a base pose does not name take these values on both sides.
_RELAXED: Angles = {"shoulder_abduction": 12, "elbow": 14, "wrist_flexion": 4, "hip_abduction": 3, "knee": 3} | {
    "thumb_curl": 12,
    **{f"{finger}_curl": 16.0 + 4 * index for index, finger in enumerate(FINGERS[1:])},
}
_FIST: dict[str, float] = {f"{finger}_curl": 75 for finger in FINGERS[1:]} | {"thumb_curl": 40}
_SIT: Angles = {"hip_flexion": 82, "knee": 84, "hip_abduction": 8}
_AKIMBO: Angles = {
    "shoulder_abduction": 42,
    "shoulder_flexion": -12,
    "shoulder_twist": 40,
    "elbow": 88,
    "wrist_flexion": -20,
}
_OVERHEAD: Angles = {"shoulder_abduction": 150, "shoulder_flexion": 10, "elbow": 22}
_REACH: Angles = {"shoulder_flexion": 85, "shoulder_abduction": 8, "elbow": 12}
_TO_FACE: Angles = {"shoulder_flexion": 55, "shoulder_abduction": 10, "shoulder_twist": 10, "elbow": 128}

# weight, what both sides share (or the spine), what the left does, what the right does. A coin exchanges the sides.
POSES: dict[str, tuple[float, Angles, Angles, Angles]] = {
    "stand": (3.0, {}, {}, {}),
    "contrapposto": (1.5, {"spine_side": 5}, {"knee": 18, "hip_flexion": 12, "hip_twist": 12}, {}),
    "walk": (
        2.5,
        {"spine_bend": 4},
        {"hip_flexion": 26, "knee": 12, "shoulder_flexion": -22, "elbow": 22},
        {"hip_flexion": -14, "knee": 28, "ankle": -10, "shoulder_flexion": 24, "elbow": 32},
    ),
    "run": (
        1.5,
        {"spine_bend": 14, "elbow": 88, **_FIST},
        {"hip_flexion": 58, "knee": 72, "shoulder_flexion": -40},
        {"hip_flexion": -16, "knee": 55, "ankle": -25, "shoulder_flexion": 38},
    ),
    "arms_up": (1.3, _OVERHEAD, {}, {}),
    "wave": (1.3, {}, {"shoulder_abduction": 88, "elbow": 95, "shoulder_twist": -55, "index_curl": 0}, {}),
    "t_pose": (1.0, {"shoulder_abduction": 88, "elbow": 8}, {}, {}),
    "akimbo": (1.2, _AKIMBO, {}, {}),
    "one_akimbo": (0.8, {}, _AKIMBO, {}),
    "point": (0.8, {}, _REACH | _FIST | {"index_curl": 0}, {}),
    "reach": (1.0, _REACH, {}, {}),
    "reach_up": (0.8, {}, _OVERHEAD, {}),
    "phone": (0.8, {"neck_side": 6}, _TO_FACE, {}),
    "read": (1.0, {"neck_bend": 22, "shoulder_flexion": 28, "elbow": 95, "shoulder_twist": 20}, {}, {}),
    "fold": (0.7, {"shoulder_flexion": 34, "elbow": 100, "shoulder_twist": 58}, {}, {}),
    "sit": (1.6, _SIT | {"shoulder_flexion": 26, "elbow": 48}, {}, {}),
    "sit_cross": (0.6, _SIT | {"elbow": 60}, {"hip_flexion": 100, "hip_twist": -18, "hip_abduction": -4}, {}),
    "squat": (
        0.9,
        {"hip_flexion": 95, "knee": 112, "ankle": 18, "spine_bend": 24, "hip_abduction": 18, **_REACH},
        {},
        {},
    ),
    "lunge": (0.9, {"spine_bend": 4}, {"hip_flexion": 70, "knee": 78}, {"hip_flexion": -18, "knee": 30, "ankle": -25}),
    "kick": (0.6, {"shoulder_abduction": 55}, {"hip_flexion": 72, "knee": 12}, {"knee": 10}),
    "tree": (0.5, _OVERHEAD, {"hip_flexion": 45, "hip_abduction": 42, "knee": 105, "hip_twist": 38}, {}),
    "bend": (0.9, {"spine_bend": 46, "hip_flexion": 40, "neck_bend": -10, "shoulder_flexion": 60}, {}, {}),
    "side_lean": (0.7, {"spine_side": 20}, {"shoulder_abduction": 150}, {"shoulder_abduction": 25}),
    "wide": (0.9, {"hip_abduction": 26, "shoulder_abduction": 50}, {}, {}),
    "guard": (
        0.7,
        {"shoulder_flexion": 48, "elbow": 118, "spine_bend": 10, **_FIST},
        {"hip_flexion": 22},
        {"knee": 20},
    ),
    "free": (2.0, {}, {}, {}),
}


def sample_pose(rng: np.random.Generator, names: tuple[str, ...] | None = None) -> tuple[str, np.ndarray]:
    """A natural pose with its own variation, inside the limits.

    Returns:
        The base pose's name and its freedoms (num_freedoms,) in degrees.
    """
    names = tuple(POSES) if names is None else names
    weights = np.array([POSES[name][0] for name in names])
    name = names[rng.choice(len(names), p=weights / weights.sum())]
    _, both, left, right = POSES[name]
    if rng.random() < 0.5:
        left, right = right, left
    pose = np.zeros(len(FREEDOMS))
    for side, own in zip(SIDES, (left, right), strict=True):
        for freedom, value in (_RELAXED | both | own).items():
            pose[_COLUMN[freedom if freedom in _CENTRE else f"{side}_{freedom}"]] = value
    for middle in ("spine_side", "neck_side"):  # the same coin: these have no sides of their own
        pose[_COLUMN[middle]] *= -1 if left is POSES[name][2] else 1
    if name == "free":  # arms and head anywhere, legs near standing
        low, high = LIMITS.T
        arms = [index for index, freedom in enumerate(FREEDOMS) if "hip" not in freedom and "spine" not in freedom]
        arms = [index for index in arms if not FREEDOMS[index].endswith(("knee", "ankle"))]
        pose[arms] = 0.5 * pose[arms] + 0.5 * rng.uniform(low[arms], high[arms])
    if rng.random() < 0.3:  # hands are opened and closed independently of what the arms do
        curl = rng.uniform(-5, 80, size=2)
        for side, value in zip(SIDES, curl, strict=True):
            for finger in FINGERS[1:]:
                pose[_COLUMN[f"{side}_{finger}_curl"]] = value
    pose += rng.normal(size=len(FREEDOMS)) * SPREADS
    return name, pose.clip(*LIMITS.T)


def rotation(axes: np.ndarray, angles_deg: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) about axes (..., 3) of any length by angles (...) that broadcast with them."""
    axes = np.asarray(axes, dtype=np.float64)
    x, y, z = np.moveaxis(axes / np.linalg.norm(axes, axis=-1, keepdims=True), -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    angles = np.radians(np.asarray(angles_deg, dtype=np.float64))[..., None, None]
    return np.eye(3) + np.sin(angles) * cross + (1 - np.cos(angles)) * (cross @ cross)


Turn = tuple[np.ndarray, np.ndarray]  # an axis (3,) and angles (num_people,) in degrees


def joint_rotations(poses: np.ndarray, bones: dict[str, int], heads: np.ndarray) -> dict[str, np.ndarray]:
    """What each bone turns by, in world-aligned axes of the rest pose (anny's "local-ref").

    Args:
        poses: (num_people, num_freedoms) degrees.
        bones: index of each bone name.
        heads: (num_bones, 3) where the bones start in the rest pose.

    Returns:
        For each bone that turns, (num_people, 3, 3).
    """
    value = {name: poses[:, index] for name, index in _COLUMN.items()}
    turns: dict[str, list[Turn]] = {}
    front, side_axis, up = np.array([0.0, 1, 0]), np.array([1.0, 0, 0]), np.array([0.0, 0, 1])
    for chain, prefix in (
        (("spine05", "spine04", "spine03", "spine02", "spine01"), "spine"),
        (("neck01", "neck02", "neck03", "head"), "neck"),
    ):
        axes = ((front, "side"), (side_axis, "bend"), (up, "twist"))
        shared = [(axis, value[f"{prefix}_{name}"] / len(chain)) for axis, name in axes]
        turns |= dict.fromkeys(chain, shared)
    for side, letter in zip(SIDES, "LR", strict=True):
        own = {name.removeprefix(f"{side}_"): angle for name, angle in value.items() if name.startswith(side)}
        mirror = np.array([1.0, -1, -1]) if side == "right" else np.ones(3)
        for bone, list_of_turns in _limb_turns(own, letter, bones, heads).items():
            turns[f"{bone}.{letter}"] = [(axis * mirror, angle) for axis, angle in list_of_turns]
    flat = [turn for list_of_turns in turns.values() for turn in list_of_turns]
    matrices = rotation(np.stack([axis for axis, _ in flat])[:, None], np.stack([angle for _, angle in flat]))
    result = {}
    position = 0
    for bone, list_of_turns in turns.items():
        matrix = matrices[position]
        for later in range(position + 1, position + len(list_of_turns)):
            matrix = matrix @ matrices[later]
        result[bone] = matrix
        position += len(list_of_turns)
    return result


def _forward_lean_deg(upwards: np.ndarray) -> float:
    """How far a vector (3,) that points up leans to the front."""
    return float(np.degrees(np.arctan2(-upwards[1], upwards[2])))


def _limb_turns(
    own: dict[str, np.ndarray], letter: str, bones: dict[str, int], heads: np.ndarray
) -> dict[str, list[Turn]]:
    """The turns of one side's bones, the last of a list applied first. All axes are those of the left side.

    The right side's are their mirror images: `joint_rotations` reflects the axes, which are axial vectors.
    """
    flip = np.array([-1.0, 1, 1]) if letter == "R" else np.ones(3)

    def head(bone: str) -> np.ndarray:
        return heads[bones[f"{bone}.{letter}"]] * flip

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / np.linalg.norm(vector)

    upper, fore = unit(head("lowerarm01") - head("upperarm01")), unit(head("wrist") - head("lowerarm01"))
    hinge = np.cross(upper, fore)
    rest_bend = np.degrees(np.arccos(upper @ fore))
    rest_abduction = np.degrees(np.arctan2(upper[0], -upper[2]))
    x, y = np.array([1.0, 0, 0]), np.array([0.0, 1, 0])
    abduction = own["shoulder_abduction"]
    lift = np.maximum(abduction, own["shoulder_flexion"]).clip(60, None) * 0.22 - 13.2  # the shoulder blade helps
    rest_knee = _forward_lean_deg(head("lowerleg01") - head("foot")) - _forward_lean_deg(
        head("upperleg01") - head("lowerleg01")
    )
    leg = head("foot") - head("lowerleg01")
    across = unit(head("finger5-1") - head("finger2-1"))
    palm = np.cross(unit(head("finger3-1") - head("wrist")), across)
    result: dict[str, list[Turn]] = {
        "shoulder01": [(y, -lift)],
        "upperarm01": [
            (x, -own["shoulder_flexion"]),
            (y, lift - abduction),
            (y, np.full(len(abduction), rest_abduction)),
            (upper, 0.5 * own["shoulder_twist"]),
        ],
        "upperarm02": [(upper, 0.5 * own["shoulder_twist"])],
        "lowerarm01": [(hinge, own["elbow"] - rest_bend)],
        "lowerarm02": [(fore, 0.7 * own["forearm_twist"])],
        "wrist": [
            (fore, 0.3 * own["forearm_twist"]),
            (across, own["wrist_flexion"]),
            (palm, own["wrist_deviation"]),
        ],
        "upperleg01": [(x, -own["hip_flexion"]), (y, -own["hip_abduction"]), (leg, -0.5 * own["hip_twist"])],
        "upperleg02": [(leg, -0.5 * own["hip_twist"])],
        "lowerleg01": [(x, own["knee"] - rest_knee)],
        "foot": [(x, -own["ankle"])],
    }
    for number, finger in enumerate(FINGERS, start=1):
        first, second, third = (head(f"finger{number}-{joint}") for joint in (1, 2, 3))
        if finger == "thumb":
            axis, shares = np.cross(second - first, third - second), (0.2, 0.4, 0.4)
        else:
            along = unit(second - first)
            axis, shares = across - (across @ along) * along, (0.85, 1.0, 0.7)
        for joint, share in zip((1, 2, 3), shares, strict=True):
            result[f"finger{number}-{joint}"] = [(axis, own[f"{finger}_curl"] * share)]
        spread = (0.0, 1.0, 0.2, -0.6, -1.3)[number - 1]
        result[f"finger{number}-1"].append((palm, -spread * own["finger_spread"]))
    return result
