"""What is asked of a run, and where: data, without torch."""
