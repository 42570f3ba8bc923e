"""Parameters and what is done to them: no transport, no files, no devices."""
