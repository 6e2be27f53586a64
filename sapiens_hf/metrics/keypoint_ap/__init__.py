"""COCO average precision of keypoints, by part."""
