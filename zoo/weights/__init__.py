"""Checkpoints: the manifest of published ones, key rules, reading files and strict loading. Imports no model code."""
