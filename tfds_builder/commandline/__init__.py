"""The ground of every command: errors in one line, whole files, progress, options."""
