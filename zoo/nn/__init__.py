"""The block library: everything that a backbone is made of."""
