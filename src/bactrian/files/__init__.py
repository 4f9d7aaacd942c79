"""What is written is whole, or not there; what is read is bounded, and says in one line what is wrong with it."""
