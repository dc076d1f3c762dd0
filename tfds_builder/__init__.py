"""From images and a label table to a TFDS data set of whole-body bone scintigrams."""
