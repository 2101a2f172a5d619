"""What a layer runs by once it is prepared, and the ways that it has."""
