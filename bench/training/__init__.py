"""How fast pictures reach the network in training, and how much memory that takes."""
