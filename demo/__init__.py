"""Two small models to try percore with: one answers at once, the other computes for as long as the caller asks."""
