"""Small layers on contiguous (B, H, W, C) tensors that every block is made of."""
