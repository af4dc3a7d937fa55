"""Stage 5: anything that runs → figures."""
