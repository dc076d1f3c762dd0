"""A DICOM file, a picture or a lesion mask becomes a scintigram, or one line says why not."""
