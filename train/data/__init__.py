"""Images to train on: scikit-learn's digits, folders of images, TFDS."""
