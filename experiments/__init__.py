"""Everything impure: configuration, training, evaluation, files."""
