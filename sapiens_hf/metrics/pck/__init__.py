"""Percentage of correct keypoints."""
