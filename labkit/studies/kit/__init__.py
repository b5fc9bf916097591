"""What labkit itself reaches: figures that no single document asks for."""
