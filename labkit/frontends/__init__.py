"""What comes in: networks of other libraries as float graphs."""
