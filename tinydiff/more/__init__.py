"""Other models, made of the book's layers: text, classifier, autoencoder.  Read next: layers.py."""
