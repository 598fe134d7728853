"""What is shown: two small models, one that answers at once and one that computes for as long as it is asked to."""
