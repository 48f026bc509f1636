"""Other models, built from the layers of the book: classifier, autoencoder, text.  Read next: layers.py."""
