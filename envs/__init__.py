"""Functional environments and offline data sets."""
