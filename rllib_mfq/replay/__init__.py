"""What learners remember of what was played: numpy, no Ray."""
