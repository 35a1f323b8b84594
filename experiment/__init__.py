"""A training run on disk: folder, configuration, metrics, checkpoint, provenance, pictures."""
