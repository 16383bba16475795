"""What the scripts in `analyses/` share."""
