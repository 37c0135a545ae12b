"""Instances, holdings and items: what the library has."""
