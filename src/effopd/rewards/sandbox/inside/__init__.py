"""What runs inside: the standard library only, for it is all there is."""
