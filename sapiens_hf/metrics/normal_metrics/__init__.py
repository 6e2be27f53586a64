"""Angular errors of surface normals, pooled over all pixels."""
