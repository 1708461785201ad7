"""What a user does with a trained model: reconstruct images, and export the model."""
