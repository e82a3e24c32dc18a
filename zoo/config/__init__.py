"""Configurations: YAML to frozen dataclasses. Needs neither torch nor a model."""
