"""Labels of synthetic humans against geometry worked out by hand, and the promises of the data set and its files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sapiens_hf.labels import class_set, keypoint_set
from sapiens_hf.synthetic import Camera, RayCaster, SyntheticHumans, background
from sapiens_hf.synthetic.__main__ import main
from sapiens_hf.synthetic.body import GROUPS, Body, load_body
from sapiens_hf.synthetic.noise import SpaceNoise, image_noise, smoothstep
from sapiens_hf.synthetic.poses import FREEDOMS, LIMITS, POSES, sample_pose
from sapiens_hf.synthetic.raycast import _embree
from sapiens_hf.synthetic.render import label, label_faces, pose_people, see, trace, visible_points
from sapiens_hf.synthetic.scene import FRAMINGS, place_people, sample_light, sample_person
from sapiens_hf.synthetic.wardrobe import MATERIALS, PATTERNS, Fabric, materials, thickness
from sapiens_hf.synthetic.writers import FORMATS, Recipe, make

SMALL = (96, 72)
WHOLEBODY = keypoint_set("coco_wholebody").names
GOLIATH = keypoint_set("goliath").names
PARTS = class_set("goliath28").names


def camera_in_front(distance=3.0, height_m=1.0, focal_px=150.0, size=(160, 120)) -> Camera:
    """On the side that people face, level, looking along the world's +y."""
    position = np.array([0.0, -distance, height_m])
    return Camera.look_at(position, np.array([0.0, 0.0, height_m]), focal_px, *size)


def upright(**changes):
    """A plain adult who stands facing the camera with nothing on and the arms a little out."""
    person = sample_person(np.random.default_rng(5))
    values = dict.fromkeys(person.shape.values, 0.5) | {"age": 0.67}
    outfit = replace(
        person.outfit, upper=None, sock=None, shoe=None, worn=frozenset(), lower_hem_z=-0.1, hair_style="short"
    )
    pose = np.zeros(len(FREEDOMS))
    for side in ("left", "right"):
        pose[FREEDOMS.index(f"{side}_shoulder_abduction")] = 25
        pose[FREEDOMS.index(f"{side}_elbow")] = 10
        pose[FREEDOMS.index(f"{side}_hip_abduction")] = 6
    shape = replace(person.shape, values=values, facial={})
    return replace(person, shape=shape, outfit=outfit, pose=pose, yaw_deg=0.0, **changes)


def turned(person, **angles):
    pose = person.pose.copy()
    for name, angle in angles.items():
        pose[FREEDOMS.index(name)] = angle
    return replace(person, pose=pose)


def view_of(people, camera, places=None):
    places = places or [(0.0, 0.0, 0.0)] * len(people)
    return trace(
        [
            see(person, vertices + place, points + place, camera)
            for person, (vertices, points), place in zip(people, pose_people(people), places)
        ],
        camera,
    )


def joints_of(person):
    points = pose_people([person])[0][1]
    return dict(zip(load_body().joint_names, points))


def keypoints_of(view, row=0):
    return dict(zip(load_body().joint_names, visible_points(view)[row]))


# ------------------------------------------------------------------------------------------------------------ camera
def test_projection_of_a_point_by_hand():
    camera = camera_in_front(distance=4.0, height_m=1.0, focal_px=100.0, size=(81, 61))
    pixels, depth = camera.project(np.array([[0.5, 1.0, 1.4], [0.0, -4.5, 1.0]]))
    # 5 m away, 0.5 m to the person's left, which is the picture's right, and 0.4 m above the optical axis.
    np.testing.assert_allclose(pixels[0], [30 + 100 * 0.5 / 5, 40 - 100 * 0.4 / 5], atol=1e-9)
    np.testing.assert_allclose(depth, [5.0, -0.5], atol=1e-9)
    assert np.isnan(pixels[1]).all()  # behind the camera


def test_rays_are_the_inverse_of_projection_with_roll_and_tilt():
    camera = Camera.look_at(np.array([0.3, -2.5, 2.0]), np.array([-0.2, 0.4, 0.9]), 130.0, 90, 70, roll_deg=17.0)
    np.testing.assert_allclose(camera.rotation @ camera.rotation.T, np.eye(3), atol=1e-12)
    pixels = np.array([[0.0, 0.0], [69.0, 89.0], [12.25, 70.5]])
    for distance in (1.0, 3.7):
        world = camera.position + distance * camera.rays(pixels) @ camera.rotation
        back, depth = camera.project(world)
        np.testing.assert_allclose(back, pixels, atol=1e-9)
        np.testing.assert_allclose(depth, distance, atol=1e-12)
    assert camera.matrix @ [0, 0, 1] == pytest.approx([*camera.center_px, 1])


def test_positive_roll_turns_the_picture_counterclockwise():
    level = camera_in_front()
    rolled = Camera.look_at(level.position, np.array([0.0, 0.0, 1.0]), 150.0, 160, 120, roll_deg=90.0)
    above = rolled.project(np.array([0.0, 0.0, 1.5]))[0] - rolled.center_px
    np.testing.assert_allclose(above, [-25.0, 0.0], atol=1e-9)


def test_crop_is_the_same_camera_enlarged():
    camera = camera_in_front(size=(160, 120))
    part = camera.crop(50.0, 60.0, 30.0, 96, 72)
    points = np.random.default_rng(0).normal([0, 0, 1], 0.3, size=(20, 3))
    whole, enlarged = camera.project(points)[0], part.project(points)[0]
    np.testing.assert_allclose(enlarged, (whole - [50.0, 60.0]) * 72 / 30 + [35.5, 47.5], atol=1e-9)


# -------------------------------------------------------------------------------------------------------- ray caster
def sphere(radius, rows=180, columns=240):
    polar, around = np.meshgrid(np.linspace(0, np.pi, rows), np.arange(columns) / columns * 2 * np.pi, indexing="ij")
    vertices = radius * np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], -1)
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b = index[:-1], index[1:]
    c, d = np.roll(b, -1, axis=1), np.roll(a, -1, axis=1)
    return vertices.reshape(-1, 3), np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)


def test_depth_of_a_tilted_plane_by_hand():
    camera = camera_in_front(focal_px=80.0, size=(48, 64))
    # z = 2 + x / 2 in camera axes: a ray (u, v, 1) meets it at depth 2 / (1 - u / 2).
    corners = np.array([[x, y, 2 + x / 2] for x in (-3.0, 3.0) for y in (-3.0, 3.0)])
    caster = RayCaster([(corners, np.array([[0, 1, 2], [1, 3, 2]]))])
    rows, columns = np.mgrid[:48, :64]
    rays = camera.rays(np.stack([columns, rows], -1).reshape(-1, 2))
    hits = caster.cast(np.zeros(3), rays)
    assert (hits.mesh == 0).all()
    np.testing.assert_allclose(hits.distance, 2 / (1 - rays[:, 0] / 2), rtol=1e-12)
    np.testing.assert_allclose(hits.weights.sum(1), 1, atol=1e-12)


def test_depth_normals_and_outline_of_a_sphere_by_hand():
    radius, center = 0.5, np.array([0.1, -0.2, 3.0])
    vertices, faces = sphere(radius)
    caster = RayCaster([(vertices + center, faces), (vertices + [-1.0, 0.5, 5.0], faces)])
    camera = camera_in_front(focal_px=110.0, size=(50, 70))
    rows, columns = np.mgrid[:50, :70]
    rays = camera.rays(np.stack([columns, rows], -1).reshape(-1, 2))
    hits = caster.cast(np.zeros(3), rays)
    # |t d - c| = r: t = (d.c - sqrt((d.c)^2 - d.d (c.c - r^2))) / d.d
    along, square = rays @ center, (rays**2).sum(1)
    inside = along**2 - square * (center @ center - radius**2)
    clear = np.abs(inside) > 0.02
    assert ((hits.mesh == 0) == (inside > 0))[clear].all()
    assert set(hits.mesh) == {-1, 0, 1}
    first = (hits.mesh == 0) & clear
    exact = (along[first] - np.sqrt(inside[first])) / square[first]
    np.testing.assert_allclose(hits.distance[first], exact, atol=2e-3)  # chords of facets are 0.17 mm inside the ball
    corners = vertices[faces[hits.face[first]]]
    normal = np.einsum("nk,nkc->nc", hits.weights[first], corners) / radius
    np.testing.assert_allclose(normal, (exact[:, None] * rays[first] - center) / radius, atol=5e-3)


def test_blocked_rays():
    vertices, faces = sphere(0.5, 20, 30)
    caster = RayCaster([(vertices, faces)])
    origins = np.array([[0.0, 0.0, -2.0], [0.0, 0.0, -2.0], [0.0, 0.0, 2.0]])
    directions = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    assert caster.blocked(origins, directions).tolist() == [True, False, False]


def test_a_scene_needs_faces():
    with pytest.raises(ValueError, match="at least one triangle"):
        RayCaster([(np.zeros((3, 3)), np.zeros((0, 3), dtype=np.int64))])


# ----------------------------------------------------------------------------------------------- body and its poses
def test_arms_and_legs_bend_by_the_angles_that_are_asked_for():
    person = turned(
        upright(),
        left_shoulder_abduction=88.0,
        right_shoulder_abduction=10.0,
        right_shoulder_flexion=90.0,
        left_elbow=100.0,
        right_elbow=5.0,
        left_knee=90.0,
        right_hip_flexion=80.0,
    )
    joints = joints_of(person)

    def limb(start, end):
        vector = joints[end] - joints[start]
        return vector / np.linalg.norm(vector)

    left, right = limb("left_shoulder", "left_elbow"), limb("right_shoulder", "right_elbow")
    assert left[0] > 0.95  # the left arm goes to the person's left, the world's +x
    assert right[1] < -0.9  # the right arm points forwards, the world's -y
    assert limb("left_knee", "left_ankle")[1] > 0.9  # knees bend backwards
    assert limb("right_hip", "right_knee")[1] < -0.9  # hips bend forwards


@pytest.mark.parametrize("angle", [15.0, 60.0, 105.0])
def test_hinges_open_by_the_angle_between_the_bones(angle):
    body = load_body()
    person = turned(upright(), right_elbow=angle, right_knee=angle)
    bones = body.bone_points([person.shape], person.pose[None])[0]

    def between(first, second, third):
        upper, lower = (
            bones[body.bones[f"{b}.R"]] - bones[body.bones[f"{a}.R"]] for a, b in ((first, second), (second, third))
        )
        return np.degrees(np.arccos(upper @ lower / np.linalg.norm(upper) / np.linalg.norm(lower)))

    # Axes and rest angles are those of the average body; this one differs from it by a degree or two.
    assert between("upperarm01", "lowerarm01", "wrist") == pytest.approx(angle, abs=2.5)
    assert between("upperleg01", "lowerleg01", "foot") == pytest.approx(angle, abs=2.5)


def test_sides_are_mirror_images():
    angles = {"shoulder_abduction": 60, "shoulder_flexion": 35, "shoulder_twist": 20, "elbow": 70, "forearm_twist": 30}
    angles |= {"wrist_flexion": 20, "hip_flexion": 30, "hip_twist": 15, "knee": 45, "index_curl": 60, "thumb_curl": 30}
    person = turned(
        upright(), **{f"{side}_{name}": angle for side in ("left", "right") for name, angle in angles.items()}
    )
    joints = joints_of(person)
    for name in [name for name in joints if name.startswith("left_")]:
        mirrored = joints[name.replace("left_", "right_")] * [-1, 1, 1]
        np.testing.assert_allclose(joints[name], mirrored, atol=3e-3, err_msg=name)


def test_fingers_curl_towards_the_palm_and_their_points_follow_in_order():
    open_hand = joints_of(turned(upright(), left_forearm_twist=0))
    curled = joints_of(
        turned(upright(), **{f"left_{finger}_curl": 80 for finger in ("index", "middle", "ring", "pinky")})
    )
    for finger in ("forefinger", "middle_finger", "ring_finger", "pinky_finger"):
        root = [np.linalg.norm(open_hand[f"left_{finger}{n}"] - open_hand["left_hand_root"]) for n in range(1, 5)]
        assert root == sorted(root)
        tip = [np.linalg.norm(hand[f"left_{finger}4"] - hand["left_hand_root"]) for hand in (open_hand, curled)]
        assert tip[1] < 0.8 * tip[0]
    wrist_to_palm = open_hand["left_thumb4"] - open_hand["left_pinky_finger1"]
    assert wrist_to_palm[1] < 0  # thumbs point forwards when the arms hang


def test_joints_are_those_of_anny():
    import anny
    import torch

    body = load_body()
    person = upright()
    vertices, points = body.pose([person.shape], person.pose[None])
    named = dict(zip(body.joint_names, points[0]))
    regressor = anny.KeypointsRegressor.coco(body.model)
    # In float64: anny's own float32 is up to 2e-5 m off.
    expected = regressor.double()({"vertices": torch.from_numpy(vertices).double()})[0].numpy()
    for name, point in zip(regressor.labels, expected):
        np.testing.assert_allclose(named[name], point, atol=1e-6)
    assert set(body.joint_names) <= set(WHOLEBODY)
    assert len(body.joint_names) == 23 + 51 + 2 * 21


def test_face_points_lie_where_their_numbers_say():
    joints = joints_of(upright())
    face = {int(name.removeprefix("face-")): point for name, point in joints.items() if name.startswith("face-")}
    assert sorted(face) == list(range(17, 68))  # the jaw has no truth
    partner = dict(keypoint_set("coco_wholebody").flip_pairs)
    partner |= {right: left for left, right in partner.items()}
    for number, point in face.items():
        mirrored = face[partner.get(23 + number, 23 + number) - 23] * [-1, 1, 1]
        np.testing.assert_allclose(point, mirrored, atol=2e-3, err_msg=str(number))
    # The person's right half comes first: eyebrows, eyes and mouth run from the person's right to the left.
    for run in ((17, 18, 19, 20, 21, 22, 23, 24, 25, 26), (31, 32, 33, 34, 35), (48, 49, 50, 51, 52, 53, 54)):
        assert (np.diff([face[number][0] for number in run]) > 0).all()
    for run in ((27, 28, 29, 30), (19, 37, 41), (24, 43, 47), (33, 51, 62, 66, 57)):
        assert (np.diff([face[number][2] for number in run]) < 0).all()
    assert face[36][0] < face[39][0] < face[42][0] < face[45][0]
    np.testing.assert_allclose((face[36] + face[39]) / 2, joints["right_eye"], atol=0.02)
    np.testing.assert_allclose(face[30], joints["nose"], atol=0.02)
    assert (np.array([point[1] for point in face.values()]) < joints["left_ear"][1]).all()


def test_an_open_mouth_moves_the_lower_lip():
    person = upright()
    wide = replace(person, shape=replace(person.shape, facial={"jawOpen": 1.0}))
    shut, opened = joints_of(person), joints_of(wide)
    gap = [points["face-62"][2] - points["face-66"][2] for points in (shut, opened)]
    assert gap[0] < 0.008 and gap[1] > gap[0] + 0.015


def test_people_stand_on_the_ground_and_turn_by_their_yaw():
    person = upright()
    (vertices, points), (_, turned_points) = pose_people([person, replace(person, yaw_deg=90.0)])
    assert vertices[:, 2].min() == pytest.approx(0, abs=1e-6)
    names = load_body().joint_names
    nose, turned_nose = points[names.index("nose")], turned_points[names.index("nose")]
    assert nose[1] < -0.05 and abs(nose[0]) < 0.02
    np.testing.assert_allclose(turned_nose, [-nose[1], nose[0], nose[2]], atol=1e-6)


def test_poses_stay_within_the_limits_of_joints():
    rng = np.random.default_rng(0)
    names, poses = zip(*(sample_pose(rng) for _ in range(400)))
    poses = np.stack(poses)
    low, high = LIMITS.T
    assert ((poses >= low) & (poses <= high)).all()
    assert set(names) == set(POSES)
    assert (poses.std(0) > 1).all()
    name, _ = sample_pose(rng, ("wave",))
    assert name == "wave"


# ------------------------------------------------------------------------------------------------------------ labels
@pytest.fixture(scope="module")
def front_view():
    return view_of([upright()], camera_in_front())


def test_keypoints_are_the_projected_joints(front_view):
    person, camera = upright(), camera_in_front()
    joints, found = joints_of(person), keypoints_of(front_view)
    for name, point in joints.items():
        x = 59.5 + 150 * point[0] / (point[1] + 3)
        y = 79.5 - 150 * (point[2] - 1) / (point[1] + 3)
        np.testing.assert_allclose(found[name][:2], [x, y], atol=1e-6, err_msg=name)
    assert camera.center_px == (59.5, 79.5)
    for name in ("nose", "left_eye", "right_shoulder", "left_wrist", "right_knee", "left_ankle", "right_big_toe"):
        assert found[name][2] == 2, name


def test_depth_is_along_the_camera_axis(front_view):
    depth = label(front_view)["depth"]
    x, y, _ = keypoints_of(front_view)["nose"]
    nose = joints_of(upright())["nose"]
    assert depth[round(y), round(x)] == pytest.approx(nose[1] + 3, abs=0.02)
    assert depth.dtype == np.float32 and (depth[depth > 0] > 2.5).all() and (depth < 3.4).all()


def test_left_and_right_are_the_persons(front_view):
    segmentation = label(front_view)["segmentation"]
    columns = np.arange(segmentation.shape[1])
    for part in ("Hand", "Lower_Arm", "Upper_Arm", "Foot", "Lower_Leg", "Upper_Leg"):
        left, right = ((segmentation == PARTS.index(f"{side}_{part}")) for side in ("Left", "Right"))
        assert left.sum() > 5 and right.sum() > 5, part
        assert (left.sum(0) @ columns) / left.sum() > 59.5 > (right.sum(0) @ columns) / right.sum(), part
    found = keypoints_of(front_view)
    for name, part in (("left_wrist", "Left_"), ("right_wrist", "Right_"), ("left_ankle", "Left_"), ("nose", "Face")):
        x, y, _ = found[name]
        assert PARTS[segmentation[round(y), round(x)]].startswith(part), name
    rows = {name: np.nonzero(segmentation == PARTS.index(name))[0] for name in ("Hair", "Face_Neck", "Torso")}
    assert rows["Hair"].mean() < rows["Face_Neck"].mean() < rows["Torso"].mean()
    upper, lower = (np.nonzero(segmentation == PARTS.index(name))[0] for name in ("Upper_Lip", "Lower_Lip"))
    assert len(upper) + len(lower) > 0


def test_signs_of_the_normals(front_view):
    dense = label(front_view)
    normals, mask = dense["normals"], dense["mask"]
    np.testing.assert_allclose(np.linalg.norm(normals[mask], axis=-1), 1, atol=1e-5)
    assert (normals[~mask] == 0).all()
    assert normals[mask][:, 2].mean() > 0.6  # z towards the camera
    rows, columns = np.nonzero(dense["segmentation"] == PARTS.index("Torso"))
    left_edge, right_edge = columns <= columns.min() + 2, columns >= columns.max() - 2
    assert normals[rows[left_edge], columns[left_edge], 0].mean() < -0.3  # x to the right
    assert normals[rows[right_edge], columns[right_edge], 0].mean() > 0.3
    rows, columns = np.nonzero(dense["segmentation"] == PARTS.index("Hair"))
    assert normals[rows[:5], columns[:5], 1].mean() > 0.5  # y up: the crown looks upwards


def test_normals_are_those_of_the_depth_surface():
    camera = camera_in_front(distance=2.0, height_m=1.3, focal_px=900.0, size=(200, 260))
    dense = label(view_of([upright()], camera))
    depth, normals = dense["depth"].astype(np.float64), dense["normals"]
    rows, columns = np.mgrid[:200, :260]
    points = camera.rays(np.stack([columns, rows], -1)) * depth[..., None]
    along_x, along_y = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    # x right, y down, z forwards: the cross product below points to the camera; y and z then change their signs.
    expected = np.cross(along_y, along_x) * [1, -1, -1]
    expected /= np.maximum(np.linalg.norm(expected, axis=-1, keepdims=True), 1e-12)
    smooth = (np.abs(along_x[..., 2]) < 0.01) & (np.abs(along_y[..., 2]) < 0.01) & (depth[1:-1, 1:-1] > 0)
    for shift in ((0, 1), (2, 1), (1, 0), (1, 2)):
        smooth &= depth[shift[0] : 198 + shift[0], shift[1] : 258 + shift[1]] > 0
    cosine = (expected * normals[1:-1, 1:-1]).sum(-1)[smooth]
    assert smooth.sum() > 5000
    assert np.degrees(np.arccos(np.median(cosine))) < 6  # normals are interpolated, facets are flat


def test_what_hides_a_point():
    person = upright()
    behind = view_of([person, person], camera_in_front(distance=4.0), [(0.0, 0.0, 0.0), (0.0, -1.2, 0.0)])
    assert keypoints_of(behind, 0)["nose"][2] == 1 and keypoints_of(behind, 1)["nose"][2] == 2
    instances = label(behind)["instances"]
    assert (instances == 1).sum() > (instances == 0).sum()
    from_behind = keypoints_of(view_of([replace(person, yaw_deg=180.0)], camera_in_front()))
    assert from_behind["nose"][2] == 1 and from_behind["left_eye"][2] == 1
    assert from_behind["left_shoulder"][2] == 2 and from_behind["right_elbow"][2] == 2
    assert from_behind["left_shoulder"][0] < 59.5 < from_behind["right_shoulder"][0]
    profile = keypoints_of(view_of([replace(person, yaw_deg=90.0)], camera_in_front()))  # the right side is seen
    assert profile["right_ear"][2] == 2 and profile["left_ear"][2] == 1
    assert profile["right_shoulder"][2] == 2 and profile["left_shoulder"][2] == 1
    before_the_chest = turned(person, right_shoulder_flexion=45, right_elbow=125, right_shoulder_twist=55)
    assert keypoints_of(view_of([before_the_chest], camera_in_front()))["right_wrist"][2] == 2


def test_points_outside_the_picture():
    camera = camera_in_front(height_m=1.45, focal_px=400.0, size=(120, 90))
    found = keypoints_of(view_of([upright()], camera))
    assert found["left_ankle"].tolist() == [0, 0, 0] and found["right_hip"].tolist() == [0, 0, 0]
    assert found["nose"][2] == 2


def test_nobody_in_view():
    camera = camera_in_front()
    assert view_of([upright()], camera, [(0.0, -9.0, 0.0)]) is None  # behind the camera
    one = view_of([upright(), upright()], camera, [(0.0, 0.0, 0.0), (0.0, -9.0, 0.0)])
    assert visible_points(one)[1].max() == 0


def test_clothes_name_their_parts():
    body = load_body()
    outfit = sample_person(np.random.default_rng(1)).outfit
    cloth = Fabric("plain", np.ones((2, 3)), 1.0, 0.0, 0.0, 0.0)
    worn = frozenset({"cap", "belt", "scarf", "watch", "gloves", "tie", "straps", "headband", "beanie"})
    dressed = replace(
        outfit, upper=cloth, sleeve=1.95, hem_z=0.05, neckline="crew", tucked=False, lower=cloth, lower_hem_z=-0.72,
        waist_z=0.12, sock=cloth, sock_z=-0.6, shoe=cloth, shoe_z=-0.74, hair_style="long", worn=frozenset(),
    )  # fmt: skip

    def used(outfit, *groups):
        inside = np.isin(body.vertex_group, [GROUPS.index(group) for group in groups])
        material = materials(outfit, body.canonical, body.vertex_group, body.ear_vertices)
        return {MATERIALS[number] for number in np.unique(material[inside])}, material

    assert used(dressed, "left_upper_arm", "right_upper_arm")[0] == {"upper"}
    assert used(dressed, "left_hand")[0] == {"skin"}
    assert used(dressed, "left_shin")[0] == {"lower"} or used(dressed, "left_shin")[0] == {"lower", "sock"}
    assert "shoe" in used(dressed, "left_foot")[0] and "hair" in used(dressed, "head")[0]
    assert used(replace(dressed, worn=worn), "left_hand", "right_hand")[0] == {"apparel"}
    assert "apparel" in used(replace(dressed, worn=worn), "head")[0]
    boots = replace(dressed, shoe_z=-0.5, lower_hem_z=-0.2)
    assert "shoe" in used(boots, "right_shin")[0]
    bald = replace(dressed, hair_style="bald")
    assert used(bald, "head")[0] == {"skin"}
    for neckline in ("crew", "v", "scoop", "high", "strap"):
        shirt = replace(dressed, neckline=neckline, sleeve=0.0, tucked=True)
        covered = used(shirt, "torso")[1] == MATERIALS.index("upper")
        assert covered.sum() > 200, neckline
        assert used(shirt, "left_upper_arm")[0] <= {"skin", "upper"}
    high = used(replace(dressed, neckline="high", hair_style="short"), "neck")[0]
    assert "upper" in high
    for outfit in (dressed, replace(dressed, hair_style="bun", worn=worn), boots):
        material = materials(outfit, body.canonical, body.vertex_group, body.ear_vertices)
        offset = thickness(outfit, body, material, SpaceNoise(np.random.default_rng(0)))
        assert (offset[material == 0] == 0).all() and (offset[material == MATERIALS.index("shoe")] > 0.005).all()
        assert -0.02 < offset.min() and offset.max() < 0.15


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mix_two_colours(pattern):
    points = np.random.default_rng(0).uniform([-0.2, -0.15, 0], [0.2, 0.1, 0.5], size=(500, 3)).astype(np.float32)
    colors = np.array([[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]], dtype=np.float32)
    noise = SpaceNoise(np.random.default_rng(1))
    found = Fabric(pattern, colors, 0.06, 0.5, 0.0, 0.0).albedo(points, noise)
    assert found.shape == (500, 3) and ((found >= 0.0999) & (found <= 0.9001)).all()
    assert (np.ptp(found, axis=0) > 0.1).all() == (pattern != "plain")
    rough = Fabric(pattern, colors, 0.06, 0.5, 0.0, 0.5).albedo(points, noise)
    assert np.abs(rough / found - 1).max() < 0.3 and np.abs(rough - found).max() > 0


def test_noise_is_smooth_and_repeats_nowhere_else():
    noise = SpaceNoise(np.random.default_rng(0))
    points = np.random.default_rng(1).uniform(-1, 1, size=(300, 3)).astype(np.float32)
    assert np.abs(noise(points, 5.0, 3) - noise(points + 1e-4, 5.0, 3)).max() < 0.02
    assert noise(points, 5.0).std() > 0.1
    picture = image_noise(np.random.default_rng(2), 30, 50, 6.0)
    assert picture.shape == (30, 50) and picture.min() >= 0 and picture.max() <= 1
    assert smoothstep(0.0, 2.0, np.array([-1.0, 1.0, 3.0])).tolist() == [0.0, 0.5, 1.0]


# ---------------------------------------------------------------------------------------------------------- data set
@pytest.fixture(scope="module")
def samples():
    dataset = SyntheticHumans(11, SMALL, length=8)
    return [dataset[index] for index in range(8)]


def test_shapes_and_ranges_of_samples(samples):
    assert len({len(sample["boxes"]) for sample in samples}) > 1
    for sample in samples:
        count = len(sample["boxes"])
        assert sample["image"].shape == (*SMALL, 3) and sample["image"].dtype == np.uint8
        assert sample["keypoints"].shape == (count, 133, 3) and sample["keypoints_308"].shape == (count, 308, 3)
        assert sample["segmentation"].dtype == np.uint8 and sample["segmentation"].max() < 28
        mask = sample["mask"]
        for same in (sample["segmentation"] > 0, sample["depth"] > 0, (sample["normals"] != 0).any(-1)):
            assert (same == mask).all()
        np.testing.assert_allclose(np.linalg.norm(sample["normals"][mask], axis=-1), 1, atol=1e-5)
        assert sample["normals"].dtype == sample["depth"].dtype == np.float32
        rows, columns = np.mgrid[: SMALL[0], : SMALL[1]]
        rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(sample["intrinsics"]).T
        facing = (rays * sample["normals"] * [1, -1, -1]).sum(-1)[mask]
        assert (facing < 1e-4).all()  # no visible surface looks away
        for row, (x, y, w, h) in enumerate(sample["boxes"]):
            mine = sample["instances"] == row
            assert mine.sum() >= 32 and mine[int(y) : int(y + h), int(x) : int(x + w)].sum() == mine.sum()
            assert mine[int(y)].any() and mine[:, int(x + w) - 1].any()


def test_keypoints_of_samples(samples):
    known = [index for index, name in enumerate(WHOLEBODY) if name in load_body().joint_names]
    unknown = [index for index in range(133) if index not in known]
    shared = [(WHOLEBODY.index(name), index) for index, name in enumerate(GOLIATH) if name in WHOLEBODY]
    assert len(shared) == 53
    visibilities = set()
    for sample in samples:
        points = sample["keypoints"]
        visibilities |= set(points[..., 2].ravel())
        hidden = points[..., 2] == 0
        assert (points[hidden] == 0).all() and (points[:, unknown] == 0).all()
        inside = points[~hidden][:, :2]
        assert (inside >= 0).all() and (inside <= np.array([SMALL[1], SMALL[0]]) - 1).all()
        ours, theirs = (list(indices) for indices in zip(*shared))
        np.testing.assert_array_equal(sample["keypoints_308"][:, theirs], points[:, ours])
        rest = np.delete(sample["keypoints_308"], theirs, axis=1)
        assert (rest == 0).all()
    assert visibilities == {0, 1, 2}


def test_an_item_depends_on_seed_and_index_alone(samples):
    again = SyntheticHumans(11, SMALL, length=400)
    again[7]
    for index in (5, 2):
        for key, value in again[index].items():
            np.testing.assert_array_equal(value, samples[index][key], err_msg=key)
    assert not np.array_equal(SyntheticHumans(12, SMALL)[5]["image"], samples[5]["image"])
    np.testing.assert_array_equal(again[-400]["image"], samples[0]["image"])
    with pytest.raises(IndexError):
        again[400]


def test_crop_mode_has_one_person_in_the_middle():
    dataset = SyntheticHumans(4, SMALL, people=(1, 2), crop=True)
    assert len(dataset) == 1_000_000
    for index in range(4):
        sample = dataset[index]
        x, y, w, h = sample["boxes"][0]
        rows, columns = np.nonzero(sample["instances"] == 0)
        assert abs(columns.mean() - 35.5) < 20 and abs(rows.mean() - 47.5) < 25
        assert 0.5 < max(w / SMALL[1], h / SMALL[0]) <= 1.0


@pytest.mark.parametrize("framing", FRAMINGS)
def test_every_framing_gives_a_picture(framing):
    sample = SyntheticHumans(2, (64, 88), people=(1, 1), framings=(framing,), face_segmentation=True)[3]
    assert sample["image"].shape == (64, 88, 3) and sample["mask"].sum() > 32
    assert ((sample["face_segmentation"] > 0) == sample["mask"]).all()


def test_face_classes():
    bearded = upright()
    height_m = joints_of(bearded)["nose"][2]
    camera = camera_in_front(distance=1.5, height_m=height_m, focal_px=600.0, size=(150, 130))
    outfit = replace(bearded.outfit, beard=0.8, worn=frozenset({"cap"}))
    faces = label_faces(view_of([replace(bearded, outfit=outfit)], camera))
    names = class_set("face_synthetics19").names
    centers = {names[number]: np.argwhere(faces == number).mean(0) for number in np.unique(faces)}
    for name in ("Skin", "Nose", "Neck", "Beard", "Hair", "Headwear", "Top_lip", "Bottom_lip"):
        assert name in centers, name
    for part in ("eye", "brow", "ear"):
        assert centers[f"Left_{part}"][1] > centers["Nose"][1] > centers[f"Right_{part}"][1]
    order = ["Headwear", "Left_brow", "Left_eye", "Nose", "Top_lip", "Bottom_lip", "Neck"]
    rows = [centers[name][0] for name in order]
    assert rows == sorted(rows)


def test_places_keep_people_apart():
    rng = np.random.default_rng(0)
    camera = camera_in_front(distance=5.0)
    for _ in range(10):
        places = np.array(place_people(rng, camera, 4))
        apart = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(len(places), 1)]
        assert (apart > 0.6).all() and (places[0] == 0).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"size": (8, 40)}, r"\(height, width\).*\(8, 40\)"),
        ({"people": (0, 2)}, r"between 1 and 4, got \(0, 2\)"),
        ({"people": (2, 5)}, "between 1 and 4"),
        ({"seed": -1}, "seed=-1"),
        ({"length": 0}, "length=0"),
        ({"framings": ("hole",)}, "Unknown framing 'hole'; choose from whole"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticHumans(**({"seed": 0} | arguments))


def test_views_that_show_nobody_are_drawn_again(monkeypatch):
    dataset = SyntheticHumans(11, SMALL)
    first, calls = dataset[3], []

    def blind_at_first(people, camera):
        calls.append(camera)
        return None if len(calls) < 3 else trace(people, camera)

    monkeypatch.setattr("sapiens_hf.synthetic.dataset.trace", blind_at_first)
    again = dataset[3]
    assert len(calls) >= 3 and not np.array_equal(again["image"], first["image"])
    monkeypatch.undo()
    monkeypatch.setattr("sapiens_hf.synthetic.dataset.MAX_ATTEMPTS", 2)
    with pytest.raises(RuntimeError, match="None of 2 views for item 3 shows 100000 pixels.*smaller min_pixels"):
        SyntheticHumans(11, SMALL, min_pixels=100_000)[3]


@pytest.mark.parametrize("kind", background.KINDS)
def test_backgrounds_fill_the_picture_and_take_shadows(monkeypatch, kind):
    monkeypatch.setattr(background, "KINDS", {kind: 1.0})
    monkeypatch.setattr(background, "MAX_SIDE_PX", 48)
    camera = Camera.look_at(np.array([0.0, -3.0, 1.6]), np.array([0.0, 0.0, 0.8]), 70.0, 80, 60)
    pictures = []
    for shadow in (False, True):
        rng = np.random.default_rng(8)
        light = sample_light(np.random.default_rng(4), camera)
        pictures.append(background.draw_background(rng, camera, light, lambda points: np.full(len(points), shadow)))
    for picture in pictures:
        assert picture.shape == (80, 60, 3) and np.isfinite(picture).all() and picture.min() >= 0
        assert picture.max() > 0.05 and picture.std() > 0.005
    darker = pictures[1].mean() < pictures[0].mean()
    assert darker == (kind != "shapes")  # blurred shapes have no ground


def test_the_body_is_loaded_without_the_compiler_which_works_afterwards():
    """Its import takes as long as torch's own; a start is to take under five seconds."""
    program = """
import sys, torch
from sapiens_hf.synthetic.body import _without_compiler, load_body
load_body()
assert "torch._dynamo" not in sys.modules and "_dynamo" not in vars(torch)
with _without_compiler():
    assert torch._dynamo.disable(max) is max
    assert callable(torch._dynamo.explain)
assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.disable(max) is not max
with _without_compiler():
    assert torch._dynamo is sys.modules["torch._dynamo"]
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist())
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[2.0, 2.0]", run.stderr


def test_missing_packages_name_the_extra(monkeypatch):
    for package, build in (("anny", Body), ("embreex.rtcore", _embree.__wrapped__)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=r"pip install \"sapiens_hf\[synthetic\]\""):
            build()


# ------------------------------------------------------------------------------------------------------------- files
RECIPE = Recipe(seed=21, height=64, width=48, people=(1, 2), formats=FORMATS)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    assert make(folder, RECIPE, 4) == 4
    return folder


def test_folder_trees_hold_the_samples_exactly(written):
    dataset = RECIPE.humans(4)
    for index in range(4):
        sample, stem = dataset[index], f"{index:06d}"
        for folder, values in (
            ("images", sample["image"]),
            ("masks", sample["mask"] * np.uint8(255)),
            ("segmentations", sample["segmentation"]),
        ):
            np.testing.assert_array_equal(np.asarray(Image.open(written / folder / f"{stem}.png")), values)
        np.testing.assert_array_equal(np.load(written / "depths" / f"{stem}.npy"), sample["depth"])
        np.testing.assert_array_equal(np.load(written / "normals" / f"{stem}.npy"), sample["normals"])
        face = RECIPE.faces(4)[index]
        found = np.asarray(Image.open(written / "face_synthetics" / f"{stem}_seg.png"))
        np.testing.assert_array_equal(found, face["face_segmentation"])


def test_coco_files(written):
    from pycocotools.coco import COCO

    coco = COCO(written / "annotations" / "coco_wholebody.json")
    dataset = RECIPE.humans(4)
    by_image = {index: dataset[index] for index in range(4)}
    seen = 0
    for image_id, sample in by_image.items():
        people = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
        assert len(people) == len(sample["boxes"])
        for row, person in enumerate(people):
            mine = sample["instances"] == row
            np.testing.assert_array_equal(coco.annToMask(person).astype(bool), mine)
            assert person["area"] == mine.sum() and person["bbox"] == sample["boxes"][row].tolist()
            keys = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
            points = np.concatenate([np.reshape(person[key], (-1, 3)) for key in keys])
            np.testing.assert_allclose(points, sample["keypoints"][row], atol=6e-4)
            goliath = np.reshape(person["goliath_wholebody_kpts"], (-1, 3))
            np.testing.assert_allclose(goliath, sample["keypoints_308"][row], atol=6e-4)
            assert person["num_keypoints"] == (points[:17, 2] > 0).sum()
            assert person["face_valid"] == bool(points[23:91, 2].any())
            x, y, w, h = person["lefthand_box"]
            hand = points[91:112]
            hand = hand[hand[:, 2] > 0, :2]
            assert person["lefthand_valid"] == (len(hand) > 0)
            if len(hand):
                np.testing.assert_allclose([x, y, x + w, y + h], [*hand.min(0), *hand.max(0)], atol=2e-3)
            seen += 1
    plain = json.loads((written / "annotations" / "person_keypoints.json").read_text())
    assert len(plain["annotations"]) == seen
    assert all(len(person["keypoints"]) == 51 and "foot_kpts" not in person for person in plain["annotations"])
    assert plain["categories"][0]["keypoints"] == list(keypoint_set("coco").names)
    assert plain["images"][3] == {"id": 3, "file_name": "000003.png", "height": 64, "width": 48}


def test_table_loads_with_datasets(written, tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.load_dataset(str(written / "table"), split="train", cache_dir=str(tmp_path))
    assert len(table) == 4
    row, sample = table[2], RECIPE.humans(4)[2]
    np.testing.assert_array_equal(np.asarray(row["image"]), sample["image"])
    np.testing.assert_array_equal(np.asarray(row["segmentation"]), sample["segmentation"])
    np.testing.assert_array_equal(np.asarray(row["depth"]), sample["depth"])
    picture = np.asarray(row["normals"]).astype(float)
    np.testing.assert_allclose(picture[sample["mask"]] / 127.5 - 1, sample["normals"][sample["mask"]], atol=0.005)
    assert (picture[~sample["mask"]] == 0).all()
    np.testing.assert_allclose(row["keypoints"], sample["keypoints"], atol=6e-4)
    np.testing.assert_allclose(row["boxes"], sample["boxes"])


def test_a_stopped_run_continues_and_nothing_is_written_twice(written, tmp_path):
    folder = tmp_path / "set"
    finished = []

    def stop_after_two(steps, total, done):
        assert (total, done) == (4, 0)
        for index in steps:
            finished.append(index)
            yield index
            if len(finished) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(folder, RECIPE, 4, progress=stop_after_two)
    (folder / "images" / "000003.png").write_bytes(b"cut short")  # a killed process got no record written
    old = {path: path.stat().st_mtime_ns for path in folder.rglob("00000[01].*")}
    assert make(folder, RECIPE, 4) == 2
    assert {path: path.stat().st_mtime_ns for path in old} == old
    ours, theirs = contents(folder), contents(written)
    assert set(ours) == set(theirs)
    assert [path for path in ours if ours[path] != theirs[path] and path.suffix != ".parquet"] == []


def test_files_do_not_depend_on_workers(written, tmp_path):
    assert make(tmp_path / "set", replace(RECIPE, formats=("trees",)), 2, workers=2) == 2
    for path, content in contents(tmp_path / "set").items():
        if path.name != "dataset.json":
            assert content == (written / path).read_bytes(), path


def test_foreign_folders_and_unknown_formats_are_refused(written, tmp_path):
    with pytest.raises(FileExistsError, match="seed 21 instead of 22"):
        make(written, replace(RECIPE, seed=22), 4)
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no dataset.json"):
        make(tmp_path, RECIPE, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    for formats, message in (((), r"\(none\)"), (("coco", "voc"), "Unknown formats voc; choose from coco")):
        with pytest.raises(ValueError, match=message):
            make(tmp_path / "new", replace(RECIPE, formats=formats), 1)
    with pytest.raises(ValueError, match="got 0 and 1"):
        make(tmp_path / "new", RECIPE, 0)
    assert not (tmp_path / "new").exists()


def test_the_table_needs_datasets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install \"sapiens_hf\[synthetic\]\""):
        make(tmp_path / "new", RECIPE, 1)


def test_a_grown_table_replaces_its_shards(written, tmp_path, monkeypatch):
    monkeypatch.setattr("sapiens_hf.synthetic.writers.ROWS_PER_SHARD", 1)
    recipe = replace(RECIPE, formats=("table",))
    make(tmp_path / "set", recipe, 1)
    make(tmp_path / "set", recipe, 2)
    names = sorted(path.name for path in (tmp_path / "set" / "table").iterdir())
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]


def test_command_line(tmp_path, capsys):
    out = str(tmp_path / "set")
    common = ["make", "--out", out, "--size", "64x48", "--people", "1", "--formats", "coco"]
    assert main([*common, "--count", "1", "--seed", "3"]) == 0
    assert "1 samples (1 new), seed 3" in capsys.readouterr().out
    assert main([*common, "--count", "1", "--seed", "4"]) == 1
    assert "error:" in capsys.readouterr().err
    assert main(["make", "--out", out, "--count", "1", "--formats", "all", "--size", "8x8"]) == 1
    for wrong in (["--size", "64"], ["--people", "one"]):
        with pytest.raises(SystemExit):
            main([*common, "--count", "1", *wrong])


def test_command_line_can_be_stopped(tmp_path, capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sapiens_hf.synthetic.__main__.make", stopped)
    assert main(["make", "--out", str(tmp_path), "--count", "1"]) == 130
    assert "continues" in capsys.readouterr().err
