"""Other models, made of the book's layers: classifier, autoencoder, text.  Read next: layers.py."""
