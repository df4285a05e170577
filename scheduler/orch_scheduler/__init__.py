"""The scheduler: duties that plan, queue, rescue and clean up. See ``service``."""
