"""Depth errors per image, averaged over images."""
