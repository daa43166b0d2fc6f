"""Random views of image batches, on the device."""
