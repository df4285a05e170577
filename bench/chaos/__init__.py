"""What `make chaos` runs: load, SIGKILL of whatever executes it, and a judge who never asks Redis what was done."""
