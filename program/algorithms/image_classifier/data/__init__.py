"""What every source of images shares: its protocol, the order of its rows, and the decoding of images."""
