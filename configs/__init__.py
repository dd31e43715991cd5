"""Hydra configuration files; this module only makes them a package that Hydra can find."""
