"""Stage 2: light heads trained on the stores that `dinocache` writes."""
