"""Episodes as indices into a bank: seeded sampling, published runs, and the tasks of learn2learn."""
