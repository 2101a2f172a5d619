"""Data in the forms that people have, and the one door through which all of them come."""
