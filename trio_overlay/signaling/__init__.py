"""Where peers meet: the server, its clients, and the roads that signals travel."""
