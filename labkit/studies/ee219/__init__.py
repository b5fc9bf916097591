"""The EE219 quantization lab (2022): its tables, worked examples and claims."""
