"""Many nodes in one process, without sockets."""
