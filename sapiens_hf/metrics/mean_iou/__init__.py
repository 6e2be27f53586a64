"""Mean intersection over union of label maps."""
