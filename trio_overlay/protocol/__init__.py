"""What is said and what is decided: no I/O, no clock, no trio, no chance but a Random passed in."""
