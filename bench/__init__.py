"""What `make bench` runs: one file per subject, each a list of measures; nothing here fails because a figure is poor."""
