"""What is done with the events of a training loop: files, display, utilisation report, a user's callback."""
