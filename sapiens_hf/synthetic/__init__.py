"""Synthetic humans with exact labels (extra `synthetic`): `SyntheticHumans` in Python, `make` on the command line.

Of the rest of the package this imports the label names only: what makes the truth shares no code with what it judges.
"""

from .camera import Camera
from .dataset import SyntheticHumans
from .raycast import Hits, RayCaster

__all__ = ["Camera", "Hits", "RayCaster", "SyntheticHumans"]
