"""What a prediction is worth, one module for each sort of prediction: arrays in, numbers out."""
