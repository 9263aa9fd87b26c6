"""What the machine has: paths and optional packages."""
