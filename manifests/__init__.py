"""Data, not code: one YAML file a dataset, and the embedded demonstration set."""
