"""The programs: what their command lines mean, and what they print."""
