"""Where data comes from: Atari games and task streams. Knows nothing of agents."""
