"""Models by name: made, described, loaded, edited, published."""
