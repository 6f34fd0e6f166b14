"""Pure protocol: values and bytes in, values and bytes out."""
