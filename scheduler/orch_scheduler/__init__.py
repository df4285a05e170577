"""The scheduler: the duties that move runs on when no worker does."""
