"""The algorithms: pure functions only, one file per paper."""
